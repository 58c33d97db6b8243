// Work on the flat parameter buffer: update rules, weight penalties, clipping, projections.
//
// Elementwise passes are cut into blocks of kFlatBlock elements; sums are made per block (16 virtual lanes) and the
// blocks' sums added in order.
#pragma once
#include "sparse.h"

namespace fastae {
namespace {

constexpr int64_t kFlatBlock = 4096;
constexpr int64_t kFetchedFrom = 1 << 18;  // parameters that are far from fitting a core's cache
constexpr int64_t kNear = 1 << 16;         // parameters that stay in it with their states and gradients

// f(first, count) over blocks of [0, n)
template <class F> FASTAE_INLINE void over_flat(int threads, int64_t n, const F& f) {
  const int t = n >= 16 * kFlatBlock ? threads : 1;
  const int64_t blocks = ceil_div(n, kFlatBlock), run = t > 1 ? 8 : larger(blocks, 1);
  parallel(t, ceil_div(blocks, run), [&](int64_t task) {
    for (int64_t b = task * run; b < smaller(blocks, (task + 1) * run); ++b)
      f(b * kFlatBlock, smaller(kFlatBlock, n - b * kFlatBlock));
  });
}

// sum over [0, n) of f(index, lanes) -> Vec; partial: one double per block
template <class T, class F> FASTAE_INLINE double flat_sum(int threads, int64_t n, double* partial, const F& f) {
  over_flat(threads, n, [&](int64_t first, int64_t count) {
    partial[first / kFlatBlock] = row_sum<T>(count, [&](int64_t j, int lanes) { return f(first + j, lanes); });
  });
  double sum = 0;
  for (int64_t b = 0; b < ceil_div(n, kFlatBlock); ++b) sum += partial[b];
  return sum;
}

// An update rule at one step, on the whole of w or tile by tile as the gradient of w (n,k) is made.
template <class T> struct Update {
  int rule;
  T* w;
  T* state[3];
  int64_t k;
  T c[8], p[kMaxFloats];
  int64_t ahead;  // elements that are fetched before their turn, where rows follow each other; 0 for none

  void rows(const T* g, int64_t ldg, int64_t row, int64_t rows, int64_t column, int64_t columns) const noexcept {
    if (columns == k && ldg == k) columns *= rows, rows = 1;  // they follow each other
    visit_update<Vec<T>, T>(rule, [&](auto formula) {
      constexpr int S = decltype(formula)::n_states;
      // copies that no store can touch, so that constants stay in registers
      T step[8], parameter[kMaxFloats];
      for (int q = 0; q < 8; ++q) step[q] = c[q];
      for (int q = 0; q < kMaxFloats; ++q) parameter[q] = p[q];
      const int64_t first = row * k + column;
      T *x = w + first, *at[S + 1];
      for (int q = 0; q < S; ++q) at[q] = state[q] + first;
      for (int64_t r = 0; r < rows; ++r) {
        over_row<T>(columns, [&](int64_t j, int lanes) {
          Vec<T> v = Vec<T>::load(x + j, lanes), s[S + 1];
          if (ahead) {
            __builtin_prefetch(x + j + ahead, 1);
            for (int q = 0; q < S; ++q) __builtin_prefetch(at[q] + j + ahead, 1);
          }
          for (int q = 0; q < S; ++q) s[q] = Vec<T>::load(at[q] + j, lanes);
          formula.apply(v, Vec<T>::load(g + j, lanes), s, step, parameter);
          v.store(x + j, lanes);
          for (int q = 0; q < S; ++q) s[q].store(at[q] + j, lanes);
        });
        g += ldg, x += k;
        for (int q = 0; q < S; ++q) at[q] += k;
      }
    });
  }

  void flat(const T* g, int64_t first, int64_t n, int threads) const noexcept {
    over_flat(threads, n,
              [&](int64_t start, int64_t count) { rows(g + first + start, 0, 0, 1, first + start, count); });
  }

  static void expect(const void* context, int64_t row, int64_t rows, int64_t column, int64_t columns) noexcept {
    const Update& u = *(const Update*)context;
    for (int64_t r = row; r < row + rows; ++r)
      for (int64_t j = 0; j < columns; j += 64 / (int64_t)sizeof(T)) {
        const int64_t at = r * u.k + column + j;
        __builtin_prefetch(u.w + at, 1);
        for (int q = 0; q < 3; ++q)
          if (u.state[q]) __builtin_prefetch(u.state[q] + at, 1);
      }
  }
  static void take(const void* context, const T* g, int64_t ldg, int64_t row, int64_t rows, int64_t column,
                   int64_t columns) noexcept {
    ((const Update*)context)->rows(g, ldg, row, rows, column, columns);
  }
};

template <class T>
double weight_penalty(int penalty, const FormulaRecord* formula, const T* p, const T* w, T* dw, int64_t n,
                      double* partial, int threads) noexcept {
  double value = 0;
  if (formula) {
    over_flat(threads, n, [&](int64_t first, int64_t count) {
      partial[first / kFlatBlock] = registered_sum<false>(
          *formula, 2, w + first, (const T*)nullptr, p, count, [&](int64_t c, int64_t columns, const T* smooth) {
            T* const d = dw + first + c;
            over_row<T>(columns, [&](int64_t j, int lanes) {
              (Vec<T>::load(d + j, lanes) + Vec<T>::load(smooth + j, lanes)).store(d + j, lanes);
            });
          });
    });
    for (int64_t b = 0; b < ceil_div(n, kFlatBlock); ++b) value += partial[b];
    return value;
  }
  visit_penalty<Vec<T>, T>(penalty, [&](auto formula) {
    value = flat_sum<T>(threads, n, partial, [&](int64_t i, int lanes) {
      const Vec<T> x = Vec<T>::load(w + i, lanes);
      (Vec<T>::load(dw + i, lanes) + formula.smooth(x, p)).store(dw + i, lanes);
      return formula.value(x, p);
    });
  });
  return value;
}

template <class T> void clip_gradient(int mode, T* g, int64_t n, double limit, double* partial, int threads) noexcept {
  if (mode == clip_mode::value) {
    const Vec<T> most((T)limit), least((T)-limit);
    over_flat(threads, n, [&](int64_t first, int64_t count) {
      over_row<T>(count, [&](int64_t j, int lanes) {
        max(min(Vec<T>::load(g + first + j, lanes), most), least).store(g + first + j, lanes);
      });
    });
    return;
  }
  double square = 0;  // float64 throughout: the square of a large float32 gradient must not overflow
  over_flat(threads, n, [&](int64_t first, int64_t count) {
    Lanes sum;
    double t[16];
    for (int64_t j0 = 0; j0 < count; j0 += 16) {
      for (int i = 0; i < 16; ++i) {
        const double x = j0 + i < count ? (double)g[first + j0 + i] : 0.0;
        t[i] = x * x;
      }
      sum.add(t);
    }
    partial[first / kFlatBlock] = sum.sum();
  });
  for (int64_t b = 0; b < ceil_div(n, kFlatBlock); ++b) square += partial[b];
  const double norm = __builtin_sqrt(square);
  if (!(norm > limit)) return;
  const Vec<T> scale((T)(limit / norm));
  over_flat(threads, n, [&](int64_t first, int64_t count) {
    over_row<T>(
        count, [&](int64_t j, int lanes) { (Vec<T>::load(g + first + j, lanes) * scale).store(g + first + j, lanes); });
  });
}

template <class T>
__attribute__((noinline)) void registered_prox(const FormulaRecord& formula, T* w, int64_t n, const T* p,
                                               T step) noexcept {
  FormulaBlock<T> x, s, out;
  for (int64_t c = 0; c < n; c += kFormulaBlock<T>) {
    const int64_t width = smaller(kFormulaBlock<T>, n - c);
    memcpy(x.v, w + c, (size_t)width * sizeof(T));
    for (int64_t j = 0; j < width; ++j) s.v[j] = step;
    evaluate(formula.part[3], x, &s, p, out, width);
    memcpy(w + c, out.v, (size_t)width * sizeof(T));
  }
}

template <class T>
void project(int kind, int penalty, const FormulaRecord* formula, T* w, int64_t rows, int64_t columns, const T* p,
             T step, int threads) noexcept {
  const int64_t n = rows * columns;
  const auto each = [&](auto f) {
    over_flat(threads, n, [&](int64_t first, int64_t count) {
      over_row<T>(count,
                  [&](int64_t j, int lanes) { f(Vec<T>::load(w + first + j, lanes)).store(w + first + j, lanes); });
    });
  };
  if (kind == project_kind::prox && formula) {
    over_flat(threads, n, [&](int64_t first, int64_t count) { registered_prox(*formula, w + first, count, p, step); });
  } else if (kind == project_kind::prox) {
    visit_penalty<Vec<T>, T>(penalty,
                             [&](auto formula) { each([&](Vec<T> x) { return formula.prox(x, Vec<T>(step), p); }); });
  } else if (kind == project_kind::range) {
    each([&](Vec<T> x) { return min(max(x, Vec<T>(p[0])), Vec<T>(p[1])); });
  } else if (kind == project_kind::non_negative) {
    each([&](Vec<T> x) { return max(x, Vec<T>(T(0))); });
  } else if (kind == project_kind::unit) {
    parallel(useful_threads(threads, (double)n * 4), rows, [&](int64_t r) { unit_row(w + r * columns, columns); });
  } else {
    parallel(useful_threads(threads, (double)n * 4), rows, [&](int64_t r) {
      T* row = w + r * columns;
      const double square = row_sum<T>(columns, [&](int64_t j, int lanes) {
        const Vec<T> x = Vec<T>::load(row + j, lanes);
        return x * x;
      });
      const double norm = __builtin_sqrt(square);
      if (!(norm > (double)p[0])) return;
      const Vec<T> scale((T)((double)p[0] / norm));
      over_row<T>(columns, [&](int64_t j, int lanes) { (Vec<T>::load(row + j, lanes) * scale).store(row + j, lanes); });
    });
  }
}

}  // namespace
}  // namespace fastae
