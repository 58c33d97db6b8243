// Packing of product operands into the order in which a tile reads them.
//
// A panel holds kPanelColumns<T> output columns (the last one fewer, rounded up to whole vectors): panel[p][j].
#pragma once
#include <utility>

#include "tile.h"

namespace fastae {
namespace {

template <class T> constexpr int kPanelColumns = kMaxVectors * Vec<T>::N;

FASTAE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTAE_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTAE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T> FASTAE_INLINE int64_t panel_count(int64_t columns) { return ceil_div(columns, kPanelColumns<T>); }
template <class T> FASTAE_INLINE int panel_vectors(int64_t columns, int64_t panel) {
  return (int)smaller(kMaxVectors, ceil_div(columns - panel * kPanelColumns<T>, Vec<T>::N));
}

// Lanes of (a, b) by their numbers: compilers disagree on how to ask for them.
template <int... L, class V> FASTAE_INLINE V lanes_of(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, L...);
#else
  typedef decltype(a < b) ints;
  return __builtin_shuffle(a, b, ints{L...});
#endif
}

// In-register transpose of N x N: at distance s, blocks of s lanes off the diagonal change places.
template <class T, int S, int... L> FASTAE_INLINE void transpose_stage(Vec<T>* r, std::integer_sequence<int, L...>) {
  constexpr int N = Vec<T>::N;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
    if ((i & S) == 0) {
      const auto a = r[i].v, b = r[i + S].v;
      r[i] = Vec<T>(lanes_of<((L & S) ? L - S + N : L)...>(a, b));
      r[i + S] = Vec<T>(lanes_of<((L & S) ? L + N : L + S)...>(a, b));
    }
  if constexpr (S > 1) transpose_stage<T, S / 2>(r, std::integer_sequence<int, L...>());
}

#if defined(__AVX512F__)
// out[i, j] = in[j, i] for 16 x 16: quarters of rows meet as they are loaded, which spares half of the shuffles.
FASTAE_INLINE void transpose_block(const float* in, int64_t ld, float* out, int64_t ldo) {
#pragma GCC unroll 4
  for (int c = 0; c < 16; c += 4) {
    __m512 r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // rows i, i + 4, i + 8, i + 12
      const float* q = in + i * ld + c;
      r[i] = _mm512_castps128_ps512(_mm_loadu_ps(q));
      r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(q + 4 * ld), 1);
      r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(q + 8 * ld), 2);
      r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(q + 12 * ld), 3);
    }
    const __m512d a = (__m512d)_mm512_maskz_unpacklo_ps(0xffff, r[0], r[1]),
                  b = (__m512d)_mm512_maskz_unpackhi_ps(0xffff, r[0], r[1]);
    const __m512d d = (__m512d)_mm512_maskz_unpacklo_ps(0xffff, r[2], r[3]),
                  e = (__m512d)_mm512_maskz_unpackhi_ps(0xffff, r[2], r[3]);
    float* const to = out + c * ldo;
    _mm512_storeu_pd(to, _mm512_maskz_unpacklo_pd(0xff, a, d));
    _mm512_storeu_pd(to + ldo, _mm512_maskz_unpackhi_pd(0xff, a, d));
    _mm512_storeu_pd(to + 2 * ldo, _mm512_maskz_unpacklo_pd(0xff, b, e));
    _mm512_storeu_pd(to + 3 * ldo, _mm512_maskz_unpackhi_pd(0xff, b, e));
  }
}
#endif

// panel[p][j] = w[j, p] for `columns` rows of w (n,k): the panel of a product with w transposed.
template <class T>
void pack_transposed(const T* w, int64_t ldw, int64_t columns, int64_t depth, int nv, T* panel) noexcept {
  constexpr int N = Vec<T>::N;
  const int64_t width = (int64_t)nv * N;
  for (int v = 0; v < nv; ++v) {
    const int64_t rows = smaller(N, columns - v * N);
    const T* source = w + v * N * ldw;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      if (rows == N && depth >= N) {
        for (int64_t p = 0; p < depth; p += N) {  // the last block may lie over the one before
          const int64_t from = smaller(p, depth - N);
          transpose_block(source + from, ldw, panel + from * width + v * N, width);
        }
        continue;
      }
    }
#endif
    for (int64_t p = 0; p < depth; p += N) {
      const int n = (int)smaller(N, depth - p);
      Vec<T> r[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) r[i] = i < rows ? Vec<T>::load(source + i * ldw + p, n) : Vec<T>(T(0));
      transpose_stage<T, N / 2>(r, std::make_integer_sequence<int, N>());
      T* out = panel + p * width + v * N;
      if (n == N) {
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) r[i].store(out + i * width);
      } else {
        for (int i = 0; i < n; ++i) r[i].store(out + i * width);
      }
    }
  }
}

// panel[p][j] = b[p, j]: the panel of a product with b as it lies; columns beyond the last are 0.
template <class T>
void pack_straight(const T* b, int64_t ldb, int64_t columns, int64_t depth, int nv, T* panel) noexcept {
  constexpr int N = Vec<T>::N;
  for (int64_t p = 0; p < depth; ++p)
    for (int v = 0; v < nv; ++v)
      Vec<T>::load(b + p * ldb + v * N, (int)(columns - v * N)).store(panel + (p * nv + v) * N);
}

// panel[p][i] = d[p, i] for kPanelRows columns of d: the left operand of dT x; sums[i] = sum_p d[p, i] as one chain.
// A store may reach over its row into the next: rows are written in order, and the panel has room for a vector more.
template <class T> void pack_rows(const T* d, int64_t ldd, int64_t columns, int64_t depth, T* panel, T* sums) noexcept {
  constexpr int N = Vec<T>::N, NV = (kPanelRows + N - 1) / N;
  Vec<T> sum[NV];
  for (int v = 0; v < NV; ++v) sum[v] = Vec<T>(T(0));
  for (int64_t p = 0; p < depth; ++p)
    for (int v = 0; v < NV; ++v) {
      const int64_t left = smaller(columns, kPanelRows) - v * N;
      const Vec<T> x = Vec<T>::load(d + p * ldd + v * N, (int)left);
      sum[v] += x;
      x.store(panel + p * kPanelRows + v * N);
    }
  for (int v = 0; v < NV; ++v) sum[v].store(sums + v * N);
}

}  // namespace
}  // namespace fastae
