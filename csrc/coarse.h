// A first look at all latents by the upper six bits of their 8-bit integers: for a few rows of x the weights' bytes are
// all the work, and these are three quarters of them. What it leaves has a second look, at its lower two bits, and what
// that leaves the chain of float32.
//
// q + 128 = 4 v + c, 0 <= v < 64, 0 <= c < 4. In place of q comes the middle of what v leaves open, 4 v - 126.5:
//
//   w' = s_j (4 v - 126.5),  s' = (128 H' + L') s_r s_j + b,  2 H' = 8 sum_p h v - 253 sum_p h, exactly, below 2^31
//   B' = |w| (|x - x^| + g1 |x|) + |x^| (|w - w'| + g3 |w'|) + 8u |b| + tiny  >=  |z - s'|
//
// as in quantized.h: nothing in that proof asks how w' comes from w, and 2 H' s_r / 2 only moves exponents. The second
// look adds what is missing, q - (4 v - 126.5) = c - 1.5:
//
//   s = s' + (128 D + E) s_r s_j,  2 D = 2 sum_p h c - 3 sum_p h,  E alike for l
//
// Beside s' (8u |x^||w'| off, and 2u |b|) its own roundings are 8u |x^||w' - w^| and one of s, so that s is within B of z
// with g3 (|w^| + |w - w'|) in the place of g3 |w^|; g3 = 32u. That is how `error` is made (byte_pack.h).
//
// A row's candidates lie in a list of their own until all latents have been seen, by ascending latent; `idx` of those that
// were looked at twice is inverted. Their k-th largest lower bound is a limit for all that come later.
#pragma once
#include "quantized.h"
#include "six_panel.h"

#ifdef FASTAE_BF16
namespace fastae {
namespace {

template <class T> struct Coarse : Quantized<T> {
  typedef Quantized<T> Base;
  using Base::Base, Base::a, Base::limit, Base::z, Base::low, Base::idx, Base::held, Base::full, Base::room;
  using Base::rows_x, Base::row_a, Base::row_size, Base::coarse;
  typedef Vec<float> V;

  // A row's list: bounds from above, s' (signed) and bounds from below, latents.
  struct List {
    float *high, *middle, *least;
    int32_t* idx;
    int64_t held;
  };
  List list[kCoarseRows];

  // Longer rows leave too much: bounds grow with |x||w|, the spread of z with |x||w| / sqrt(p).
  bool may_look() const {
    if (a.m > kCoarseRows || a.kind == code_kind::threshold || a.k > 256) return false;
    return a.path == encode_path::int8 || (a.n * a.p >= 1 << 22 && a.p <= 2048);
  }

  template <int KIND>
  FASTAE_INLINE void look(const BytePanels& w, const typename Base::PanelFacts& facts, const int32_t* c, int64_t q,
                          int64_t taken, int64_t r, List* out) {
    const IntVec<float> start_high(rows_x[r].start[0] / 128 * 253), start_low(rows_x[r].start[1] / 128 * 253);
    const V scale(rows_x[r].scale / 2), wide(row_a[r]), size(row_size[r]), most((float)limit[r]);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int shift = v % 2 ? 3 : 1;
      const V high = to_float((IntVec<float>::load(c + 16 * v) << shift) + start_high);
      const V lower = to_float((IntVec<float>::load(c + 64 + 16 * v) << shift) + start_low);
      const V s = fma(fma(high, V(128), lower) * scale, V::load(w.scale + q + 16 * v), V::load(facts.bias + 16 * v));
      const V score = KIND == code_kind::abs_topk ? fabs(s) : s;
      const V bound = fma(wide, V::load(w.norm + q + 16 * v),
                          fma(size, V::load(w.coarse + q + 16 * v), V::load(facts.fixed + 16 * v)));
      uint32_t hits = lane_bits(score + bound > most);
      if (taken < 16 * v + 16) hits &= taken > 16 * v ? (1u << (taken - 16 * v)) - 1 : 0;
      if (!hits) continue;
      const int64_t at = out->held;
      _mm512_storeu_ps(out->high + at, _mm512_maskz_compress_ps((__mmask16)hits, (score + bound).v));
      _mm512_storeu_ps(out->least + at, _mm512_maskz_compress_ps((__mmask16)hits, (score - bound).v));
      _mm512_storeu_ps(out->middle + at, _mm512_maskz_compress_ps((__mmask16)hits, s.v));
      const __m512i j = _mm512_add_epi32(lanes, _mm512_set1_epi32((int32_t)q + 16 * v));
      _mm512_storeu_si512(out->idx + at, _mm512_maskz_compress_epi32((__mmask16)hits, j));
      out->held += __builtin_popcount(hits);
    }
  }

  // Latents [first, last) for all rows; what they leave goes to out.
  template <int KIND> void look_part(const BytePanels& w, int64_t first, int64_t last, List* out) {
    const int64_t depth = whole_lines(a.p), words = ceil_div(a.p, 4), ldx = depth / 4;
    typename Base::PanelFacts facts;
    alignas(64) int32_t c[2 * kCoarseRows * kByteLatents];
    for (int64_t q = first; q < last; q += kByteLatents) {
      const int64_t taken = smaller(kByteLatents, last - q);
      Base::facts_of(q, taken, &facts);
      const uint8_t* const panel = w.sixes + q * depth / 4 * 3;
      const int32_t* const x = (const int32_t*)Base::halves_of(0);
      switch (a.m) {
        case 1: six_panel<2>(panel, words, x, ldx, c); break;
        case 2: six_panel<4>(panel, words, x, ldx, c); break;
        default: six_panel<6>(panel, words, x, ldx, c);
      }
      for (int64_t r = 0; r < a.m; ++r) look<KIND>(w, facts, c + 128 * r, q, taken, r, out + r);
    }
  }

  // Parts of a group of latents side by side, each writing where its own would lie if all of them were left.
  template <int KIND> void look_group(const BytePanels& w, int64_t first, int64_t last) {
    const int64_t panels = ceil_div(last - first, kByteLatents);
    const int threads = useful_threads(a.threads, (double)a.m * (last - first) * a.p / 4);
    if (threads < 2) return look_part<KIND>(w, first, last, list);
    const int64_t parts = smaller(panels, kCoarseParts), step = ceil_div(panels, parts) * kByteLatents;
    List out[kCoarseParts][kCoarseRows];
    const auto begin = [&](int64_t part, int64_t r) { return list[r].held + part * (step + 16); };
    parallel(threads, parts, [&](int64_t part) {
      for (int64_t r = 0; r < a.m; ++r) {
        const List& l = list[r];
        const int64_t at = begin(part, r);
        out[part][r] = {l.high + at, l.middle + at, l.least + at, l.idx + at, 0};
      }
      const int64_t from = first + part * step;
      if (from < last) look_part<KIND>(w, from, smaller(last, from + step), out[part]);
    });
    for (int64_t r = 0; r < a.m; ++r) {
      List& l = list[r];
      int64_t held = l.held;
      for (int64_t part = 0; part < parts; ++part) {
        const List& o = out[part][r];
        const size_t bytes = (size_t)o.held * 4;
        memmove(l.high + held, o.high, bytes);
        memmove(l.middle + held, o.middle, bytes);
        memmove(l.least + held, o.least, bytes);
        memmove(l.idx + held, o.idx, bytes);
        held += o.held;
      }
      l.held = held;
    }
  }

  // The lower bits of what reaches `from` (of s') and was not looked at twice yet.
  void look_twice(const BytePanels& w, int64_t r, float from) {
    constexpr int64_t kAhead = 8;
    List& l = list[r];
    const int64_t depth = whole_lines(a.p), step = rest_bytes(a.p);
    const float tiny = Bounds(a.p).tiny;
    const auto wanted = [&](int64_t i) { return l.idx[i] >= 0 && score_of(l.middle[i], Base::magnitude()) >= from; };
    int32_t next[kAhead];
    int64_t made = 0, asked = 0;
    const auto make = [&](int64_t i) {
      const int32_t j = l.idx[i];
      int32_t sum_high, sum_low;
      rest_sums(w.rests + j * step, depth, Base::halves_of(r), &sum_high, &sum_low);
      const QuantizedRow& x = rows_x[r];
      const float more =
          (float)(2 * sum_high + x.start[0] / 128 * 3) * 128 + (float)(2 * sum_low + x.start[1] / 128 * 3);
      const float s = __builtin_fmaf(more * (x.scale / 2), w.scale[j], l.middle[i]);
      const float b = a.b ? (float)a.b[j] : 0.f, fixed = __builtin_fmaf(__builtin_fabsf(b), 0x1p-21f, tiny);
      const float bound = __builtin_fmaf(row_a[r], w.norm[j], __builtin_fmaf(row_size[r], w.error[j], fixed));
      const float score = score_of(s, Base::magnitude());
      l.high[i] = score + bound;
      l.least[i] = score - bound;
      l.idx[i] = ~j;
    };
    for (int64_t i = 0; i < l.held; ++i) {
      if (!wanted(i)) continue;
      const int32_t j = l.idx[i];
      for (int64_t t = 0; t < step; t += 64) __builtin_prefetch(w.rests + j * step + t);
      __builtin_prefetch(w.scale + j);
      __builtin_prefetch(w.norm + j);
      __builtin_prefetch(w.error + j);
      if (asked - made == kAhead) make(next[made++ % kAhead]);
      next[asked++ % kAhead] = (int32_t)i;
    }
    while (made < asked) make(next[made++ % kAhead]);
  }

  // Leaves out what cannot reach the limit.
  void narrow(int64_t r) {
    List& l = list[r];
    const V least((float)limit[r]);
    int64_t n = 0;
    for (int64_t i = 0; i < l.held; i += 16) {
      const V high = V::load(l.high + i);
      const uint32_t kept = lane_bits(~(high < least)) & (l.held - i < 16 ? (1u << (l.held - i)) - 1 : 0xffff);
      const __mmask16 m = (__mmask16)kept;
      const __m512 middle = _mm512_loadu_ps(l.middle + i), lower = _mm512_loadu_ps(l.least + i);
      const __m512i j = _mm512_loadu_si512(l.idx + i);
      _mm512_storeu_ps(l.high + n, _mm512_maskz_compress_ps(m, high.v));
      _mm512_storeu_ps(l.middle + n, _mm512_maskz_compress_ps(m, middle));
      _mm512_storeu_ps(l.least + n, _mm512_maskz_compress_ps(m, lower));
      _mm512_storeu_si512(l.idx + n, _mm512_maskz_compress_epi32(m, j));
      n += __builtin_popcount(kept);
    }
    l.held = n;
  }

  // After a group: raises the limit by what is likely to be in the code.
  void raise(const BytePanels& w, int64_t r) {
    List& l = list[r];
    if (limit[r] == kInfinity<T> || l.held < a.k) return;
    const float from = limit[r] > -kInfinity<T>
                           ? (float)limit[r]
                           : kth_largest(l.middle, l.held, a.k, -kInfinity<float>, Base::magnitude());
    look_twice(w, r, from);
    float* const sure = l.least + l.held + 16;  // nothing lies there
    int64_t n = 0;
    for (int64_t i = 0; i < l.held; ++i) {
      sure[n] = l.least[i];
      n += l.idx[i] < 0;
    }
    if (n >= a.k) limit[r] = (T)kth_largest(sure, n, a.k, (float)limit[r], false);
    narrow(r);
  }

  // The list becomes the row's candidates. False where they are too many.
  bool settle_list(const BytePanels& w, int64_t r) {
    List& l = list[r];
    if (limit[r] == kInfinity<T>) return true;
    for (int64_t i = 0; i < l.held; ++i)
      if (l.idx[i] < 0) Base::take_bounds(r, ~l.idx[i], l.high[i], l.least[i]);
    Base::sharpen(r, false);  // by chains: twice the bound's width, before all the others' second look
    int64_t n = 0;
    for (int64_t i = 0; i < l.held; ++i) {  // of the first look only
      l.high[n] = l.high[i];
      l.middle[n] = l.middle[i];
      l.least[n] = l.least[i];
      l.idx[n] = l.idx[i];
      n += l.idx[i] >= 0;
    }
    l.held = n;
    narrow(r);
    look_twice(w, r, -kInfinity<float>);
    narrow(r);
    const int64_t at = r * room, all = held[r] + l.held;
    if (all > room) return false;
    for (int64_t to = all - 1, i = held[r] - 1, o = l.held - 1; o >= 0; --to) {
      const bool other = i < 0 || ~l.idx[o] > idx[at + i];
      z[at + to] = other ? (T)l.high[o] : z[at + i];
      low[at + to] = other ? (T)l.least[o] : low[at + i];
      idx[at + to] = other ? ~l.idx[o] : idx[at + i];
      other ? --o : --i;
    }
    held[r] = (int32_t)all;
    full[r] = (int32_t)smaller(room, all + Base::some());
    return true;
  }

  // Whether this was the whole way; otherwise nothing is left of it.
  template <int KIND> bool by_looks() {
    const BytePanels w(a.packed, a.n, a.p);
    for (int64_t r = 0; r < a.m; ++r) {
      float* const from = coarse + r * 4 * kCoarseRoom;
      list[r] = {from, from + kCoarseRoom, from + 2 * kCoarseRoom, (int32_t*)(from + 3 * kCoarseRoom), 0};
    }
    bool good = true;
    for (int64_t first = 0, last; first < a.n && good; first = last) {
      last = smaller(a.n, first + larger(kCoarseFirst, smaller(first, kCoarseGroup)));
      good = Base::safe_bytes(w, first, last);
      if (!good) break;
      look_group<KIND>(w, first, last);
      for (int64_t r = 0; r < a.m; ++r) {
        raise(w, r);
        // of too many a look costs more than their other bits would have
        good = good && list[r].held <= kCoarseKept && (last < 2 * kCoarseFirst || list[r].held * 5 <= last * 2);
      }
    }
    for (int64_t r = 0; r < a.m && good; ++r) good = settle_list(w, r);
    if (good) return true;
    Base::redone = 0;
    for (int64_t r = 0; r < a.m; ++r) {
      held[r] = 0;
      full[r] = (int32_t)smaller(room, Base::some());
      if (limit[r] != kInfinity<T>) limit[r] = -kInfinity<T>;
    }
    return false;
  }
};

}  // namespace
}  // namespace fastae
#endif
