// Operands of bfloat16 products, rounded to nearest even, for the micro-kernels of bf16_tile.h.
//
//   left   a[i][p]                   rows of pairs, the depth filled up with zeros to whole tiles
//   right  panel[p / 2][j][p % 2]    64 columns (the last panel 32 where these are enough), filled up with zeros
#pragma once
#include "bf16_tile.h"
#include "gemm.h"

#ifdef FASTAE_BF16
namespace fastae {
namespace {

FASTAE_INLINE int64_t whole_tiles(int64_t depth) { return ceil_div(depth, kTileDepth) * kTileDepth; }

// Distance of a left operand's rows: an odd number of cache lines, so that rows don't fall into few sets of the cache.
FASTAE_INLINE int64_t left_stride(int64_t depth) { return (ceil_div(depth, kTileDepth) | 1) * kTileDepth; }

FASTAE_INLINE int64_t panel_width(int64_t columns, int64_t panel) {
  return columns - panel * kBf16Columns > 32 ? kBf16Columns : 32;
}

// 32 numbers as bfloat16 in order
#define FASTAE_BF16_ROUND(low, high) (__m512i) _mm512_cvtne2ps_pbh((high).v, (low).v)

// even[j], odd[j] in turn: 16 pairs
FASTAE_BF16_INLINE __m512i interleave(__m512i rounded) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rounded);
}

// left[i][p] = a[i,p]
FASTAE_BF16_TARGET void round_rows(const float* a, int64_t lda, int64_t rows, int64_t depth, uint16_t* left,
                                   int64_t ld) noexcept {
  for (int64_t i = 0; i < rows; ++i, a += lda, left += ld)
    for (int64_t p = 0; p < depth; p += 32) {
      const Vec<float> low = Vec<float>::load(a + p, (int)smaller(16, depth - p));
      const Vec<float> high = Vec<float>::load(a + p + 16, (int)smaller(16, depth - p - 16));
      _mm512_storeu_si512(left + p, FASTAE_BF16_ROUND(low, high));
    }
}

// left[j][p] = d[p,j] for at most 16 columns of d: the left operand of dT x. [sum][j] = sum_p d[p,j] by the chains of
// bias_gradient(), in float32; add: added to what it holds.
FASTAE_BF16_TARGET void round_columns(const float* d, int64_t ldd, int64_t columns, int64_t depth, uint16_t* left,
                                      int64_t ld, float* sum, bool add) noexcept {
  Vec<float> chain(0);
  for (int64_t p0 = 0; p0 < depth; p0 += 32) {
    Vec<float> r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const int64_t p = p0 + 2 * i;
      const Vec<float> even = Vec<float>::load(d + p * ldd, p < depth ? (int)columns : 0);
      const Vec<float> odd = Vec<float>::load(d + (p + 1) * ldd, p + 1 < depth ? (int)columns : 0);
      chain = (chain + even) + odd;
      r[i] = Vec<float>((vfloat)interleave(FASTAE_BF16_ROUND(even, odd)));
    }
    if (sum && ((p0 + 32) % kSegment == 0 || p0 + 32 >= depth)) {
      (add ? Vec<float>::load(sum, (int)columns) + chain : chain).store(sum, (int)columns);
      chain = Vec<float>(0);
      add = true;
    }
    transpose_stage<float, 8>(r, std::make_integer_sequence<int, 16>());
    for (int64_t j = 0; j < columns; ++j) r[j].store((float*)(left + j * ld + p0));
  }
}

// panel[p / 2][j][p % 2] = b[p,j]
FASTAE_BF16_TARGET void pair_straight(const float* b, int64_t ldb, int64_t columns, int64_t depth, int64_t width,
                                      uint16_t* panel) noexcept {
  for (int64_t p = 0; p < whole_tiles(depth); p += 2)
    for (int64_t j = 0; j < width; j += 16, panel += 32) {
      const int lanes = (int)smaller(16, columns - j);
      const Vec<float> even = Vec<float>::load(b + p * ldb + j, p < depth ? lanes : 0);
      const Vec<float> odd = Vec<float>::load(b + (p + 1) * ldb + j, p + 1 < depth ? lanes : 0);
      _mm512_storeu_si512(panel, interleave(FASTAE_BF16_ROUND(even, odd)));
    }
}

// panel[p / 2][j][p % 2] = w[j,p]
FASTAE_BF16_TARGET void pair_transposed(const float* w, int64_t ldw, int64_t columns, int64_t depth, int64_t width,
                                        uint16_t* panel) noexcept {
  for (int64_t j = 0; j < width; j += 16)
    for (int64_t p = 0; p < depth; p += 32) {
      Vec<float> r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const bool there = j + i < columns;
        const float* source = w + (j + i) * ldw + p;
        const Vec<float> low = Vec<float>::load(source, there ? (int)smaller(16, depth - p) : 0);
        const Vec<float> high = Vec<float>::load(source + 16, there ? (int)smaller(16, depth - p - 16) : 0);
        r[i] = Vec<float>((vfloat)FASTAE_BF16_ROUND(low, high));
      }
      transpose_stage<float, 8>(r, std::make_integer_sequence<int, 16>());
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) r[i].store((float*)(panel + (p / 2 + i) * 2 * width + 2 * j));
    }
}

}  // namespace
}  // namespace fastae
#endif
