// Gradients of weights from nearly full codes: products of blocks of latents with all rows, with the bits of LatentGrad.
#pragma once
#include "full.h"

namespace fastae {
namespace {

// The code that a list by latent was asked for.
struct FullCode {
  View<const int32_t> idx;
  Entries entries;
  int64_t m;
};

// f(sums) of the entries by latent, in the order of Listed::sum, from rows as they lie; sums: of latents from `first` on
template <class T, class F>
void sums_by_row(const Listed<T>& code, const FullCode& full, int64_t first, int64_t last, double* sum, const F& f) {
  for (int64_t j = first; j < last; ++j) sum[j] = 0;
  for (int64_t r = 0; r < full.m; ++r)
    full.entries.each(r, [&](int64_t position, int64_t count) {
      const int32_t* const at = full.idx.at(r, position);
      const T* const coef = code.coef.at(r, position);
      for (int64_t i = first ? first_from(at, count, first) : 0; i < count && at[i] < last; ++i)
        sum[at[i]] += f((double)coef[i]);
    });
}

template <class T> struct FullGrad {
  static constexpr int N = Vec<T>::N;
  static constexpr int64_t W = kPanelColumns<T>, kLatents = 3 * kLatentBlock;  // of a task: whole panels of rows
  static constexpr int64_t kSlots = kLatents + kPanelRows, kStride = kPanelRows * kChunk + 2 * N;

  const LatentGrad<T>& grad;
  FullCode code;
  int64_t ld, rows, panels;  // of a block's sums; of the batch in a segment; of columns
  T *right, *own;
  int64_t own_size;
  int32_t* next;  // of each thread and segment of a row, where the entries of its latest latents end

  static int64_t own_elements(int64_t p) {
    return kSlots / kPanelRows * kStride + kSlots * (ceil_div(p, 16) * 16 + 16);
  }
  static int64_t segment_count(int64_t m, int64_t segments) {
    return ceil_div(m, larger(1, kChunk / larger(1, segments)));
  }
  static int64_t bytes(int64_t m, int64_t segments, int64_t p, int threads) {
    return (segment_count(m, segments) * packed_size<T>(p, kChunk) + threads * own_elements(p)) * (int64_t)sizeof(T) +
           threads * m * segments * (int64_t)sizeof(int32_t);
  }

  FullGrad(const LatentGrad<T>& g, const FullCode& c, int threads, T* memory)
      : grad(g),
        code(c),
        ld(ceil_div(g.p, 16) * 16 + 16),
        rows(g.segment_rows()),
        panels(panel_count<T>(g.p)),
        right(memory),
        own(memory + segment_count(c.m, c.entries.segments) * packed_size<T>(g.p, kChunk)),
        own_size(own_elements(g.p)),
        next((int32_t*)(own + threads * own_size)) {}

  const T* row_of(int64_t r, int64_t q) const { return grad.row_of(r * grad.code.width + q * grad.capacity, 0); }

  // Whether 0 times every row is 0.
  bool finite() const {
    Vec<T> none(T(0));
    for (int64_t r = 0; r < code.m; ++r)
      for (int64_t q = 0; q < code.entries.segments; ++q) {
        const T* const x = row_of(r, q);
        over_row<T>(grad.p, [&](int64_t j, int lanes) { none = fma(Vec<T>::load(x + j, lanes), Vec<T>(T(0)), none); });
      }
    return all(none == Vec<T>(T(0)));
  }

  void begin(int threads) const {
    memset(next, 0, (size_t)(threads * code.m * code.entries.segments) * sizeof *next);
    const int64_t segments = ceil_div(code.m, rows), S = code.entries.segments;
    parallel(useful_threads(threads, 4.0 * code.m * grad.p), segments * panels, [&](int64_t task) {
      const int64_t s = task / panels, panel = task % panels, last = smaller(code.m, (s + 1) * rows);
      const int64_t j = panel * W, width = smaller(W, grad.p - j);
      const int nv = panel_vectors<T>(grad.p, panel);
      T* to = right_of(s, panel);
      for (int64_t r = s * rows; r < last; ++r)
        for (int64_t q = 0; q < S; ++q, to += nv * N)
          for (int v = 0; v < nv; ++v) Vec<T>::load(row_of(r, q) + j + v * N, (int)(width - v * N)).store(to + v * N);
    });
  }
  T* right_of(int64_t s, int64_t panel) const {
    const int64_t depth = smaller(rows, code.m - s * rows) * code.entries.segments;
    return right + s * packed_size<T>(grad.p, kChunk) + panel * W * depth;
  }

  // take(j, g) for latents [first, first + count), g the finished gradient's row; a thread's latents ascend
  template <class F> void block(int64_t first, int64_t count, int thread, const F& take) const {
    T *const left = own + thread * own_size, *const sums = left + kSlots / kPanelRows * kStride;
    // latents that are one chain come first, those that are several are in panels of their own
    int32_t slot[kLatents], place[kLatents];
    int64_t slots = 0;
    const auto give = [&](bool many) {
      for (int64_t i = 0; i < count; ++i) {
        if ((grad.code.start[first + i + 1] - grad.code.start[first + i] > kChunk) != many) continue;
        slot[i] = (int32_t)slots++;
        place[i] = (int32_t)(slot[i] / kPanelRows * kStride + slot[i] % kPanelRows);
      }
    };
    give(false);
    const int64_t few = ceil_div(slots, kPanelRows);
    slots = few * kPanelRows;
    give(true);
    const int64_t all = ceil_div(slots, kPanelRows);
    for (int64_t s = 0; s < ceil_div(code.m, rows); ++s) {
      const int64_t S = code.entries.segments, depth = smaller(rows, code.m - s * rows) * S;
      for (int64_t q = 0; q < all; ++q) memset(left + q * kStride, 0, (size_t)(depth * kPanelRows) * sizeof(T));
      for (int64_t v = 0; v < depth; ++v) {
        const int64_t r = s * rows + v / S, q = v % S, position = q * code.entries.capacity;
        const int32_t* const at = code.idx.at(r, position);
        const T* const coef = grad.code.coef.at(r, position);
        const int64_t n = code.entries.of(r, q);
        T* const to = left + v * kPanelRows;
        int32_t& done = next[(thread * code.m + r) * S + q];
        int64_t i = done;
        if (i < n && at[i] < first) i += first_from(at + i, n - i, first);
        const int64_t from = i;
        for (; i < n && at[i] < first + count; ++i) to[place[at[i] - first]] = coef[i];
        done = (int32_t)i;
        if (r + kRowsAhead < code.m) {
          const int64_t coming = position + next[(thread * code.m + r + kRowsAhead) * S + q];
          fetch_entries(code.idx.at(r + kRowsAhead, coming), grad.code.coef.at(r + kRowsAhead, coming), i - from);
        }
      }
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t q = 0; q < all; ++q)
          for (int64_t i = 0; i < kPanelRows;) {
            const int64_t j = panel * W;
            const TileArgs<T> t = {depth,
                                   left + q * kStride + i,
                                   kPanelRows,
                                   right_of(s, panel),
                                   sums + (q * kPanelRows + i) * ld + j,
                                   ld,
                                   smaller(W, grad.p - j),
                                   s == 0    ? kSet
                                   : q < few ? kContinue
                                             : kAddAfter};
            i += run_tile<T, true>(panel_vectors<T>(grad.p, panel), kPanelRows - i, t);
          }
    }
    for (int64_t i = 0; i < count; ++i) {
      T* const g = sums + slot[i] * ld;
      finish_sum(g, grad.p);
      grad.finish(first + i, g);
      take(first + i, g);
    }
  }
};

}  // namespace
}  // namespace fastae
