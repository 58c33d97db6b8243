// The largest positive pre-activations of a whole batch. Chunks of latents go by as in encode.cuh; what reaches a limit
// that all rows share joins its row's list. The limit is the lower end of the bin that the k m-th largest so far lies
// in, by counts over the upper bits of what was seen. batch_select.cuh finds the exact number among the lists;
// certified_batch.cuh makes these by products in float16. Atomics add and compare integers only.
#pragma once
#include "cuda/encode.cuh"
#include "cuda/latents.cuh"

namespace fastae {

constexpr int kDigit = 11, kBins = 1 << kDigit;
constexpr int kKeyBits = 8 * sizeof(Key) - 1;  // of positive numbers, whose highest bit is set
constexpr Key kPositive = (Key)1 << kKeyBits;

// An addition or minimum of integers in the type that the device has atomics for.
FASTAE_INLINE void atomic_add(int64_t* p, int64_t x) { atomicAdd((unsigned long long*)p, (unsigned long long)x); }
FASTAE_INLINE void atomic_min(uint32_t* p, uint32_t x) { atomicMin(p, x); }
FASTAE_INLINE void atomic_min(uint64_t* p, uint64_t x) { atomicMin((unsigned long long*)p, (unsigned long long)x); }

struct BatchControl {
  int64_t wanted, left;  // entries; of them, those equal to the last
  Key limit, kth;        // what reaches the limit may be an entry; the last entry's
  Key least;             // the smallest positive number, where all are entries
  int64_t all;           // there are no more positive numbers than wanted
};

// What an op of this kind has in front of the arrays of Encode, whose records are launched over the memory behind it.
struct BatchHead {
  BatchControl* control;
  int64_t *bins, *ties;  // ties: of each row, then of those before it
  char* rest;
  FASTAE_INLINE BatchHead(void* work, int64_t m) {
    Carve c = {(char*)work};
    control = c.take<BatchControl>(1);
    bins = c.take<int64_t>(kBins);
    ties = c.take<int64_t>(m);
    rest = c.p;
  }
  static FASTAE_INLINE BatchHead before(const Launch& encode) {
    char* const work = (char*)encode.work;
    return BatchHead(work - (BatchHead(work, encode.m).rest - work), encode.m);
  }
};

// extra[0]: first latent of the chunk; [1]: latents of a chunk; [2]: entries that a list holds.
struct Batch : BatchHead {
  const Launch& o;
  View<T> x, w, val;
  View<int32_t> idx, count;
  const T* b;
  int64_t p, n, first, chunk, room, full;
  T *z, *list;
  int32_t *latents, *held;

  FASTAE_INLINE explicit Batch(const Launch& launch) : BatchHead(launch.work, launch.m), o(launch) {
    namespace at = at_batch_topk;
    x = o.real(at::s_x);
    w = o.real(at::s_w);
    val = o.real(at::s_val);
    idx = o.view<int32_t>(at::s_idx);
    count = o.view<int32_t>(at::s_count);
    b = o.real(at::s_b).p;
    p = w.columns;
    n = w.rows;
    first = o.extra[0];
    chunk = o.extra[1];
    room = o.extra[2];
    full = smaller(n, 2 * val.columns + 64);
    Carve c = {rest};
    z = c.take<T>(o.m * chunk);
    list = c.take<T>(o.m * room);
    latents = c.take<int32_t>(o.m * room);
    held = c.take<int32_t>(o.m);
  }
  // In the kernel of an Encode over the same memory.
  FASTAE_INLINE explicit Batch(const Encode& e)
      : BatchHead(before(e.o)),
        o(e.o),
        x(e.x),
        w(e.w),
        val(e.val),
        idx(e.idx),
        count(e.count),
        b(e.b),
        p(e.p),
        n(e.n),
        first(e.first),
        chunk(e.chunk),
        room(e.room),
        full(smaller(e.n, 2 * e.val.columns + 64)),
        z(e.z),
        list(e.list),
        latents(e.latents),
        held(e.held) {}
  FASTAE_INLINE List list_of(int64_t r) const { return {list + r * room, nullptr, latents + r * room}; }
  FASTAE_INLINE int64_t columns() const { return smaller(chunk, n - first); }

  // Fewer candidates of a row: those that reach the limit, and of these no more than twice what it can store.
  FASTAE_INLINE int cut(const List& own, int n_held, Key limit) const {
    n_held = keep(own, n_held, 0, [&](T v, T) { return key_of(v) >= limit; }, [](T, T) { return false; });
    Key least;
    return n_held > full ? keep_largest(own, n_held, (int)full, false, &least) : n_held;
  }

  // The row's part of a chunk into its list.
  FASTAE_INLINE void filter(int64_t r, const T* row) const {
    if (held[r] < 0) return;
    int n_held = held[r];
    const Key limit = control->limit;
    const List own = list_of(r);
    for (int64_t c0 = 0; c0 < columns(); c0 += kStrips * blockDim.x) {
      const int64_t some = columns() - c0;
      const int strips = strips_of(some);
      T value[kStrips];
      unsigned on = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int64_t c = (int64_t)t * blockDim.x + threadIdx.x;
        if (t >= strips || c >= some) continue;
        value[t] = b ? row[c0 + c] + b[first + c0 + c] : row[c0 + c];
        on |= (unsigned)(value[t] > T(0) && key_of(value[t]) >= limit) << t;
      }
      n_held += each_marked(on, strips, [&](int t, int rank) {
        own.z[n_held + rank] = value[t];
        own.latent[n_held + rank] = (int32_t)(first + c0 + (int64_t)t * blockDim.x + threadIdx.x);
      });
      count_bins(strips, [&](int t) { return on >> t & 1 ? bin_of(value[t]) : -1; });
      if (n_held > full) {
        __syncthreads();
        n_held = cut(own, n_held, limit);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) held[r] = n_held;
  }

  // By the upper bits of a positive number.
  static FASTAE_INLINE int bin_of(T value) { return (int)(key_of(value) >> (kKeyBits - kDigit)) & (kBins - 1); }

  // Adds one to bin_at(t) for the strips of every thread; -1 for none. Gathered in the block first.
  template <class F> FASTAE_INLINE void count_bins(int strips, const F& bin_at) const {
    __shared__ int bin[kBins];
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += blockDim.x) bin[i] = 0;
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kStrips; ++t) {
      const int at = t < strips ? bin_at(t) : -1;
      if (at >= 0) atomicAdd(bin + at, 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += blockDim.x)
      if (bin[i]) atomic_add(bins + i, bin[i]);
  }

  // The highest bin that `wanted` entries reach, -1 where there are fewer; *above: entries in the bins above it. The
  // block is one of kSelectThreads.
  FASTAE_INLINE int bin_reached(int64_t wanted, int64_t* above) const {
    __shared__ int found;
    __shared__ int64_t beyond;
    constexpr int kOwn = kBins / kSelectThreads;
    const int last = kBins - 1 - threadIdx.x * kOwn;
    int64_t own = 0, all;
    for (int d = 0; d < kOwn; ++d) own += bins[last - d];
    if (threadIdx.x == 0) found = -1, beyond = 0;
    int64_t before = block_prefix(own, &all);
    if (before < wanted && wanted <= before + own)
      for (int d = 0; d < kOwn; ++d) {
        const int64_t here = bins[last - d];
        if (before + here >= wanted) {
          found = last - d;
          beyond = before;
          break;
        }
        before += here;
      }
    __syncthreads();
    const int bin = found;
    *above = beyond;
    __syncthreads();
    return bin;
  }
};

FASTAE_KERNEL(batch_begin, kThreads) {
  namespace at = at_batch_topk;
  const Batch e(o);
  each_row(o.m, [&](int64_t r, int lane) {
    bool fine = true;
    for (int64_t j = lane; r >= 0 && j < e.p; j += kLanes) fine = fine && e.x(r, j) - e.x(r, j) == T(0);
    const unsigned bad = __ballot_sync(0xffffffffu, !fine);
    if (r >= 0 && lane == 0) e.held[r] = bad >> (threadIdx.y % 2 * kLanes) & 0xffffu ? -1 : 0;
  });
  if (blockIdx.x) return;
  for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < kBins; i += blockDim.x * blockDim.y) e.bins[i] = 0;
  if (threadIdx.x || threadIdx.y) return;
  double k = (double)o.i[at::i_k];
  if (o.i[at::i_k_scalar] >= 0) k = smaller(k, o.scalars()[o.i[at::i_k_scalar]]);
  const double all = (double)o.m * (double)e.n, product = k * (double)o.m;
  const int64_t wanted = (int64_t)smaller(product, all);
  *e.control = {wanted, wanted, wanted < 1 ? ~(Key)0 : kPositive, 0, ~(Key)0, 0};
}

FASTAE_KERNEL(batch_filter, kSelectThreads) {
  const Batch e(o);
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) e.filter(r, e.z + r * e.chunk);
}

FASTAE_KERNEL(batch_raise, kSelectThreads) {
  const Batch e(o);
  int64_t above;
  const int bin = e.bin_reached(e.control->wanted, &above);
  if (threadIdx.x == 0 && bin >= 0) {
    const Key limit = kPositive | (Key)bin << (kKeyBits - kDigit);
    e.control->limit = larger(e.control->limit, limit);
  }
}

}  // namespace fastae
