// Penalties on codes, and derivatives of what made them. See run_codes.h.
#pragma once
#include "cuda/codes.cuh"

namespace fastae {

FASTAE_KERNEL(code_penalty, kThreads) {
  namespace at = at_code_penalty;
  const View<T> val = o.real(at::s_val), dval = o.real(at::s_dval);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  const Entries entries(o, at::s_count, val.columns);
  const CodeWork work(o);
  const bool weighted = o.has(at::s_w);
  const T s = (T)(strength_of(o, o.f[at::f_strength], o.i[at::i_scalar]) / (double)o.m);
  each_row(o.m, [&](int64_t r, int lane) {
    const double sum = entries_sum(entries, r, lane, [&](int64_t c) {
      const T v = val(r, c), q = v > T(0) ? s * (weighted ? work.norms[idx(r, c)] : T(1)) : T(0);
      dval(r, c) = dval(r, c) + q;
      return v > T(0) ? q * v : T(0);
    });
    if (r >= 0 && lane == 0) work.sums[r] = sum;
  });
}

FASTAE_KERNEL(relu_grad, kThreads) {
  namespace at = at_relu_grad;
  const View<T> val = o.real(at::s_val), dval = o.real(at::s_dval);
  each_entry(o.m, Entries(o, at::s_count, val.columns), [&](int64_t r, int64_t c) {
    if (val(r, c) <= T(0)) dval(r, c) = T(0);
  });
}

FASTAE_INLINE T jump_at(const Launch& o, int32_t j) {
  const T t = o.real(at_jumprelu_grad::s_threshold).p[j];
  return o.i[at_jumprelu_grad::i_logarithm] ? exp(Vec<T>(t)).v : t;
}

FASTAE_KERNEL(jumprelu_count, kThreads) {
  namespace at = at_jumprelu_grad;
  const View<T> pre = o.real(at::s_pre);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  const Entries entries(o, at::s_count, pre.columns);
  double* const sums = CodeWork(o).sums;
  each_row(o.m, [&](int64_t r, int lane) {
    const double on =
        entries_sum(entries, r, lane, [&](int64_t c) { return pre(r, c) > jump_at(o, idx(r, c)) ? T(1) : T(0); });
    if (r >= 0 && lane == 0) sums[r] = on;
  });
}

// How far a row's own number of entries is from the target, as a share of that.
FASTAE_INLINE double excess_of(const Launch& o, const CodeWork& work, int64_t r) {
  return work.sums[r] / o.f[at_jumprelu_grad::f_target] - 1;
}

// control: the penalty's derivative in a step, and the strength; values of the penalties that are functions of L0
FASTAE_KERNEL(jumprelu_l0, kThreads) {
  namespace at = at_jumprelu_grad;
  const CodeWork work(o);
  const double m = (double)o.m, l0 = ordered_sum(work.sums, o.m) / m;
  const bool by_rows = o.i[at::i_penalty] == jump_penalty::row_quadratic;
  const double squares = ordered_sum_of(by_rows ? o.m : 0, [&](int64_t r) {
    const double excess = excess_of(o, work, r);
    return excess * excess;
  });
  if (threadIdx.x || blockIdx.x) return;
  const double s = strength_of(o, o.f[at::f_strength], o.i[at::i_scalar]), target = o.f[at::f_target];
  o.add_value(o.i[at::i_l0], l0);
  double of_step = 0, value = s * l0;
  if (o.i[at::i_penalty] == jump_penalty::step) of_step = s / m;
  if (o.i[at::i_penalty] == jump_penalty::quadratic) {
    const double excess = l0 / target - 1;
    value = s * excess * excess;
    of_step = 2 * s * excess / (target * m);
  }
  if (by_rows) value = s / m * squares;
  work.control[0] = of_step;
  work.control[1] = s;
  if (o.i[at::i_penalty] != jump_penalty::tanh) o.add_value(o.i[at::i_value], value);
}

FASTAE_KERNEL(jumprelu_grad, kThreads) {
  namespace at = at_jumprelu_grad;
  const View<T> pre = o.real(at::s_pre), val = o.real(at::s_val), dval = o.real(at::s_dval);
  const View<T> dz = o.real(at::s_dz), dtheta = o.real(at::s_dtheta);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  const Entries entries(o, at::s_count, val.columns);
  const CodeWork work(o);
  const bool weighted = o.has(at::s_w), saturating = o.i[at::i_penalty] == jump_penalty::tanh;
  const bool by_rows = o.i[at::i_penalty] == jump_penalty::row_quadratic, above = o.i[at::i_above] != 0;
  const double s = work.control[1], per_row = o.f[at::f_target] * (double)o.m;
  const T weight = (T)(s / (double)o.m), p0 = (T)o.f[at::f_p0];
  const T half = (T)(o.f[at::f_bandwidth] / 2), bandwidth = (T)o.f[at::f_bandwidth];
  each_row(o.m, [&](int64_t r, int lane) {
    const T in_step = (T)(by_rows && r >= 0 ? 2 * s * excess_of(o, work, r) / per_row : work.control[0]);
    const double sum = entries_sum(entries, r, lane, [&](int64_t c) {
      const int32_t j = idx(r, c);
      const T z = pre(r, c), t = jump_at(o, j);
      T d = dval(r, c), h = T(0);
      if (saturating) {
        const T a = p0 * (weighted ? work.norms[j] : T(1));
        h = tanh(Vec<T>(a * val(r, c))).v;
        d = d + weight * a * (T(1) - h * h);
      }
      const T slope = -mul_add(t, d, above && !(z > t) ? T(0) : in_step) / bandwidth;
      dz(r, c) = z > t ? d : T(0);
      const T near = o.i[at::i_logarithm] ? slope * t : slope;
      dtheta(r, c) = fabs(Vec<T>(z - t)).v < half ? near : T(0);
      return h;
    });
    if (r >= 0 && lane == 0) work.sums[r] = sum;
  });
}

FASTAE_KERNEL(gated_code, kThreads) {
  namespace at = at_gated_code;
  const View<T> pre = o.real(at::s_pre), val = o.real(at::s_val);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  const T *const rate = o.real(at::s_r).p, *const gate = o.real(at::s_b_gate).p,
                 *const magnitude = o.real(at::s_b_mag).p;
  each_entry(o.m, Entries(o, at::s_count, val.columns), [&](int64_t r, int64_t c) {
    const int32_t j = idx(r, c);
    const T z = pre(r, c) - gate[j];
    val(r, c) = max(fma(exp(Vec<T>(rate[j])), Vec<T>(z), Vec<T>(magnitude[j])), Vec<T>(T(0))).v;
  });
}

FASTAE_KERNEL(gated_grad, kThreads) {
  namespace at = at_gated_grad;
  const View<T> pre = o.real(at::s_pre), val = o.real(at::s_val), dval = o.real(at::s_dval);
  const View<T> dgate = o.real(at::s_dgate), dz = o.real(at::s_dz), dmag = o.real(at::s_dmag), dr = o.real(at::s_dr);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  const T *const rate = o.real(at::s_r).p, *const gate = o.real(at::s_b_gate).p;
  const Entries entries(o, at::s_count, val.columns);
  const CodeWork work(o);
  const bool weighted = o.has(at::s_w);
  const T s = (T)(strength_of(o, o.f[at::f_strength], o.i[at::i_scalar]) / (double)o.m);
  each_row(o.m, [&](int64_t r, int lane) {
    const double sum = entries_sum(entries, r, lane, [&](int64_t c) {
      const int32_t j = idx(r, c);
      const T z = pre(r, c), q = s * (weighted ? work.norms[j] : T(1)), scale = exp(Vec<T>(rate[j])).v;
      const T g = dgate(r, c) + q, d = val(r, c) > T(0) ? dval(r, c) : T(0);
      dgate(r, c) = g;
      dmag(r, c) = d;
      dr(r, c) = d * scale * (z - gate[j]);
      dz(r, c) = mul_add(d, scale, g);
      return q * z;
    });
    if (r >= 0 && lane == 0) work.sums[r] = sum;
  });
}

}  // namespace fastae
