// Ops of codes that go by latents: sums over each latent's entries, and what is made of them.
#pragma once
#include "run_lists.h"

namespace fastae {
namespace {

// Elements of scratch that fused updates take: a gradient's row for each thread.
template <class T> FASTAE_INLINE int64_t gradient_row(int64_t p) { return ceil_div(p, 16) * 16 + 16; }

template <class E> void finish_pre_bias(const E& e, const OpRecord& o, const double* f, const typename E::Real* part) {
  typedef typename E::Real T;
  namespace at = at_pre_bias_grad;
  T* const dbias = e.real(o.slot[at::s_dbias]).p;
  const int64_t n = e.plan.buffers[o.slot[at::s_w]].rows, p = e.width(o.slot[at::s_w]);
  over_row<T>(p, [&](int64_t j, int lanes) {
    Vec<T> sum(T(0));
    for (int64_t b = 0; b < ceil_div(n, kLatentBlock); ++b) sum += Vec<T>::load(part + b * p + j, lanes);
    (Vec<T>::load(dbias + j, lanes) - Vec<T>((T)f[at::f_scale]) * sum).store(dbias + j, lanes);
  });
}

template <class E> void run_pre_bias_grad(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_pre_bias_grad;
  const View<const T> w = e.template view<const T>(o.slot[at::s_w]);
  const T* const db = e.real(o.slot[at::s_db]).p;
  const int64_t n = e.plan.buffers[o.slot[at::s_w]].rows, p = e.width(o.slot[at::s_w]);
  T* const part = (T*)e.codes;
  over_latents(e, n, (double)n * p, true, [&](int64_t first, int64_t count, int) {
    weighted_rows(db, w, first, count, p, part + first / kLatentBlock * p);
  });
  finish_pre_bias(e, o, f, (const T*)part);
}

FASTAE_INLINE int64_t parts_of(int64_t n, int64_t p) { return ceil_div(n, kLatentBlock) * p; }

// Gradient rows of w; where fused, given to the rule at once. pre_bias: an op of that kind over the same weights, done
// on the way.
template <class E>
void run_latent_grad(const E& e, const OpRecord& o, const OpRecord* pre_bias, const double* pre_bias_f) {
  typedef typename E::Real T;
  namespace at = at_latent_grad;
  const Listed<T> code = listed(e, o.slot[at::s_coef], o.slot[at::s_start], o.slot[at::s_entry]);
  const int64_t n = e.plan.buffers[o.slot[at::s_w]].rows, p = e.width(o.slot[at::s_w]);
  const View<T> dw = e.real(o.slot[at::s_dw]), w = e.real(o.slot[at::s_w]);
  T* const db = e.real(o.slot[at::s_db]).p;
  const bool at_once = e.fused(o), unit = at_once && e.unit_projection(o.slot[at::s_w]);
  const int64_t u = o.slot[at::s_u], capacity = larger(o.i[at::i_capacity], 1);
  const LatentGrad<T> grad = {code,
                              n,
                              p,
                              e.template view<const T>(u),
                              capacity,
                              code.width / capacity,
                              dw ? e.width(u) / p : 1,
                              groups_of(e, o.slot[at::s_groups]),
                              w,
                              e.template view<const double>(o.slot[at::s_factor]).p,
                              o.slot[at::s_factor] < 0 ? 0 : e.plan.buffers[o.slot[at::s_factor]].rows,
                              o.i[at::i_unit] != 0};
  Update<T> rule;
  if (at_once) {
    rule = e.update_of(*e.fused_update, e.plan.buffers[o.slot[at::s_w]]);
    rule.ahead = p;
  }
  const T* const pre_db = pre_bias ? e.real(pre_bias->slot[at_pre_bias_grad::s_db]).p : nullptr;
  T* const part = (T*)e.codes + e.threads * gradient_row<T>(p);
  const double work = ((double)code.start[n] + (double)n * (at_once ? 8 : 1)) * (double)(dw ? p : 1);
  const auto bias_part = [&](int64_t first, int64_t count) {
    if (pre_bias) weighted_rows(pre_db, View<const T>{w.p, w.ld}, first, count, p, part + first / kLatentBlock * p);
  };
  const auto use = [&](int64_t j, const T* g) {
    rule.rows(g, p, j, 1, 0, p);
    if (unit) unit_row(w.at(j, 0), p);
  };
  const OpRecord* const maker = unlisted(e, o.slot[at::s_entry]);
  const FullGrad<T> full(grad, maker ? code_of(e, *maker) : FullCode(), e.threads, part + parts_of(n, p));
  if (maker && full.finite()) {
    full.begin(e.threads);
    parallel_on(useful_threads(e.threads, work), ceil_div(n, full.kLatents), [&](int64_t task, int thread) {
      const int64_t begin = task * full.kLatents, end = smaller(n, begin + full.kLatents);
      for (int64_t j = begin; j < end; j += kLatentBlock) bias_part(j, smaller(kLatentBlock, end - j));
      full.block(begin, end - begin, thread, [&](int64_t j, const T* g) {
        if (at_once) use(j, g);
        else memcpy(dw.at(j, 0), g, (size_t)p * sizeof(T));
      });
    });
  } else {
    if (maker) make_list(e, *maker);
    over_latents(e, n, work, pre_bias != nullptr, [&](int64_t first, int64_t count, int thread) {
      T* const own = (T*)e.codes + thread * gradient_row<T>(p);
      bias_part(first, count);
      for (int64_t j = first; j < first + count; ++j) {
        if (db) db[j] = (T)code.sum(j);
        if (!dw) continue;
        T* const g = at_once ? own : dw.at(j, 0);
        grad.row(j, g);
        if (at_once) use(j, g);
      }
    });
  }
  if (pre_bias) finish_pre_bias(e, *pre_bias, pre_bias_f, (const T*)part);
}

template <class E> void run_latent_sum(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_latent_sum;
  const Listed<T> code = listed(e, o.slot[at::s_coef], o.slot[at::s_start], o.slot[at::s_entry]);
  T* const sum = e.real(o.slot[at::s_sum]).p;
  const int64_t n = e.width(o.slot[at::s_sum]);
  sums_by_latent(
      e, code, o.slot[at::s_entry], n, [](double c) { return c; },
      [&](int64_t j, double total) { store_sum(sum + j, total, o.i[at::i_add] != 0); });
}

// 1 - tanh(x)^2
FASTAE_INLINE double falling(double x) {
  double h[Vec<double>::N];
  tanh(Vec<double>(x)).store(h, Vec<double>::N);
  return 1 - h[0] * h[0];
}

template <class E> void run_norm_factor(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_norm_factor;
  const Listed<T> code = listed(e, o.slot[at::s_val], o.slot[at::s_start], o.slot[at::s_entry]);
  const View<const T> w = e.template view<const T>(o.slot[at::s_w]);
  double* const factor = e.template view<double>(o.slot[at::s_factor]).p;
  const int64_t n = e.plan.buffers[o.slot[at::s_w]].rows, p = e.width(o.slot[at::s_w]);
  const int64_t spaces = larger(1, o.i[at::i_spaces]), part = p / spaces;
  const double s = strength_of(e, f[at::f_strength], o.i[at::i_scalar]) / (double)e.m, p0 = f[at::f_p0];
  const auto norm_of = [&](int64_t j, int64_t q) { return __builtin_sqrt(square_of(w.at(j, q * part), part)); };
  const auto store = [&](int64_t j, double total) {
    for (int64_t q = 0; q < spaces; ++q) {
      const double norm = total > 0 ? norm_of(j, q) : 0;
      factor[q * n + j] = norm > 0 ? s * total / norm : 0;
    }
  };
  if (!(p0 > 0))
    return sums_by_latent(e, code, o.slot[at::s_entry], n, [](double v) { return v > 0 ? v : 0.0; }, store);
  over_latents(e, n, (double)n * p, false, [&](int64_t first, int64_t count, int) {
    for (int64_t j = first; j < first + count; ++j) {
      double slope = 0;  // of tanh, in val
      if (code.start[j] < code.start[j + 1])
        for (int64_t q = 0; q < spaces; ++q) slope += p0 * norm_of(j, q);
      store(j, code.sum(j, [&](double v) { return v <= 0 ? 0 : p0 * v * falling(slope * v); }));
    }
  });
}

template <class E> void run_bias_grad(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_bias_grad;
  const View<T> dy = e.real(o.slot[at::s_dy]);
  bias_gradient((const T*)dy.p, dy.ld, e.m, e.width(o.slot[at::s_db]), e.real(o.slot[at::s_db]).p, e.threads,
                o.i[at::i_add] != 0);
}

template <class E> void run_dead(const E& e, const OpRecord& o) {
  namespace at = at_dead;
  const int64_t* const since = e.template view<const int64_t>(o.slot[at::s_since]).p;
  int32_t* const list = e.template view<int32_t>(o.slot[at::s_list]).p;
  int32_t count = 0;
  for (int64_t j = 0; j < e.width(o.slot[at::s_since]); ++j)
    if (since[j] >= o.i[at::i_limit]) list[count++] = (int32_t)j;
  *e.template view<int32_t>(o.slot[at::s_n_dead]).p = count;
}

template <class E> void run_average(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_average;
  const View<const T> w = e.template view<const T>(o.slot[at::s_w]);
  const View<T> mean = e.real(o.slot[at::s_mean]);
  const int64_t rows = e.plan.buffers[o.slot[at::s_w]].rows, k = e.width(o.slot[at::s_w]);
  const Vec<T> kept((T)f[at::f_decay]), rest((T)(1.0 - f[at::f_decay]));
  const auto part = [&](int64_t r, int64_t c, int64_t n) {
    over_row<T>(n, [&](int64_t j, int lanes) {
      const Vec<T> x = rest * Vec<T>::load(w.at(r, c + j), lanes);
      fma(kept, Vec<T>::load(mean.at(r, c + j), lanes), x).store(mean.at(r, c + j), lanes);
    });
  };
  if (w.ld == k && mean.ld == k) over_flat(e.threads, rows * k, [&](int64_t c, int64_t n) { part(0, c, n); });
  else
    for (int64_t r = 0; r < rows; ++r) part(r, 0, k);
}

// Bytes of scratch beside sums that an op of codes takes.
template <class T> int64_t code_scratch(const PlanRecord& plan, const OpRecord& o, int threads) {
  constexpr int64_t size = sizeof(T);
  const auto rows = [&](int64_t b) { return plan.buffers[b].rows; };
  const auto columns = [&](int64_t b) { return plan.buffers[b].columns; };
  const auto norms = [&](int64_t w) { return w < 0 ? 0 : rows(w) * size; };
  // f(segments) of the code behind a list that may be left with its starts; else 0
  const auto where_full = [&](int64_t entry, const auto& f) -> int64_t {
    const int64_t p = full_width(plan, entry);
    const OpRecord* const maker = p ? maker_of(plan, entry) : nullptr;
    if (!maker) return 0;
    const int64_t segments = columns(maker->slot[at_by_latent::s_count]);
    const int64_t n = columns(maker->slot[at_by_latent::s_start]) - 1;
    return may_be_full(columns(maker->slot[at_by_latent::s_idx]) / segments, n, p) ? f(segments) : 0;
  };
  switch (o.kind) {
    case op::code_penalty: return norms(o.slot[at_code_penalty::s_w]);
    case op::jumprelu_grad: return norms(o.slot[at_jumprelu_grad::s_w]);
    case op::gated_grad: return norms(o.slot[at_gated_grad::s_w]);
    case op::pre_bias_grad: {
      const int64_t w = o.slot[at_pre_bias_grad::s_w];
      return parts_of(rows(w), columns(w)) * size;
    }
    case op::decode: {
      const int64_t w = o.slot[at_decode::s_w], segments = columns(o.slot[at_decode::s_count]);
      const bool full = may_be_full(columns(o.slot[at_decode::s_val]) / segments, rows(w), columns(w));
      return full ? decode_full_bytes<T>(plan.batch, columns(w)) : 0;
    }
    case op::latent_sum:
      return where_full(o.slot[at_latent_sum::s_entry],
                        [&](int64_t) { return columns(o.slot[at_latent_sum::s_sum]) * 8; });
    case op::norm_factor:
      return where_full(o.slot[at_norm_factor::s_entry],
                        [&](int64_t) { return rows(o.slot[at_norm_factor::s_w]) * 8; });
    case op::latent_grad: {
      const int64_t w = o.slot[at_latent_grad::s_w], p = columns(w);
      return (threads * gradient_row<T>(p) + parts_of(rows(w), p)) * size +
             where_full(o.slot[at_latent_grad::s_entry],
                        [&](int64_t segments) { return FullGrad<T>::bytes(plan.batch, segments, p, threads); });
    }
    default: return 0;
  }
}

}  // namespace
}  // namespace fastae
