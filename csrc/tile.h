// The register tile: c[i,j] = sum_p a[i,p] b[p,j] for MR rows and NV vectors of columns.
//
// Each output is one chain of fused multiply-adds over ascending p, so its bits depend neither on the tile's size nor
// on the output's place in it. b is a packed panel of NV*N columns; a is read where it lies (row stride rs) or from a
// packed panel of kPanelRows rows.
#pragma once
#include "vec.h"

namespace fastae {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxVectors = 4;  // 32 registers: 6 x 4 accumulators, 4 of b, 1 of a
#else
constexpr int kMaxVectors = 2;  // 16 registers: 6 x 2 accumulators, 2 of b, 1 of a
#endif
constexpr int kPanelRows = 12;

// How a chain begins and ends: at 0; at the value in c; or at 0 and added to c afterwards (segments of rows).
enum TileMode { kSet, kContinue, kAddAfter };

template <class T> struct TileArgs {
  int64_t depth;  // length of the chain
  const T* a;
  int64_t rs;  // distance of a's rows; unused when packed
  const T* b;
  T* c;
  int64_t ldc;
  int64_t width;  // columns to write, <= NV * N
  int mode;
};

template <class T, int MR, int NV, bool PACKED> __attribute__((noinline)) void tile(const TileArgs<T>& t) noexcept {
  typedef Vec<T> V;
  constexpr int N = V::N;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      acc[i][v] = t.mode == kContinue ? V::load(t.c + i * t.ldc + v * N, (int)(t.width - v * N)) : V(T(0));

  const T* b = t.b;
  const int64_t rs = PACKED ? 1 : t.rs;
  const int64_t cs = PACKED ? kPanelRows : 1;
  // three row pointers serve up to 12 rows with the offsets 0, rs, 2rs, 3rs
  const T* a0 = t.a;
  const T* a1 = a0 + 4 * rs;
  const T* a2 = a0 + 8 * rs;
  const int64_t rs3 = 3 * rs;
  for (int64_t p = t.depth; p > 0; --p) {
    V bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = V::load(b + v * N);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T* base = i < 4 ? a0 : i < 8 ? a1 : a2;
      const V av((i & 3) == 0 ? base[0] : (i & 3) == 1 ? base[rs] : (i & 3) == 2 ? base[2 * rs] : base[rs3]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = fma(av, bv[v], acc[i][v]);
    }
    b += NV * N;
    a0 += cs;
    a1 += cs;
    a2 += cs;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      T* c = t.c + i * t.ldc + v * N;
      const int n = (int)(t.width - v * N);
      if (t.mode == kAddAfter) acc[i][v] = V::load(c, n) + acc[i][v];
      acc[i][v].store(c, n);
    }
}

// Rows that a tile of NV vectors takes at most: as many accumulators as registers allow.
constexpr int tile_rows(int nv) { return 2 * nv <= kMaxVectors ? 12 : 6; }

template <class T, int NV, bool PACKED> FASTAE_INLINE int run_tile(int64_t rows, const TileArgs<T>& t) noexcept {
  if constexpr (tile_rows(NV) == 12) {
    if (rows >= 12) return tile<T, 12, NV, PACKED>(t), 12;
  }
  if (rows >= 6) return tile<T, 6, NV, PACKED>(t), 6;
  if (rows >= 4) return tile<T, 4, NV, PACKED>(t), 4;
  if (rows >= 2) return tile<T, 2, NV, PACKED>(t), 2;
  return tile<T, 1, NV, PACKED>(t), 1;
}

// The largest tile that fits the rows left; returns how many rows it took.
template <class T, bool PACKED> FASTAE_INLINE int run_tile(int nv, int64_t rows, const TileArgs<T>& t) noexcept {
  if constexpr (kMaxVectors == 4) {
    if (nv == 4) return run_tile<T, 4, PACKED>(rows, t);
    if (nv == 3) return run_tile<T, 3, PACKED>(rows, t);
  }
  if (nv == 2) return run_tile<T, 2, PACKED>(rows, t);
  return run_tile<T, 1, PACKED>(rows, t);
}

}  // namespace
}  // namespace fastae
