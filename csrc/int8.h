// Products of 8-bit integers with exact 32-bit sums, and rows as 8-bit integers with one scale each.
//
//   s = max |x| / 127,  q = round(x 127 / max |x|) in -127..127        per row of x, and per unit (row of w)
//   y[r,j] = (sum_p q[r,p] qw[j,p]) s_r s_j                            |sum| < 2^31 for p < 133,000
//
// Operands are words of 32 bits along the depth: two int16 for a multiply-add of pairs, which every set has, or four
// bytes for vpdpbusd. That one takes unsigned times signed bytes, so rows are stored as q + 128, and 128 sum_p qw[j,p]
// is taken off again: sums may wrap on the way, the difference is exact. A panel's first word per column is that
// correction.
#pragma once
#include "elementwise.h"

namespace fastae {
namespace {

constexpr float kQuantizeMost = 127;
constexpr float kQuantizeLeast = 0x1p-100f;  // rows without anything larger are stored as 0: 127 / max stays finite

// Pairs of int16.
struct PairWords {
  typedef int16_t Part;
  static constexpr int kParts = 2, kShift = 0;
  static FASTAE_INLINE Native<float>::ints multiply_add(Native<float>::ints sum, int32_t a, Native<float>::ints b) {
#if defined(__AVX512BW__)
    return sum + (Native<float>::ints)_mm512_madd_epi16(_mm512_set1_epi32(a), (__m512i)b);
#elif FASTAE_VBYTES == 32
    return sum + (Native<float>::ints)_mm256_madd_epi16(_mm256_set1_epi32(a), (__m256i)b);
#elif defined(__SSE2__)
    return sum + (Native<float>::ints)_mm_madd_epi16(_mm_set1_epi32(a), (__m128i)b);
#else
    return sum + (int32_t)(int16_t)a * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

#if defined(__AVX512F__)
// Four bytes. Written as assembly because compilers put register copies around the intrinsic.
struct QuadWords {
  typedef uint8_t Part;
  static constexpr int kParts = 4, kShift = 128;
  static FASTAE_INLINE Native<float>::ints multiply_add(Native<float>::ints sum, int32_t a, Native<float>::ints b) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(_mm512_set1_epi32(a)), "v"(b));
    return sum;
  }
};
#endif

// f(type of the words) that this processor multiplies fastest
template <class F> FASTAE_INLINE void visit_words(bool vnni, const F& f) {
#if defined(__AVX512F__)
  if (vnni) return f(QuadWords());
#endif
  (void)vnni;
  f(PairWords());
}

// store(column, q + shift as int32, lanes), |q| <= steps; returns the scale. A row with NaN or infinity becomes 0 with scale NaN.
template <class F>
FASTAE_INLINE float quantize_row(const float* x, int64_t n, int shift, const F& store, float steps = kQuantizeMost) {
  typedef Vec<float> V;
  typedef IntVec<float> I;
  // as integers, magnitudes are ordered like the numbers, with infinity and NaN on top
  typename I::native top[4] = {};
  const auto look = [&](int v, V x) {
    const auto size = (bits(x) & 0x7fffffff).v;
    top[v] = size > top[v] ? size : top[v];
  };
  int64_t j0 = 0;
  for (; j0 + 4 * V::N <= n; j0 += 4 * V::N)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) look(v, V::load(x + j0 + v * V::N));
  for (; j0 < n; j0 += V::N) look(0, V::load(x + j0, (int)smaller(V::N, n - j0)));
  for (int v = 1; v < 4; ++v) top[0] = top[v] > top[0] ? top[v] : top[0];
  int32_t each[V::N], size = 0;
  memcpy(each, &top[0], sizeof each);
  for (int i = 0; i < V::N; ++i) size = each[i] > size ? each[i] : size;
  const float most = float_from_bits((uint32_t)size);
  if (!(most - most == 0) || most < kQuantizeLeast) {
    over_row<float>(n, [&](int64_t j, int lanes) { store(j, I(shift), lanes); });
    return (most - most) * 0;
  }
  const V inverse(steps / most), magic(Lane<float>::magic);  // adding it rounds to even, in the lower bits
  over_row<float>(n, [&](int64_t j, int lanes) {
    store(j, bits(V::load(x + j, lanes) * inverse + magic) - (bits(magic) - shift), lanes);
  });
  return most / steps;
}

// The lanes' lower bits to out[0 .. lanes); what they hold fits P.
template <class P> FASTAE_INLINE void store_parts(IntVec<float> q, P* out, int lanes) {
  constexpr int N = Vec<float>::N;
  alignas(16) P part[16];
#if defined(__AVX512F__)
  if constexpr (sizeof(P) == 1) _mm_store_si128((__m128i*)part, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)q.v));
  else _mm256_storeu_si256((__m256i*)part, _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)q.v));
#elif defined(__SSE2__)
#if FASTAE_VBYTES == 32
  __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)q.v), _mm256_extracti128_si256((__m256i)q.v, 1));
#else
  __m128i pairs = _mm_packs_epi32((__m128i)q.v, (__m128i)q.v);
#endif
  if constexpr (sizeof(P) == 1) pairs = _mm_packs_epi16(pairs, pairs);
  _mm_store_si128((__m128i*)part, pairs);
#else
  for (int i = 0; i < N; ++i) part[i] = (P)q.v[i];
#endif
  if (lanes == N) memcpy(out, part, N * sizeof(P));
  else memcpy(out, part, (size_t)lanes * sizeof(P));
}

// Words of a row: ceil(n / parts) of them, filled up with q = 0.
template <class W> float quantize_words(const float* x, int64_t n, int32_t* words) noexcept {
  typename W::Part* out = (typename W::Part*)words;
  const float scale =
      quantize_row(x, n, W::kShift, [&](int64_t j, IntVec<float> q, int lanes) { store_parts(q, out + j, lanes); });
  for (int64_t j = n; j % W::kParts; ++j) out[j] = (typename W::Part)W::kShift;
  return scale;
}

// The panel of `columns` units (rows of w), `width` of them after rounding up: corrections, then word by word.
template <class W>
void pack_words(const float* w, int64_t ldw, int64_t columns, int64_t depth, int64_t width, int32_t* panel,
                float* scale) noexcept {
  const int64_t words = ceil_div(depth, W::kParts);
  memset(panel, 0, (size_t)((1 + words) * width) * sizeof *panel);
  for (int64_t j = 0; j < columns; ++j)
    scale[j] = quantize_row(w + j * ldw, depth, 0, [&](int64_t p0, IntVec<float> q, int lanes) {
      int32_t t[Vec<float>::N];
      q.store(t);
      for (int i = 0; i < lanes; ++i) {
        const int64_t p = p0 + i;
        typename W::Part* word = (typename W::Part*)(panel + (1 + p / W::kParts) * width + j);
        word[p % W::kParts] = (typename W::Part)t[i];
        panel[j] += W::kShift * t[i];
      }
    });
}

// A panel is two vectors wide (the last one perhaps one): at the usual depths it stays in the first-level cache.
constexpr int64_t kWordColumns = 2 * Vec<float>::N;
// Rows that all panels pass: their words stay in the second-level cache, their pages are few.
constexpr int64_t kWordRows = 384;
FASTAE_INLINE int64_t word_panels(int64_t columns) { return ceil_div(columns, kWordColumns); }
FASTAE_INLINE int word_vectors(int64_t columns, int64_t panel) {
  return columns - panel * kWordColumns > Vec<float>::N ? 2 : 1;
}

struct WordTile {
  int64_t words;
  const int32_t* a;  // rows of words
  int64_t rs;
  const int32_t* panel;
  const float *row_scale, *unit_scale;
  float* c;
  int64_t ldc, width;
  bool stream;  // whole vectors on cache lines, past the caches
};

// c[i,j] = (a[i,:] . panel[:,j] - correction[j]) (row_scale[i] unit_scale[j]) for MR rows and NV vectors of columns
template <class W, int MR, int NV> __attribute__((noinline)) void word_tile(const WordTile& t) noexcept {
  typedef Native<float>::ints ints;
  constexpr int N = Vec<float>::N;
  ints sum[MR][NV] = {};
  if (!t.stream) {  // what is written at the end is fetched meanwhile
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) __builtin_prefetch(t.c + i * t.ldc + v * N, 1);
  }
  const int32_t* b = t.panel + NV * N;
  // three row pointers serve up to 12 rows with the offsets 0, rs, 2rs, 3rs
  const int64_t rs = t.rs, rs3 = 3 * rs;
  const int32_t *a0 = t.a, *a1 = a0 + 4 * rs, *a2 = a0 + 8 * rs;
  for (int64_t p = t.words; p > 0; --p) {
    ints bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) memcpy(&bv[v], b + v * N, sizeof bv[v]);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const int32_t* base = i < 4 ? a0 : i < 8 ? a1 : a2;
      const int32_t a = (i & 3) == 0 ? base[0] : (i & 3) == 1 ? base[rs] : (i & 3) == 2 ? base[2 * rs] : base[rs3];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = W::multiply_add(sum[i][v], a, bv[v]);
    }
    b += NV * N;
    ++a0, ++a1, ++a2;
  }
  const auto write = [&](auto store) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const int n = (int)(t.width - v * N);
      if (n <= 0) break;
      const IntVec<float> correction = IntVec<float>::load(t.panel + v * N);
      const Vec<float> scale = Vec<float>::load(t.unit_scale + v * N, n);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
        store(to_float(IntVec<float>(sum[i][v]) - correction) * (scale * Vec<float>(t.row_scale[i])),
              t.c + i * t.ldc + v * N, n);
    }
  };
  if (t.stream) write([](Vec<float> x, float* to, int) { x.stream(to); });
  else write([](Vec<float> x, float* to, int n) { x.store(to, n); });
}

template <class W, int NV> FASTAE_INLINE int run_words(int64_t rows, const WordTile& t) noexcept {
  if constexpr (kMaxVectors == 4) {  // 32 registers
    if (rows >= 12) return word_tile<W, 12, NV>(t), 12;
  }
  if (rows >= 6) return word_tile<W, 6, NV>(t), 6;
  if (rows >= 4) return word_tile<W, 4, NV>(t), 4;
  if (rows >= 2) return word_tile<W, 2, NV>(t), 2;
  return word_tile<W, 1, NV>(t), 1;
}

// The largest tile that fits the rows left; returns how many rows it took.
template <class W> FASTAE_INLINE int run_words(int nv, int64_t rows, const WordTile& t) noexcept {
  return nv == 2 ? run_words<W, 2>(rows, t) : run_words<W, 1>(rows, t);
}

// A timed loop by itself: around calls the sums would live in memory.
template <class W, int A>
__attribute__((noinline)) void word_loop(int loops, int32_t a, Native<float>::ints b) noexcept {
  Native<float>::ints sum[A];
#pragma GCC unroll 16
  for (int i = 0; i < A; ++i) sum[i] = i - Native<float>::ints{};  // alike, they would be merged
  for (int loop = 0; loop < loops; ++loop) {
#pragma GCC unroll 16
    for (int i = 0; i < A; ++i) sum[i] = W::multiply_add(sum[i], a, b);
    __asm__ volatile("" : "+r"(a));
  }
#pragma GCC unroll 16
  for (int i = 1; i < A; ++i) sum[0] += sum[i];
  __asm__ volatile("" : : "m"(sum[0]));
}

// Operations a second of 8-bit multiply-adds from registers.
template <class W> double word_rate(double seconds, double (*clock)()) noexcept {
  constexpr int A = 12, kLoops = 20000;
  double best = 0;
  const double end = clock() + seconds;
  do {
    const double t = clock();
    word_loop<W, A>(kLoops, 0, Native<float>::ints{});
    const double rate = 2.0 * A * W::kParts * Vec<float>::N * kLoops / (clock() - t);
    best = rate > best ? rate : best;
  } while (clock() < end);
  return best;
}

}  // namespace
}  // namespace fastae
