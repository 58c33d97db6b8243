// Ops of codes that go by entries: penalties, and derivatives of what made them.
#pragma once
#include "run_decode.h"

namespace fastae {
namespace {

// norms[j] = |w_j|, or the sum of the norms of `spaces` equal blocks of columns, for the latents that a code has;
// null where w is none
template <class E, class T = typename E::Real>
const T* norms_of(const E& e, const Entries& entries, View<const int32_t> idx, int64_t w_slot, int64_t spaces) {
  if (w_slot < 0) return nullptr;
  const View<const T> w = e.template view<const T>(w_slot);
  const int64_t n = e.plan.buffers[w_slot].rows, p = e.width(w_slot) / larger(spaces, 1);
  T* const norms = (T*)e.codes;
  for (int64_t j = 0; j < n; ++j) norms[j] = T(0);
  for (int64_t r = 0; r < e.m; ++r)
    entries.each(r, [&](int64_t position, int64_t count) {
      for (int64_t i = position; i < position + count; ++i) norms[*idx.at(r, i)] = T(1);
    });
  constexpr int64_t kRun = 64;
  parallel(useful_threads(e.threads, (double)n * p), ceil_div(n, kRun), [&](int64_t task) {
    for (int64_t j = task * kRun; j < smaller(n, (task + 1) * kRun); ++j) {
      if (norms[j] == T(0)) continue;
      double norm = 0;
      for (int64_t s = 0; s < larger(spaces, 1); ++s) norm += __builtin_sqrt(square_of(w.at(j, s * p), p));
      norms[j] = (T)norm;
    }
  });
  return norms;
}

template <class T> FASTAE_INLINE Vec<T> norm_at(const T* norms, const int32_t* idx, int lanes) {
  return norms ? gathered(norms, idx, lanes) : Vec<T>(T(1));
}

template <class E> void run_code_penalty(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_code_penalty;
  const View<const T> val = e.template view<const T>(o.slot[at::s_val]);
  const View<const int32_t> idx = e.template view<const int32_t>(o.slot[at::s_idx]);
  const View<T> dval = e.real(o.slot[at::s_dval]);
  const int64_t width = e.width(o.slot[at::s_val]);
  const Entries entries = entries_of(e, o.slot[at::s_count], width);
  const T* const norms = norms_of(e, entries, idx, o.slot[at::s_w], o.i[at::i_spaces]);
  const Vec<T> s((T)(strength_of(e, f[at::f_strength], o.i[at::i_scalar]) / (double)e.m)), zero(T(0));
  const double sum = sum_over_rows(e, (double)width * 8, [&](int64_t r) {
    double value = 0;
    entries.each(r, [&](int64_t position, int64_t n) {
      value += row_sum<T>(n, [&](int64_t i, int lanes) {
        const Vec<T> v = Vec<T>::load(val.at(r, position + i), lanes);
        const Vec<T> q = select(v > zero, s * norm_at(norms, idx.at(r, position + i), lanes), zero);
        T* const d = dval.at(r, position + i);
        (Vec<T>::load(d, lanes) + q).store(d, lanes);
        return select(v > zero, q * v, zero);
      });
    });
    return value;
  });
  e.add_value(o.i[at::i_value], sum);
}

template <class E> void run_relu_grad(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_relu_grad;
  const View<const T> val = e.template view<const T>(o.slot[at::s_val]);
  const View<T> dval = e.real(o.slot[at::s_dval]);
  const int64_t width = e.width(o.slot[at::s_val]);
  const Entries entries = entries_of(e, o.slot[at::s_count], width);
  e.over_rows((double)width, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r)
      entries.each(r, [&](int64_t position, int64_t n) {
        over_row<T>(n, [&](int64_t i, int lanes) {
          T* const d = dval.at(r, position + i);
          const Vec<T> v = Vec<T>::load(val.at(r, position + i), lanes);
          select(v <= Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>::load(d, lanes)).store(d, lanes);
        });
      });
  });
}

template <class E> void run_jumprelu_grad(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_jumprelu_grad;
  const View<const T> pre = e.template view<const T>(o.slot[at::s_pre]);
  const View<const T> val = e.template view<const T>(o.slot[at::s_val]);
  const View<const int32_t> idx = e.template view<const int32_t>(o.slot[at::s_idx]);
  const View<T> dval = e.real(o.slot[at::s_dval]), dz = e.real(o.slot[at::s_dz]);
  const View<T> dtheta = e.real(o.slot[at::s_dtheta]);
  const T* const threshold = e.real(o.slot[at::s_threshold]).p;
  const int64_t width = e.width(o.slot[at::s_val]), penalty = o.i[at::i_penalty];
  const Entries entries = entries_of(e, o.slot[at::s_count], width);
  const bool logarithm = o.i[at::i_logarithm] != 0, saturating = penalty == jump_penalty::tanh;
  const bool by_rows = penalty == jump_penalty::row_quadratic, above = o.i[at::i_above] != 0;
  const T* const norms = saturating ? norms_of(e, entries, idx, o.slot[at::s_w], 1) : nullptr;
  const double m = (double)e.m, s = strength_of(e, f[at::f_strength], o.i[at::i_scalar]);
  const Vec<T> zero(T(0)), one(T(1)), half((T)(f[at::f_bandwidth] / 2)), bandwidth((T)f[at::f_bandwidth]);
  const auto threshold_at = [&](const int32_t* at, int lanes) {
    const Vec<T> t = gathered(threshold, at, lanes);
    return logarithm ? exp(t) : t;
  };
  const double l0 = sum_over_rows(e, (double)width * 8,
                                  [&](int64_t r) {
                                    double on = 0;
                                    entries.each(r, [&](int64_t position, int64_t n) {
                                      on += row_sum<T>(n, [&](int64_t i, int lanes) {
                                        const Vec<T> z = Vec<T>::load(pre.at(r, position + i), lanes);
                                        return select(z > threshold_at(idx.at(r, position + i), lanes), one, zero);
                                      });
                                    });
                                    return on;
                                  }) /
                    m;
  if (o.i[at::i_l0] >= 0) e.add_value(o.i[at::i_l0], l0);
  double of_step = 0, value = s * l0;
  if (penalty == jump_penalty::step) of_step = s / m;
  if (penalty == jump_penalty::quadratic) {
    const double excess = l0 / f[at::f_target] - 1;
    value = s * excess * excess;
    of_step = 2 * s * excess / (f[at::f_target] * m);
  }
  const auto excess_of = [&](int64_t r) { return e.sums[r] / f[at::f_target] - 1; };  // sums: of l0, each row's own
  if (by_rows) value = s / m * sum_of(e.m, [&](int64_t r) { return excess_of(r) * excess_of(r); });
  const Vec<T> weight((T)(s / m)), p0((T)f[at::f_p0]);
  const double sum = sum_over_rows(e, (double)width * 32, [&](int64_t r) {
    double row = 0;
    const Vec<T> in_step((T)(by_rows ? 2 * s * excess_of(r) / (f[at::f_target] * m) : of_step));
    entries.each(r, [&](int64_t position, int64_t n) {
      row += row_sum<T>(n, [&](int64_t i, int lanes) {
        const int64_t q = position + i;
        const Vec<T> z = Vec<T>::load(pre.at(r, q), lanes), t = threshold_at(idx.at(r, q), lanes);
        Vec<T> d = Vec<T>::load(dval.at(r, q), lanes), h = zero;
        if (saturating) {
          const Vec<T> c = p0 * norm_at(norms, idx.at(r, q), lanes);
          h = tanh(c * Vec<T>::load(val.at(r, q), lanes));
          d = d + weight * c * (one - h * h);
        }
        const Vec<T> slope = -fma(t, d, above ? select(z > t, in_step, zero) : in_step) / bandwidth;
        select(z > t, d, zero).store(dz.at(r, q), lanes);
        select(fabs(z - t) < half, logarithm ? slope * t : slope, zero).store(dtheta.at(r, q), lanes);
        return h;
      });
    });
    return row;
  });
  e.add_value(o.i[at::i_value], saturating ? s * sum / m : value);
}

template <class E> void run_gated_code(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_gated_code;
  const View<const T> pre = e.template view<const T>(o.slot[at::s_pre]);
  const View<const int32_t> idx = e.template view<const int32_t>(o.slot[at::s_idx]);
  const View<T> val = e.real(o.slot[at::s_val]);
  const T *const rate = e.real(o.slot[at::s_r]).p, *const gate = e.real(o.slot[at::s_b_gate]).p,
                 *const magnitude = e.real(o.slot[at::s_b_mag]).p;
  const int64_t width = e.width(o.slot[at::s_val]);
  const Entries entries = entries_of(e, o.slot[at::s_count], width);
  e.over_rows((double)width * 16, [&](int64_t first, int64_t count) {
    for (int64_t r = first; r < first + count; ++r)
      entries.each(r, [&](int64_t position, int64_t n) {
        over_row<T>(n, [&](int64_t i, int lanes) {
          const int32_t* const j = idx.at(r, position + i);
          const Vec<T> z = Vec<T>::load(pre.at(r, position + i), lanes) - gathered(gate, j, lanes);
          max(fma(exp(gathered(rate, j, lanes)), z, gathered(magnitude, j, lanes)), Vec<T>(T(0)))
              .store(val.at(r, position + i), lanes);
        });
      });
  });
}

template <class E> void run_gated_grad(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_gated_grad;
  const View<const T> pre = e.template view<const T>(o.slot[at::s_pre]);
  const View<const T> val = e.template view<const T>(o.slot[at::s_val]);
  const View<const int32_t> idx = e.template view<const int32_t>(o.slot[at::s_idx]);
  const T *const rate = e.real(o.slot[at::s_r]).p, *const gate = e.real(o.slot[at::s_b_gate]).p;
  const View<T> dval = e.real(o.slot[at::s_dval]), dgate = e.real(o.slot[at::s_dgate]);
  const View<T> dz = e.real(o.slot[at::s_dz]), dmag = e.real(o.slot[at::s_dmag]), dr = e.real(o.slot[at::s_dr]);
  const int64_t width = e.width(o.slot[at::s_val]);
  const Entries entries = entries_of(e, o.slot[at::s_count], width);
  const T* const norms = norms_of(e, entries, idx, o.slot[at::s_w], 1);
  const Vec<T> s((T)(strength_of(e, f[at::f_strength], o.i[at::i_scalar]) / (double)e.m)), zero(T(0));
  const double sum = sum_over_rows(e, (double)width * 32, [&](int64_t r) {
    double value = 0;
    entries.each(r, [&](int64_t position, int64_t n) {
      value += row_sum<T>(n, [&](int64_t i, int lanes) {
        const int64_t c = position + i;
        const int32_t* const j = idx.at(r, c);
        const Vec<T> z = Vec<T>::load(pre.at(r, c), lanes), q = s * norm_at(norms, j, lanes);
        const Vec<T> scale = exp(gathered(rate, j, lanes)), g = Vec<T>::load(dgate.at(r, c), lanes) + q;
        const Vec<T> on = Vec<T>::load(val.at(r, c), lanes);
        const Vec<T> d = select(on > zero, Vec<T>::load(dval.at(r, c), lanes), zero);
        g.store(dgate.at(r, c), lanes);
        d.store(dmag.at(r, c), lanes);
        (d * scale * (z - gathered(gate, j, lanes))).store(dr.at(r, c), lanes);
        fma(d, scale, g).store(dz.at(r, c), lanes);
        return q * z;
      });
    });
    return value;
  });
  e.add_value(o.i[at::i_value], sum);
}

template <class E> void run_fired(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_fired;
  const View<const T> val = e.template view<const T>(o.slot[at::s_val]);
  const View<const int32_t> idx = e.template view<const int32_t>(o.slot[at::s_idx]);
  int64_t* const since = e.template view<int64_t>(o.slot[at::s_since]).p;
  const Entries entries = entries_of(e, o.slot[at::s_count], e.width(o.slot[at::s_val]));
  for (int64_t j = 0; j < e.width(o.slot[at::s_since]); ++j) since[j] += e.m;
  for (int64_t r = 0; r < e.m; ++r)
    entries.each(r, [&](int64_t position, int64_t n) {
      for (int64_t i = position; i < position + n; ++i)
        if (*val.at(r, i) != T(0)) since[*idx.at(r, i)] = 0;
    });
}

}  // namespace
}  // namespace fastae
