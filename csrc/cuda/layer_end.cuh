// What follows a layer's product, four neighbours at a time: behind cuBLASLt's in kernels of their own, behind those of
// tensor.cuh in the same one.
#pragma once
#include "cuda/dense.cuh"

namespace fastae {

// [y] = dropout(a(z)), z = x + [b] (kept if asked for), and y's copy in bfloat16 where products read one
struct DenseEnd {
  AnyActivation a;
  Dropout drop;
  bool drops;
  View<T> y, z;
  const T* b;
  Rounded rounded;
  FASTAE_INLINE explicit DenseEnd(const Launch& o)
      : a(o, o.i[at_dense::i_activation], o.f + at_dense::f_p0),
        drop(o, at_dense::s_rows, o.i[at_dense::i_stream], o.f[at_dense::f_rate]),
        drops(o.f[at_dense::f_rate] > 0),
        y(o.real(at_dense::s_y)),
        z(o.real(at_dense::s_z)),
        b(o.real(at_dense::s_b).p),
        rounded(o, y) {}
  FASTAE_INLINE Four operator()(int64_t r, int64_t j, int n, Four x) const {
    if (b) {
      const Four offset = load_four(b + j, n == 4 && aligned(b + j), n);
#pragma unroll
      for (int q = 0; q < 4; ++q) x.v[q] += offset.v[q];
    }
    if (z) store_four(z.at(r, j), x, n == 4 && aligned(z.at(r, j)), n);
#pragma unroll
    for (int q = 0; q < 4; ++q) x.v[q] = a.y(x.v[q]);
    if (drops) drop.four(r, j, x);
    if (y) store_four(y.at(r, j), x, n == 4 && aligned(y.at(r, j)), n);
    rounded(r, j, x, n);
    return x;
  }
};

// [dx] = dropout'(x) a'(saved) of the layer before, or x where nothing of it is saved, and dx's copy
struct GradEnd {
  AnyActivation a;
  Dropout drop;
  bool drops;
  View<T> dx, saved;
  Rounded rounded;
  FASTAE_INLINE explicit GradEnd(const Launch& o)
      : a(o, o.i[at_dense_grad::i_activation], o.f + at_dense_grad::f_p0),
        drop(o, at_dense_grad::s_rows, o.i[at_dense_grad::i_stream], o.f[at_dense_grad::f_rate]),
        drops(o.f[at_dense_grad::f_rate] > 0),
        dx(o.real(at_dense_grad::s_dx)),
        saved(o.real(at_dense_grad::s_saved)),
        rounded(o, dx) {}
  FASTAE_INLINE Four operator()(int64_t r, int64_t j, int n, Four x) const {
    if (saved) {
      const Four s = load_four(saved.at(r, j), n == 4 && aligned(saved.at(r, j)), n);
      chain_four(a, x, s, drops ? &drop : nullptr, r, j);
    }
    if (dx) store_four(dx.at(r, j), x, n == 4 && aligned(dx.at(r, j)), n);
    rounded(r, j, x, n);
    return x;
  }
};

FASTAE_KERNEL(dense_finish, kThreads, 1) {
  const DenseEnd end(o);
  each_four(o.m, end.y.columns, [&](int64_t r, int64_t j, int n) {
    end(r, j, n, load_four(end.y.at(r, j), n == 4 && aligned(end.y.at(r, j)), n));
  });
}

FASTAE_KERNEL(dense_grad_finish, kThreads, 1) {
  const GradEnd end(o);
  each_four(o.m, end.dx.columns, [&](int64_t r, int64_t j, int n) {
    end(r, j, n, load_four(end.dx.at(r, j), n == 4 && aligned(end.dx.at(r, j)), n));
  });
}

}  // namespace fastae
