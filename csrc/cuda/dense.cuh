// Elementwise work on layers: activations, their derivatives, dropout, softmax, maxout.
#pragma once
#include "cuda/formula.cuh"

namespace fastae {

// A row's copy in bfloat16, where the record has one at extra[2]: its elements are as far apart as those of `of`, a
// matrix that products in bfloat16 read.
struct Rounded {
  uint16_t* p;
  int64_t ld;
  FASTAE_INLINE Rounded(const Launch& o, const View<T>& of) : p((uint16_t*)o.extra[2]), ld(of.ld) {}
  FASTAE_INLINE void operator()(int64_t r, int64_t j, const Four& x, int n) const {
    struct alignas(8) Halves {
      uint16_t v[4];
    } to;
    if (!p) return;
#pragma unroll
    for (int q = 0; q < 4; ++q) to.v[q] = bf16_from((float)x.v[q]);
    uint16_t* const at = p + r * ld + j;
    if (n == 4 && aligned(at)) {
      *(Halves*)at = to;
      return;
    }
#pragma unroll
    for (int q = 0; q < 4; ++q)
      if (q < n) at[q] = to.v[q];
  }
};

// dropout'(dy) a'(saved): saved = y after dropout, or z, as the catalogue says; dropped(dy) where the mask is not in it
template <class A, class F> FASTAE_INLINE T chained(const A& a, T dy, T saved, const Dropout* drop, const F& dropped) {
  if (drop) {
    dy = a.masks() ? dy * drop->scale : dropped(dy);
    if (!a.from_x()) saved = saved * drop->back;
  }
  return dy * a.dy(saved);
}

// The same for four neighbours.
template <class A>
FASTAE_INLINE void chain_four(const A& a, Four& dy, const Four& saved, const Dropout* drop, int64_t r, int64_t j) {
  uint32_t w[4] = {};
  if (drop && !a.masks()) drop->words(r, j, w);
#pragma unroll
  for (int q = 0; q < 4; ++q)
    dy.v[q] = chained(a, dy.v[q], saved.v[q], drop, [&](T x) { return drop->dropped(w[q], x); });
}

// A matrix in bfloat16, rounded to nearest even (a NaN stays one): slot 0.
FASTAE_KERNEL(round_bf16, kThreads) {
  const View<T> x = o.real(0);
  const Rounded rounded(o, x);
  each_four(x.rows, x.columns, [&](int64_t r, int64_t j, int n) {
    rounded(r, j, load_four(x.at(r, j), n == 4 && aligned(x.at(r, j)), n), n);
  });
}

// What follows a layer's product, which lies in y: z = y + [b] (kept if asked for), y = dropout(a(z)).
FASTAE_INLINE void finish_dense(const Launch& o, const Dropout* drop, T product, int64_t r, int64_t j) {
  namespace at = at_dense;
  const Activation a(o, o.i[at::i_activation], o.f + at::f_p0);
  T z = product;
  if (o.has(at::s_b)) z += o.real(at::s_b).p[j];
  if (o.has(at::s_z)) o.real(at::s_z)(r, j) = z;
  T y = a.y(z);
  if (drop) y = (*drop)(r, j, y);
  o.real(at::s_y)(r, j) = y;
}

// The same behind dense_grad's product, which lies in dx.
FASTAE_INLINE T finish_grad(const Launch& o, const Dropout* drop, T product, int64_t r, int64_t j) {
  namespace at = at_dense_grad;
  if (!o.has(at::s_saved)) return product;
  const Activation a(o, o.i[at::i_activation], o.f + at::f_p0);
  return chained(a, product, o.real(at::s_saved)(r, j), drop, [&](T x) { return (*drop)(r, j, x); });
}

FASTAE_KERNEL(activation, kThreads, 1) {
  namespace at = at_activation;
  const AnyActivation a(o, o.i[at::i_activation], o.f + at::f_p0);
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  each_four(o.m, x.columns, [&](int64_t r, int64_t j, int n) {
    const bool whole = n == 4 && aligned(x.at(r, j)) && aligned(y.at(r, j));
    Four v = load_four(x.at(r, j), whole, n);
#pragma unroll
    for (int q = 0; q < 4; ++q) v.v[q] = a.y(v.v[q]);
    store_four(y.at(r, j), v, whole, n);
  });
}

FASTAE_KERNEL(activation_grad, kThreads, 1) {
  namespace at = at_activation_grad;
  const AnyActivation a(o, o.i[at::i_activation], o.f + at::f_p0);
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> dy = o.real(at::s_dy), dz = o.real(at::s_dz), saved = o.has(at::s_saved) ? o.real(at::s_saved) : dy;
  const bool drops = o.f[at::f_rate] > 0;
  each_four(o.m, dy.columns, [&](int64_t r, int64_t j, int n) {
    const bool whole = n == 4 && aligned(dy.at(r, j)) && aligned(saved.at(r, j)) && aligned(dz.at(r, j));
    Four x = load_four(dy.at(r, j), whole, n);
    const Four s = load_four(saved.at(r, j), whole, n);
    chain_four(a, x, s, drops ? &drop : nullptr, r, j);
    store_four(dz.at(r, j), x, whole, n);
  });
}

FASTAE_KERNEL(dropout, kThreads) {
  namespace at = at_dropout;
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  each_four(o.m, x.columns, [&](int64_t r, int64_t j, int n) {
    const bool whole = n == 4 && aligned(x.at(r, j)) && aligned(y.at(r, j));
    Four v = load_four(x.at(r, j), whole, n);
    drop.four(r, j, v);
    store_four(y.at(r, j), v, whole, n);
  });
}

FASTAE_KERNEL(add, kThreads) {
  namespace at = at_add;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y), sum = o.real(at::s_sum);
  each_four(o.m, x.columns, [&](int64_t r, int64_t j, int n) {
    const bool whole = n == 4 && aligned(x.at(r, j)) && aligned(y.at(r, j)) && aligned(sum.at(r, j));
    Four v = load_four(x.at(r, j), whole, n);
    const Four other = load_four(y.at(r, j), whole, n);
#pragma unroll
    for (int q = 0; q < 4; ++q) v.v[q] += other.v[q];
    store_four(sum.at(r, j), v, whole, n);
  });
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
