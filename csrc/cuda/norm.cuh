// Batch and layer normalisation.
//
// Sums over rows are the CPU's: row r goes to virtual lane r % 16 in float64, lanes are added as a fixed tree. A block
// of 32 columns by 16 lanes makes them for its columns.
#pragma once
#include "cuda/device.cuh"

namespace fastae {

constexpr int kColumns = 32;  // of a block of (kColumns, kLanes) threads
constexpr int kColumnThreads = kColumns * kLanes;

// The sum of a column's sixteen lanes, on all of them.
FASTAE_INLINE double column_tree(double x) {
  __shared__ double part[kLanes][kColumns];
  const int lane = threadIdx.y, column = threadIdx.x;
  part[lane][column] = x;
  __syncthreads();
  for (int h = kLanes / 2; h; h /= 2) {
    if (lane < h) part[lane][column] += part[lane + h][column];
    __syncthreads();
  }
  const double sum = part[0][column];
  __syncthreads();
  return sum;
}

// f(column, whether this thread is the column's first lane) for every column, on all threads of the block together;
// columns beyond the last are given as -1.
template <class F> FASTAE_INLINE void each_column(int64_t n, const F& f) {
  for (int64_t first = (int64_t)blockIdx.x * kColumns; first < n; first += (int64_t)gridDim.x * kColumns) {
    const int64_t j = first + threadIdx.x;
    f(j < n ? j : -1, j < n && threadIdx.y == 0);
  }
}

// sum of f(row) over [0, m) for the thread's column, on all of its lanes; m < 1 for threads without a column. Unroll: 1
// for an f that is long.
template <int Unroll = 4, class F> FASTAE_INLINE double column_sum(int64_t m, const F& f) {
  double sum = 0;
#pragma unroll Unroll
  for (int64_t r = threadIdx.y; r < m; r += kLanes) sum += f(r);
  return column_tree(sum);
}

FASTAE_INLINE void store_sum(T& at, double value, bool add) { at = (T)(add ? (double)at + value : value); }

// mean, deviation, running statistics
FASTAE_KERNEL(batch_norm_statistics, kColumnThreads) {
  namespace at = at_batch_norm;
  const View<T> x = o.real(at::s_x);
  const View<double> mean = o.view<double>(at::s_mean), deviation = o.view<double>(at::s_deviation);
  const View<T> running_mean = o.real(at::s_running_mean), running_var = o.real(at::s_running_var);
  const double momentum = o.f[at::f_momentum];
  each_column(x.columns, [&](int64_t j, bool writes) {
    const int64_t m = j < 0 ? 0 : o.m;
    const double centre = column_sum(m, [&](int64_t r) { return (double)x(r, j); }) / (double)o.m;
    const double var = column_sum(m,
                                  [&](int64_t r) {
                                    const double d = (double)x(r, j) - centre;
                                    return d * d;
                                  }) /
                       (double)o.m;
    if (!writes) return;
    mean.p[j] = centre;
    deviation.p[j] = ::sqrt(var + o.f[at::f_epsilon]);
    if (!running_mean || o.m < 2) return;  // the variance of one row says nothing
    const double unbiased = (double)o.m / (double)(o.m - 1);
    running_mean.p[j] = (T)((1 - momentum) * (double)running_mean.p[j] + momentum * centre);
    running_var.p[j] = (T)((1 - momentum) * (double)running_var.p[j] + momentum * unbiased * var);
  });
}

FASTAE_KERNEL(batch_norm, kThreads) {
  namespace at = at_batch_norm;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  const T *gamma = o.real(at::s_gamma).p, *beta = o.real(at::s_beta).p;
  const double *mean = o.view<double>(at::s_mean).p, *deviation = o.view<double>(at::s_deviation).p;
  each_cell(o.m, x.columns, [&](int64_t r, int64_t j) {
    y(r, j) = (T)(((double)x(r, j) - mean[j]) / deviation[j] * (double)gamma[j] + (double)beta[j]);
  });
}

// dgamma, dbeta; work (2, n) <- mean(dy normal), mean(dy)
FASTAE_KERNEL(batch_norm_grad_sums, kColumnThreads) {
  namespace at = at_batch_norm_grad;
  const View<T> dy = o.real(at::s_dy), x = o.real(at::s_x);
  const double *mean = o.view<double>(at::s_mean).p, *deviation = o.view<double>(at::s_deviation).p;
  T *dgamma = o.real(at::s_dgamma).p, *dbeta = o.real(at::s_dbeta).p;
  double* const work = (double*)o.work;
  const bool add = o.i[at::i_add] != 0;
  const int64_t n = x.columns;
  each_column(n, [&](int64_t j, bool writes) {
    const int64_t m = j < 0 ? 0 : o.m;
    const double slope =
        column_sum(m, [&](int64_t r) { return (double)dy(r, j) * (((double)x(r, j) - mean[j]) / deviation[j]); });
    const double offset = column_sum(m, [&](int64_t r) { return (double)dy(r, j); });
    if (!writes) return;
    store_sum(dgamma[j], slope, add);
    store_sum(dbeta[j], offset, add);
    work[j] = slope / (double)o.m;
    work[n + j] = offset / (double)o.m;
  });
}

// dx = gamma / deviation (dy - mean(dy) - normal mean(dy normal)); dx may be dy
FASTAE_KERNEL(batch_norm_grad, kThreads) {
  namespace at = at_batch_norm_grad;
  const View<T> dy = o.real(at::s_dy), x = o.real(at::s_x), dx = o.real(at::s_dx);
  const double *mean = o.view<double>(at::s_mean).p, *deviation = o.view<double>(at::s_deviation).p;
  const T* gamma = o.real(at::s_gamma).p;
  const double *slope = (const double*)o.work, *offset = slope + x.columns;
  each_cell(o.m, x.columns, [&](int64_t r, int64_t j) {
    const double normal = ((double)x(r, j) - mean[j]) / deviation[j];
    dx(r, j) = (T)((double)gamma[j] / deviation[j] * ((double)dy(r, j) - offset[j] - normal * slope[j]));
  });
}

FASTAE_KERNEL(layer_norm, kThreads) {
  namespace at = at_layer_norm;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  const T *gamma = o.real(at::s_gamma).p, *beta = o.real(at::s_beta).p;
  const View<double> statistics = o.view<double>(at::s_statistics);
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : x.columns;
    const double mean = row_sum(n, lane, [&](int64_t j) { return (double)x(r, j); }) / (double)x.columns;
    const double var = row_sum(n, lane,
                               [&](int64_t j) {
                                 const double d = (double)x(r, j) - mean;
                                 return d * d;
                               }) /
                       (double)x.columns;
    const double deviation = ::sqrt(var + o.f[at::f_epsilon]);
    if (statistics && n && lane == 0) {
      statistics(r, 0) = mean;
      statistics(r, 1) = deviation;
    }
    for (int64_t j = lane; j < n; j += kLanes)
      y(r, j) = (T)(((double)x(r, j) - mean) / deviation * (double)gamma[j] + (double)beta[j]);
  });
}

// dgamma, dbeta: before dx is made, which may be dy
FASTAE_KERNEL(layer_norm_grad_sums, kColumnThreads, 1) {
  namespace at = at_layer_norm_grad;
  const View<T> dy = o.real(at::s_dy), x = o.real(at::s_x);
  const View<double> statistics = o.view<double>(at::s_statistics);
  T *dgamma = o.real(at::s_dgamma).p, *dbeta = o.real(at::s_dbeta).p;
  const bool add = o.i[at::i_add] != 0;
  each_column(x.columns, [&](int64_t j, bool writes) {
    const int64_t m = j < 0 ? 0 : o.m;
    const double slope = column_sum(
        m, [&](int64_t r) { return (double)dy(r, j) * (((double)x(r, j) - statistics(r, 0)) / statistics(r, 1)); });
    const double offset = column_sum(m, [&](int64_t r) { return (double)dy(r, j); });
    if (!writes) return;
    store_sum(dgamma[j], slope, add);
    store_sum(dbeta[j], offset, add);
  });
}

FASTAE_KERNEL(layer_norm_grad, kThreads) {
  namespace at = at_layer_norm_grad;
  const View<T> dy = o.real(at::s_dy), x = o.real(at::s_x), dx = o.real(at::s_dx);
  const View<double> statistics = o.view<double>(at::s_statistics);
  const T* gamma = o.real(at::s_gamma).p;
  const double columns = (double)x.columns;
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : x.columns;
    const double mean = n ? statistics(r, 0) : 0.0, deviation = n ? statistics(r, 1) : 1.0;
    const auto g = [&](int64_t j) { return (double)dy(r, j) * (double)gamma[j]; };
    const auto normal = [&](int64_t j) { return ((double)x(r, j) - mean) / deviation; };
    const double total = row_sum(n, lane, g) / columns;
    const double along = row_sum(n, lane, [&](int64_t j) { return g(j) * normal(j); }) / columns;
    for (int64_t j = lane; j < n; j += kLanes) dx(r, j) = (T)((g(j) - total - normal(j) * along) / deviation);
  });
}

// Once per plan: weights that give the normalised layer with fixed statistics.
FASTAE_KERNEL(fold_norm, kThreads) {
  namespace at = at_fold_norm;
  const View<T> w = o.real(at::s_w), out = o.real(at::s_folded_w);
  const T *b = o.real(at::s_b).p, *gamma = o.real(at::s_gamma).p, *beta = o.real(at::s_beta).p;
  const T *mean = o.real(at::s_mean).p, *var = o.real(at::s_var).p;
  T* const folded = o.real(at::s_folded_b).p;
  const bool shared = o.i[at::i_transposed] != 0;
  each_cell(w.rows, w.columns, [&](int64_t r, int64_t c) {
    const int64_t j = shared ? c : r;
    const double scale = (double)gamma[j] / ::sqrt((double)var[j] + o.f[at::f_epsilon]);
    out(r, c) = (T)((double)w(r, c) * scale);
    if ((shared ? r : c) == 0) folded[j] = (T)(((double)b[j] - (double)mean[j]) * scale + (double)beta[j]);
  });
}

}  // namespace fastae
