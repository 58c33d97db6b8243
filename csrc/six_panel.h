// Products with the upper six bits of 8-bit integers, panel by panel, and with the lower two, row by row: see coarse.h.
#pragma once
#include "byte_pack.h"

#ifdef FASTAE_BF16
namespace fastae {
namespace {

constexpr int64_t kSixAhead = 4096;  // bytes that are fetched ahead

// c[i] (64) = x[i] . panel for R rows of words; the lanes of odd vectors hold sums of v, those of even ones of 4 v.
// A word of 64 latents is three lines: a, b, k. Upper four bits of v of latents 0-15 are a's upper ones, of 32-47 b's;
// lower four bits of 16-31 are a's lower ones, of 48-63 b's. k has the two other bits: of 0-15 in its bits 2 and 3, of 16-31
// in 4 and 5, of 32-47 in 0 and 1, of 48-63 in 6 and 7, so that only the last two need shifts.
template <int R>
__attribute__((noinline)) void six_panel(const uint8_t* w, int64_t words, const int32_t* x, int64_t ldx,
                                         int32_t* c) noexcept {
  typedef Native<float>::ints ints;
  const ints upper = IntVec<float>((int32_t)0xf0f0f0f0).v, low = IntVec<float>(0x0c0c0c0c).v;
  const ints high = IntVec<float>(0x30303030).v;
  ints sum[R][4] = {};
  for (int64_t t = 0; t < words; ++t, w += 192, ++x) {
    ints a, b, k;
    memcpy(&a, w, sizeof a);
    memcpy(&b, w + 64, sizeof b);
    memcpy(&k, w + 128, sizeof k);
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v) __builtin_prefetch(w + kSixAhead + 64 * v);
    const ints q[4] = {(a & upper) | (k & low), (a & ~upper) | (k & high), (b & upper) | (k << 2 & low),
                       (b & ~upper) | (k >> 2 & high)};
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const __m512i word = _mm512_set1_epi32(x[i * ldx]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum[i][v]) : "v"(q[v]), "v"(word));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) memcpy(c + i * 64 + 16 * v, &sum[i][v], 64);
}

FASTAE_INLINE int32_t sum_of_ints(Native<float>::ints v) {
  typedef Native<float>::ints ints;
  v += (ints)_mm512_maskz_shuffle_i32x4(0xffff, (__m512i)v, (__m512i)v, 0x4e);
  v += (ints)_mm512_maskz_shuffle_i32x4(0xffff, (__m512i)v, (__m512i)v, 0xb1);
  v += (ints)_mm512_maskz_shuffle_epi32(0xffff, (__m512i)v, _MM_PERM_BADC);
  v += (ints)_mm512_maskz_shuffle_epi32(0xffff, (__m512i)v, _MM_PERM_CDAB);
  return v[0];
}

// sum_p h c and sum_p l c of a row of lower bits.
FASTAE_INLINE void rest_sums(const uint8_t* rests, int64_t depth, const int8_t* high, int32_t* sum_high,
                             int32_t* sum_low) {
  typedef Native<float>::ints ints;
  const ints two = IntVec<float>(0x03030303).v;
  ints h = {}, l = {}, k = {}, x;
  for (int64_t at = 0; at < depth; at += 64, high += 64) {
    k = k >> 2;
    if (at % 256 == 0) memcpy(&k, rests + at / 4, sizeof k);
    const ints q = k & two;
    memcpy(&x, high, sizeof x);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(h) : "v"(q), "v"(x));
    memcpy(&x, high + depth, sizeof x);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(l) : "v"(q), "v"(x));
  }
  *sum_high = sum_of_ints(h);
  *sum_low = sum_of_ints(l);
}

}  // namespace
}  // namespace fastae
#endif
