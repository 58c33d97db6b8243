// The k largest of a row's numbers: the k-th by bisection over the bits of a float, no sorting.
//
// Order: larger first, then the lower index; -0 equals 0, NaN comes last. Entries lie by ascending index throughout, so
// that ties need no keys of their own and a code comes out in the order that it is stored in.
#pragma once
#include "elementwise.h"

namespace fastae {
namespace {

#if defined(__AVX512F__)
FASTAE_INLINE uint32_t lane_bits(Mask<float> a) { return a.m; }
FASTAE_INLINE uint32_t lane_bits(Mask<double> a) { return a.m; }
#elif FASTAE_VBYTES == 32
FASTAE_INLINE uint32_t lane_bits(Mask<float> a) { return (uint32_t)_mm256_movemask_ps((__m256)a.m); }
FASTAE_INLINE uint32_t lane_bits(Mask<double> a) { return (uint32_t)_mm256_movemask_pd((__m256d)a.m); }
#elif defined(__SSE2__)
FASTAE_INLINE uint32_t lane_bits(Mask<float> a) { return (uint32_t)_mm_movemask_ps((__m128)a.m); }
FASTAE_INLINE uint32_t lane_bits(Mask<double> a) { return (uint32_t)_mm_movemask_pd((__m128d)a.m); }
#else
template <class T> FASTAE_INLINE uint32_t lane_bits(Mask<T> a) {
  uint32_t bits = 0;
  for (int i = 0; i < Vec<T>::N; ++i) bits |= (uint32_t)(a.m[i] != 0) << i;
  return bits;
}
#endif

template <class T> FASTAE_INLINE int count_lanes(Mask<T> a) {
#if FASTAE_VBYTES >= 32
  return __builtin_popcount(lane_bits(a));
#else
  return (int)(0x4332322132212110ull >> (4 * lane_bits(a)) & 15);  // at most four lanes, no instruction for it
#endif
}

// f(lane) for the lanes that are set, ascending
template <class F> FASTAE_INLINE void each_lane(uint32_t bits, const F& f) {
  for (; bits; bits &= bits - 1) f(__builtin_ctz(bits));
}

// The lanes of x that are set, and their numbers from j on, to val and idx, where there is room for all lanes.
template <class T> FASTAE_INLINE void put_lanes(uint32_t bits, Vec<T> x, int32_t j, T* val, int32_t* idx) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_storeu_ps(val, _mm512_maskz_compress_ps((__mmask16)bits, x.v));
    _mm512_storeu_si512(idx,
                        _mm512_maskz_compress_epi32((__mmask16)bits, _mm512_add_epi32(lane, _mm512_set1_epi32(j))));
  } else {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm512_storeu_pd(val, _mm512_maskz_compress_pd((__mmask8)bits, x.v));
    _mm256_storeu_si256((__m256i*)idx,
                        _mm256_maskz_compress_epi32((__mmask8)bits, _mm256_add_epi32(lane, _mm256_set1_epi32(j))));
  }
#else
  T each[Vec<T>::N];
  x.store(each);
  each_lane(bits, [&](int lane) {
    *val++ = each[lane];
    *idx++ = j + lane;
  });
#endif
}

// Integers in the order of the numbers, and back; NaN is none of them.
template <class T> FASTAE_INLINE typename Lane<T>::I order_of(T x) {
  typename Lane<T>::I i;
  memcpy(&i, &x, sizeof i);
  return i ^ (typename Lane<T>::I)((typename Lane<T>::U)(i >> (8 * sizeof(T) - 1)) >> 1);
}
template <class T> FASTAE_INLINE T number_at(typename Lane<T>::I i) {
  i ^= (typename Lane<T>::I)((typename Lane<T>::U)(i >> (8 * sizeof(T) - 1)) >> 1);
  T x;
  memcpy(&x, &i, sizeof x);
  return x;
}

template <class T> constexpr T kInfinity = (T)__builtin_inf();

// What entries are ordered by: z, or |z|.
template <class T> FASTAE_INLINE Vec<T> score_of(Vec<T> z, bool magnitude) { return magnitude ? fabs(z) : z; }
template <class T> FASTAE_INLINE T score_of(T z, bool magnitude) { return magnitude && z < 0 ? -z : z; }

template <class T> FASTAE_INLINE int64_t count_above(const T* z, int64_t n, T limit, bool magnitude) {
  const Vec<T> least(limit);
  int64_t count = 0;
  over_row<T>(n, [&](int64_t i, int lanes) {
    const Mask<T> above = score_of(Vec<T>::load(z + i, lanes), magnitude) > least;
    count += count_lanes<T>(lanes < Vec<T>::N ? above & Mask<T>::first(lanes) : above);
  });
  return count;
}

// The largest score, and the smallest above limit; NaN is neither.
template <class T> FASTAE_INLINE T largest_of(const T* z, int64_t n, bool magnitude) {
  Vec<T> most(-kInfinity<T>);
  over_row<T>(n, [&](int64_t i, int lanes) {
    const Vec<T> s = score_of(Vec<T>::load(z + i, lanes), magnitude);
    const Mask<T> more = s > most;
    most = select(lanes < Vec<T>::N ? more & Mask<T>::first(lanes) : more, s, most);
  });
  T each[Vec<T>::N], top = -kInfinity<T>;
  most.store(each);
  for (const T s : each) top = s > top ? s : top;
  return top;
}
template <class T> FASTAE_INLINE T smallest_above(const T* z, int64_t n, T limit, bool magnitude) {
  Vec<T> least(kInfinity<T>);
  over_row<T>(n, [&](int64_t i, int lanes) {
    const Vec<T> s = score_of(Vec<T>::load(z + i, lanes), magnitude);
    const Mask<T> less = (s > Vec<T>(limit)) & (s < least);
    least = select(lanes < Vec<T>::N ? less & Mask<T>::first(lanes) : less, s, least);
  });
  T each[Vec<T>::N], low = kInfinity<T>;
  least.store(each);
  for (const T s : each) low = s < low ? s : low;
  return low;
}

// The k-th largest number of a set, 1 <= k: above(limit) counts, least(limit) is the smallest beyond limit, most the
// largest. floor: a number that it is known to reach, or -infinity; also the answer where fewer than k lie above it.
template <class T, class Above, class Least>
FASTAE_INLINE T kth_of(int64_t k, T floor, T most, const Above& above, const Least& least) {
  typedef typename Lane<T>::I I;
  const int64_t all = above(floor);
  if (all < k) return floor;
  if (all == k) return least(floor);
  I low = order_of(floor), high = order_of(most);  // at least k above low, fewer above high
  while (high - 1 > low) {
    const I middle = (I)((low & high) + ((low ^ high) >> 1));
    const T limit = number_at<T>(middle);
    const int64_t count = above(limit);
    if (count == k) return least(limit);
    if (count > k) low = middle;
    else high = middle;
  }
  return number_at<T>(high);
}

template <class T> FASTAE_INLINE T kth_largest(const T* z, int64_t n, int64_t k, T floor, bool magnitude) {
  return kth_of<T>(
      k, floor, largest_of(z, n, magnitude), [&](T limit) { return count_above(z, n, limit, magnitude); },
      [&](T limit) { return smallest_above(z, n, limit, magnitude); });
}

// f(position) for the k first of n entries in the order above, by ascending position; kth as kth_largest gives it.
template <class T, class F>
FASTAE_INLINE void each_of_largest(const T* z, int64_t n, int64_t k, T kth, bool magnitude, const F& f) {
  const int64_t above = count_above(z, n, kth, magnitude);
  int64_t ties = k - above, none = 0;  // none: NaN, taken where there is nothing else
  for (int64_t i = 0; i < n; ++i) none += score_of(z[i], magnitude) >= kth;
  none = none < k ? k - none : 0;
  for (int64_t i = 0; i < n; ++i) {
    const T s = score_of(z[i], magnitude);
    if (s > kth) f(i);
    else if (s == kth) {
      if (ties-- > 0) f(i);
    } else if (s != s && none > 0) {
      --none;
      f(i);
    }
  }
}

}  // namespace
}  // namespace fastae
