// Candidates of the largest pre-activations by products of 8-bit integers, with a proven bound of their error: for a few
// rows of x reading the weights is all the work, and these are half of bfloat16's bytes.
//
// A latent is w^ = s_j q, q in -127..127, a row of x is x^ = s_r X, X = 128 h + l in -16256..16256, of two bytes: the
// second costs few rows nothing. Sums of h q and of l q are exact, below 2^31, and
//
//   s = (128 H + L) s_r s_j + b,  H = sum_p h q,  L = sum_p l q
//   |z - (x w + b)|      <= g1 |x||w| + 4u |b| + tiny        as in certify.h, and so are u, g1, tiny
//   |x w - x^ w^|        <= |x - x^||w| + |x^||w - w^|
//   |s - (x^ w^ + b)|    <= g3 |x^||w^| + 2u |b| + tiny      |128 h| <= 2 |X|, |l| <= |X| for every element
//
//   B = |w| (|x - x^| + g1 |x|) + |x^| (|w - w^| + g3 |w^|) + 8u |b| + tiny  >=  |z - s|
//
// g3 = 32u: H and L become float32 (3u |X||q| in all), are added (u), multiplied by s_r, by s_j and added to b (3u), and
// s +- B is rounded once more; 8u |X||q| would do. Nothing before the product with s_j is denormal. Norms and residuals
// are float32 sums with the same allowance as there.
//
// Where z is to be that of products in bfloat16, x and w are the rounded numbers and z their product by whatever
// instruction: g2 (bounds.h) in the place of g1. That an instruction takes a denormal operand as 0 (sqrt(p) 2^-126 of a
// norm) is lost in that term, as no norm is below 2^-74 sqrt(p).
#pragma once
#include "byte_pack.h"
#include "certified.h"

#ifdef FASTAE_BF16
namespace fastae {
namespace {

constexpr int64_t kBytePanels = 16;      // that go by before anything is decided
constexpr int64_t kByteDepth = 1 << 16;  // 127^2 p and 128 127 p fit 32 bits
constexpr int64_t kByteRows = 16;        // of a batch up to which this is faster than bfloat16 by dot products
constexpr int64_t kByteTileRows = 32;    // and by tiles
constexpr int64_t kDecided = 2 * kBytePanels * kByteLatents;  // latents after which candidates tell what is to come
constexpr int64_t kByteTiled = 3;                             // rows from which on tiles are faster
constexpr int64_t kByteAhead = 4096;                          // bytes that are fetched ahead

// c[i] (64) = x[i] . panel for R rows of words
template <int R>
__attribute__((noinline)) void byte_panel(const uint8_t* w, int64_t words, const int32_t* x, int64_t ldx,
                                          int32_t* c) noexcept {
  typedef Native<float>::ints ints;
  ints sum[R][4] = {};
  for (int64_t t = 0; t < words; ++t, w += 256, ++x) {
    ints q[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      memcpy(&q[v], w + 64 * v, sizeof q[v]);
      __builtin_prefetch(w + kByteAhead + 64 * v);
    }
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

// The same for rows of h and l in turn, as many as tiles are configured for. The next panel is on its way meanwhile.
__attribute__((noinline)) void byte_tiles(const uint8_t* w, int64_t depth, const int8_t* x, int32_t* c) noexcept {
  const uint8_t* ahead = w + depth * kByteLatents;
  for (int half = 0; half < 2; ++half, w += 128, c += 32) {
    FASTAE_TILE_ZERO(0);
    FASTAE_TILE_ZERO(1);
    FASTAE_TILE_ZERO(2);
    FASTAE_TILE_ZERO(3);
    for (int64_t p = 0; p < depth; p += 64) {
      for (int i = 0; i < 32; ++i) __builtin_prefetch(ahead + 64 * i, 0, 2);
      ahead += 2048;
      FASTAE_TILE_LOAD(4, x + p, 2 * depth);
      FASTAE_TILE_LOAD(5, x + p + depth, 2 * depth);
      FASTAE_TILE_LOAD(6, w + p * kByteLatents, 256);
      FASTAE_TILE_BYTES(4, 6, 0);
      FASTAE_TILE_BYTES(5, 6, 2);
      FASTAE_TILE_LOAD(7, w + p * kByteLatents + 64, 256);
      FASTAE_TILE_BYTES(4, 7, 1);
      FASTAE_TILE_BYTES(5, 7, 3);
    }
    FASTAE_TILE_STORE(0, c, 512);
    FASTAE_TILE_STORE(1, c + 16, 512);
    FASTAE_TILE_STORE(2, c + 64, 512);
    FASTAE_TILE_STORE(3, c + 80, 512);
  }
}

template <class T> struct Quantized : Certified<T> {
  typedef Certified<T> Base;
  using Base::Base, Base::a, Base::limit, Base::held, Base::bytes_x, Base::rows_x, Base::row_a, Base::row_size;
  using Base::largest_row, Base::take_bounds, Base::redone;

  bool may_quantize() const {
    if (!a.eight || !a.packed || !Bounds::possible(a.p) || a.p < 1 || a.p > kByteDepth) return false;
    if (a.path == encode_path::int8) return true;
    if (a.p < 64 || a.n < 64 * a.k || a.n < 4096) return false;
    return !fast_dots(a.how) || a.m <= (a.how == bf16_product::tiles ? kByteTileRows : kByteRows);
  }

  int8_t* halves_of(int64_t r) const { return bytes_x + 2 * r * whole_lines(a.p); }

  void quantize_rows() {
    const Bounds bounds(a.p);
    parallel(useful_threads(a.threads, (double)a.m * a.p), ceil_div(a.m, 16), [&](int64_t task) {
      for (int64_t r = task * 16; r < smaller(a.m, task * 16 + 16); ++r) {
        QuantizedRow& row = rows_x[r];
        row = {};
        row_a[r] = row_size[r] = 0;
        memset(halves_of(r), 0, (size_t)(2 * whole_lines(a.p)));
        if (limit[r] == kInfinity<T>) continue;
        quantize_halves((const float*)a.x.at(r, 0), a.p, halves_of(r), halves_of(r) + whole_lines(a.p), &row);
        const float size = bounds.norm(row.squares, a.p), rest = bounds.norm(row.residual, a.p);
        row_a[r] = (rest + (a.bf16 ? bounds.g2 : bounds.g1) * size) * bounds.more;
        row_size[r] = (size + rest) * bounds.more;
      }
    });
    largest_row = 0;
    for (int64_t r = 0; r < a.m; ++r) largest_row = row_size[r] > largest_row ? row_size[r] : largest_row;
  }

  // Facts of a panel's latents that all rows share.
  struct PanelFacts {
    alignas(64) float bias[kByteLatents], fixed[kByteLatents];
  };
  FASTAE_INLINE void facts_of(int64_t q, int64_t taken, PanelFacts* facts) const {
    const V tiny(Bounds(a.p).tiny);
    for (int v = 0; v < 4; ++v) {
      const V b = a.b ? V::load((const float*)a.b + q + 16 * v, (int)larger(0, smaller(16, taken - 16 * v))) : V(0);
      b.store(facts->bias + 16 * v);
      fma(fabs(b), V(0x1p-21f), tiny).store(facts->fixed + 16 * v);
    }
  }

  // c: H and L (64) of row r and latents [q, q + taken)
  template <int KIND>
  FASTAE_INLINE void filter_bytes(const BytePanels& w, const PanelFacts& facts, const int32_t* c, int64_t q,
                                  int64_t taken, int64_t r) {
    typedef Vec<float> V;
    const IntVec<float> start_high(rows_x[r].start[0]), start_low(rows_x[r].start[1]);
    const V scale(rows_x[r].scale), wide(row_a[r]), size(row_size[r]);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const V high = to_float(IntVec<float>::load(c + 16 * v) + start_high);
      const V low = to_float(IntVec<float>::load(c + 64 + 16 * v) + start_low);
      V s = fma(fma(high, V(128), low) * scale, V::load(w.scale + q + 16 * v), V::load(facts.bias + 16 * v));
      if constexpr (KIND == code_kind::abs_topk) s = fabs(s);
      const V bound = fma(wide, V::load(w.norm + q + 16 * v),
                          fma(size, V::load(w.error + q + 16 * v), V::load(facts.fixed + 16 * v)));
      V least((float)limit[r]);
      if constexpr (KIND == code_kind::threshold) {
        const int lanes = (int)larger(0, smaller(16, taken - 16 * v));
        const V t = a.threshold
                        ? a.single ? V((float)a.threshold[0]) : V::load((const float*)a.threshold + q + 16 * v, lanes)
                        : V(0);
        least = at_least(least, t - V((float)a.margin));
      }
      uint32_t hits = lane_bits(s + bound > least);
      if (taken < 16 * v + 16) hits &= taken > 16 * v ? (1u << (taken - 16 * v)) - 1 : 0;
      if (!hits) continue;
      float above[16], below[16];
      (s + bound).store(above);
      (s - bound).store(below);
      each_lane(hits, [&](int lane) {
        if (above[lane] > (float)limit[r]) take_bounds(r, (int32_t)(q + 16 * v + lane), above[lane], below[lane]);
      });
    }
  }

  template <int KIND> void byte_rows(const BytePanels& w, int64_t first, int64_t last, int64_t r0, int64_t r1) {
    const int64_t depth = whole_lines(a.p), words = ceil_div(a.p, 4), ldx = depth / 4;
    const bool tiled = a.how == bf16_product::tiles && r1 - r0 >= kByteTiled;
    Tiles shape;
    if (tiled) shape.configure_bytes(r1 - r0);
    for (int64_t q = first; q < last; q += kByteLatents) {
      const int64_t taken = smaller(kByteLatents, last - q);
      PanelFacts facts;
      facts_of(q, taken, &facts);
      const uint8_t* const panel = w.panels + q * depth;
      alignas(64) int32_t c[32 * kByteLatents];
      if (tiled) {
        byte_tiles(panel, depth, halves_of(r0), c);
        for (int64_t r = r0; r < r1; ++r) filter_bytes<KIND>(w, facts, c + 128 * (r - r0), q, taken, r);
        continue;
      }
      for (int64_t r = r0; r < r1;) {
        const int64_t left = r1 - r, some = left == 4 ? 2 : smaller(left, 3);
        const int32_t* x = (const int32_t*)halves_of(r);
        if (some == 3) byte_panel<6>(panel, words, x, ldx, c);
        else if (some == 2) byte_panel<4>(panel, words, x, ldx, c);
        else byte_panel<2>(panel, words, x, ldx, c);
        for (int64_t i = 0; i < some; ++i, ++r) filter_bytes<KIND>(w, facts, c + 128 * i, q, taken, r);
      }
    }
    if (tiled) shape.release();
  }

  // Whether no bound of these latents can overflow.
  bool safe_bytes(const BytePanels& w, int64_t first, int64_t last) const {
    const V size(largest_row), most(kSafeSize);
    if (!(largest_row < kSafeSize)) return false;
    bool safe = true;
    for (int64_t q = first; q < last; q += 16) {
      const V norm = V::load(w.norm + q);
      const V b = a.b ? V::load((const float*)a.b + q, (int)smaller(16, last - q)) : V(0);
      safe = safe && all((norm < most) & (norm * size < most) & (fabs(b) < most));
    }
    return safe;
  }

  // Whether few enough latents pass: a chain costs as much as what some five latents save.
  bool worth_going_on(int kind, int64_t first) {
    const int64_t rows = larger(1, fast_dots(a.how) ? 1 : a.m / 4);  // float32 is slower by the row
    if (redone * 10 > first * rows) return false;
    if (first != kDecided || kind == code_kind::threshold) return true;
    int64_t more = 0;
    for (int64_t r = 0; r < a.m; ++r) {
      if (limit[r] == kInfinity<T> || held[r] < a.k) continue;
      Base::drop(r);
      more += held[r] - a.k;
    }
    return more * 4 <= (a.n - first) * rows;
  }

  // After quantize_rows. Returns the latents that it has been through. in_float(first, last): a group by products in float32
  template <int KIND, class F> int64_t by_bytes(const F& in_float) {
    const BytePanels w(a.packed, a.n, a.p);
    for (int64_t first = 0; first < a.n;) {
      const int64_t last = smaller(a.n, first + kBytePanels * kByteLatents);
      if (safe_bytes(w, first, last))
        parallel(useful_threads(a.threads, (double)a.m * (last - first) * a.p / 4), ceil_div(a.m, 16),
                 [&](int64_t task) { byte_rows<KIND>(w, first, last, task * 16, smaller(a.m, task * 16 + 16)); });
      else in_float(first, last);
      first = last;
      if (a.path == encode_path::automatic && first < a.n && !worth_going_on(KIND, first)) return first;
    }
    return a.n;
  }

  typedef Vec<float> V;
};

}  // namespace
}  // namespace fastae
#endif
