// Codes of a batch: z = x wT + b selected as it is made, never stored.
//
// Latents go by in groups that stay in cache, each group past every panel of rows; products are made with latents as
// the rows of a tile and rows of x as its columns, so that w is read where it lies and a vector holds one latent's z of
// as many rows. What passes a row's limit becomes a candidate (candidates.h). Every path gives the same bits.
#pragma once
#include "quantized.h"

namespace fastae {
namespace {

#ifdef FASTAE_BF16
template <class T> using EncodingBase = Quantized<T>;
#else
template <class T> using EncodingBase = Candidates<T>;
#endif

template <class T> struct Encoding : EncodingBase<T> {
  typedef EncodingBase<T> Base;
  using Base::Base, Base::a, Base::group, Base::run_of, Base::room, Base::panels, Base::gathered, Base::limit, Base::z;
  using Base::idx, Base::held, Base::full, Base::certified, Base::begun, Base::panels_made, Base::overflow;
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

  // c[i][v N + lane] for latents [q, q + taken) and the rows from r on
  template <int KIND, int NV> FASTAE_INLINE void filter(const T* c, int64_t q, int64_t taken, int64_t r) {
    typedef Vec<T> V;
    constexpr int N = V::N;
    for (int64_t i = 0; i < taken; ++i) {
      const int32_t j = a.latent(q + i);
      V value[NV];
      uint32_t hits[NV], any_hit = 0;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        value[v] = V::load(c + (i * NV + v) * N);
        if (a.b) value[v] += V(a.b[j]);
        const V least = V::load(limit + r + v * N);
        if constexpr (KIND == code_kind::threshold) hits[v] = lane_bits(value[v] > at_least(least, V(a.limit(j))));
        else hits[v] = lane_bits(~(score_of(value[v], KIND == code_kind::abs_topk) <= least));
        if constexpr (N < 16) hits[v] &= (1u << N) - 1;
        any_hit |= hits[v];
      }
      if (!any_hit) continue;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        if (!hits[v]) continue;
        T each[N];
        value[v].store(each);
        each_lane(hits[v], [&](int lane) { take_exact(r + v * N + lane, j, each[lane]); });
      }
    }
  }

  template <int KIND, int NV> void float_block(const T* w, int64_t ldw, int64_t r, int64_t first, int64_t last) {
    alignas(64) T c[kPanelRows * NV * Vec<T>::N];
    for (int64_t q = first; q < last;) {
      const TileArgs<T> t = {a.p, w + (q - first) * ldw, ldw, panels + r * a.p, c, NV * Vec<T>::N, NV * Vec<T>::N,
                             kSet};
      const int taken = run_tile<T, NV, false>(last - q, t);
      filter<KIND, NV>(c, q, taken, r);
      q += taken;
    }
  }

  template <int KIND> void float_group(int64_t first, int64_t last) {
    make_panels();
    if (begun && KIND == code_kind::threshold)  // entries are written in order
      parallel(useful_threads(a.threads, (double)a.m * a.p * 32), ceil_div(a.m, 8), [&](int64_t task) {
        for (int64_t r = task * 8; r < smaller(a.m, task * 8 + 8); ++r) make_exact(r, true);
      });
    const T* w = a.w.at(first, 0);
    int64_t ldw = a.w.ld;
    if (a.subset) {
      for (int64_t q = first; q < last; ++q)
        memcpy(gathered + (q - first) * a.p, a.w.at(a.subset[q], 0), (size_t)a.p * sizeof(T));
      w = gathered;
      ldw = a.p;
    }
    parallel(useful_threads(a.threads, (double)a.m * (last - first) * a.p), panel_count(), [&](int64_t i) {
      if (a.m - i * W > Vec<T>::N) float_block<KIND, 2>(w, ldw, i * W, first, last);
      else float_block<KIND, 1>(w, ldw, i * W, first, last);
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
        if (quantized)
          first = Base::template by_bytes<KIND>([&](int64_t from, int64_t to) {
            for (int64_t q = from; q < to; q += run_of) float_group<KIND>(q, smaller(to, q + run_of));
          });
        redone = 0;
        if (certified && first < a.n) Base::make_halves();
      }
#endif
      for (; first < a.n; first += group) {
        const int64_t last = smaller(a.n, first + group);
#ifdef FASTAE_BF16
        if constexpr (sizeof(T) == 4) {
          if (certified && Base::template certified_group<KIND>(first, last)) {
            // more than a few chains over again: bounds don't tell these numbers apart
            certified = redone * 25 <= a.m * last || a.path == encode_path::bfloat16;
            continue;
          }
        }
#endif
        for (int64_t q = first; q < last; q += run_of) float_group<KIND>(q, smaller(last, q + run_of));
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
