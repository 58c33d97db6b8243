// Candidates of the largest pre-activations by products in bfloat16, with the bound of their error that bounds.h proves.
#pragma once
#include <cstring>

#include "bf16.h"
#include "bounds.h"
#include "cpu.h"
#include "kernels.h"

#ifdef FASTAE_BF16
namespace fastae {
namespace {

constexpr int64_t kCertifyRows = 32, kCertifyLatents = 32;  // of a block: two by two tiles

// Intel's dot products of bfloat16 are slower than its float32.
FASTAE_INLINE bool fast_dots(int how) {
  return how == bf16_product::tiles || (how == bf16_product::dots && !strstr(cpu_brand(), "Intel"));
}

FASTAE_INLINE Vec<float> widened(__m256i halves) {
  return as_float(IntVec<float>((Native<float>::ints)_mm512_maskz_cvtepu16_epi32(0xffff, halves)) << 16);
}

FASTAE_INLINE float sum_of_lanes(Vec<float> v) {
  float t[16];
  v.store(t);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  return t[0];
}

// Sums of squares of a and of a minus what it is rounded to; the rounded numbers go to out(p, 32 of them).
template <class F>
FASTAE_BF16_INLINE void round_with_norms(const float* a, int64_t depth, float* squares, float* residual, const F& out) {
  Vec<float> all(0), rest(0), all2(0), rest2(0);
  for (int64_t p = 0; p < depth; p += 32) {
    const Vec<float> low = Vec<float>::load(a + p, (int)smaller(16, depth - p));
    const Vec<float> high = Vec<float>::load(a + p + 16, (int)smaller(16, depth - p - 16));
    const __m512i r = FASTAE_BF16_ROUND(low, high);
    __m256i half[2];
    memcpy(half, &r, sizeof half);
    const Vec<float> d = low - widened(half[0]), e = high - widened(half[1]);
    all = fma(low, low, all);
    all2 = fma(high, high, all2);
    rest = fma(d, d, rest);
    rest2 = fma(e, e, rest2);
    out(p, r);
  }
  *squares = sum_of_lanes(all + all2);
  *residual = sum_of_lanes(rest + rest2);
}

FASTAE_BF16_TARGET void row_norms(const float* x, int64_t p, float* squares, float* residual) noexcept {
  round_with_norms(x, p, squares, residual, [](int64_t, __m512i) {});
}

// 16 latents as tiles[p / 32][16][32], and the norms that bounds are made of; rows beyond count are 0.
FASTAE_BF16_TARGET void round_latents(const float* w, int64_t ldw, const int32_t* ids, int64_t count, int64_t p,
                                      uint16_t* tiles, float* norm, float* error) noexcept {
  const Bounds bounds(p);
  for (int64_t i = 0; i < 16; ++i) {
    uint16_t* out = tiles + i * kTileDepth;
    if (i >= count) {
      for (int64_t t = 0; t < whole_tiles(p); t += 32) _mm512_storeu_si512(out + t * 16, _mm512_setzero_si512());
      norm[i] = error[i] = 0;
      continue;
    }
    float squares, residual;
    const float* const row = w + (ids ? ids[i] : i) * ldw;
    const float* const later = w + (ids ? ids[smaller(i + 3, count - 1)] : i + 3) * ldw;  // memory ahead of its use
    round_with_norms(row, p, &squares, &residual, [&](int64_t t, __m512i r) {
      __builtin_prefetch(later + t);
      __builtin_prefetch(later + t + 16);
      _mm512_storeu_si512(out + t * 16, r);
    });
    const float rest = bounds.norm(residual, p);
    norm[i] = bounds.norm(squares, p);
    error[i] = (rest + bounds.g2 * (norm[i] + rest)) * bounds.more;
  }
}

// As FASTAE_TILE_LOAD, past the first-level cache: there the panel of rows stays, which every latent meets. Without it
// these products reach 43 % of the rate of tiles from registers, with it 63 %.
#define FASTAE_TILE_STREAM(tile, p, stride) \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile : : "r"(p), "r"((int64_t)(stride)) : "memory")

// c (32,32) (+)= 32 latents (two runs of tiles, `run` elements apart) times the rows of a panel [p / 2][32][2], 16 of
// them where C is 1, over a part of the depth.
template <int C>
__attribute__((noinline)) void certify_tiles(const uint16_t* a, int64_t run, const uint16_t* b, int64_t depth,
                                             bool go_on, float* c) noexcept {
  const uint16_t* a2 = a + run;
  if (go_on) {
    FASTAE_TILE_LOAD(0, c, 128);
    FASTAE_TILE_LOAD(2, c + 16 * 32, 128);
    if constexpr (C == 2) {
      FASTAE_TILE_LOAD(1, c + 16, 128);
      FASTAE_TILE_LOAD(3, c + 16 * 32 + 16, 128);
    }
  } else {
    FASTAE_TILE_ZERO(0);
    FASTAE_TILE_ZERO(2);
    if constexpr (C == 2) {
      FASTAE_TILE_ZERO(1);
      FASTAE_TILE_ZERO(3);
    }
  }
  for (int64_t p = 0; p < depth; p += kTileDepth) {
    FASTAE_TILE_LOAD(6, b, 128);
    FASTAE_TILE_STREAM(4, a, 64);
    FASTAE_TILE_PRODUCT(4, 6, 0);
    FASTAE_TILE_STREAM(5, a2, 64);
    FASTAE_TILE_PRODUCT(5, 6, 2);
    if constexpr (C == 2) {
      FASTAE_TILE_LOAD(7, b + 32, 128);
      FASTAE_TILE_PRODUCT(4, 7, 1);
      FASTAE_TILE_PRODUCT(5, 7, 3);
    }
    a += 16 * kTileDepth;
    a2 += 16 * kTileDepth;
    b += kTileDepth / 2 * 64;
  }
  FASTAE_TILE_STORE(0, c, 128);
  FASTAE_TILE_STORE(2, c + 16 * 32, 128);
  if constexpr (C == 2) {
    FASTAE_TILE_STORE(1, c + 16, 128);
    FASTAE_TILE_STORE(3, c + 16 * 32 + 16, 128);
  }
}

// The same by dot products, MR latents of one run of tiles.
template <int MR, int C>
FASTAE_BF16_TARGET void certify_dots(const uint16_t* a, int64_t depth, const uint16_t* b, bool go_on,
                                     float* c) noexcept {
  __m512 acc[MR][C];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < C; ++v) acc[i][v] = go_on ? _mm512_loadu_ps(c + i * 32 + 16 * v) : _mm512_setzero_ps();
  for (int64_t t = 0; t < depth; t += kTileDepth, a += 15 * kTileDepth)
    for (int64_t pair = 0; pair < kTileDepth / 2; ++pair, a += 2, b += 64) {
      __m512i bv[C];
#pragma GCC unroll 2
      for (int v = 0; v < C; ++v) bv[v] = _mm512_loadu_si512(b + 32 * v);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        int32_t word;
        memcpy(&word, a + i * kTileDepth, sizeof word);
#pragma GCC unroll 2
        for (int v = 0; v < C; ++v)
          acc[i][v] = _mm512_dpbf16_ps(acc[i][v], (__m512bh)_mm512_set1_epi32(word), (__m512bh)bv[v]);
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < C; ++v) _mm512_storeu_ps(c + i * 32 + 16 * v, acc[i][v]);
}

// The part [from, from + part) of the depth of a block of 32 latents and a panel of rows; tiles only where it is a part.
FASTAE_INLINE void certify_block(int how, const uint16_t* a, int64_t depth, const uint16_t* b, int64_t rows,
                                 int64_t from, int64_t part, float* c) {
  if (how == bf16_product::tiles) {
    a += from * 16;
    b += from * kCertifyRows;
    if (rows > 16) certify_tiles<2>(a, 16 * depth, b, part, from > 0, c);
    else certify_tiles<1>(a, 16 * depth, b, part, from > 0, c);
    return;
  }
  for (int run = 0; run < 2; ++run, a += 16 * depth, c += 16 * 32)
    if (rows > 16) {
      certify_dots<8, 2>(a, depth, b, false, c);
      certify_dots<8, 2>(a + 8 * kTileDepth, depth, b, false, c + 8 * 32);
    } else {
      certify_dots<16, 1>(a, depth, b, false, c);
    }
}

// z[i] = sum_p x[p] row[i][p] for 16 rows, by the chain of every product in float32. next: rows that will be wanted soon,
// as these lie anywhere in memory. ROUND: rows are rounded to bfloat16 first.
template <bool ROUND>
__attribute__((noinline)) void exact_chains(const float* x, int64_t p, const float* const* row,
                                            const float* const* next, float* z) noexcept {
  Vec<float> sum(0), r[16];
  for (int64_t p0 = 0; p0 < p; p0 += 16) {
    const int n = (int)smaller(16, p - p0);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) __builtin_prefetch(next[i] + p0);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      r[i] = n == 16 ? Vec<float>::load(row[i] + p0) : Vec<float>::load(row[i] + p0, n);
      if (ROUND) r[i] = round_bf16(r[i]);
    }
    transpose_stage<float, 8>(r, std::make_integer_sequence<int, 16>());
    if (n == 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) sum = fma(Vec<float>(x[p0 + i]), r[i], sum);
    } else {
      for (int i = 0; i < n; ++i) sum = fma(Vec<float>(x[p0 + i]), r[i], sum);
    }
  }
  sum.store(z);
}

// [n / 32][16][32] <- the columns [p, p + n) of 16 rows
FASTAE_BF16_TARGET void round_parts(const float* const* row, const float* const* next, int64_t p, int64_t n,
                                    uint16_t* out) noexcept {
  for (int64_t t = 0; t < n; t += kTileDepth)
    for (int i = 0; i < 16; ++i, out += kTileDepth) {
      __builtin_prefetch(next[i] + p + t);
      __builtin_prefetch(next[i] + p + t + 16);
      const Vec<float> low = Vec<float>::load(row[i] + p + t, (int)smaller(16, n - t));
      const Vec<float> high = Vec<float>::load(row[i] + p + t + 16, (int)smaller(16, n - t - 16));
      _mm512_storeu_si512(out, FASTAE_BF16_ROUND(low, high));
    }
}

// As exact_chains, by the products of certify_block and with their bits: x is row r of a panel b. The tiles' shape stays
// what it was.
__attribute__((noinline)) void rounded_chains(int how, const uint16_t* b, int64_t r, int64_t p, const float* const* row,
                                              const float* const* next, float* z) noexcept {
  constexpr int64_t kPart = 512;
  alignas(64) uint16_t part[16 * kPart];
  alignas(64) float c[32 * 32];
  alignas(64) char shape[64];
  const bool tiled = how == bf16_product::tiles;
  if (tiled) {
    __asm__ volatile("sttilecfg %0" : "=m"(shape));
    Tiles().configure(32, 32);
  }
  b += r / 16 * 32;
  for (int64_t p0 = 0; p0 < p; p0 += kPart) {
    const int64_t n = smaller(kPart, p - p0), depth = whole_tiles(n);
    round_parts(row, next, p0, n, part);
    if (tiled) certify_tiles<1>(part, 0, b + p0 * kCertifyRows, depth, p0 > 0, c);
    else certify_dots<16, 1>(part, depth, b + p0 * kCertifyRows, p0 > 0, c);
  }
  if (tiled) __asm__ volatile("ldtilecfg %0" : : "m"(shape));
  for (int i = 0; i < 16; ++i) z[i] = c[i * 32 + r % 16];
}

}  // namespace
}  // namespace fastae
#endif
