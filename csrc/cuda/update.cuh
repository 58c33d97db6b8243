// Work on the flat parameter buffer: update rules, weight penalties, clipping, projections.
#pragma once
#include "cuda/device.cuh"

namespace fastae {

FASTAE_KERNEL(update, kThreads) {
  namespace at = at_update;
  T* const w = o.real(at::s_w).p;
  const T* const g = o.real(at::s_g).p;
  T* const state[3] = {o.real(at::s_s0).p, o.real(at::s_s1).p, o.real(at::s_s2).p};
  const int64_t n = o.slot[at::s_w].rows * o.slot[at::s_w].columns;
  const double* scalars = o.scalars() + o.i[at::i_scalar];
  T c[8], p[kMaxFloats];
  for (int q = 0; q < 8; ++q) c[q] = q < o.extra[0] ? (T)scalars[q] : T(0);
  for (int q = 0; q < kMaxFloats; ++q) p[q] = (T)o.f[q];
  visit_update<Vec<T>, T>((int)o.i[at::i_rule], [&](auto formula) {
    constexpr int S = decltype(formula)::n_states;
    each(n, [&](int64_t i) {
      Vec<T> x = w[i], s[S + 1];
      for (int q = 0; q < S; ++q) s[q] = state[q][i];
      formula.apply(x, Vec<T>(g[i]), s, c, p);
      w[i] = x.v;
      for (int q = 0; q < S; ++q) state[q][i] = s[q].v;
    });
  });
}

}  // namespace fastae
