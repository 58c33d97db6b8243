// Products in bfloat16 of a group of latents and all rows: with bounds (certify.h), or as the code's own numbers.
#pragma once
#include "candidates.h"

#ifdef FASTAE_BF16
namespace fastae {
namespace {

template <class T> struct Certified : Candidates<T> {
  typedef Candidates<T> Base;
  using Base::Base, Base::a, Base::limit, Base::z, Base::low, Base::idx, Base::held, Base::room, Base::tiles;
  using Base::halves, Base::row_a, Base::row_size, Base::norm, Base::error, Base::largest_row, Base::take_bounds;

  // Whether these products are z itself.
  bool direct() const { return a.bf16 && Base::has_dots(a.how); }

  // Whether bounds can save work, and the memory for them is there.
  bool may_certify() const {
    if (a.bf16 || !Base::has_dots(a.how) || !Bounds::possible(a.p) || a.p < 1) return false;
    if (a.path == encode_path::bfloat16) return true;
    if (a.path != encode_path::automatic || !fast_dots(a.how)) return false;
    return a.p >= 64 && a.n >= 1024 && (a.kind == code_kind::threshold || a.n >= 16 * a.k);
  }

  void make_halves() {
    const Bounds bounds(a.p);
    const int64_t depth = whole_tiles(a.p);
    parallel(useful_threads(a.threads, (double)a.m * a.p), ceil_div(a.m, kCertifyRows), [&](int64_t i) {
      const int64_t r0 = i * kCertifyRows, rows = smaller(kCertifyRows, a.m - r0);
      pair_transposed((const float*)a.x.at(r0, 0), a.x.ld, rows, a.p, kCertifyRows, halves + r0 * depth);
      if (a.bf16) return;
      for (int64_t r = r0; r < r0 + kCertifyRows; ++r) {
        row_a[r] = row_size[r] = 0;
        if (limit[r] == kInfinity<T>) continue;
        float squares, residual;
        row_norms((const float*)a.x.at(r, 0), a.p, &squares, &residual);
        const float size = bounds.norm(squares, a.p), rest = bounds.norm(residual, a.p);
        row_a[r] = (rest + bounds.g1 * size) * bounds.more;
        row_size[r] = (size + rest) * bounds.more;
      }
    });
    for (int64_t r = 0; r < a.m && !a.bf16; ++r) largest_row = row_size[r] > largest_row ? row_size[r] : largest_row;
  }

  // Rows of a panel, for bounds: s and its bound for latent i of a block c (32,32), j by name.
  struct PanelBounds {
    Vec<float> wide[2], size[2];
    PanelBounds() = default;
    PanelBounds(const Certified& e, int64_t r)
        : wide{Vec<float>::load(e.row_a + r), Vec<float>::load(e.row_a + r + 16)},
          size{Vec<float>::load(e.row_size + r), Vec<float>::load(e.row_size + r + 16)} {}
    template <int KIND>
    FASTAE_INLINE void of(const float* c, int v, float bias, float norm, float error, float tiny, Vec<float>* s,
                          Vec<float>* bound) const {
      *s = Vec<float>::load(c + v * 16) + Vec<float>(bias);
      if constexpr (KIND == code_kind::abs_topk) *s = fabs(*s);
      const Vec<float> fixed(__builtin_fabsf(bias) * 0x1p-21f + tiny);
      *bound = fma(wide[v], Vec<float>(norm), fma(size[v], Vec<float>(error), fixed));
    }
  };

  // c (32,32): latents [q, q + taken) and the rows from r on
  template <int KIND, int C>
  FASTAE_INLINE void filter_bounds(const PanelBounds& rows, const float* c, int64_t q, int64_t taken, int64_t r,
                                   const float* size, const float* slack, float tiny) {
    typedef Vec<float> V;
    for (int64_t i = 0; i < taken; ++i) {
      const int32_t j = a.latent(q + i);
      const float bias = a.b ? a.b[j] : 0.f;
      V s[C], bound[C];
      uint32_t hits = 0;
#pragma GCC unroll 2
      for (int v = 0; v < C; ++v) {
        rows.template of<KIND>(c + i * 32, v, bias, size[i], slack[i], tiny, s + v, bound + v);
        const V least = V::load((const float*)limit + r + v * 16), high = s[v] + bound[v];
        if constexpr (KIND == code_kind::threshold)
          hits |= lane_bits(high > at_least(least, V((float)a.limit(j)))) << (16 * v);
        else hits |= lane_bits(high > least) << (16 * v);
      }
      if (!hits) continue;
      float high[16 * C], least[16 * C];
#pragma GCC unroll 2
      for (int v = 0; v < C; ++v) {
        (s[v] + bound[v]).store(high + 16 * v);
        (s[v] - bound[v]).store(least + 16 * v);
      }
      each_lane(hits, [&](int lane) { take_bounds(r + lane, j, high[lane], least[lane]); });
    }
  }

  // Limits to begin with: latents are dealt out to 2 k heaps, and the k-th largest of the heaps' tops is reached by k
  // latents. Without it half of all candidates would come from the first few latents.
  static constexpr int64_t kMostSeeded = 64;
  bool worth_seeding(int64_t latents) const {
    return a.kind != code_kind::threshold && a.k <= kMostSeeded && latents >= 8 * a.k && a.n >= 4 * latents;
  }
  template <int KIND, int C, bool BOUNDS>
  FASTAE_INLINE void seed(const PanelBounds& rows, const float* c, int64_t q, int64_t taken, const float* size,
                          const float* slack, float tiny, float* top) {
    for (int64_t i = 0; i < taken; ++i) {
      const float bias = a.b ? a.b[a.latent(q + i)] : 0.f;
      float* const heap = top + (q + i) % (2 * a.k) * 32;
#pragma GCC unroll 2
      for (int v = 0; v < C; ++v) {
        Vec<float> s, bound(0);
        if constexpr (BOUNDS) rows.template of<KIND>(c + i * 32, v, bias, size[i], slack[i], tiny, &s, &bound);
        else s = score_of(Vec<float>::load(c + i * 32 + v * 16) + Vec<float>(bias), KIND == code_kind::abs_topk);
        at_least(Vec<float>::load(heap + 16 * v), s - bound).store(heap + 16 * v);
      }
    }
  }
  void set_limits(int64_t r, int64_t rows, const float* top) {
    for (int64_t i = 0; i < rows; ++i) {
      float each[2 * kMostSeeded];
      for (int64_t h = 0; h < 2 * a.k; ++h) each[h] = top[h * 32 + i];
      const float reached = kth_largest(each, 2 * a.k, a.k, -kInfinity<float>, false);
      // the number below: what equals it may come before those that reach it
      if (limit[r + i] != kInfinity<T> && reached > -kInfinity<float>)
        limit[r + i] = (T)number_at<float>(order_of(reached) - 1);
    }
  }

  // False, and nothing done, where bounds could overflow.
  template <int KIND, bool BOUNDS> bool group_of_products(int64_t first, int64_t last) {
    const int64_t depth = whole_tiles(a.p), runs = ceil_div(last - first, 16);
    const uint16_t* from = tiles;
    const float *size = norm, *slack = error;
    if (a.packed && !a.subset) {
      const int64_t all = ceil_div(a.n, 64) * 64;
      from = a.packed + first * depth;
      size = (const float*)(a.packed + all * depth) + first;
      slack = size + all;
    } else {
      parallel(useful_threads(a.threads, (double)(last - first) * a.p), ceil_div(runs, 2) * 2, [&](int64_t i) {
        const int64_t q = first + i * 16, some = larger(0, smaller(16, last - q));
        const float* w = (const float*)(a.subset || !some ? a.w.p : a.w.at(q, 0));
        round_latents(w, a.w.ld, a.subset ? a.subset + q : nullptr, some, a.p, tiles + i * 16 * depth, norm + i * 16,
                      error + i * 16);
      });
    }
    float most = 0, most_b = 0;
    for (int64_t q = first; q < last; ++q) {
      const float s = size[q - first], b = a.b ? (float)a.b[a.latent(q)] : 0.f;
      most = s > most ? s : most;
      most_b = b > most_b ? b : -b > most_b ? -b : most_b;
    }
    if (BOUNDS && (!(most * largest_row < kSafeSize) || !(most < kSafeSize) || !(most_b < kSafeSize))) return false;
    const float tiny = Bounds(a.p).tiny;
    const int64_t blocks = ceil_div(a.m, kCertifyRows);
    parallel(useful_threads(a.threads, (double)a.m * (last - first) * a.p / 4), blocks, [&](int64_t task) {
      Tiles shape;
      if (a.how == bf16_product::tiles) shape.configure(32, 32);
      const int64_t r = task * kCertifyRows, rows = smaller(kCertifyRows, a.m - r);
      // What a panel of rows takes of the first-level cache: deeper ones go by parts, and then results are all kept.
      constexpr int64_t kPart = 448, kParted = 1152, kSize = kCertifyLatents * kCertifyRows;  // groups are no larger
      const int64_t parts = a.how == bf16_product::tiles && last - first <= kParted ? ceil_div(depth, kPart) : 1;
      const int64_t part = parts > 1 ? whole_tiles(ceil_div(depth, parts)) : depth, end = (parts - 1) * part;
      alignas(64) float c[kParted / kCertifyLatents * kSize];
      const auto place = [&](int64_t q) {
        const int64_t i = (q - first) / kCertifyLatents;
        return c + (parts > 1 ? i : i % 2) * kSize;
      };
      const auto product = [&](int64_t q, int64_t at, int64_t some) {
        certify_block(a.how, from + (q - first) * depth, depth, halves + r * depth, rows, at, some, place(q));
      };
      for (int64_t at = 0; at < end; at += part)
        for (int64_t q = first; q < last; q += kCertifyLatents) product(q, at, part);
      // a block's products are begun before the last one's are looked at: tiles work beside the other instructions
      bool made = false;
      const auto begin = [&](int64_t q) {
        if (!made) product(q, end, depth - end);
      };
      const auto each_block = [&](const auto& f) {
        begin(first);
        for (int64_t q = first; q < last; q += kCertifyLatents) {
          if (q + kCertifyLatents < last) begin(q + kCertifyLatents);
          f(q, smaller(kCertifyLatents, last - q), place(q));
        }
        made = parts > 1;
      };
      const PanelBounds panel = BOUNDS ? PanelBounds(*this, r) : PanelBounds();
      if (first == 0 && worth_seeding(last)) {
        alignas(64) float top[2 * kMostSeeded * 32];
        for (float& t : top) t = -kInfinity<float>;
        each_block([&](int64_t q, int64_t taken, const float* done) {
          if (rows > 16) seed<KIND, 2, BOUNDS>(panel, done, q, taken, size + q, slack + q, tiny, top);
          else seed<KIND, 1, BOUNDS>(panel, done, q, taken, size + q, slack + q, tiny, top);
        });
        set_limits(r, rows, top);
      }
      for (int64_t i = r; i < r + rows; ++i) {  // where candidates will go
        const int64_t at = i * room + held[i];
        __builtin_prefetch(z + at, 1);
        if (BOUNDS) __builtin_prefetch(low + at, 1);
        __builtin_prefetch(idx + at, 1);
      }
      // rows that come next, on their way while these are worked at
      const uint16_t* const coming = halves + smaller(r + kCertifyRows, (blocks - 1) * kCertifyRows) * depth;
      const int64_t lines = ceil_div(depth, ceil_div(last - first, kCertifyLatents));  // a panel has as many as depth
      each_block([&](int64_t q, int64_t taken, const float* done) {
        const int64_t i = q - first, line = i / kCertifyLatents * lines;
        for (int64_t l = line; l < smaller(depth, line + lines); ++l) __builtin_prefetch(coming + l * 32, 0, 2);
        if constexpr (!BOUNDS) {
          if (rows > 16) Base::template filter<KIND, 2>((const T*)done, kCertifyRows, q, taken, r);
          else Base::template filter<KIND, 1>((const T*)done, kCertifyRows, q, taken, r);
        } else {
          if (rows > 16) filter_bounds<KIND, 2>(panel, done, q, taken, r, size + i, slack + i, tiny);
          else filter_bounds<KIND, 1>(panel, done, q, taken, r, size + i, slack + i, tiny);
        }
      });
      if (a.how == bf16_product::tiles) shape.release();
    });
    return true;
  }
};

}  // namespace
}  // namespace fastae
#endif
