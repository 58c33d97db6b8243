// Codes of a batch: z = x wT + b selected as it is made, never stored.
//
// Latents go by in chunks: a product of the batch and a chunk, then a filter that reads it once, a block of threads a
// row. What passes the row's limit, the k-th largest so far, joins the row's list in order; when the list is full it is
// cut to its k largest, and the limit rises. So the list is always in ascending order, and ties need no keys of their
// own. See encode.h and candidates.h for the same on a CPU.
#pragma once
#include "cuda/product.cuh"
#include "cuda/select.cuh"

namespace fastae {

// Arrays of the work memory, one after another on 256 bytes: as Memory of encode.py counts them.
struct Carve {
  char* p;
  template <class U> FASTAE_INLINE U* take(int64_t n) {
    U* const here = (U*)p;
    p += (n * (int64_t)sizeof(U) + 255) / 256 * 256;
    return here;
  }
};

// extra[0]: first latent of the chunk; [1]: latents of a chunk; [2]: entries that a list holds.
struct Encode {
  const Launch& o;
  View<T> x, w, val, pre;
  View<int32_t> idx, count;
  const T *b, *threshold;
  bool single, magnitude;
  T margin;
  int kind;
  const int32_t* subset;
  int64_t p, n, k, first, chunk, room;
  T *z, *list;
  int32_t *latents, *held;  // held: entries of a row's list, -1 for a row that is not finite
  Key* limit;
  Carve rest;  // a subset's rows of w of the chunk, or what certify.cuh keeps

  FASTAE_INLINE explicit Encode(const Launch& launch) : o(launch) {
    namespace at = at_encode;
    x = o.real(at::s_x);
    w = o.real(at::s_w);
    val = o.real(at::s_val);
    pre = o.real(at::s_pre);
    idx = o.view<int32_t>(at::s_idx);
    count = o.view<int32_t>(at::s_count);
    b = o.real(at::s_b).p;
    threshold = o.real(at::s_threshold).p;
    single = threshold && o.slot[at::s_threshold].columns == 1;
    margin = (T)o.f[at::f_margin];
    kind = (int)o.i[at::i_kind];
    magnitude = kind == code_kind::abs_topk;
    subset = o.view<const int32_t>(at::s_subset).p;
    p = w.columns;
    n = subset ? smaller<int64_t>(w.rows, *o.view<const int32_t>(at::s_n_subset).p) : w.rows;
    k = smaller(present_k(o, smaller(w.rows, o.i[at::i_k]), o.i[at::i_k_scalar]), n);
    first = o.extra[0];
    chunk = o.extra[1];
    room = o.extra[2];
    Carve c = {(char*)o.work};
    z = c.take<T>(o.m * chunk);
    list = c.take<T>(o.m * room);
    latents = c.take<int32_t>(o.m * room);
    held = c.take<int32_t>(o.m);
    limit = c.take<Key>(o.m);
    rest = c;
  }

  FASTAE_INLINE bool ragged() const { return kind == code_kind::threshold; }
  FASTAE_INLINE int64_t columns() const { return larger<int64_t>(0, smaller(chunk, n - first)); }
  FASTAE_INLINE int32_t latent(int64_t q) const { return subset ? subset[q] : (int32_t)q; }
  FASTAE_INLINE T threshold_at(int32_t j) const { return threshold ? threshold[single ? 0 : j] : T(0); }
  // z > this makes an entry of a threshold code
  FASTAE_INLINE T limit_at(int32_t j) const {
    return at_least(Vec<T>(-Format<T>::inf), Vec<T>(threshold_at(j) - margin)).v;
  }
  FASTAE_INLINE List list_of(int64_t r) const { return {list + r * room, nullptr, latents + r * room}; }
  FASTAE_INLINE T score(T value) const { return magnitude ? fabs(Vec<T>(value)).v : value; }
  FASTAE_INLINE int full() const { return (int)(2 * k + 32); }

  // An entry of a threshold code at its place in the row, where there is room for it.
  FASTAE_INLINE void emit(int64_t r, int64_t place, int32_t j, T value) const {
    if (place >= val.columns) return;
    idx(r, place) = j;
    val(r, place) = value > threshold_at(j) ? value : T(0);
    if (pre) pre(r, place) = value;
  }
  FASTAE_INLINE void write(int64_t r, int64_t place, int32_t j, T value) const {
    idx(r, place) = j;
    val(r, place) = !magnitude && value < T(0) ? T(0) : value;
    if (pre) pre(r, place) = value;
  }

  // Whether the row's numbers are all finite, on sixteen threads.
  FASTAE_INLINE bool finite(int64_t r, int lane) const {
    bool fine = true;
    for (int64_t j = lane; r >= 0 && j < p; j += kLanes) fine = fine && x(r, j) - x(r, j) == T(0);
    const unsigned bad = __ballot_sync(0xffffffffu, !fine);
    return !(bad >> (threadIdx.y % 2 * kLanes) & 0xffffu);
  }

  // The row's part of a chunk, z (columns) of latents from `first` on, into its list, or for threshold codes its code.
  FASTAE_INLINE void filter(int64_t r, const T* row) const {
    if (held[r] < 0) return;
    int n_held = held[r];
    Key least = ragged() ? 0 : limit[r];
    const List own = list_of(r);
    const Key nothing = key_of(-Format<T>::inf);
    for (int64_t c0 = 0; c0 < columns(); c0 += kStrips * blockDim.x) {
      const int64_t some = columns() - c0;
      const int strips = strips_of(some);
      T value[kStrips];
      int32_t name[kStrips];
      unsigned on = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int64_t c = (int64_t)t * blockDim.x + threadIdx.x;
        if (t >= strips || c >= some) continue;
        name[t] = latent(first + c0 + c);
        value[t] = b ? row[c0 + c] + b[name[t]] : row[c0 + c];
        const Key key = key_of(value[t], magnitude);
        on |= (unsigned)(ragged() ? value[t] > limit_at(name[t]) : key > least && key != nothing) << t;
      }
      if (ragged()) {
        n_held += each_marked(on, strips, [&](int t, int rank) { emit(r, n_held + rank, name[t], value[t]); });
        continue;
      }
      n_held += each_marked(on, strips, [&](int t, int rank) {
        own.z[n_held + rank] = value[t];
        own.latent[n_held + rank] = name[t];
      });
      if (n_held > full()) {
        __syncthreads();
        n_held = keep_largest(own, n_held, (int)k, magnitude, &least);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      held[r] = n_held;
      if (!ragged()) limit[r] = least;
    }
  }

  FASTAE_INLINE void finish(int64_t r) const {
    const int n_held = held[r];
    if (n_held < 0 || ragged()) {
      if (threadIdx.x == 0) count(r, 0) = n_held < 0 ? -1 : n_held;
      if (threadIdx.x == 0 && n_held > val.columns) overflow(o, o.i[at_encode::i_overflow]);
      return;
    }
    Key least;
    const List own = list_of(r);
    const int kept = keep_largest(own, n_held, (int)k, magnitude, &least);
    for (int i = threadIdx.x; i < kept; i += blockDim.x) write(r, i, own.latent[i], own.z[i]);
    if (threadIdx.x == 0) count(r, 0) = kept;
  }

  static FASTAE_INLINE void overflow(const Launch& o, int64_t column) {
    if (column >= 0) o.step->values[o.step->number * o.step->n_values + column] = Format<double>::inf;
  }
};

FASTAE_KERNEL(encode_begin, kThreads) {
  const Encode e(o);
  each_row(o.m, [&](int64_t r, int lane) {
    const bool fine = e.finite(r, lane);
    if (r >= 0 && lane == 0) {
      e.held[r] = fine ? 0 : -1;
      if (!e.ragged()) e.limit[r] = 0;
    }
  });
}

// Rows of w that a chunk of a subset names.
FASTAE_KERNEL(encode_gather, kThreads) {
  const Encode e(o);
  T* const rows = (T*)e.rest.p;
  each_cell(e.columns(), e.p, [&](int64_t q, int64_t c) { rows[q * e.p + c] = e.w(e.subset[e.first + q], c); });
}

// z (m, chunk) = x wT for a chunk of latents, of encode or batch_topk: x and w are slots 0 and 1 of both, z lies first in
// the work memory. extra[2]: operands are rounded to bfloat16; [3]: offset of the rows of w that a subset names, 0
// without one.
template <class Tiles> FASTAE_INLINE void chunk_product(const Launch& o) {
  const View<T> x = o.real(at_encode::s_x), w = o.real(at_encode::s_w);
  const int64_t chunk = o.extra[1], subset = o.extra[3];
  const bool rounded = o.extra[2];
  const int64_t n = subset ? *o.view<const int32_t>(at_encode::s_n_subset).p : w.rows;
  const int64_t columns = smaller(chunk, smaller(w.rows, n) - o.extra[0]);
  if (columns < 1) return;
  const T* const rows = subset ? (const T*)((char*)o.work + subset) : w.at(o.extra[0], 0);
  Tiles::multiply(
      {x.p, x.ld, 1, rounded}, {rows, subset ? w.columns : w.ld, 1, rounded}, View<T>{(T*)o.work, chunk, o.m, chunk},
      o.m, columns, w.columns, [](int64_t, int64_t) {}, true);
}
FASTAE_KERNEL(chunk_product_small, 256) { chunk_product<SmallTile>(o); }
FASTAE_KERNEL(chunk_product_middle, 256) { chunk_product<MiddleTile>(o); }
FASTAE_KERNEL(chunk_product_large, 256) { chunk_product<LargeTile>(o); }

FASTAE_KERNEL(encode_filter, kSelectThreads) {
  const Encode e(o);
  if (e.columns() < 1 || (e.k < 1 && !e.ragged())) return;
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) e.filter(r, e.z + r * e.chunk);
}

FASTAE_KERNEL(encode_finish, kSelectThreads) {
  const Encode e(o);
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) e.finish(r);
}

}  // namespace fastae
