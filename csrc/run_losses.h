// Ops of losses: what the encoder sees of the input, losses by rows, distributions.
#pragma once
#include "losses.h"

namespace fastae {
namespace {

// Values of the batch's rows, row(r, factor), into [out] (or added to it) and, weighted, into a column of the run's
// values; factor is what the row's gradient is multiplied by.
template <class E, class F>
void row_losses(const E& e, int64_t out_slot, int64_t weight_slot, bool accumulate, int64_t column, double cost,
                const F& row) {
  const View<double> out = e.template view<double>(out_slot);
  const typename E::Real* weight = e.real(weight_slot).p;
  double* sums = e.sums;
  const int64_t m = e.m;
  const double share = 1.0 / (double)m;
  e.over_rows(cost, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) {
      sums[r] = row(r, weight ? (double)weight[r] / (double)m : share);
      if (out) *out.at(r, 0) = accumulate ? *out.at(r, 0) + sums[r] : sums[r];
    }
  });
  if (column < 0) return;
  if (weight)
    for (int64_t r = 0; r < m; ++r) sums[r] *= (double)weight[r];
  e.add_value(column, sum_in_order(sums, m) / (double)m);
}

template <class E> void run_loss(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_loss;
  const View<T> y = e.real(o.slot[at::s_y]), t = e.real(o.slot[at::s_target]), dy = e.real(o.slot[at::s_dy]);
  const LossRow<T> row = {
      (int)o.i[at::i_loss], (int)o.i[at::i_masked], {(T)f[at::f_p0], (T)f[at::f_p1]}, f[at::f_scale], e.registered(o)};
  const int64_t n = e.width(o.slot[at::s_y]);
  row_losses(
      e, o.slot[at::s_row_value], o.slot[at::s_weight], o.i[at::i_accumulate] > 0, o.i[at::i_value], (double)n * 16,
      [&](int64_t r, double factor) { return row(y.at(r, 0), t.at(r, 0), dy ? dy.at(r, 0) : nullptr, factor, n); });
}

template <class E> void run_likelihood(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_likelihood;
  const View<T> y = e.real(o.slot[at::s_y]), t = e.real(o.slot[at::s_target]), dy = e.real(o.slot[at::s_dy]);
  const T* size = e.real(o.slot[at::s_size]).p;
  const LikelihoodRow<T> row = {
      (int)o.i[at::i_likelihood], (int)o.i[at::i_masked], {(T)f[at::f_p0], (T)f[at::f_p1]}, f[at::f_scale]};
  const int64_t n = e.width(o.slot[at::s_target]);
  row_losses(e, o.slot[at::s_row_value], o.slot[at::s_weight], o.i[at::i_accumulate] > 0, o.i[at::i_value],
             (double)n * 256, [&](int64_t r, double factor) {
               return row(y.at(r, 0), t.at(r, 0), dy ? dy.at(r, 0) : nullptr, size ? size[r] : T(0), factor, n);
             });
}

template <class E> void run_size_factor(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_size_factor;
  const View<T> t = e.real(o.slot[at::s_target]);
  T* size = e.real(o.slot[at::s_size]).p;
  const int64_t n = e.width(o.slot[at::s_target]);
  e.over_rows((double)n * 4, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) size[r] = log_mean_observed(t.at(r, 0), n);
  });
}

template <class E> void run_distribution(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_distribution;
  const View<T> y = e.real(o.slot[at::s_y]), out = e.real(o.slot[at::s_out]);
  const T* size = e.real(o.slot[at::s_size]).p;
  const int64_t n = e.width(o.slot[at::s_y]);
  e.over_rows((double)n * 16, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r)
      distribution_row((int)o.i[at::i_likelihood], (int)o.i[at::i_output], y.at(r, 0), size ? size[r] : T(0),
                       out.at(r, 0), n);
  });
}

template <class E> void run_transform_input(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_transform_input;
  const View<T> x = e.real(o.slot[at::s_x]), y = e.real(o.slot[at::s_y]), t = e.real(o.slot[at::s_target]);
  const int64_t n = e.width(o.slot[at::s_x]);
  e.over_rows((double)n * 16, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r)
      transform_row((int)o.i[at::i_transform], (T)f[at::f_missing], x.at(r, 0), y ? y.at(r, 0) : nullptr,
                    t ? t.at(r, 0) : nullptr, n);
  });
}

}  // namespace
}  // namespace fastae
