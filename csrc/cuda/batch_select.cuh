// The entries of a batch among the lists that batch_topk.cuh or certified_batch.cuh made: the exact number by radix, its
// ties counted out row by row.
#pragma once
#include "cuda/batch_topk.cuh"

namespace fastae {

// extra[3]: number of the digit, from the top.
struct Digit {
  int shift, bits;
  FASTAE_INLINE explicit Digit(int64_t i)
      : shift((int)larger<int64_t>(0, kKeyBits - kDigit * (i + 1))), bits((int)(kKeyBits - kDigit * i) - shift) {}
};

FASTAE_KERNEL(batch_clear, kThreads) {
  const Batch e(o);
  each(kBins, [&](int64_t i) { e.bins[i] = 0; });
}

FASTAE_KERNEL(batch_count, kSelectThreads) {
  const Batch e(o);
  const Digit digit(o.extra[3]);
  const Key limit = e.control->limit, above = e.control->kth;
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x)
    for (int first = 0; first < e.held[r]; first += kStrips * blockDim.x)
      e.count_bins(kStrips, [&](int t) {
        const int i = first + t * blockDim.x + threadIdx.x;
        if (i >= e.held[r]) return -1;
        const Key key = key_of(e.list_of(r).z[i]);
        const bool here = key >= limit && (o.extra[3] == 0 || (key ^ above) >> digit.shift >> digit.bits == 0);
        return here ? (int)(key >> digit.shift & (((Key)1 << digit.bits) - 1)) : -1;
      });
}

FASTAE_KERNEL(batch_pick, kSelectThreads) {
  const Batch e(o);
  const Digit digit(o.extra[3]);
  BatchControl& c = *e.control;
  int64_t above;
  const int bin = e.bin_reached(c.left, &above);
  if (threadIdx.x == 0 && !c.all) {
    if (bin < 0) c.all = 1, c.kth = kPositive, c.left = 0;  // only the first digit can find too few
    else c.kth |= kPositive | (Key)bin << digit.shift, c.left -= above;
  }
}

FASTAE_KERNEL(batch_ties, kSelectThreads) {
  const Batch e(o);
  const Key kth = e.control->kth;
  __shared__ int sum;
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) {
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < e.held[r]; i += blockDim.x)
      if (key_of(e.list_of(r).z[i]) == kth) atomicAdd(&sum, 1);
    __syncthreads();
    if (threadIdx.x == 0) e.ties[r] = sum;
    __syncthreads();
  }
}

FASTAE_KERNEL(batch_ties_before, 1024) { prefix_in_place(Batch(o).ties, o.m); }

FASTAE_KERNEL(batch_emit, kSelectThreads) {
  const Batch e(o);
  const BatchControl& c = *e.control;
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) {
    const int n = c.wanted < 1 ? 0 : larger(0, e.held[r]);
    const int64_t ties = larger<int64_t>(0, c.left - e.ties[r]);
    const List own = e.list_of(r);
    int64_t taken = 0, kept = 0;
    Key least = ~(Key)0;
    for (int first = 0; first < n; first += kStrips * blockDim.x) {
      const int strips = strips_of(n - first);
      unsigned on = 0, tie = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int i = first + t * blockDim.x + threadIdx.x;
        const Key key = t < strips && i < n ? key_of(own.z[i]) : 0;
        on |= (unsigned)(key > c.kth) << t;
        tie |= (unsigned)(key == c.kth) << t;
        if (on >> t & 1) least = smaller(least, key);
      }
      taken += each_marked(tie, strips, [&](int t, int rank) { on |= (unsigned)(taken + rank < ties) << t; });
      kept += each_marked(on, strips, [&](int t, int rank) {
        const int i = first + t * blockDim.x + threadIdx.x;
        if (kept + rank >= e.val.columns) return;
        e.val(r, kept + rank) = own.z[i];
        e.idx(r, kept + rank) = own.latent[i];
      });
    }
    if (c.all && least != ~(Key)0) atomic_min(&e.control->least, least);
    if (threadIdx.x == 0) {
      e.count(r, 0) = (int32_t)kept;
      if (kept > e.val.columns) Encode::overflow(o, o.i[at_batch_topk::i_overflow]);
    }
  }
}

FASTAE_KERNEL(batch_finish, 32) {
  namespace at = at_batch_topk;
  const BatchControl& c = *Batch(o).control;
  const Key key = c.all ? c.least : c.kth;
  if (threadIdx.x || blockIdx.x || c.wanted < 1 || key == ~(Key)0) return;
  const T least = number_of(key);
  T *const guess = o.real(at::s_guess).p, *const threshold = o.real(at::s_threshold).p;
  if (guess) *guess = least;
  if (!threshold) return;
  double decay = o.f[at::f_decay];
  if (o.i[at::i_decay_scalar] >= 0) decay = smaller(decay, o.scalars()[o.i[at::i_decay_scalar]]);
  const double old = (double)*threshold;
  *threshold = old < 0 ? least : (T)(decay * old + (1 - decay) * (double)least);
}

}  // namespace fastae
