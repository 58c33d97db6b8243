// Candidates of the largest pre-activations by products in bfloat16, with the bound of their error that bounds.h proves;
// then the float32 chains of those that may be among them. The bits are those of encode.cuh.
//
// A row's list holds (high, low, latent): low <= score(z) <= high. The limit is the k-th largest low so far, which the
// high of others has to pass. A chain that is made gives (z, score(z)) instead, so low == score(z) says that it is.
// Rows whose bounds could overflow, or don't tell the latents apart, go the float32 way afterwards.
#pragma once
#include "bounds.h"
#include "cuda/encode.cuh"

#define FASTAE_REAL_IS_float 1
#define FASTAE_REAL_IS_double 0
#define FASTAE_REAL_NAMED(name) FASTAE_REAL_IS_##name
#define FASTAE_REAL_IS(name) FASTAE_REAL_NAMED(name)
#if FASTAE_REAL_IS(FASTAE_REAL)

namespace fastae {

constexpr int kFallback = -2;  // held, of a row that goes the float32 way

FASTAE_INLINE float widened(uint16_t half) { return float_from_bits((uint32_t)half << 16); }

// A row in bfloat16, zeros behind it, and sums of squares of what was rounded and of what was lost; sixteen threads.
FASTAE_INLINE void round_row(const float* row, int64_t p, int64_t depth, uint16_t* out, int lane, float* squares,
                             float* residual) {
  float all = 0, rest = 0;
  for (int64_t j = lane; j < depth; j += kLanes) {
    const float v = j < p ? row[j] : 0.0f;
    const uint16_t half = bf16_from(v);
    const float lost = v - widened(half);
    all = fmaf(v, v, all);
    rest = fmaf(lost, lost, rest);
    out[j] = half;
  }
  *squares = lanes_dot_sum(all);
  *residual = lanes_dot_sum(rest);
}

// Memory of a warp for 32 columns of 32 rows of w, and of x in the last row. Not in a template, whose every instance
// would have its own.
FASTAE_INLINE float (*warp_tile())[33] {
  __shared__ float tile[kSelectThreads / 32][33][33];
  return tile[threadIdx.x / 32];
}

// Rows of w in bfloat16 (n to a multiple of 64, depth), then their norms and errors.
struct Packed {
  uint16_t* rows;
  float *norm, *error;
  int64_t p, depth;
  FASTAE_INLINE Packed(void* at, int64_t n, int64_t columns)
      : rows((uint16_t*)at), p(columns), depth(ceil_div(p, 64) * 64) {
    const int64_t all = ceil_div(n, 64) * 64;
    norm = (float*)(rows + all * depth);
    error = norm + all;
  }
  FASTAE_INLINE void make(const View<T>& w, int64_t first, int64_t n) const {
    const Bounds bounds(p);
    each_row(n, [&](int64_t i, int lane) {
      float squares, residual;
      round_row(w.at(first + (i < 0 ? 0 : i), 0), i < 0 ? 0 : p, i < 0 ? 0 : depth, rows + (i < 0 ? 0 : i) * depth,
                lane, &squares, &residual);
      if (i < 0 || lane) return;
      const float size = bounds.norm(squares, p), rest = bounds.norm(residual, p);
      norm[i] = size;
      error[i] = (rest + bounds.g2 * (size + rest)) * bounds.more;
    });
  }
};

FASTAE_KERNEL(pack_encoder, kThreads) {
  const View<T> w = o.real(at_pack_encoder::s_w);
  Packed(o.slot[at_pack_encoder::s_packed].p, w.rows, w.columns).make(w, 0, w.rows);
}

// Behind the arrays of Encode. extra[3]: 1 where w is packed for the whole run.
struct Certify : Encode {
  float *low, *row_a, *row_size;
  uint16_t* halves;
  int32_t *rows, *n_rows;  // those that go the float32 way
  Packed packed;
  T* gathered;  // their numbers
  int64_t depth;

  FASTAE_INLINE explicit Certify(const Launch& launch) : Encode(launch), packed(nullptr, 0, p) {
    depth = packed.depth;
    Carve c = rest;
    low = c.take<float>(o.m * room);
    row_a = c.take<float>(o.m);
    row_size = c.take<float>(o.m);
    halves = c.take<uint16_t>(o.m * depth);
    rows = c.take<int32_t>(o.m);
    n_rows = c.take<int32_t>(1);
    gathered = ragged() ? nullptr : c.take<T>(o.m * p);
    if (o.extra[3]) {
      packed = Packed(o.slot[at_encode::s_packed].p, n, p);
      packed.norm += first, packed.error += first;
    } else {
      packed = Packed(c.p, chunk, p);
    }
  }
  FASTAE_INLINE List bounds_of(int64_t r) const { return {list + r * room, low + r * room, latents + r * room}; }
  FASTAE_INLINE int most() const { return (int)(4 * k + 128); }  // entries before a list is cut
  FASTAE_INLINE T score(T value) const { return magnitude ? fabs(Vec<T>(value)).v : value; }

  // s and its bound for column c of the chunk; false where they could overflow.
  FASTAE_INLINE bool bound(int64_t r, int64_t c, float tiny, float* s, float* width) const {
    const float bias = b ? b[first + c] : 0.0f, size = packed.norm[c], far = bias < 0 ? -bias : bias;
    *s = score(z[r * chunk + c] + bias);
    *width = fmaf(row_a[r], size, fmaf(row_size[r], packed.error[c], far * 0x1p-21f + tiny));
    return row_size[r] * size < kSafeSize && size < kSafeSize && far < kSafeSize;
  }

  // The limit becomes the k-th largest low, and what cannot reach it goes.
  FASTAE_INLINE int drop(const List& own, int n, Key* least) const {
    if (n <= k) return n;
    const Key kth = kth_key(n, (int)k, [&](int i) { return key_of(own.low[i]); }).key;
    *least = larger(*least, kth);
    const Key limit = *least;
    return keep(own, n, 0, [&](T v, T) { return key_of(score(v)) >= limit; }, [](T, T) { return false; });
  }

  FASTAE_INLINE void filter(int64_t r) const {
    __shared__ int unsafe;
    bool safe = true;
    int n_held = held[r];
    if (n_held < 0) return;
    Key least = limit[r];
    const List own = bounds_of(r);
    const float tiny = Bounds(p).tiny;
    if (threadIdx.x == 0) unsafe = 0;
    __syncthreads();
    for (int64_t c0 = 0; c0 < columns(); c0 += kStrips * blockDim.x) {
      const int64_t some = columns() - c0;
      const int strips = strips_of(some);
      float s[kStrips], width[kStrips];
      unsigned on = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int64_t c = (int64_t)t * blockDim.x + threadIdx.x;
        if (t >= strips || c >= some) continue;
        safe = bound(r, c0 + c, tiny, &s[t], &width[t]) && safe;
        on |= (unsigned)(key_of(s[t] + width[t]) > least) << t;
      }
      n_held += each_marked(on, strips, [&](int t, int rank) {
        own.z[n_held + rank] = s[t] + width[t];
        own.low[n_held + rank] = s[t] - width[t];
        own.latent[n_held + rank] = (int32_t)(first + c0 + (int64_t)t * blockDim.x + threadIdx.x);
      });
      if (n_held > most()) {
        __syncthreads();
        n_held = drop(own, n_held, &least);
      }
      if (n_held > most()) break;
    }
    if (!safe) unsafe = 1;
    __syncthreads();
    if (threadIdx.x == 0) held[r] = unsafe || n_held > most() ? kFallback : n_held, limit[r] = least;
    __syncthreads();
  }

  // The chains of a row's listed latents [0, n) that wanted(i) names, a warp for 32 of them: their weights come in
  // rows and are read in columns. done(i, z)
  template <class Wanted, class Done>
  FASTAE_INLINE void chains(int64_t r, int n, const Wanted& wanted, const Done& done) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float (*const own)[33] = warp_tile();
    const T* const row = x.at(r, 0);
    const int32_t* const name = latents + r * room;
    __syncthreads();
    for (int first = warp * 32; first < n; first += blockDim.x) {
      const int i = first + lane;
      const bool mine = i < n && wanted(i);
      const unsigned all = __ballot_sync(0xffffffffu, mine);
      if (!all) continue;
      const int32_t j = mine ? name[i] : 0;
      float sum = 0;
      for (int64_t c = 0; c < p; c += 32) {
        const bool inside = c + lane < p;
        __syncwarp();
        own[32][lane] = inside ? row[c + lane] : 0.0f;
#pragma unroll 8
        for (int l = 0; l < 32; ++l) {
          const int32_t other = __shfl_sync(0xffffffffu, j, l);
          if (all >> l & 1 && inside) own[l][lane] = w(other, c + lane);
        }
        __syncwarp();
        if (!mine) continue;
        if (c + 32 <= p) {
#pragma unroll
          for (int d = 0; d < 32; ++d) sum = fmaf(own[32][d], own[lane][d], sum);
        } else {
          for (int d = 0; d < (int)(p - c); ++d) sum = fmaf(own[32][d], own[lane][d], sum);
        }
      }
      if (mine) done(i, b ? sum + b[j] : sum);
    }
    __syncthreads();
  }

  FASTAE_INLINE void finish_row(int64_t r) const {
    int n_held = held[r];
    if (n_held < 0) {
      if (threadIdx.x == 0) count(r, 0) = -1;
      return;
    }
    Key least = limit[r];
    const List own = bounds_of(r);
    const auto exact = [&](int i, T value) { own.z[i] = value, own.low[i] = score(value); };
    n_held = drop(own, n_held, &least);
    if (n_held > k + 32) {  // the k largest bounds' chains first: these raise the limit by twice the bounds' width
      const Key kth = kth_key(n_held, (int)k, [&](int i) { return key_of(own.z[i]); }).key;
      chains(r, n_held, [&](int i) { return key_of(own.z[i]) >= kth; }, exact);
      n_held = drop(own, n_held, &least);
    }
    chains(r, n_held, [&](int i) { return own.low[i] != score(own.z[i]); }, exact);
    n_held = keep_largest(own, n_held, (int)k, magnitude, &least);
    for (int i = threadIdx.x; i < n_held; i += blockDim.x) write(r, i, own.latent[i], own.z[i]);
    if (threadIdx.x == 0) count(r, 0) = n_held;
  }

  // A threshold code's part of a chunk: what may be an entry, its chain, and if it is one its place in the row.
  FASTAE_INLINE void emit_chunk(int64_t r) const {
    int n_held = held[r];
    if (n_held < 0) return;
    const List own = bounds_of(r);
    const float tiny = Bounds(p).tiny;
    for (int64_t c0 = 0; c0 < columns(); c0 += kStrips * blockDim.x) {
      const int64_t some = columns() - c0;
      const int strips = strips_of(some);
      unsigned on = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int64_t c = (int64_t)t * blockDim.x + threadIdx.x;
        if (t >= strips || c >= some) continue;
        float s, width;
        const bool safe = bound(r, c0 + c, tiny, &s, &width);
        on |= (unsigned)(!safe || s + width > limit_at((int32_t)(first + c0 + c))) << t;
      }
      const int n_here = each_marked(on, strips, [&](int t, int rank) {
        own.latent[rank] = (int32_t)(first + c0 + (int64_t)t * blockDim.x + threadIdx.x);
      });
      if (!n_here) continue;
      chains(r, n_here, [](int) { return true; }, [&](int i, T value) { own.z[i] = value; });
      on = 0;
      const int shares = strips_of(n_here);
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int i = t * blockDim.x + threadIdx.x;
        if (t < shares && i < n_here) on |= (unsigned)(own.z[i] > limit_at(own.latent[i])) << t;
      }
      n_held += each_marked(on, shares, [&](int t, int rank) {
        const int i = t * blockDim.x + threadIdx.x;
        emit(r, n_held + rank, own.latent[i], own.z[i]);
      });
    }
    __syncthreads();
    if (threadIdx.x == 0) held[r] = n_held;
  }
};

}  // namespace fastae
#endif
