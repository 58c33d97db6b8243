// Philox4x32-10 (Salmon et al., 2011): counter-based random words, the same on every instruction set.
//
// Word c of a row is word c % 4 of the block with
//   counter = (c / 4 | stream << 24, row low, row high, epoch),  key = (seed low, seed high).
#pragma once
#include "vec.h"

namespace fastae {
namespace {

constexpr uint32_t philox_m0 = 0xD2511F53u, philox_m1 = 0xCD9E8D57u;  // multipliers
constexpr uint32_t philox_w0 = 0x9E3779B9u, philox_w1 = 0xBB67AE85u;  // key increments

// One block: counter c[4] is replaced by its four random words.
FASTAE_INLINE void philox_block(uint32_t c[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)philox_m0 * c[0], p1 = (uint64_t)philox_m1 * c[2];
    const uint32_t x0 = (uint32_t)(p1 >> 32) ^ c[1] ^ key0, x2 = (uint32_t)(p0 >> 32) ^ c[3] ^ key1;
    c[0] = x0;
    c[1] = (uint32_t)p1;
    c[2] = x2;
    c[3] = (uint32_t)p0;
    key0 += philox_w0;
    key1 += philox_w1;
  }
}

#ifndef FASTAE_DEVICE  // vectors of blocks
#if defined(__SSE2__)
// One counter per 64-bit lane; only the low 32 bits of a lane count, what gathers above them is never read.
// High halves come by shuffles: shifts share the multiplications' port.
#if defined(__AVX512F__)
typedef __m512i philox_lanes;
constexpr int philox_blocks = 8;
FASTAE_INLINE philox_lanes philox_all(uint32_t x) { return _mm512_set1_epi64((int64_t)x); }
FASTAE_INLINE philox_lanes philox_wide(uint64_t x) { return _mm512_set1_epi64((int64_t)x); }
FASTAE_INLINE philox_lanes philox_first(uint32_t x) {
  return _mm512_add_epi64(philox_all(x), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
}
FASTAE_INLINE philox_lanes philox_mul(philox_lanes a, philox_lanes b) { return _mm512_maskz_mul_epu32(0xff, a, b); }
FASTAE_INLINE philox_lanes philox_high(philox_lanes a) { return _mm512_maskz_shuffle_epi32(0xffff, a, _MM_PERM_DDBB); }
FASTAE_INLINE philox_lanes philox_xor(philox_lanes a, philox_lanes b, philox_lanes c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
// out[4 i + j] = c_j of counter i
FASTAE_INLINE void philox_store(uint32_t* out, philox_lanes c0, philox_lanes c1, philox_lanes c2, philox_lanes c3) {
  const __m512i a = _mm512_mask_shuffle_epi32(c0, 0xaaaa, c1, _MM_PERM_CCAA);
  const __m512i b = _mm512_mask_shuffle_epi32(c2, 0xaaaa, c3, _MM_PERM_CCAA);
  _mm512_storeu_si512(out, _mm512_permutex2var_epi64(a, _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), b));
  _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi64(a, _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4), b));
}
#elif defined(__AVX2__)
typedef __m256i philox_lanes;
constexpr int philox_blocks = 4;
FASTAE_INLINE philox_lanes philox_all(uint32_t x) { return _mm256_set1_epi64x((int64_t)x); }
FASTAE_INLINE philox_lanes philox_wide(uint64_t x) { return _mm256_set1_epi64x((int64_t)x); }
FASTAE_INLINE philox_lanes philox_first(uint32_t x) {
  return _mm256_add_epi64(philox_all(x), _mm256_set_epi64x(3, 2, 1, 0));
}
FASTAE_INLINE philox_lanes philox_mul(philox_lanes a, philox_lanes b) { return _mm256_mul_epu32(a, b); }
FASTAE_INLINE philox_lanes philox_high(philox_lanes a) { return _mm256_shuffle_epi32(a, 0xf5); }
FASTAE_INLINE philox_lanes philox_xor(philox_lanes a, philox_lanes b, philox_lanes c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
FASTAE_INLINE void philox_store(uint32_t* out, philox_lanes c0, philox_lanes c1, philox_lanes c2, philox_lanes c3) {
  const __m256i a = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xaa);
  const __m256i b = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xaa);
  const __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
  _mm256_storeu_si256((__m256i*)out, _mm256_permute2x128_si256(even, odd, 0x20));
  _mm256_storeu_si256((__m256i*)(out + 8), _mm256_permute2x128_si256(even, odd, 0x31));
}
#else
typedef __m128i philox_lanes;
constexpr int philox_blocks = 2;
FASTAE_INLINE philox_lanes philox_all(uint32_t x) { return _mm_set1_epi64x((int64_t)x); }
FASTAE_INLINE philox_lanes philox_wide(uint64_t x) { return _mm_set1_epi64x((int64_t)x); }
FASTAE_INLINE philox_lanes philox_first(uint32_t x) { return _mm_set_epi64x((int64_t)x + 1, (int64_t)x); }
FASTAE_INLINE philox_lanes philox_mul(philox_lanes a, philox_lanes b) { return _mm_mul_epu32(a, b); }
FASTAE_INLINE philox_lanes philox_high(philox_lanes a) { return _mm_srli_epi64(a, 32); }
FASTAE_INLINE philox_lanes philox_xor(philox_lanes a, philox_lanes b, philox_lanes c) {
  return _mm_xor_si128(_mm_xor_si128(a, b), c);
}
FASTAE_INLINE void philox_store(uint32_t* out, philox_lanes c0, philox_lanes c1, philox_lanes c2, philox_lanes c3) {
  const __m128i first = _mm_unpacklo_epi64(_mm_unpacklo_epi32(c0, c1), _mm_unpacklo_epi32(c2, c3));
  const __m128i second = _mm_unpacklo_epi64(_mm_unpackhi_epi32(c0, c1), _mm_unpackhi_epi32(c2, c3));
  _mm_storeu_si128((__m128i*)out, first);
  _mm_storeu_si128((__m128i*)(out + 4), second);
}
#endif
#endif

// The keys of the ten rounds; of 64-bit lanes, as operands in memory that cost no broadcast of their own.
struct PhiloxKeys {
  uint64_t key[20];
  explicit PhiloxKeys(uint64_t seed) {
    for (uint32_t round = 0; round < 10; ++round) {
      key[2 * round] = (uint32_t)seed + round * philox_w0;
      key[2 * round + 1] = (uint32_t)(seed >> 32) + round * philox_w1;
    }
  }
};

// Words column0 .. column0 + n_columns - 1 of a row, column0 a multiple of 4. Whole groups are written: out must
// have room for n_columns rounded up to a multiple of 64.
FASTAE_INLINE void philox_row(const PhiloxKeys& keys, uint32_t epoch, uint32_t stream, uint64_t row, uint32_t column0,
                              int n_columns, uint32_t* out) {
  const uint32_t row0 = (uint32_t)row, row1 = (uint32_t)(row >> 32);
  const uint32_t first = column0 / 4 | stream << 24;
  const int n_blocks = (n_columns + 3) / 4;
#if defined(__SSE2__)
  const philox_lanes m0 = philox_all(philox_m0), m1 = philox_all(philox_m1);
  constexpr int G = 2;  // side by side: a round waits for the one before
  for (int block = 0; block < n_blocks; block += G * philox_blocks) {
    philox_lanes c0[G], c1[G], c2[G], c3[G];
    for (int g = 0; g < G; ++g) {
      c0[g] = philox_first(first + (uint32_t)(block + g * philox_blocks));
      c1[g] = philox_all(row0), c2[g] = philox_all(row1), c3[g] = philox_all(epoch);
    }
#pragma GCC unroll 10
    for (uint32_t round = 0; round < 10; ++round)
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const philox_lanes p0 = philox_mul(m0, c0[g]), p1 = philox_mul(m1, c2[g]);
        c0[g] = philox_xor(philox_high(p1), c1[g], philox_wide(keys.key[2 * round]));
        c2[g] = philox_xor(philox_high(p0), c3[g], philox_wide(keys.key[2 * round + 1]));
        c1[g] = p1;
        c3[g] = p0;
      }
    for (int g = 0; g < G; ++g) philox_store(out + 4 * (block + g * philox_blocks), c0[g], c1[g], c2[g], c3[g]);
  }
#else
  for (int block = 0; block < n_blocks; ++block) {
    uint32_t c[4] = {first + (uint32_t)block, row0, row1, epoch};
    philox_block(c, (uint32_t)keys.key[0], (uint32_t)keys.key[1]);
    memcpy(out + 4 * block, c, sizeof c);
  }
#endif
}

FASTAE_INLINE void philox_row(uint64_t seed, uint32_t epoch, uint32_t stream, uint64_t row, uint32_t column0,
                              int n_columns, uint32_t* out) {
  philox_row(PhiloxKeys(seed), epoch, stream, row, column0, n_columns, out);
}

// Lanes whose word is at least a threshold, unsigned.
template <class T> FASTAE_INLINE Mask<T> at_least_mask(const uint32_t* words, uint32_t threshold) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return Mask<T>(_mm512_cmpge_epu32_mask(_mm512_loadu_si512(words), _mm512_set1_epi32((int)threshold)));
  else
    return Mask<T>(
        _mm256_cmpge_epu32_mask(_mm256_loadu_si256((const __m256i*)words), _mm256_set1_epi32((int)threshold)));
#else
  typedef uint32_t Words __attribute__((vector_size(FASTAE_VBYTES * 4 / sizeof(T))));
  Words w;
  memcpy(&w, words, sizeof w);
  return Mask<T>(__builtin_convertvector(w >= threshold, typename Native<T>::ints));
#endif
}

#endif

}  // namespace
}  // namespace fastae
