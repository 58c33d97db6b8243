// batch_topk by products in float16. What is counted for the limit that all rows share are lower bounds, and what is
// listed are latents whose upper bound reaches it; in the end the float32 chains of those that are left, from which
// batch_select.cuh selects. Records are those of an encode over the memory behind BatchHead.
#pragma once
#include "cuda/batch_topk.cuh"
#include "cuda/certified.cuh"

#if FASTAE_REAL_IS(FASTAE_REAL)
namespace fastae {

struct CertifyBatch : Certify {
  Batch batch;
  FASTAE_INLINE explicit CertifyBatch(const Launch& launch) : Certify(launch), batch(*this) {}

  FASTAE_INLINE int reaching(const List& own, int n, Key limit) const {
    return keep(own, n, 0, [&](T v, T) { return v > T(0) && key_of(v) >= limit; }, [](T, T) { return false; });
  }

  FASTAE_INLINE void filter(int64_t r) const {
    __shared__ int unsafe;
    bool safe = true;
    int n_held = held[r];
    if (n_held < 0) return;
    const Key limit = batch.control->limit;
    const List own = bounds_of(r);
    const float tiny = Bounds(p).tiny;
    if (threadIdx.x == 0) unsafe = 0;
    __syncthreads();
    for (int64_t c0 = 0; c0 < columns(); c0 += kStrips * blockDim.x) {
      const int64_t some = columns() - c0;
      const int strips = strips_of(some);
      float high[kStrips], low[kStrips];
      unsigned on = 0, counted = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int64_t c = (int64_t)t * blockDim.x + threadIdx.x;
        if (t >= strips || c >= some) continue;
        float s, width;
        const bool fine = bound(r, c0 + c, tiny, &s, &width);
        high[t] = s + width;
        low[t] = s - width;
        safe = safe && fine;
        on |= (unsigned)(high[t] > 0 && key_of(high[t]) >= limit) << t;
        counted |= (unsigned)(fine && low[t] > 0 && key_of(low[t]) >= limit) << t;
      }
      n_held += each_marked(on, strips, [&](int t, int rank) {
        own.z[n_held + rank] = high[t];
        own.low[n_held + rank] = low[t];
        own.latent[n_held + rank] = (int32_t)(first + c0 + (int64_t)t * blockDim.x + threadIdx.x);
      });
      batch.count_bins(strips, [&](int t) { return counted >> t & 1 ? Batch::bin_of(low[t]) : -1; });
      if (n_held > most_listed(*this)) {
        __syncthreads();
        n_held = reaching(own, n_held, limit);
      }
      if (n_held > most_listed(*this)) break;
    }
    if (!safe) unsafe = 1;
    __syncthreads();
    if (threadIdx.x == 0) held[r] = unsafe || n_held > most_listed(*this) ? kFallback : n_held;
    __syncthreads();
  }

  FASTAE_INLINE void finish_row(int64_t r) const {
    int n_held = held[r];
    if (n_held < 0) return;
    const Key limit = batch.control->limit;
    const List own = bounds_of(r);
    n_held = reaching(own, n_held, limit);
    chains(r, n_held, [](int) { return true; }, [&](int i, T value) { own.z[i] = own.low[i] = value; });
    n_held = reaching(own, n_held, limit);
    if (threadIdx.x == 0) held[r] = n_held;
  }
};

FASTAE_KERNEL(certify_batch_filter, kSelectThreads) {
  const CertifyBatch e(o);
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) e.filter(r);
}

FASTAE_KERNEL(certify_batch_finish, kFinishThreads) {
  const CertifyBatch e(o);
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) e.finish_row(r);
}

FASTAE_KERNEL(fallback_batch_filter, kSelectThreads, 1) {
  const Fallback e(o);
  if (e.columns() < 1) return;
  const Batch batch(e);
  for (int64_t f = blockIdx.x; f < e.some; f += gridDim.x) batch.filter(e.rows[f], e.z + f * e.chunk);
}

}  // namespace fastae
#endif
