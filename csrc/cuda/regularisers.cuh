// Regularisers beyond elementwise penalties: of pairs of rows, of a layer's Jacobian, of the code's mean and covariance,
// of a weight matrix as a whole. Their products are the records `dense` and `dense_grad` over their own buffers.
#pragma once
#include "cuda/formula.cuh"
#include "cuda/norm.cuh"

namespace fastae {

// strength [coefficient] |h - h2|^2 by rows
FASTAE_KERNEL(pair, kThreads) {
  namespace at = at_pair;
  const View<T> h = o.real(at::s_h), h2 = o.real(at::s_h2), dh = o.real(at::s_dh), dh2 = o.real(at::s_dh2);
  const View<T> coefficient = o.real(at::s_coefficient);
  const View<double> out = o.view<double>(at::s_row_value);
  double* const work = o.extra[0] ? (double*)o.work : nullptr;
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : h.columns;
    const double c = o.f[at::f_strength] * (coefficient && n ? (double)coefficient(r, 0) : 1.0);
    const T factor = (T)(2 * c / (double)o.m);
    const double sum = row_sum(n, lane, [&](int64_t j) {
      const T d = h(r, j) - h2(r, j), slope = factor * d;
      dh(r, j) = dh(r, j) + slope;
      dh2(r, j) = -slope;
      return d * d;
    });
    if (!n || lane) return;
    if (out) out(r, 0) = c * sum;
    if (work) work[r] = c * sum;
  });
}

// KL(rho || q) and its derivative, q cut to [1e-7, 1 - 1e-7] where the derivative is 0
FASTAE_INLINE double kl_bernoulli(double rho, double mean, double* slope) {
  constexpr double e = 1e-7;
  const double q = mean < e ? e : mean > 1 - e ? 1 - e : mean;
  *slope = q == mean ? (1 - rho) / (1 - q) - rho / q : 0.0;
  double value = 0;
  if (rho > 0) value += rho * ::log(rho / q);
  if (rho < 1) value += (1 - rho) * ::log((1 - rho) / (1 - q));
  return mean != mean ? mean : value;
}

// mean; work (2, n) <- divergences and what is added to dh
FASTAE_KERNEL(kl_means, kColumnThreads) {
  namespace at = at_kl_sparsity;
  const View<T> h = o.real(at::s_h);
  const View<double> mean = o.view<double>(at::s_mean);
  double* const work = (double*)o.work;
  each_column(h.columns, [&](int64_t j, bool writes) {
    const double q = column_sum(j < 0 ? 0 : o.m, [&](int64_t r) { return (double)h(r, j); }) / (double)o.m;
    if (!writes) return;
    double slope;
    mean.p[j] = q;
    work[j] = kl_bernoulli(o.f[at::f_rho], q, &slope);
    work[h.columns + j] = o.f[at::f_weight] * slope / (double)o.m;
  });
}

FASTAE_KERNEL(kl_sparsity, kThreads) {
  const View<T> dh = o.real(at_kl_sparsity::s_dh);
  const double* const slope = (const double*)o.work + dh.columns;
  each_cell(o.m, dh.columns, [&](int64_t r, int64_t j) { dh(r, j) = dh(r, j) + (T)slope[j]; });
}

// work (2, n): [n, 2n) <- |w_j|^2
FASTAE_KERNEL(contractive_norms, kThreads) {
  const View<T> w = o.real(at_contractive::s_w);
  double* const square = (double*)o.work + w.rows;
  each_row(w.rows, [&](int64_t r, int lane) {
    const double sum =
        row_sum(r < 0 ? 0 : w.columns, lane, [&](int64_t i) { return (double)w(r, i) * (double)w(r, i); });
    if (r >= 0 && lane == 0) square[r] = sum;
  });
}

// factor; work [0, n) <- parts of the value
FASTAE_KERNEL(contractive_sums, kColumnThreads) {
  namespace at = at_contractive;
  const View<T> h = o.real(at::s_h);
  const View<double> factor = o.view<double>(at::s_factor);
  const AnyActivation a(o, o.i[at::i_activation], o.f + at::f_p0);
  const double scale = 2 * o.f[at::f_strength] / (double)o.m;
  double* const work = (double*)o.work;
  each_column(h.columns, [&](int64_t j, bool writes) {
    const double sum = column_sum<1>(j < 0 ? 0 : o.m, [&](int64_t r) {
      const T slope = a.dy(h(r, j));
      return (double)(slope * slope);
    });
    if (!writes) return;
    factor.p[j] = scale * sum;
    work[j] = 0.5 * factor.p[j] * work[h.columns + j];
  });
}

FASTAE_KERNEL(contractive, kThreads) {
  namespace at = at_contractive;
  const View<T> h = o.real(at::s_h), dh = o.real(at::s_dh);
  const AnyActivation a(o, o.i[at::i_activation], o.f + at::f_p0);
  const double scale = 2 * o.f[at::f_strength] / (double)o.m;
  const double* const square = (const double*)o.work + h.columns;
  each_cell(o.m, h.columns,
            [&](int64_t r, int64_t j) { dh(r, j) = mul_add((T)(scale * square[j]), a.d2y(h(r, j)), dh(r, j)); });
}

FASTAE_KERNEL(scale_rows, kThreads) {
  namespace at = at_scale_rows;
  const View<T> w = o.real(at::s_w), dw = o.real(at::s_dw);
  const double* factor = o.view<double>(at::s_factor).p;
  each_cell(w.rows, w.columns, [&](int64_t j, int64_t i) { dw(j, i) = mul_add((T)factor[j], w(j, i), dw(j, i)); });
}

FASTAE_KERNEL(column_means, kColumnThreads) {
  namespace at = at_decorrelation;
  const View<T> h = o.real(at::s_h);
  const View<double> mean = o.view<double>(at::s_mean);
  each_column(h.columns, [&](int64_t j, bool writes) {
    const double sum = column_sum(j < 0 ? 0 : o.m, [&](int64_t r) { return (double)h(r, j); });
    if (writes) mean.p[j] = sum / (double)o.m;
  });
}

FASTAE_KERNEL(centre_columns, kThreads) {
  namespace at = at_decorrelation;
  const View<T> h = o.real(at::s_h), centred = o.real(at::s_centred);
  const double* mean = o.view<double>(at::s_mean).p;
  each_cell(o.m, h.columns, [&](int64_t r, int64_t j) { centred(r, j) = (T)((double)h(r, j) - mean[j]); });
}

// f(row, column, element) replaces the elements of a; work (rows) <- sums of their squares
template <class F> FASTAE_INLINE void replace_and_square(const Launch& o, const View<T>& a, const F& f) {
  double* const work = (double*)o.work;
  each_row(a.rows, [&](int64_t r, int lane) {
    const double sum = row_sum(r < 0 ? 0 : a.columns, lane, [&](int64_t j) {
      const T x = (T)f(r, j, (double)a(r, j));
      a(r, j) = x;
      return (double)x * (double)x;
    });
    if (r >= 0 && lane == 0) work[r] = sum;
  });
}
FASTAE_KERNEL(decorrelation_rest, kThreads) {
  replace_and_square(o, o.real(at_decorrelation::s_covariance),
                     [&](int64_t i, int64_t j, double x) { return i == j ? 0.0 : x / (double)o.m; });
}
FASTAE_KERNEL(orthogonality_rest, kThreads) {
  replace_and_square(o, o.real(at_orthogonality::s_gram),
                     [](int64_t i, int64_t j, double x) { return i == j ? x - 1 : x; });
}
FASTAE_KERNEL(projector_rest, kThreads) {
  const View<T> w = o.real(at_projector::s_w);
  replace_and_square(o, o.real(at_projector::s_product),
                     [&](int64_t i, int64_t j, double x) { return (double)w(i, j) - x; });
}

// slot extra[0] += factor slot extra[1]; extra[2]: the bits of the factor, a float64
FASTAE_KERNEL(add_scaled, kThreads) {
  const View<T> a = o.real((int)o.extra[0]), b = o.real((int)o.extra[1]);
  const T factor = (T)same_bits<double>(o.extra[2]);
  each_cell(a.rows, a.columns, [&](int64_t r, int64_t j) { a(r, j) = mul_add(factor, b(r, j), a(r, j)); });
}

}  // namespace fastae
