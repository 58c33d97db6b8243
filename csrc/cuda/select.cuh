// The k largest of a list by a block of threads, and lists that stay in order. The order is topk.h's: larger first, then
// the one that comes first; -0 equals 0, NaN comes last.
#pragma once
#include "cuda/codes.cuh"

namespace fastae {

typedef typename Lane<T>::U Key;

// Integers in the order of the numbers; NaN is 1 and so before all of them, 0 is none's.
FASTAE_INLINE Key key_of(T score) {
  if (score != score) return 1;
  const Key u = same_bits<Key>(score + T(0)), top = (Key)1 << (8 * sizeof(Key) - 1);
  return u & top ? ~u : u | top;
}
FASTAE_INLINE Key key_of(T z, bool magnitude) { return key_of(magnitude ? fabs(Vec<T>(z)).v : z); }
FASTAE_INLINE T number_of(Key key) {
  const Key top = (Key)1 << (8 * sizeof(Key) - 1);
  return same_bits<T>(key & top ? key ^ top : ~key);
}

// f(row) on a warp, for blocks of whole warps.
template <class F> FASTAE_INLINE void each_warp(int64_t rows, const F& f) {
  const int64_t warps = blockDim.x / 32;
#pragma unroll 1
  for (int64_t r = blockIdx.x * warps + threadIdx.x / 32; r < rows; r += gridDim.x * warps) f(r);
}

constexpr int kStrips = 4;           // elements a thread looks at in one go: i = strip blockDim + thread
constexpr int kSelectThreads = 256;  // most of a block that works on lists

// f(strip, rank) for the elements that are marked (bit t of a thread: its element of strip t), ranked by (strip, thread); returns their number. Blocks of whole
// warps up to kSelectThreads; every thread takes part.
template <class F> FASTAE_INLINE int each_marked(unsigned on, int strips, const F& f) {
  __shared__ int count[kStrips * kSelectThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  unsigned mask[kStrips];
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kStrips; ++t) {
    mask[t] = t < strips ? __ballot_sync(0xffffffffu, on >> t & 1) : 0;
    if (lane == 0) count[t * warps + warp] = __popc(mask[t]);
  }
  __syncthreads();
  // the counts before each, two to a lane
  const int n = strips * warps;
  const int low = 2 * lane < n ? count[2 * lane] : 0, high = 2 * lane + 1 < n ? count[2 * lane + 1] : 0;
  int sum = low + high;
  for (int h = 1; h < 32; h *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, h);
    if (lane >= h) sum += other;
  }
  const int total = __shfl_sync(0xffffffffu, sum, 31), before = sum - low - high;
  if (total == 0) return 0;
#pragma unroll
  for (int t = 0; t < kStrips; ++t) {
    if (t >= strips) break;
    const int i = t * warps + warp;
    const int even = __shfl_sync(0xffffffffu, before, i / 2), odd = __shfl_sync(0xffffffffu, before + low, i / 2);
    if (on >> t & 1) f(t, (i % 2 ? odd : even) + __popc(mask[t] & ((1u << lane) - 1)));
  }
  return total;
}

// Strips that n elements take, at most kStrips.
FASTAE_INLINE int strips_of(int64_t n) { return (int)smaller<int64_t>(kStrips, (n + blockDim.x - 1) / blockDim.x); }

// The k-th largest key, and how many of those equal to it are among the k largest.
struct Kth {
  Key key;
  int ties;
};

// key_at(i) over [0, n), 1 <= k <= n, by radix of 8 bits from the top.
template <class F> FASTAE_INLINE Kth kth_key(int n, int k, const F& key_at) {
  __shared__ int bin[256];
  __shared__ int digit, left;
  Key prefix = 0;
  for (int shift = 8 * sizeof(Key) - 8; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) bin[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      const Key key = key_at(i);
      if (shift == 8 * sizeof(Key) - 8 || (key ^ prefix) >> shift >> 8 == 0)
        atomicAdd(bin + (int)(key >> shift & 255), 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) {  // eight bins a lane, from the top
      const int lane = threadIdx.x;
      int own = 0;
      for (int d = 0; d < 8; ++d) own += bin[255 - lane * 8 - d];
      int sum = own;
      for (int h = 1; h < 32; h *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, h);
        if (lane >= h) sum += other;
      }
      int above = sum - own;
      if (above < k && k <= sum)
        for (int d = 0; d < 8; ++d) {
          const int here = bin[255 - lane * 8 - d];
          if (above + here >= k) {
            digit = 255 - lane * 8 - d;
            left = k - above;
            break;
          }
          above += here;
        }
    }
    __syncthreads();
    prefix |= (Key)digit << shift;
    k = left;
  }
  return {prefix, k};
}

// A row's list: z, [low], latents, in ascending order of the latents.
struct List {
  T *z, *low;
  int32_t* latent;
};

// Keeps of n entries those with above(i), and the first `ties` of those with equal(i), in order; returns their number.
template <class Above, class Equal>
FASTAE_INLINE int keep(const List& list, int n, int ties, const Above& above, const Equal& equal) {
  int kept = 0, taken = 0;
  for (int first = 0; first < n; first += kStrips * blockDim.x) {
    const int strips = strips_of(n - first);
    T z[kStrips], low[kStrips];
    int32_t latent[kStrips];
    unsigned on = 0, tie = 0;
#pragma unroll
    for (int t = 0; t < kStrips; ++t) {
      const int i = first + t * blockDim.x + threadIdx.x;
      if (t >= strips || i >= n) continue;
      z[t] = list.z[i];
      low[t] = list.low ? list.low[i] : z[t];
      latent[t] = list.latent[i];
      on |= (unsigned)above(z[t], low[t]) << t;
      tie |= (unsigned)(ties > 0 && equal(z[t], low[t])) << t;
    }
    if (ties > 0)
      taken += each_marked(tie, strips, [&](int t, int rank) { on |= (unsigned)(taken + rank < ties) << t; });
    kept += each_marked(on, strips, [&](int t, int rank) {
      list.z[kept + rank] = z[t];
      if (list.low) list.low[kept + rank] = low[t];
      list.latent[kept + rank] = latent[t];
    });
  }
  __syncthreads();
  return kept;
}

// Keeps the k largest of n entries; *least: the key of the last of them, unchanged where there are no more than k.
FASTAE_INLINE int keep_largest(const List& list, int n, int k, bool magnitude, Key* least) {
  if (n <= k) return n;
  if (k < 1) return 0;
  const Kth kth = kth_key(n, k, [&](int i) { return key_of(list.z[i], magnitude); });
  *least = kth.key;
  return keep(
      list, n, kth.ties, [&](T z, T) { return key_of(z, magnitude) > kth.key; },
      [&](T z, T) { return key_of(z, magnitude) == kth.key; });
}

// narrow: the k entries of each row with the largest val
FASTAE_KERNEL(narrow, kSelectThreads) {
  namespace at = at_narrow;
  const View<T> val = o.real(at::s_val), out = o.real(at::s_val_out);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx), count = o.view<const int32_t>(at::s_count);
  const View<int32_t> to = o.view<int32_t>(at::s_idx_out), count_out = o.view<int32_t>(at::s_count_out);
  const bool magnitude = o.i[at::i_magnitude] != 0;
  const int64_t k = present_k(o, o.i[at::i_k], o.i[at::i_k_scalar]);
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) {
    const int n = (int)smaller<int64_t>(val.columns, larger(0, count(r, 0)));
    const int some = (int)smaller<int64_t>(k, n);
    if (threadIdx.x == 0) count_out(r, 0) = count(r, 0) < 0 ? count(r, 0) : some;
    if (some == 0) continue;
    const Kth kth = kth_key(n, some, [&](int i) { return key_of(val(r, i), magnitude); });
    int kept = 0, taken = 0;
    for (int first = 0; first < n; first += kStrips * blockDim.x) {
      const int strips = strips_of(n - first);
      unsigned on = 0, tie = 0;
#pragma unroll
      for (int t = 0; t < kStrips; ++t) {
        const int i = first + t * blockDim.x + threadIdx.x;
        const Key key = t < strips && i < n ? key_of(val(r, i), magnitude) : 0;
        on |= (unsigned)(key > kth.key) << t;
        tie |= (unsigned)(key == kth.key) << t;
      }
      taken += each_marked(tie, strips, [&](int t, int rank) { on |= (unsigned)(taken + rank < kth.ties) << t; });
      kept += each_marked(on, strips, [&](int t, int rank) {
        const int i = first + t * blockDim.x + threadIdx.x;
        out(r, kept + rank) = val(r, i);
        to(r, kept + rank) = idx(r, i);
      });
    }
  }
}

}  // namespace fastae
