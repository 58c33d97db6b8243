// Products of dense layers in bfloat16: operands rounded to nearest even, sums in float32. The counterpart of gemm.h.
//
// Where a machine multiplies bfloat16 (`bf16_product::dots`, `tiles`) operands are packed rounded, and every result is
// one chain over its depth, in a gradient over all rows. Elsewhere (`rounded`) rounded copies go through the float32
// products: a product of two bfloat16 numbers is exact in float32, so that only the order of the sums differs.
// Bits differ between the three, but not with threads, batch size or a row's place.
#pragma once
#include "bf16_pack.h"
#include "gemm.h"
#include "kernels.h"

namespace fastae {
namespace {

constexpr int64_t kBf16Depth = 512;    // chain elements per pass: what a strip needs of them stays in L1
constexpr int64_t kBf16Segment = 256;  // rows of a gradient that are packed at a time
constexpr int64_t kBf16Rows = 192;     // rows of a task: a left operand of them stays in L2

FASTAE_INLINE Vec<float> round_bf16(Vec<float> x) {
  const IntVec<float> u = bits(x);
  const IntVec<float> r = (u + 0x7fff + (shift_right(u, 16) & 1)) & (int32_t)0xffff0000;
  return select(x != x, x, as_float(r));
}

// out (rows,columns) contiguous = a rounded
FASTAE_INLINE void round_copy(const float* a, int64_t lda, int64_t rows, int64_t columns, float* out, int threads) {
  constexpr int N = Vec<float>::N;
  parallel(useful_threads(threads, (double)rows * columns), ceil_div(rows, 16), [&](int64_t task) {
    for (int64_t i = task * 16; i < smaller(rows, task * 16 + 16); ++i)
      for (int64_t j = 0; j < columns; j += N) {
        const int lanes = (int)smaller(N, columns - j);
        round_bf16(Vec<float>::load(a + i * lda + j, lanes)).store(out + i * columns + j, lanes);
      }
  });
}

#ifdef FASTAE_BF16

// floats of memory of the operands
FASTAE_INLINE int64_t left_size(int64_t rows, int64_t depth) { return rows * left_stride(depth) / 2; }
FASTAE_INLINE int64_t right_size(int64_t columns, int64_t depth) {
  return ceil_div(columns, kBf16Columns) * kBf16Columns * whole_tiles(depth) / 2;
}
constexpr int64_t kBf16GroupBytes = 4 << 20;  // of packed panels in use at a time: few passes over the left operand
FASTAE_INLINE int64_t right_group(int64_t depth) {
  return larger(1, kBf16GroupBytes / 2 / (kBf16Columns * whole_tiles(depth)));
}

// Rows whose left operand is rounded at a time: it stays in L2 until it has met every panel.
FASTAE_INLINE int64_t left_rows(int64_t m, int threads) { return smaller(m, threads * kBf16Rows); }

// Panels [first, last) of the right operand. transposed: w (columns, depth), else w (depth, columns).
FASTAE_INLINE void pair_panels(const float* w, int64_t ldw, int64_t columns, int64_t depth, bool transposed,
                               int64_t first, int64_t last, int threads, uint16_t* packed) {
  constexpr int64_t W = kBf16Columns;
  parallel(useful_threads(threads, (double)(last - first) * W * depth), last - first, [&](int64_t i) {
    const int64_t j = (first + i) * W, n = smaller(W, columns - j), width = panel_width(columns, first + i);
    uint16_t* panel = packed + i * W * whole_tiles(depth);
    if (transposed) pair_transposed(w + j * ldw, ldw, n, depth, width, panel);
    else pair_straight(w + j, ldw, n, depth, width, panel);
  });
}

// Rows [row, row + rows) of c (+)= left * panels [first, last); finish after the last element of the chains. left
// begins at that row.
template <class F>
void multiply_strips(int how, const uint16_t* left, int64_t ld, const uint16_t* packed, int64_t row, int64_t rows,
                     int64_t columns, int64_t depth, int64_t first, int64_t last, float* c, int64_t ldc, bool go_on,
                     const F& finish) noexcept {
  constexpr int64_t W = kBf16Columns;
  const int64_t strip = how == bf16_product::tiles ? kAmxStrip : kDotStrip;
  Tiles tiles;
  // equal passes over the chain, one panel after the other, so that its results stay in cache from pass to pass
  const int64_t step = whole_tiles(ceil_div(depth, larger(1, ceil_div(depth, kBf16Depth))));
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t j = panel * W, width = smaller(W, columns - j), wide = panel_width(columns, panel);
    const uint16_t* b = packed + (panel - first) * W * whole_tiles(depth);
    for (int64_t p = 0; p < depth; p += step) {
      const int64_t n = smaller(step, depth - p);
      for (int64_t i = 0; i < rows; i += strip) {
        const int64_t taken = smaller(strip, rows - i);
        const StripArgs t = {n,     left + i * ld + p, ld, b + p * wide, 2 * wide, c + (row + i) * ldc + j, ldc, taken,
                             width, go_on || p > 0};
        if (how == bf16_product::tiles) multiply_tiles(t, tiles);
        else multiply_dots(t);
        if (p + n >= depth) finish(row + i, taken, j, width);
      }
    }
  }
  if (how == bf16_product::tiles) tiles.release();
}

template <class F>
void multiply_packed(int how, const float* a, int64_t lda, const float* w, int64_t ldw, bool transposed,
                     const float* packed, int64_t m, int64_t columns, int64_t depth, float* c, int64_t ldc, int threads,
                     float* scratch, const F& finish) noexcept {
  constexpr int64_t W = kBf16Columns;
  threads = useful_threads(threads, (double)m * columns * depth / 4);
  const int64_t ld = left_stride(depth), panels = ceil_div(columns, W), size = W * whole_tiles(depth);
  const int64_t block = left_rows(m, threads);
  uint16_t* left = (uint16_t*)scratch;
  uint16_t* right = (uint16_t*)(scratch + left_size(block, depth));
  const int64_t group = packed ? panels : right_group(depth);
  for (int64_t first = 0; first < panels; first += group) {
    const int64_t last = smaller(panels, first + group);
    const uint16_t* b = (const uint16_t*)packed;
    if (!packed) {
      pair_panels(w, ldw, columns, depth, transposed, first, last, threads, right);
      b = right;
    }
    for (int64_t r = 0; r < m; r += block) {
      const int64_t rows = smaller(block, m - r), blocks = ceil_div(rows, kBf16Rows);
      parallel(useful_threads(threads, (double)rows * depth), ceil_div(rows, 32), [&](int64_t task) {
        const int64_t i = task * 32;
        round_rows(a + (r + i) * lda, lda, smaller(32, rows - i), depth, left + i * ld, ld);
      });
      // few row blocks: cut the panels as well, to feed every thread
      const int64_t cuts = threads > 1 ? smaller(last - first, ceil_div(4 * threads, blocks)) : 1;
      const int64_t per = ceil_div(last - first, cuts), parts = ceil_div(last - first, per);
      parallel(threads, blocks * parts, [&](int64_t task) {
        const int64_t i = task / parts * kBf16Rows, from = first + task % parts * per;
        multiply_strips(how, left + i * ld, ld, b + (from - first) * size, r + i, smaller(kBf16Rows, rows - i), columns,
                        depth, from, smaller(last, from + per), c, ldc, false, finish);
      });
    }
  }
}

FASTAE_INLINE void gradient_packed(int how, const float* d, int64_t ldd, const float* x, int64_t ldx, int64_t m,
                                   int64_t n, int64_t k, float* dw, float* db, int threads, float* scratch, bool add,
                                   bool add_bias, const GradientUse<float>* use) noexcept {
  constexpr int64_t W = kBf16Columns, kUnits = 16;
  const int64_t ld = left_stride(smaller(m, kBf16Segment)), units = ceil_div(n, kUnits), panels = ceil_div(k, W);
  uint16_t* left = (uint16_t*)scratch;
  uint16_t* right = (uint16_t*)(scratch + left_size(units * kUnits, smaller(m, kBf16Segment)));
  for (int64_t s = 0; s < m; s += kBf16Segment) {
    const int64_t rows = smaller(kBf16Segment, m - s), size = W * whole_tiles(rows);
    const int t = useful_threads(threads, (double)rows * n * k / 4);
    parallel(t, units + panels, [&](int64_t task) {
      if (task < units) {
        const int64_t j = task * kUnits;
        round_columns(d + s * ldd + j, ldd, smaller(kUnits, n - j), rows, left + j * ld, ld, db ? db + j : nullptr,
                      s > 0 || add_bias);
      } else {
        const int64_t panel = task - units, j = panel * W;
        pair_straight(x + s * ldx + j, ldx, smaller(W, k - j), rows, panel_width(k, panel), right + panel * size);
      }
    });
    // a task is one panel's columns of a run of units
    const int64_t cuts = t > 1 ? smaller(ceil_div(n, kAmxStrip), ceil_div(8 * t, panels)) : 1;
    const int64_t run = ceil_div(ceil_div(n, cuts), kAmxStrip) * kAmxStrip, runs = ceil_div(n, run);
    parallel(t, panels * runs, [&](int64_t task) {
      const int64_t panel = task / runs, from = task % runs * run;
      const int64_t stop = smaller(from + run, n);
      const bool taken = use && s + rows >= m;
      const auto finish = [&](int64_t row, int64_t count, int64_t j, int64_t width) {
        if (!taken) return;
        use->take(use->context, dw + row * k + j, k, row, count, j, width);
        use->expect(use->context, row + count, smaller(count, stop - row - count), j, width);
      };
      multiply_strips(how, left + from * ld, ld, right + panel * size, from, stop - from, k, rows, panel, panel + 1, dw,
                      k, s > 0 || add, finish);
    });
  }
}

#endif

// floats of scratch of a product and of a gradient
FASTAE_INLINE int64_t bf16_product_size(int how, int64_t m, int64_t columns, int64_t depth, int threads) {
#ifdef FASTAE_BF16
  if (how != bf16_product::rounded)
    return left_size(left_rows(m, threads), depth) +
           smaller(right_size(columns, depth), right_group(depth) * kBf16Columns * whole_tiles(depth) / 2);
#endif
  return (m + columns) * depth;
}
FASTAE_INLINE int64_t bf16_gradient_size(int how, int64_t m, int64_t n, int64_t k) {
#ifdef FASTAE_BF16
  const int64_t rows = smaller(m, kBf16Segment);
  if (how != bf16_product::rounded) return left_size(n + 16, rows) + right_size(k, rows);
#endif
  return m * (n + k);
}

// As multiply(), the packed operand that of pack_bf16. scratch: bf16_product_size floats, then those of multiply().
template <class F>
void multiply_bf16(int how, const float* a, int64_t lda, const float* w, int64_t ldw, bool transposed,
                   const float* packed, int64_t m, int64_t columns, int64_t depth, float* c, int64_t ldc, int threads,
                   float* scratch, const F& finish) noexcept {
#ifdef FASTAE_BF16
  if (how != bf16_product::rounded)
    return multiply_packed(how, a, lda, w, ldw, transposed, packed, m, columns, depth, c, ldc, threads, scratch,
                           finish);
#endif
  float* const right = scratch + m * depth;
  const int64_t rows = transposed ? columns : depth, width = transposed ? depth : columns;
  round_copy(a, lda, m, depth, scratch, threads);
  if (!packed) round_copy(w, ldw, rows, width, right, threads);
  multiply(scratch, depth, right, width, transposed, packed, m, columns, depth, c, ldc, threads,
           right + columns * depth, finish);
}

// All panels of w, for multiply_bf16.
FASTAE_INLINE void pack_bf16(int how, const float* w, int64_t ldw, int64_t columns, int64_t depth, bool transposed,
                             int threads, float* packed) noexcept {
#ifdef FASTAE_BF16
  if (how != bf16_product::rounded)
    return pair_panels(w, ldw, columns, depth, transposed, 0, ceil_div(columns, kBf16Columns), threads,
                       (uint16_t*)packed);
#endif
  pack_panels(w, ldw, columns, depth, transposed, 0, panel_count<float>(columns), threads, packed);
  const int64_t size = packed_size<float>(columns, depth);
  round_copy(packed, size, 1, size, packed, 1);
}

// dw (n,k) (+)= dT x, [db] (n) (+)= sum_r d unrounded, for d (m,n), x (m,k). scratch: bf16_gradient_size floats, then
// those of weight_gradient(). use: as there, after dw is written.
FASTAE_INLINE void weight_gradient_bf16(int how, const float* d, int64_t ldd, const float* x, int64_t ldx, int64_t m,
                                        int64_t n, int64_t k, float* dw, float* db, int threads, float* scratch,
                                        bool add, bool add_bias, const GradientUse<float>* use) noexcept {
#ifdef FASTAE_BF16
  if (how != bf16_product::rounded)
    return gradient_packed(how, d, ldd, x, ldx, m, n, k, dw, db, threads, scratch, add, add_bias, use);
#endif
  float* const right = scratch + m * n;
  round_copy(d, ldd, m, n, scratch, threads);
  round_copy(x, ldx, m, k, right, threads);
  weight_gradient((const float*)scratch, n, (const float*)right, k, m, n, k, dw, (float*)nullptr, threads,
                  right + m * k, add, false, use);
  if (db) bias_gradient(d, ldd, m, n, db, threads, add_bias);
}

}  // namespace
}  // namespace fastae
