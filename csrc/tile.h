// The register tile: c[i,j] = sum_p a[i,p] b[p,j] for MR rows and NV vectors of columns.
//
// Each output is one chain of fused multiply-adds over ascending p, so its bits depend neither on the tile's size nor
// on the output's place in it. b is a packed panel of NV*N columns; a is read row by row, or upright: a[i,p] = a[p*rs + i],
// as a panel of kPanelRows rows lies and the left operand of dT x.
#pragma once
#include "vecmath.h"

#include "catalog.h"

namespace fastae {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxVectors = 4;  // 32 registers: 6 x 4 accumulators, 4 of b, 1 of a
#else
constexpr int kMaxVectors = 2;  // 16 registers: 6 x 2 accumulators, 2 of b, 1 of a
#endif
constexpr int kPanelRows = 12;
constexpr int kAhead = 4;        // steps of a chain that a panel is fetched ahead of, from the second-level cache
constexpr int kLongChain = 256;  // steps in which fetching a tile's lines costs nothing

// How a chain begins and ends: at 0; at the value in c; or at 0 and added to c afterwards (segments of rows).
enum TileMode { kSet, kContinue, kAddAfter };

// What a finished chain x becomes before it leaves the registers: x + bias, then ReLU; or x scale relu'(saved back), which
// is ActReLU::dy in fewer instructions.
// Other formulas are worked out on blocks in cache: here they would be compiled once per shape of tile.
template <class T> struct TileEnd {
  bool any = false;
  const T* bias = nullptr;
  bool relu = false;
  const T* saved = nullptr;
  int64_t lds = 0;
  T scale = T(1), back = T(1);
  bool watched = false;  // whether rows whose first column is not finite are looked for
};

template <class T> struct TileArgs {
  int64_t depth;  // length of the chain
  const T* a;
  int64_t rs;  // distance of a's rows; of its columns when they lie side by side in a row
  const T* b;
  T* c;
  int64_t ldc;
  int64_t width;  // columns to write, <= NV * N
  int mode;
  const TileEnd<T>* end = nullptr;
  int64_t row = 0, column = 0;  // of the tile in the whole product, for `end`
  uint32_t* strange = nullptr;  // takes a bit per watched row
  const T* before = nullptr;    // what kAddAfter adds chains to, where that is not in c
  int64_t ldb = 0;
};

// Vector v of a row of NV vectors, of which the last may be a part, of at least one lane: without a branch, and with one
// mask for all rows.
template <class T, int NV, bool FULL> FASTAE_INLINE Vec<T> load_part(const T* row, int v, int64_t width) {
  constexpr int N = Vec<T>::N;
  if (FULL || v < NV - 1) return Vec<T>::load(row + v * N);
  return Vec<T>(load_first(row + v * N, (int)width - v * N));
}
template <class T, int NV, bool FULL> FASTAE_INLINE void store_part(T* row, int v, Vec<T> x, int64_t width) {
  constexpr int N = Vec<T>::N;
  if (FULL || v < NV - 1) x.store(row + v * N);
  else store_first(row + v * N, x.v, (int)width - v * N);
}

template <class T, int MR, int NV, bool FULL>
FASTAE_INLINE void end_chains(Vec<T> (&acc)[MR][NV], const TileArgs<T>& t, const TileEnd<T>& e) {
  typedef Vec<T> V;
  typedef ActReLU<V, T> ReLU;
  const auto load = [&](const T* p, int v) { return load_part<T, NV, FULL>(p, v, t.width); };
  if (e.watched && t.column == 0) {
    uint32_t strange = 0;
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) strange |= (uint32_t)!(acc[i][0][0] - acc[i][0][0] == 0) << i;
    *t.strange = strange;
  }
  if (e.bias) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      V bias = load(e.bias + t.column, v);
      if (e.relu) bias += V(T(0));  // no -0, so that no sum is -0
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) acc[i][v] += bias;
    }
  }
  if (e.relu && e.bias) {  // of what is not -0, this is ReLU::y in one instruction
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = at_least(acc[i][v], V(T(0)));
  } else if (e.relu) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = ReLU::y(acc[i][v], nullptr);
  }
  if (e.saved) {
    const auto each = [&](auto f) __attribute__((always_inline)) {
      const T* saved = e.saved + t.row * e.lds + t.column;
      __asm__("" : "+r"(saved));  // or all of it is loaded before the choice below, and kept on the stack
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i, saved += e.lds)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[i][v] = f(acc[i][v], load(saved, v));
    };
    const V scale(e.scale), back(e.back);
    if (e.scale == T(1)) each([&](V x, V s) { return times(x, s > 0); });
    else each([&](V x, V s) { return times(x * scale, s * back > 0); });
  }
}

// The tile's end, as simple as compilers can be made to see it: arguments in variables that no store can touch, read after
// the chains, so that none of this is worked out before them and kept on the stack.
template <class T, int MR, int NV, bool FULL, bool END>
FASTAE_INLINE void write_tile(Vec<T> (&acc)[MR][NV], const TileArgs<T>& given) {
  const TileArgs<T>* args = &given;
  __asm__("" : "+r"(args));
  const TileArgs<T> t = *args;
  if constexpr (END) end_chains<T, MR, NV, FULL>(acc, t, *t.end);
  T* c = t.c;
  if (t.mode == kAddAfter) {
    const T* before = t.before ? t.before : c;
    const int64_t ld = t.before ? t.ldb : t.ldc;
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i, before += ld)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = load_part<T, NV, FULL>(before, v, t.width) + acc[i][v];
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i, c += t.ldc)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store_part<T, NV, FULL>(c, v, acc[i][v], t.width);
}

template <class T, int MR, int NV, bool UPRIGHT, bool FULL, bool END>
__attribute__((noinline)) void chains(const TileArgs<T>& t) noexcept {
  typedef Vec<T> V;
  constexpr int N = V::N;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = V(T(0));
  if (t.mode == kContinue) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = load_part<T, NV, FULL>(t.c + i * t.ldc, v, t.width);
  }

  if (MR >= 6 && t.depth >= kLongChain) {  // what is written at the end is fetched meanwhile
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) __builtin_prefetch(t.c + i * t.ldc + v * N, 1);
  }
  const T* b = t.b;
  const int64_t rs = UPRIGHT ? 1 : t.rs;
  const int64_t cs = UPRIGHT ? t.rs : 1;
  // three row pointers serve up to 12 rows with the offsets 0, rs, 2rs, 3rs
  const T* a0 = t.a;
  const T* a1 = a0 + 4 * rs;
  const T* a2 = a0 + 8 * rs;
  const int64_t rs3 = 3 * rs;
  for (int64_t p = t.depth; p > 0; --p) {
    V bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      bv[v] = in_register(V::load(b + v * N));
      if (MR >= 6) __builtin_prefetch(b + (kAhead * NV + v) * N);
    }
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
  write_tile<T, MR, NV, FULL, END>(acc, t);
}

template <class T, int MR, int NV, bool UPRIGHT> FASTAE_INLINE void tile(const TileArgs<T>& t) noexcept {
  const auto run = [&](auto end) {
    constexpr bool END = decltype(end)::value;
    if (t.width >= NV * Vec<T>::N) chains<T, MR, NV, UPRIGHT, true, END>(t);
    else chains<T, MR, NV, UPRIGHT, false, END>(t);
  };
  if constexpr (!UPRIGHT) {
    if (t.end) return run(std::true_type());
  }
  run(std::false_type());
}

// Rows that a tile of NV vectors takes at most: as many accumulators as registers allow.
constexpr int tile_rows(int nv) { return 2 * nv <= kMaxVectors ? 12 : 6; }

template <class T, int NV, bool UPRIGHT> FASTAE_INLINE int run_tile(int64_t rows, const TileArgs<T>& t) noexcept {
  if constexpr (tile_rows(NV) == 12) {
    if (rows >= 12) return tile<T, 12, NV, UPRIGHT>(t), 12;
    if (rows >= 8) return tile<T, 8, NV, UPRIGHT>(t), 8;
  }
  if (rows >= 6) return tile<T, 6, NV, UPRIGHT>(t), 6;
  if (rows >= 4) return tile<T, 4, NV, UPRIGHT>(t), 4;
  if (rows >= 2) return tile<T, 2, NV, UPRIGHT>(t), 2;
  return tile<T, 1, NV, UPRIGHT>(t), 1;
}

// The largest tile that fits the rows left; returns how many rows it took.
template <class T, bool UPRIGHT> FASTAE_INLINE int run_tile(int nv, int64_t rows, const TileArgs<T>& t) noexcept {
  if constexpr (kMaxVectors == 4) {
    if (nv == 4) return run_tile<T, 4, UPRIGHT>(rows, t);
    if (nv == 3) return run_tile<T, 3, UPRIGHT>(rows, t);
  }
  if (nv == 2) return run_tile<T, 2, UPRIGHT>(rows, t);
  return run_tile<T, 1, UPRIGHT>(rows, t);
}

}  // namespace
}  // namespace fastae
