// Ops of codes that go by rows of the batch: decoding, the error, the gradient in the entries.
#pragma once
#include "full.h"

namespace fastae {
namespace {

template <class E> Entries entries_of(const E& e, int64_t count, int64_t width) {
  const int64_t segments = e.width(count);
  return {e.template view<const int32_t>(count), segments, width / segments};
}

template <class E> Groups groups_of(const E& e, int64_t slot) {
  return {e.template view<const int32_t>(slot).p, slot < 0 ? 0 : e.width(slot)};
}

// strength, times the step's scalar where the record names one
template <class E> double strength_of(const E& e, double strength, int64_t scalar) {
  return scalar < 0 ? strength : strength * e.job.scalars[e.step * e.plan.n_scalars + scalar];
}

// Sum over the batch's rows of row(r), which may write.
template <class E, class F> double sum_over_rows(const E& e, double cost, const F& row) {
  e.over_rows(cost, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) e.sums[r] = row(r);
  });
  return sum_in_order(e.sums, e.m);
}

template <class E, class T = typename E::Real> Decode<T> decode_of(const E& e, const OpRecord& o) {
  namespace at = at_decode;
  return {e.template view<const T>(o.slot[at::s_val]),
          e.template view<const int32_t>(o.slot[at::s_idx]),
          entries_of(e, o.slot[at::s_count], e.width(o.slot[at::s_val])),
          e.template view<const T>(o.slot[at::s_w]),
          e.real(o.slot[at::s_b]).p,
          e.real(o.slot[at::s_y]),
          groups_of(e, o.slot[at::s_groups]),
          e.width(o.slot[at::s_w])};
}

template <class E, class T = typename E::Real> CodeGrad<T> code_grad_of(const E& e, const OpRecord& o) {
  namespace at = at_code_grad;
  return {e.template view<const T>(o.slot[at::s_dy]),
          e.template view<const int32_t>(o.slot[at::s_idx]),
          entries_of(e, o.slot[at::s_count], e.width(o.slot[at::s_idx])),
          e.template view<const T>(o.slot[at::s_w]),
          e.real(o.slot[at::s_dval]),
          groups_of(e, o.slot[at::s_groups]),
          e.width(o.slot[at::s_w])};
}

// Whether the op goes by dense products; n: latents.
template <class E, class Op> bool goes_full(const E& e, const Op& op, int64_t n) {
  return op.entries.segments == 1 && !op.groups.end && full_code(op.idx, op.entries, e.m, n, op.p);
}

template <class E> void run_decode(const E& e, const OpRecord& o) {
  const auto decode = decode_of(e, o);
  const int64_t n = e.plan.buffers[o.slot[at_decode::s_w]].rows;
  if (goes_full(e, decode, n)) return decode_full(decode, e.m, n, e.threads, e.codes);
  const double width = (double)(decode.entries.segments * decode.entries.capacity);
  e.over_rows(width * (double)decode.p,
              [&](int64_t first, int64_t count) { decode.rows(first, count, [](int64_t) {}); });
}

template <class E> void run_code_grad(const E& e, const OpRecord& o) {
  const auto grad = code_grad_of(e, o);
  const int64_t n = e.plan.buffers[o.slot[at_code_grad::s_w]].rows;
  if (goes_full(e, grad, n)) return code_grad_full(grad, e.m, n, e.threads);
  const double width = (double)(grad.entries.segments * grad.entries.capacity);
  e.over_rows(width * (double)grad.p, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r) grad.row(r, r + 1 < first + count ? r + 1 : -1);
  });
}

// mean over rows of |t - mean t|^2 for t = target - [base]
template <class E, class T> double variance_of(const E& e, View<const T> target, View<const T> base, int64_t p) {
  const auto t = [&](int64_t r, int64_t j) { return (double)*target.at(r, j) - (base ? (double)*base.at(r, j) : 0.0); };
  over_columns(e.threads, e.m, p, [&](int64_t c, int64_t n) {
    double mean[kColumnBlock];
    column_sums(e.m, c, n, mean, t);
    for (int64_t j = 0; j < n; ++j) mean[j] /= (double)e.m;
    column_sums(e.m, c, n, e.sums + c, [&](int64_t r, int64_t j) {
      const double d = t(r, j) - mean[j - c];
      return d * d;
    });
  });
  return sum_in_order(e.sums, p) / (double)e.m;
}

// factor weight_r |y - t|^2 and its gradient
template <class T> struct SquaredError {
  View<const T> y, target, base, weight;
  View<T> dy;
  int64_t p;
  double factor;

  // without the factor
  double row(int64_t r) const noexcept {
    const double c = weight ? (double)*weight.at(r, 0) : 1.0;
    const Vec<T> slope((T)(2 * factor * c));
    return c * row_sum<T>(p, [&](int64_t j, int lanes) {
             Vec<T> t = Vec<T>::load(target.at(r, j), lanes);
             if (base) t = t - Vec<T>::load(base.at(r, j), lanes);
             const Vec<T> d = Vec<T>::load(y.at(r, j), lanes) - t;
             if (dy) (slope * d).store(dy.at(r, j), lanes);
             return d * d;
           });
  }
};

template <class E, class T = typename E::Real>
SquaredError<T> squared_error_of(const E& e, const OpRecord& o, const double* f) {
  namespace at = at_squared_error;
  SquaredError<T> error = {e.template view<const T>(o.slot[at::s_y]),
                           e.template view<const T>(o.slot[at::s_target]),
                           e.template view<const T>(o.slot[at::s_base]),
                           e.template view<const T>(o.slot[at::s_weight]),
                           e.real(o.slot[at::s_dy]),
                           e.width(o.slot[at::s_y]),
                           0};
  const int64_t norm = o.i[at::i_norm], k_aux = o.i[at::i_k_aux];
  const bool asked = o.i[at::i_variance] >= 0;
  double residual = 0, divisor = 1, scale = f[at::f_scale];
  if (norm == error_norm::residual || asked) residual = variance_of(e, error.target, error.base, error.p);
  if (norm == error_norm::residual) divisor = residual;
  else if (norm == error_norm::target) divisor = variance_of(e, error.target, View<const T>{nullptr, 0}, error.p);
  if (asked) e.add_value(o.i[at::i_variance], residual);
  if (k_aux > 0) {
    const double share = (double)*e.template view<const int32_t>(o.slot[at::s_n_dead]).p / (double)k_aux;
    scale *= share < 1 ? share : 1;
  }
  error.factor = divisor > 0 ? scale / ((double)e.m * divisor) : 0;
  return error;
}

template <class E> void run_squared_error(const E& e, const OpRecord& o, const double* f) {
  const auto error = squared_error_of(e, o, f);
  const double sum = sum_over_rows(e, (double)error.p * 4, [&](int64_t r) { return error.row(r); });
  e.add_value(o.i[at_squared_error::i_value], error.factor * sum);
}

// Whether decode, squared_error and code_grad follow each other over one code, so that a row can go through all three
// while its weight rows are in cache.
FASTAE_INLINE bool row_by_row(const OpRecord* o) {
  const OpRecord &decode = o[0], &error = o[1], &grad = o[2];
  const auto same = [](const OpRecord& a, int slot, const OpRecord& b, int other) {
    return a.slot[slot] == b.slot[other];
  };
  return decode.kind == op::decode && error.kind == op::squared_error && grad.kind == op::code_grad &&
         decode.phase == error.phase && decode.phase == grad.phase && decode.slot[at_decode::s_groups] < 0 &&
         grad.slot[at_code_grad::s_groups] < 0 && same(decode, at_decode::s_y, error, at_squared_error::s_y) &&
         same(error, at_squared_error::s_dy, grad, at_code_grad::s_dy) &&
         same(decode, at_decode::s_w, grad, at_code_grad::s_w) &&
         same(decode, at_decode::s_idx, grad, at_code_grad::s_idx) &&
         same(decode, at_decode::s_count, grad, at_code_grad::s_count);
}

// The three ops from o on; f: floats of the second.
template <class E> void run_row_by_row(const E& e, const OpRecord* o, const double* f) {
  const auto decode = decode_of(e, o[0]);
  if (goes_full(e, decode, e.plan.buffers[o[0].slot[at_decode::s_w]].rows)) {
    run_decode(e, o[0]);
    run_squared_error(e, o[1], f);
    return run_code_grad(e, o[2]);
  }
  const auto error = squared_error_of(e, o[1], f);
  const auto grad = code_grad_of(e, o[2]);
  const double width = (double)(decode.entries.segments * decode.entries.capacity);
  e.over_rows(2 * width * (double)decode.p, [&](int64_t first, int64_t count) {
    decode.rows(first, count, [&](int64_t r) {
      e.sums[r] = error.row(r);
      grad.row(r, -1);
    });
  });
  e.add_value(o[1].i[at_squared_error::i_value], error.factor * sum_in_order(e.sums, e.m));
}

template <class E> void run_suffix_sum(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  const View<T> x = e.real(o.slot[at_suffix_sum::s_x]);
  const int64_t all = e.width(o.slot[at_suffix_sum::s_x]), p = all / o.i[at_suffix_sum::i_blocks];
  e.over_rows((double)all, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r)
      for (int64_t c = all - 2 * p; c >= 0; c -= p)
        over_row<T>(p, [&](int64_t j, int lanes) {
          T* const to = x.at(r, c + j);
          (Vec<T>::load(to, lanes) + Vec<T>::load(to + p, lanes)).store(to, lanes);
        });
  });
}

}  // namespace
}  // namespace fastae
