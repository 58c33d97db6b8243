// Micro-kernels of products in bfloat16 with float32 sums, for machines that have dot products of pairs (AVX512_BF16)
// or tiles (AMX): c[i,j] (+)= sum_p a[i,p] b[p,j] for a strip of rows and the columns of a panel.
//
// a lies by rows; b is a panel of pairs, panel[p / 2][j][p % 2] (bf16_pack.h). A chain goes over ascending p, and on
// from the value in c where it was cut. Compiled in the avx512 library with targets of their own: only the tables
// avx512_bf16 and avx512_amx call these functions.
#pragma once
#include "clock.h"
#include "pack.h"

#if defined(__AVX512F__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define FASTAE_BF16 1
#define FASTAE_BF16_TARGET __attribute__((noinline, target("avx512bf16")))
#define FASTAE_BF16_INLINE inline __attribute__((always_inline, target("avx512bf16")))

namespace fastae {
namespace {

constexpr int64_t kTileDepth = 32;    // elements of a chain that one tile instruction takes
constexpr int64_t kDotStrip = 24;     // rows that a call of multiply_dots takes at most
constexpr int64_t kAmxStrip = 32;     // and of multiply_tiles
constexpr int64_t kBf16Columns = 64;  // of a panel; the last one has 32 where these are enough

struct StripArgs {
  int64_t depth;
  const uint16_t* a;
  int64_t lda;
  const uint16_t* b;
  int64_t ldb;  // elements from pair to pair: twice the panel's columns
  float* c;
  int64_t ldc;
  int64_t rows, columns;
  bool go_on;  // begin at the values in c, not at 0
};

template <int MR, int NV> FASTAE_BF16_TARGET void dot_tile(const StripArgs& t) noexcept {
  __m512 acc[MR][NV];
  __mmask16 lanes[NV];
  for (int v = 0; v < NV; ++v) lanes[v] = first_lanes((int)larger(0, t.columns - 16 * v), 0.f);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      acc[i][v] = t.go_on ? _mm512_maskz_loadu_ps(lanes[v], t.c + i * t.ldc + 16 * v) : _mm512_setzero_ps();
  const uint16_t* b = t.b;
  const char* a = (const char*)t.a;
  const char* a4 = a + 4 * t.lda * 2;
  const int64_t rs = t.lda * 2, rs3 = 3 * rs;
  for (int64_t p = t.depth; p > 0; p -= 2) {
    __m512i bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = _mm512_loadu_si512(b + 32 * v);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const char* base = i < 4 ? a : a4;
      const int32_t* pair = (const int32_t*)((i & 3) == 0   ? base
                                             : (i & 3) == 1 ? base + rs
                                             : (i & 3) == 2 ? base + 2 * rs
                                                            : base + rs3);
      int32_t word;
      memcpy(&word, pair, sizeof word);
      const __m512i av = _mm512_set1_epi32(word);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], (__m512bh)av, (__m512bh)bv[v]);
    }
    b += t.ldb;
    a += 4;
    a4 += 4;
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) _mm512_mask_storeu_ps(t.c + i * t.ldc + 16 * v, lanes[v], acc[i][v]);
}

template <int NV> FASTAE_INLINE void dot_rows(StripArgs t) noexcept {
  while (t.rows > 0) {
    const int taken = t.rows >= 6 ? 6 : t.rows >= 2 ? 2 : 1;
    if (taken == 6) dot_tile<6, NV>(t);
    else if (taken == 2) dot_tile<2, NV>(t);
    else dot_tile<1, NV>(t);
    t.a += taken * t.lda;
    t.c += taken * t.ldc;
    t.rows -= taken;
  }
}

FASTAE_INLINE void multiply_dots(const StripArgs& t) noexcept {
  if (t.columns > 32) dot_rows<4>(t);
  else dot_rows<2>(t);
}

// Shapes of the tiles of a strip: 0..3 results, 4 and 5 of a, 6 and 7 of b. Tiles of fewer rows and columns are
// configured as such, so that nothing beyond the operands' ends is touched. The instructions are written out, as
// intrinsics of some compilers don't say which memory they read.
struct Tiles {
  struct alignas(64) Shape {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  int64_t rows = 0, columns = 0;

  void configure(int64_t r, int64_t c) noexcept {
    if (r == rows && c == columns) return;
    rows = r;
    columns = c;
    Shape s = {1, 0, {}, {}, {}};
    for (int i = 0; i < 2; ++i) {
      const uint8_t tile_rows = (uint8_t)smaller(16, larger(0, r - 16 * i));
      const uint16_t bytes = (uint16_t)(4 * smaller(16, larger(0, c - 16 * i)));
      if (tile_rows) s.rows[4 + i] = tile_rows, s.row_bytes[4 + i] = 64;
      if (bytes) s.rows[6 + i] = 16, s.row_bytes[6 + i] = bytes;
      for (int j = 0; j < 2; ++j) {
        const uint16_t width = (uint16_t)(4 * smaller(16, larger(0, c - 16 * j)));
        if (tile_rows && width) s.rows[2 * i + j] = tile_rows, s.row_bytes[2 * i + j] = width;
      }
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(s) : "memory");
  }
  // For 8-bit operands: two of a, each of `r` rows, and two of b.
  void configure_bytes(int64_t r) noexcept {
    Shape s = {1, 0, {}, {}, {}};
    for (int i = 0; i < 8; ++i) {
      s.rows[i] = i < 6 ? (uint8_t)r : 16;
      s.row_bytes[i] = 64;
    }
    rows = columns = 0;
    __asm__ volatile("ldtilecfg %0" : : "m"(s) : "memory");
  }
  void release() noexcept { __asm__ volatile("tilerelease" : : : "memory"); }
};

#define FASTAE_TILE_LOAD(tile, p, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define FASTAE_TILE_STORE(tile, p, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define FASTAE_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define FASTAE_TILE_PRODUCT(a, b, c) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

// of signed a and unsigned b, in bytes
#define FASTAE_TILE_BYTES(a, b, c) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

// R x C tiles of results
template <int R, int C> __attribute__((noinline)) void amx_tile(const StripArgs& t) noexcept {
  const int64_t lc = 4 * t.ldc, la = 2 * t.lda, lb = 2 * t.ldb;
  float* const low = t.c + 16 * t.ldc;
  if (t.go_on) {
    FASTAE_TILE_LOAD(0, t.c, lc);
    if constexpr (C == 2) FASTAE_TILE_LOAD(1, t.c + 16, lc);
    if constexpr (R == 2) FASTAE_TILE_LOAD(2, low, lc);
    if constexpr (R == 2 && C == 2) FASTAE_TILE_LOAD(3, low + 16, lc);
  } else {
    FASTAE_TILE_ZERO(0);
    if constexpr (C == 2) FASTAE_TILE_ZERO(1);
    if constexpr (R == 2) FASTAE_TILE_ZERO(2);
    if constexpr (R == 2 && C == 2) FASTAE_TILE_ZERO(3);
  }
  const uint16_t* a = t.a;
  const uint16_t* b = t.b;
  for (int64_t p = 0; p < t.depth; p += kTileDepth) {
    FASTAE_TILE_LOAD(6, b, lb);
    FASTAE_TILE_LOAD(4, a, la);
    FASTAE_TILE_PRODUCT(4, 6, 0);
    if constexpr (C == 2) {
      FASTAE_TILE_LOAD(7, b + 32, lb);
      FASTAE_TILE_PRODUCT(4, 7, 1);
    }
    if constexpr (R == 2) {
      FASTAE_TILE_LOAD(5, a + 16 * t.lda, la);
      FASTAE_TILE_PRODUCT(5, 6, 2);
      if constexpr (C == 2) FASTAE_TILE_PRODUCT(5, 7, 3);
    }
    a += kTileDepth;
    b += kTileDepth / 2 * t.ldb;
  }
  FASTAE_TILE_STORE(0, t.c, lc);
  if constexpr (C == 2) FASTAE_TILE_STORE(1, t.c + 16, lc);
  if constexpr (R == 2) FASTAE_TILE_STORE(2, low, lc);
  if constexpr (R == 2 && C == 2) FASTAE_TILE_STORE(3, low + 16, lc);
}

FASTAE_INLINE void multiply_tiles(StripArgs t, Tiles& tiles) noexcept {
  const int64_t columns = t.columns;
  for (int64_t j = 0; j < columns; j += 32) {
    t.columns = smaller(32, columns - j);
    tiles.configure(t.rows, t.columns);
    if (t.rows > 16) t.columns > 16 ? amx_tile<2, 2>(t) : amx_tile<2, 1>(t);
    else t.columns > 16 ? amx_tile<1, 2>(t) : amx_tile<1, 1>(t);
    t.b += 64;
    t.c += 32;
  }
}

// Rates of independent instructions from registers: the ceilings that products are held against.
constexpr int kDotChains = 24, kDotLoops = 10000;
FASTAE_BF16_TARGET void independent_dots() noexcept {
  constexpr int A = kDotChains;
  __m512 acc[A];
  for (int i = 0; i < A; ++i) acc[i] = _mm512_set1_ps((float)i);
  __m512i a = _mm512_set1_epi32(0x3f803f80), b = _mm512_set1_epi32(0x3a803a80);
  __asm__ volatile("" : "+m"(a), "+m"(b));
  for (int loop = 0; loop < kDotLoops; ++loop) {
#pragma GCC unroll 32
    for (int i = 0; i < A; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)a, (__m512bh)b);
  }
  for (int i = 0; i < A; ++i) __asm__ volatile("" : : "m"(acc[i]));
}
double dot_rate(double seconds) noexcept {
  return best_rate(seconds, 2.0 * kDotChains * 32 * kDotLoops, [] { independent_dots(); });
}

double tile_rate(double seconds) noexcept {
  constexpr int kLoops = 5000;
  Tiles tiles;
  tiles.configure(32, 32);
  FASTAE_TILE_ZERO(4);
  FASTAE_TILE_ZERO(5);
  FASTAE_TILE_ZERO(6);
  FASTAE_TILE_ZERO(7);
  const double rate = best_rate(seconds, 2.0 * 4 * 16 * 16 * kTileDepth * kLoops, [&] {
    for (int loop = 0; loop < kLoops; ++loop) {
      FASTAE_TILE_PRODUCT(4, 6, 0);
      FASTAE_TILE_PRODUCT(4, 7, 1);
      FASTAE_TILE_PRODUCT(5, 6, 2);
      FASTAE_TILE_PRODUCT(5, 7, 3);
    }
  });
  tiles.release();
  return rate;
}

}  // namespace
}  // namespace fastae
#endif
