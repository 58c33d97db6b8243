// Elementwise work on layers: activations, their derivatives, dropout, softmax, maxout.
#pragma once
#include "cuda/formula.cuh"

namespace fastae {

// dropout'(dy) a'(saved): saved = y after dropout, or z, as the catalogue says
template <class A> FASTAE_INLINE T chained(const A& a, T dy, T saved, const Dropout* drop, int64_t r, int64_t j) {
  if (drop) {
    dy = a.masks() ? dy * drop->scale : (*drop)(r, j, dy);
    if (!a.from_x()) saved = saved * drop->back;
  }
  return dy * a.dy(saved);
}

// An operand of a product in bfloat16, rounded to nearest even (a NaN stays one): slot extra[0], densely to extra[1]
// bytes into the work memory.
FASTAE_KERNEL(round_bf16, kThreads) {
  const View<T> x = o.real((int)o.extra[0]);
  uint16_t* const out = (uint16_t*)((char*)o.work + o.extra[1]);
  each_cell(x.rows, x.columns, [&](int64_t r, int64_t j) { out[r * x.columns + j] = bf16_from((float)x(r, j)); });
}

// What follows a layer's product, which lies in y: z = y + [b] (kept if asked for), y = dropout(a(z)).
template <class A>
FASTAE_INLINE void finish_dense(const Launch& o, const Dropout* drop, T product, int64_t r, int64_t j) {
  namespace at = at_dense;
  const A a(o, o.i[at::i_activation], o.f + at::f_p0);
  T z = product;
  if (o.has(at::s_b)) z += o.real(at::s_b).p[j];
  if (o.has(at::s_z)) o.real(at::s_z)(r, j) = z;
  T y = a.y(z);
  if (drop) y = (*drop)(r, j, y);
  o.real(at::s_y)(r, j) = y;
}

FASTAE_KERNEL(dense_finish, kThreads, 1) {
  namespace at = at_dense;
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> y = o.real(at::s_y);
  each_cell(o.m, y.columns, [&](int64_t r, int64_t j) {
    finish_dense<AnyActivation>(o, o.f[at::f_rate] > 0 ? &drop : nullptr, y(r, j), r, j);
  });
}

// The same behind dense_grad's product, which lies in dx.
template <class A> FASTAE_INLINE T finish_grad(const Launch& o, const Dropout* drop, T product, int64_t r, int64_t j) {
  namespace at = at_dense_grad;
  if (!o.has(at::s_saved)) return product;
  const A a(o, o.i[at::i_activation], o.f + at::f_p0);
  return chained(a, product, o.real(at::s_saved)(r, j), drop, r, j);
}

FASTAE_KERNEL(dense_grad_finish, kThreads, 1) {
  namespace at = at_dense_grad;
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> dx = o.real(at::s_dx);
  each_cell(o.m, dx.columns, [&](int64_t r, int64_t j) {
    dx(r, j) = finish_grad<AnyActivation>(o, o.f[at::f_rate] > 0 ? &drop : nullptr, dx(r, j), r, j);
  });
}

FASTAE_KERNEL(activation, kThreads, 1) {
  namespace at = at_activation;
  const AnyActivation a(o, o.i[at::i_activation], o.f + at::f_p0);
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  each_cell(o.m, x.columns, [&](int64_t r, int64_t j) { y(r, j) = a.y(x(r, j)); });
}

FASTAE_KERNEL(activation_grad, kThreads, 1) {
  namespace at = at_activation_grad;
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> dy = o.real(at::s_dy), saved = o.real(at::s_saved), dz = o.real(at::s_dz);
  const AnyActivation a(o, o.i[at::i_activation], o.f + at::f_p0);
  const Dropout* const dropped = o.f[at::f_rate] > 0 ? &drop : nullptr;
  each_cell(o.m, dy.columns, [&](int64_t r, int64_t j) {
    dz(r, j) = chained(a, dy(r, j), saved ? saved(r, j) : dy(r, j), dropped, r, j);
  });
}

FASTAE_KERNEL(dropout, kThreads) {
  namespace at = at_dropout;
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  each_cell(o.m, x.columns, [&](int64_t r, int64_t j) { y(r, j) = drop(r, j, x(r, j)); });
}

FASTAE_KERNEL(add, kThreads) {
  namespace at = at_add;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y), sum = o.real(at::s_sum);
  each_cell(o.m, x.columns, [&](int64_t r, int64_t j) { sum(r, j) = x(r, j) + y(r, j); });
}

FASTAE_KERNEL(softmax, kThreads) {
  namespace at = at_softmax;
  const View<T> z = o.real(at::s_z), y = o.real(at::s_y);
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : z.columns;
    const T top = row_max(n, lane, [&](int64_t j) { return z(r, j); });
    const double sum = row_sum(n, lane, [&](int64_t j) { return y(r, j) = exp(Vec<T>(z(r, j)) - Vec<T>(top)).v; });
    for (int64_t j = lane; j < n; j += kLanes) y(r, j) = y(r, j) / (T)sum;
  });
}

FASTAE_KERNEL(softmax_grad, kThreads) {
  namespace at = at_softmax_grad;
  const View<T> dy = o.real(at::s_dy), y = o.real(at::s_y), dz = o.real(at::s_dz);
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : y.columns;
    const T dot = (T)row_sum(n, lane, [&](int64_t j) { return dy(r, j) * y(r, j); });
    for (int64_t j = lane; j < n; j += kLanes) dz(r, j) = y(r, j) * (dy(r, j) - dot);
  });
}

// y[r, j] = max_q z[r, q n + j], NaN where one is
FASTAE_KERNEL(maxout, kThreads) {
  namespace at = at_maxout;
  const View<T> z = o.real(at::s_z), y = o.real(at::s_y);
  const int64_t n = y.columns;
  const int pieces = (int)z.columns / (int)n;
  each_cell(o.m, n, [&](int64_t r, int64_t j) {
    T top = z(r, j);
    for (int q = 1; q < pieces; ++q) top = max(Vec<T>(top), Vec<T>(z(r, q * n + j))).v;
    y(r, j) = top;
  });
}

// To the lowest piece that is the largest; nowhere where one is NaN.
FASTAE_KERNEL(maxout_grad, kThreads, 1) {
  namespace at = at_maxout_grad;
  const View<T> dy = o.real(at::s_dy), z = o.real(at::s_z), dz = o.real(at::s_dz);
  const int64_t n = dy.columns;
  const int pieces = (int)z.columns / (int)n;
  each_cell(o.m, n, [&](int64_t r, int64_t j) {
    T top = z(r, j), left = dy(r, j);
    for (int q = 1; q < pieces; ++q) top = max(Vec<T>(top), Vec<T>(z(r, q * n + j))).v;
    for (int q = 0; q < pieces; ++q) {
      const bool here = z(r, q * n + j) == top;
      dz(r, q * n + j) = here ? left : T(0);
      left = here ? T(0) : left;
    }
  });
}

}  // namespace fastae
