// Codes of a batch: z = x wT + b selected as it is made, never stored.
//
// Latents go by in groups that stay in cache, each group past every panel of rows; products are made with latents as
// the rows of a tile and rows of x as its columns, so that w is read where it lies and a vector holds one latent's z of
// as many rows. What passes a row's limit becomes a candidate (candidates.h). Every path gives the same bits, but for the
// order of the sums where z is to be that of products in bfloat16.
#pragma once
#include "coarse.h"

namespace fastae {
namespace {

#ifdef FASTAE_BF16
template <class T> using EncodingBase = Coarse<T>;
#else
template <class T> using EncodingBase = Candidates<T>;
#endif

template <class T> struct Encoding : EncodingBase<T> {
  typedef EncodingBase<T> Base;
  using Base::Base, Base::a, Base::group, Base::run_of, Base::room, Base::panels, Base::gathered, Base::upright;
  using Base::limit, Base::z, Base::idx, Base::held, Base::full, Base::certified, Base::begun, Base::panels_made,
      Base::overflow;
  using Base::redone, Base::W, Base::magnitude, Base::some, Base::take_exact, Base::make_exact, Base::panel_count;

  // ---- products in float32 ---------------------------------------------------------------------------------------------
  void make_panels() {
    if (panels_made) return;
    panels_made = true;
    parallel(useful_threads(a.threads, (double)a.m * a.p), panel_count(), [&](int64_t i) {
      const int64_t r = i * W, rows = smaller(W, a.m - r);
      pack_transposed(a.x.at(r, 0), a.x.ld, rows, a.p, rows > Vec<T>::N ? 2 : 1, panels + r * a.p);
    });
  }

  template <int KIND, int NV> void float_block(const T* w, int64_t ldw, int64_t r, int64_t first, int64_t last) {
    alignas(64) T c[kPanelRows * NV * Vec<T>::N];
    for (int64_t q = first; q < last;) {
      const TileArgs<T> t = {a.p, w + (q - first) * ldw, ldw, panels + r * a.p, c, NV * Vec<T>::N, NV * Vec<T>::N,
                             kSet};
      const int taken = run_tile<T, NV, false>(last - q, t);
      Base::template filter<KIND, NV>(c, NV * Vec<T>::N, q, taken, r);
      q += taken;
    }
  }

  // Writes what has only bounds yet: a threshold code's entries are written in order.
  void settle() {
    if (!begun || a.kind != code_kind::threshold) return;
    parallel(useful_threads(a.threads, (double)a.m * a.p * 32), ceil_div(a.m, 8), [&](int64_t task) {
      for (int64_t r = task * 8; r < smaller(a.m, task * 8 + 8); ++r) make_exact(r, true);
    });
  }

  template <int KIND> void float_group(int64_t first, int64_t last) {
    make_panels();
    settle();
    const T* w = a.w.at(first, 0);
    int64_t ldw = a.w.ld;
    if (a.subset) {
      for (int64_t q = first; q < last; ++q)
        memcpy(gathered + (q - first) * a.p, a.w.at(a.subset[q], 0), (size_t)a.p * sizeof(T));
      w = gathered;
      ldw = a.p;
    }
    if constexpr (sizeof(T) == 4)
      if (a.bf16) {
        round_copy(w, ldw, last - first, a.p, gathered, a.threads);
        w = gathered;
        ldw = a.p;
      }
    parallel(useful_threads(a.threads, (double)a.m * (last - first) * a.p), panel_count(), [&](int64_t i) {
      if (a.m - i * W > Vec<T>::N) float_block<KIND, 2>(w, ldw, i * W, first, last);
      else float_block<KIND, 1>(w, ldw, i * W, first, last);
    });
  }

  // z itself of the latents [first, last)
  template <int KIND> void make_group(int64_t first, int64_t last) {
#ifdef FASTAE_BF16
    if constexpr (sizeof(T) == 4) {
      if (Base::direct()) {
        settle();
        for (int64_t q = first; q < last; q += group)
          Base::template group_of_products<KIND, false>(q, smaller(last, q + group));
        return;
      }
    }
#endif
    for (int64_t q = first; q < last; q += run_of) float_group<KIND>(q, smaller(last, q + run_of));
  }

  // ---- nearly full codes -----------------------------------------------------------------------------------------------
  // Rows of x are rows of a tile here, so that a row's entries come a vector at a time; the chains are the same.
  static constexpr int64_t kFullEncodeShare = 16, kFullEncodeRows = 48, kFirstLook = 96;

  // Whether so many of the latents [0, last) are in the code that the rest is likely to be, too.
  bool nearly_full(int64_t last) const {
    if (a.kind != code_kind::threshold || a.subset || a.bf16 || a.path != encode_path::automatic) return false;
    int64_t all = 0;
    for (int64_t r = 0; r < a.m; ++r) all += *a.count.at(r, 0) + held[r];
    return all * kFullEncodeShare >= a.m * last;
  }

  // z (lanes) of latents from j on joins row r's entries
  FASTAE_INLINE void take_lanes(int64_t r, int32_t j, Vec<T> value, int lanes) {
    typedef Vec<T> V;
    V t(T(0));
    if (a.threshold) t = a.single ? V(a.threshold[0]) : V::load(a.threshold + j, lanes);
    uint32_t hits = lane_bits(value > at_least(V(limit[r]), t - V(a.margin)));
    hits &= (uint32_t)((1ull << lanes) - 1);
    if (!hits) return;
    int32_t& count = *a.count.at(r, 0);
    if (count + V::N > a.capacity) {
      T each[V::N];
      value.store(each);
      each_lane(hits, [&](int lane) { Base::emit(r, j + lane, each[lane]); });
      return;
    }
    put_lanes(hits, select(value > t, value, V(T(0))), j, a.val.at(r, count), a.idx.at(r, count));
    if (a.pre) put_lanes(hits, value, j, a.pre.at(r, count), a.idx.at(r, count));
    count += __builtin_popcount(hits);
  }

  void full_group(int64_t first, int64_t last) {
    constexpr int64_t C = kPanelColumns<T>;
    settle();
    const int64_t columns = last - first;
    const int threads = useful_threads(a.threads, (double)a.m * columns * a.p);
    pack_panels(a.w.at(first, 0), a.w.ld, columns, a.p, true, 0, ceil_div(columns, C), threads, upright);
    const int64_t run = larger(12, smaller(kFullEncodeRows, ceil_div(ceil_div(a.m, 2 * threads), 12) * 12));
    parallel(threads, ceil_div(a.m, run), [&](int64_t task) {
      const int64_t end = smaller(a.m, task * run + run);
      alignas(64) T c[kPanelRows * C];
      for (int64_t panel = 0; panel * C < columns; ++panel) {
        const int64_t width = smaller(C, columns - panel * C);
        const int nv = panel_vectors<T>(columns, panel);
        for (int64_t r = task * run; r < end;) {
          const TileArgs<T> t = {a.p, a.x.at(r, 0), a.x.ld, upright + panel * C * a.p, c, C, nv * Vec<T>::N, kSet};
          const int taken = run_tile<T, false>(nv, end - r, t);
          for (int i = 0; i < taken; ++i) {
            if (limit[r + i] == kInfinity<T>) continue;
            for (int64_t v = 0; v < width; v += Vec<T>::N) {
              const int64_t j = first + panel * C + v;
              const int lanes = (int)smaller(Vec<T>::N, width - v);
              Vec<T> value = Vec<T>::load(c + i * C + v);
              if (a.b) value += Vec<T>::load(a.b + j, lanes);
              take_lanes(r + i, (int32_t)j, value, lanes);
            }
          }
          r += taken;
        }
      }
    });
  }

  // ---- the whole ------------------------------------------------------------------------------------------------------
  static bool finite_row(const T* x, int64_t p) {
    Vec<T> sum(T(0));
    over_row<T>(p, [&](int64_t i, int lanes) { sum = fma(Vec<T>::load(x + i, lanes), Vec<T>(T(0)), sum); });
    return all(sum == Vec<T>(T(0)));
  }

  void finish(int64_t r, int64_t next) {
    int32_t& count = *a.count.at(r, 0);
    if (limit[r] == kInfinity<T> && !finite_row(a.x.at(r, 0), a.p)) {
      count = -1;
      return;
    }
    if (begun && a.kind != code_kind::threshold && held[r] >= a.k + 32) Base::sharpen(r, false);
    make_exact(r, false, next);
    if (a.kind == code_kind::threshold) {
      if (count > a.capacity) __atomic_store_n(&overflow, true, __ATOMIC_RELAXED);
      return;
    }
    const T* from = z + r * room;
    const int64_t n = held[r], k = smaller(a.k, n);
    count = (int32_t)k;
    if (k == 0) return;
    const T kth = kth_largest(from, n, k, -kInfinity<T>, magnitude());
    int64_t at = 0;
    each_of_largest(from, n, k, kth, magnitude(), [&](int64_t i) {
      *a.idx.at(r, at) = idx[r * room + i];
      *a.val.at(r, at) = !magnitude() && from[i] < 0 ? T(0) : from[i];
      if (a.pre) *a.pre.at(r, at) = from[i];
      ++at;
    });
  }

  template <int KIND> void run_kind() {
    const int64_t rows = ceil_div(a.m, 64) * 64;
    parallel(useful_threads(a.threads, (double)a.m * a.p / 4), ceil_div(rows, 64), [&](int64_t task) {
      for (int64_t r = task * 64; r < task * 64 + 64; ++r) {
        held[r] = 0;
        full[r] = (int32_t)(KIND == code_kind::threshold ? room : smaller(room, some()));
        limit[r] = r < a.m && finite_row(a.x.at(r, 0), a.p) ? -kInfinity<T> : kInfinity<T>;
        if (r < a.m) *a.count.at(r, 0) = 0;
      }
    });
    if (KIND == code_kind::threshold || a.k > 0) {
      int64_t first = 0;
#ifdef FASTAE_BF16
      if constexpr (sizeof(T) == 4) {
        const bool quantized = Base::may_quantize();
        certified = Base::may_certify();
        begun = certified || quantized;
        if (Base::direct()) Base::make_halves();
        if (quantized) Base::quantize_rows();
        if (quantized && Base::may_look() && Base::template by_looks<KIND>()) first = a.n;
        else if (quantized)
          first = Base::template by_bytes<KIND>([&](int64_t from, int64_t to) { make_group<KIND>(from, to); });
        redone = 0;
        if (certified && first < a.n) Base::make_halves();
      }
#endif
      // a short first group of threshold codes tells how full they are
      const bool looks = KIND == code_kind::threshold && a.m >= 16 && a.n >= 8 * kFirstLook;
      for (int64_t last; first < a.n; first = last) {
        last = smaller(a.n, first + (looks && first == 0 ? kFirstLook : group));
        if (KIND == code_kind::threshold && first && nearly_full(first)) {
          for (int64_t q = first; q < last; q += run_of) full_group(q, smaller(last, q + run_of));
          continue;
        }
#ifdef FASTAE_BF16
        if constexpr (sizeof(T) == 4) {
          if (certified && Base::template group_of_products<KIND, true>(first, last)) {
            // more than a few chains over again: bounds don't tell these numbers apart
            certified = redone * 25 <= a.m * last || a.path == encode_path::bfloat16;
            continue;
          }
        }
#endif
        make_group<KIND>(first, last);
      }
    }
    parallel(useful_threads(a.threads, (double)a.m * a.p * 32), ceil_div(a.m, 8), [&](int64_t task) {
      const int64_t end = smaller(a.m, task * 8 + 8);
      for (int64_t r = task * 8; r < end; ++r) finish(r, r + 1 < end ? r + 1 : -1);
    });
  }

  // Returns whether every row fitted.
  bool run() {
    if (a.kind == code_kind::topk) run_kind<code_kind::topk>();
    else if (a.kind == code_kind::abs_topk) run_kind<code_kind::abs_topk>();
    else run_kind<code_kind::threshold>();
    return !overflow;
  }
};

}  // namespace
}  // namespace fastae
