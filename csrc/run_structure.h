// Ops of a network's structure: maxout, sums of layers, normalisation, rows named by others, neighbours in a graph.
#pragma once
#include "norm.h"
#include "source.h"

namespace fastae {
namespace {

template <class E> void run_take(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_take;
  const SourceRecord& s = e.job.sources[o.i[at::i_source]];
  const View<T> x = e.real(o.slot[at::s_x]);
  const int64_t* rows = e.ids(o.slot[at::s_rows]);
  e.over_rows((double)s.columns * 2, [&](int64_t first, int64_t n) {
    for (int64_t r = first; r < first + n; ++r) read_row(s, rows[r], x.at(r, 0));
  });
}

template <class E> void run_neighbour(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_neighbour;
  const SourceRecord& s = e.job.sources[o.i[at::i_source]];
  const double* weight = (const double*)s.data;
  const int64_t* rows = e.ids(o.slot[at::s_rows]);
  int64_t* out = e.template view<int64_t>(o.slot[at::s_out]).p;
  T* coefficient = e.real(o.slot[at::s_coefficient]).p;
  for (int64_t r = 0; r < e.m; ++r) {
    const int64_t first = index_at(s.indptr, s.indptr64, rows[r]), last = index_at(s.indptr, s.indptr64, rows[r] + 1);
    double total = 0, reached = 0;
    for (int64_t q = first; q < last; ++q) total += weight[q];
    coefficient[r] = (T)(0.5 * total);
    out[r] = rows[r];
    if (!(total > 0)) continue;
    uint32_t words[kColumnBlock];
    philox_row(e.job.seed, e.job.epoch, (uint32_t)o.i[at::i_stream], (uint64_t)rows[r], 0, 1, words);
    const double target = ((double)words[0] + 0.5) * 0x1p-32 * total;
    for (int64_t q = first; q < last && reached <= target; ++q) {
      reached += weight[q];
      out[r] = index_at(s.indices, s.indices64, q);
    }
  }
}

template <class E> void run_add(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_add;
  const View<T> x = e.real(o.slot[at::s_x]), y = e.real(o.slot[at::s_y]), sum = e.real(o.slot[at::s_sum]);
  const int64_t n = e.width(o.slot[at::s_x]);
  e.over_rows((double)n, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r)
      over_row<T>(n, [&](int64_t j, int lanes) {
        (Vec<T>::load(x.at(r, j), lanes) + Vec<T>::load(y.at(r, j), lanes)).store(sum.at(r, j), lanes);
      });
  });
}

template <class E> void run_maxout(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_maxout;
  const View<T> z = e.real(o.slot[at::s_z]), y = e.real(o.slot[at::s_y]);
  const int64_t n = e.width(o.slot[at::s_y]), all = e.width(o.slot[at::s_z]);
  e.over_rows((double)all, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r)
      over_row<T>(n, [&](int64_t j, int lanes) {
        Vec<T> top = Vec<T>::load(z.at(r, j), lanes);
        for (int64_t q = j + n; q < all; q += n) top = max(top, Vec<T>::load(z.at(r, q), lanes));
        top.store(y.at(r, j), lanes);
      });
  });
}

template <class E> void run_maxout_grad(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_maxout_grad;
  const View<T> dy = e.real(o.slot[at::s_dy]), z = e.real(o.slot[at::s_z]), dz = e.real(o.slot[at::s_dz]);
  const int64_t n = e.width(o.slot[at::s_dy]), all = e.width(o.slot[at::s_z]);
  e.over_rows((double)all * 2, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r)
      over_row<T>(n, [&](int64_t j, int lanes) {
        Vec<T> top = Vec<T>::load(z.at(r, j), lanes), left = Vec<T>::load(dy.at(r, j), lanes);
        for (int64_t q = j + n; q < all; q += n) top = max(top, Vec<T>::load(z.at(r, q), lanes));
        for (int64_t q = j; q < all; q += n) {
          const auto here = Vec<T>::load(z.at(r, q), lanes) == top;
          select(here, left, Vec<T>(T(0))).store(dz.at(r, q), lanes);
          left = select(here, Vec<T>(T(0)), left);  // ties: the lowest piece alone
        }
      });
  });
}

template <class E> void run_fold_norm(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_fold_norm;
  const View<T> w = e.real(o.slot[at::s_w]), out = e.real(o.slot[at::s_folded_w]);
  const T *b = e.real(o.slot[at::s_b]).p, *gamma = e.real(o.slot[at::s_gamma]).p, *beta = e.real(o.slot[at::s_beta]).p;
  const T *mean = e.real(o.slot[at::s_mean]).p, *var = e.real(o.slot[at::s_var]).p;
  T* folded = e.real(o.slot[at::s_folded_b]).p;
  const bool shared = o.i[at::i_transposed] != 0;
  const int64_t rows = e.plan.buffers[o.slot[at::s_w]].rows, columns = e.width(o.slot[at::s_w]);
  const int64_t n = shared ? columns : rows, k = shared ? rows : columns;
  for (int64_t j = 0; j < n; ++j) {
    const double scale = (double)gamma[j] / __builtin_sqrt((double)var[j] + f[at::f_epsilon]);
    for (int64_t i = 0; i < k; ++i) {
      const int64_t r = shared ? i : j, c = shared ? j : i;
      *out.at(r, c) = (T)((double)*w.at(r, c) * scale);
    }
    folded[j] = (T)(((double)b[j] - (double)mean[j]) * scale + (double)beta[j]);
  }
}

template <class E> void run_batch_norm(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_batch_norm;
  const View<T> x = e.real(o.slot[at::s_x]), y = e.real(o.slot[at::s_y]);
  const T *gamma = e.real(o.slot[at::s_gamma]).p, *beta = e.real(o.slot[at::s_beta]).p;
  double* mean = e.template view<double>(o.slot[at::s_mean]).p;
  double* deviation = e.template view<double>(o.slot[at::s_deviation]).p;
  T *running_mean = e.real(o.slot[at::s_running_mean]).p, *running_var = e.real(o.slot[at::s_running_var]).p;
  const double unbiased = (double)e.m / (double)(e.m - 1), momentum = f[at::f_momentum];
  over_columns(e.threads, e.m, e.width(o.slot[at::s_x]), [&](int64_t c, int64_t n) {
    double var[kColumnBlock];
    batch_norm_block(x, y, gamma, beta, f[at::f_epsilon], e.m, c, n, mean, deviation, var);
    if (!running_mean || e.m < 2) return;  // the variance of one row says nothing
    for (int64_t j = c; j < c + n; ++j) {
      running_mean[j] = (T)((1 - momentum) * (double)running_mean[j] + momentum * mean[j]);
      running_var[j] = (T)((1 - momentum) * (double)running_var[j] + momentum * unbiased * var[j - c]);
    }
  });
}

template <class E> void run_batch_norm_grad(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_batch_norm_grad;
  const View<T> dy = e.real(o.slot[at::s_dy]), x = e.real(o.slot[at::s_x]), dx = e.real(o.slot[at::s_dx]);
  over_columns(e.threads, e.m, e.width(o.slot[at::s_x]), [&](int64_t c, int64_t n) {
    batch_norm_grad_block(dy, x, dx, (const T*)e.real(o.slot[at::s_gamma]).p,
                          e.template view<double>(o.slot[at::s_mean]).p,
                          e.template view<double>(o.slot[at::s_deviation]).p, e.m, c, n, e.real(o.slot[at::s_dgamma]).p,
                          e.real(o.slot[at::s_dbeta]).p, o.i[at::i_add] != 0);
  });
}

template <class E> void run_layer_norm(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_layer_norm;
  const View<T> x = e.real(o.slot[at::s_x]), y = e.real(o.slot[at::s_y]);
  const T *gamma = e.real(o.slot[at::s_gamma]).p, *beta = e.real(o.slot[at::s_beta]).p;
  const View<double> statistics = e.template view<double>(o.slot[at::s_statistics]);
  const int64_t n = e.width(o.slot[at::s_x]);
  e.over_rows((double)n * 8, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r)
      layer_norm_row(x.at(r, 0), y.at(r, 0), gamma, beta, f[at::f_epsilon], n,
                     statistics ? statistics.at(r, 0) : nullptr);
  });
}

template <class E> void run_layer_norm_grad(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_layer_norm_grad;
  const View<T> dy = e.real(o.slot[at::s_dy]), x = e.real(o.slot[at::s_x]), dx = e.real(o.slot[at::s_dx]);
  const View<double> statistics = e.template view<double>(o.slot[at::s_statistics]);
  const T* gamma = e.real(o.slot[at::s_gamma]).p;
  T *dgamma = e.real(o.slot[at::s_dgamma]).p, *dbeta = e.real(o.slot[at::s_dbeta]).p;
  const int64_t width = e.width(o.slot[at::s_x]);
  const bool add = o.i[at::i_add] != 0;
  over_columns(e.threads, e.m, width, [&](int64_t c, int64_t n) {
    double slope[kColumnBlock], offset[kColumnBlock];
    column_sums(e.m, c, n, slope, [&](int64_t r, int64_t j) {
      return (double)*dy.at(r, j) * (((double)*x.at(r, j) - *statistics.at(r, 0)) / *statistics.at(r, 1));
    });
    column_sums(e.m, c, n, offset, [&](int64_t r, int64_t j) { return (double)*dy.at(r, j); });
    for (int64_t j = 0; j < n; ++j) {
      store_sum(dgamma + c + j, slope[j], add);
      store_sum(dbeta + c + j, offset[j], add);
    }
  });
  e.over_rows((double)width * 8, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r)
      layer_norm_grad_row((const T*)dy.at(r, 0), (const T*)x.at(r, 0), dx.at(r, 0), gamma, statistics.at(r, 0), width);
  });
}

}  // namespace
}  // namespace fastae
