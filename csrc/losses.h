// Losses by rows, and penalties on activities.
#pragma once
#include "elementwise.h"
#include "schema.h"

namespace fastae {
namespace {

// Sum of a registered formula's value over a row. use(j, n, slope) takes part `slope` of the formula, -1 for none, on
// each block of columns; it may change a and b there.
template <class T, class F>
__attribute__((noinline)) double registered_sum(const FormulaRecord& formula, int slope, const T* a, const T* b,
                                                const T* p, int64_t n, const F& use) {
  FormulaBlock<T> first, second, value, change;
  Lanes sum;
  for (int64_t j = 0; j < n; j += kFormulaBlock<T>) {
    const int64_t count = smaller(kFormulaBlock<T>, n - j);
    memcpy(first.v, a + j, (size_t)count * sizeof(T));
    if (b) memcpy(second.v, b + j, (size_t)count * sizeof(T));
    evaluate(formula.part[0], first, b ? &second : nullptr, p, value, count);
    if (slope >= 0) {
      evaluate(formula.part[slope], first, b ? &second : nullptr, p, change, count);
      use(j, count, change.v);
    }
    for (int64_t i = count; i % 16; ++i) value.v[i] = T(0);
    for (int64_t i = 0; i < count; i += 16) sum.add(value.v + i);
  }
  return sum.sum();
}

template <class T> struct LossRow {
  int kind;
  T p[2];
  double scale;                  // of a row's sum in the value
  const FormulaRecord* formula;  // registered at run time, else null

  // Row value (weight not included); dy = factor l'(y, t) when dy is given. dy may be y.
  double operator()(const T* y, const T* t, T* dy, T factor, int64_t n) const noexcept {
    if (kind == kMultinomial) return multinomial(y, t, dy, factor, n);
    if (formula) return registered(y, t, dy, factor, n);
    double value = 0;
    visit_loss<Vec<T>, T>(kind, [&](auto formula) {
      value = row_sum<T>(n, [&](int64_t j, int lanes) {
        const Vec<T> a = Vec<T>::load(y + j, lanes), b = Vec<T>::load(t + j, lanes);
        const Vec<T> v = formula.value(a, b, p);
        if (dy) (Vec<T>(factor) * formula.dy(a, b, p)).store(dy + j, lanes);
        return v;
      });
    });
    return scale * value;
  }

  double registered(const T* y, const T* t, T* dy, T factor, int64_t n) const noexcept {
    return scale * registered_sum(*formula, dy ? 1 : -1, y, t, p, n, [&](int64_t c, int64_t count, const T* slope) {
             over_row<T>(count, [&](int64_t j, int lanes) {
               (Vec<T>(factor) * Vec<T>::load(slope + j, lanes)).store(dy + c + j, lanes);
             });
           });
  }

  // sum_j t_j (log sum exp z - z_j); derivative softmax(z) sum t - t
  double multinomial(const T* z, const T* t, T* dy, T factor, int64_t n) const noexcept {
    const T top = row_max(z, n);
    const Vec<T> m(top);
    const double sum = row_sum<T>(n, [&](int64_t j, int lanes) { return exp(Vec<T>::load(z + j, lanes) - m); });
    const double total = row_sum<T>(n, [&](int64_t j, int lanes) { return Vec<T>::load(t + j, lanes); });
    const double dot = row_sum<T>(
        n, [&](int64_t j, int lanes) { return Vec<T>::load(t + j, lanes) * (Vec<T>::load(z + j, lanes) - m); });
    if (dy) {
      const Vec<T> f(factor), a((T)(total / sum));
      over_row<T>(n, [&](int64_t j, int lanes) {
        const Vec<T> e = exp(Vec<T>::load(z + j, lanes) - m) * a;
        (f * (e - Vec<T>::load(t + j, lanes))).store(dy + j, lanes);
      });
    }
    return scale * (total * __builtin_log(sum) - dot);
  }
};

// Sum of values in a fixed order: 16 virtual lanes.
FASTAE_INLINE double sum_in_order(const double* v, int64_t n) {
  double lane[16] = {0};
  for (int64_t i = 0; i < n; ++i) lane[i % 16] += v[i];
  for (int h = 8; h; h /= 2)
    for (int i = 0; i < h; ++i) lane[i] += lane[i + h];
  return lane[0];
}

template <class T>
double activity_row(int penalty, const FormulaRecord* formula, const T* p, const T* h, T* dh, T factor,
                    int64_t n) noexcept {
  if (formula)
    return registered_sum(*formula, 1, h, (const T*)nullptr, p, n, [&](int64_t c, int64_t count, const T* slope) {
      over_row<T>(count, [&](int64_t j, int lanes) {
        fma(Vec<T>(factor), Vec<T>::load(slope + j, lanes), Vec<T>::load(dh + c + j, lanes)).store(dh + c + j, lanes);
      });
    });
  double value = 0;
  visit_penalty<Vec<T>, T>(penalty, [&](auto formula) {
    value = row_sum<T>(n, [&](int64_t j, int lanes) {
      const Vec<T> x = Vec<T>::load(h + j, lanes);
      fma(Vec<T>(factor), formula.dw(x, p), Vec<T>::load(dh + j, lanes)).store(dh + j, lanes);
      return formula.value(x, p);
    });
  });
  return value;
}

// mean[j] over rows of columns [c, c + n), n <= kColumnBlock: row r goes to virtual lane r % 16
template <class T> void column_means(View<const T> h, int64_t m, int64_t c, int64_t n, double* mean) noexcept {
  double lane[16][kColumnBlock];
  for (int i = 0; i < 16; ++i)
    for (int64_t j = 0; j < n; ++j) lane[i][j] = 0;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = 0; j < n; ++j) lane[r % 16][j] += (double)*h.at(r, c + j);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i)
      for (int64_t j = 0; j < n; ++j) lane[i][j] += lane[i + half][j];
  for (int64_t j = 0; j < n; ++j) mean[j] = lane[0][j] / (double)m;
}

// KL(rho || q) and its derivative, q cut to [1e-7, 1 - 1e-7] where the derivative is 0
FASTAE_INLINE double kl_bernoulli(double rho, double mean, double* slope) {
  constexpr double e = 1e-7;
  const double q = mean < e ? e : mean > 1 - e ? 1 - e : mean;
  *slope = q == mean ? (1 - rho) / (1 - q) - rho / q : 0.0;
  double value = 0;
  if (rho > 0) value += rho * __builtin_log(rho / q);
  if (rho < 1) value += (1 - rho) * __builtin_log((1 - rho) / (1 - q));
  return mean != mean ? mean : value;
}

}  // namespace
}  // namespace fastae
