// Batch and layer normalisation. Sums over rows: row r goes to virtual lane r % 16 in float64, lanes are added as a
// fixed tree; so no result depends on threads.
#pragma once
#include "gemm.h"
#include "losses.h"

namespace fastae {
namespace {

// sum[j] over the batch's rows of f(r, c + j) for n <= kColumnBlock columns
template <class F> FASTAE_INLINE void column_sums(int64_t m, int64_t c, int64_t n, double* sum, const F& f) {
  double lane[16][kColumnBlock] = {};
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = 0; j < n; ++j) lane[r % 16][j] += f(r, c + j);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i)
      for (int64_t j = 0; j < n; ++j) lane[i][j] += lane[i + half][j];
  for (int64_t j = 0; j < n; ++j) sum[j] = lane[0][j];
}

// f(first column, columns) over blocks of kColumnBlock columns
template <class F> FASTAE_INLINE void over_columns(int threads, int64_t m, int64_t n, const F& f) {
  parallel(useful_threads(threads, (double)m * n * 8), ceil_div(n, kColumnBlock),
           [&](int64_t block) { f(block * kColumnBlock, smaller(kColumnBlock, n - block * kColumnBlock)); });
}

// sum over [0, n) of f(j) in float64
template <class F> FASTAE_INLINE double sum_of(int64_t n, const F& f) {
  Lanes sum;
  double t[16];
  for (int64_t j0 = 0; j0 < n; j0 += 16) {
    for (int64_t i = 0; i < 16; ++i) t[i] = j0 + i < n ? f(j0 + i) : 0.0;
    sum.add(t);
  }
  return sum.sum();
}

// y = (x - mean) / deviation gamma + beta for columns [c, c + n); mean, deviation of the batch are written, var too
template <class T>
void batch_norm_block(View<T> x, View<T> y, const T* gamma, const T* beta, double epsilon, int64_t m, int64_t c,
                      int64_t n, double* mean, double* deviation, double* var) noexcept {
  column_means(View<const T>{x.p, x.ld}, m, c, n, mean + c);
  column_sums(m, c, n, var, [&](int64_t r, int64_t j) {
    const double d = (double)*x.at(r, j) - mean[j];
    return d * d;
  });
  for (int64_t j = 0; j < n; ++j) {
    var[j] /= (double)m;
    deviation[c + j] = __builtin_sqrt(var[j] + epsilon);
  }
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = c; j < c + n; ++j)
      *y.at(r, j) = (T)(((double)*x.at(r, j) - mean[j]) / deviation[j] * (double)gamma[j] + (double)beta[j]);
}

template <class T> FASTAE_INLINE void store_sum(T* at, double value, bool add) {
  *at = (T)(add ? (double)*at + value : value);
}

// dx = gamma / deviation (dy - mean(dy) - normal mean(dy normal)) for columns [c, c + n); dx may be dy
template <class T>
void batch_norm_grad_block(View<T> dy, View<T> x, View<T> dx, const T* gamma, const double* mean,
                           const double* deviation, int64_t m, int64_t c, int64_t n, T* dgamma, T* dbeta,
                           bool add) noexcept {
  double slope[kColumnBlock], offset[kColumnBlock];
  const auto normal = [&](int64_t r, int64_t j) { return ((double)*x.at(r, j) - mean[j]) / deviation[j]; };
  column_sums(m, c, n, slope, [&](int64_t r, int64_t j) { return (double)*dy.at(r, j) * normal(r, j); });
  column_sums(m, c, n, offset, [&](int64_t r, int64_t j) { return (double)*dy.at(r, j); });
  for (int64_t j = 0; j < n; ++j) {
    store_sum(dgamma + c + j, slope[j], add);
    store_sum(dbeta + c + j, offset[j], add);
    slope[j] /= (double)m;
    offset[j] /= (double)m;
  }
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = c; j < c + n; ++j)
      *dx.at(r, j) =
          (T)((double)gamma[j] / deviation[j] * ((double)*dy.at(r, j) - offset[j - c] - normal(r, j) * slope[j - c]));
}

template <class T>
void layer_norm_row(const T* x, T* y, const T* gamma, const T* beta, double epsilon, int64_t n,
                    double* statistics) noexcept {
  const double mean = sum_of(n, [&](int64_t j) { return (double)x[j]; }) / (double)n;
  const double var = sum_of(n,
                            [&](int64_t j) {
                              const double d = (double)x[j] - mean;
                              return d * d;
                            }) /
                     (double)n;
  const double deviation = __builtin_sqrt(var + epsilon);
  if (statistics) {
    statistics[0] = mean;
    statistics[1] = deviation;
  }
  for (int64_t j = 0; j < n; ++j) y[j] = (T)(((double)x[j] - mean) / deviation * (double)gamma[j] + (double)beta[j]);
}

// dx may be dy
template <class T>
void layer_norm_grad_row(const T* dy, const T* x, T* dx, const T* gamma, const double* statistics, int64_t n) noexcept {
  const double mean = statistics[0], deviation = statistics[1];
  const auto g = [&](int64_t j) { return (double)dy[j] * (double)gamma[j]; };
  const auto normal = [&](int64_t j) { return ((double)x[j] - mean) / deviation; };
  const double total = sum_of(n, g) / (double)n;
  const double along = sum_of(n, [&](int64_t j) { return g(j) * normal(j); }) / (double)n;
  for (int64_t j = 0; j < n; ++j) dx[j] = (T)((g(j) - total - normal(j) * along) / deviation);
}

}  // namespace
}  // namespace fastae
