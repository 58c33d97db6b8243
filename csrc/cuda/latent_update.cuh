// Gradients of the rows of w given to the update rule as they are made: a block of threads keeps a latent's row in shared
// memory, so that weights and states are read and written once, and the gradient never. See run_latents.h.
#pragma once
#include "cuda/latent_grad.cuh"
#include "cuda/update.cuh"

namespace fastae {

constexpr int kUpdateStates = at_latent_grad::s_groups + 1;  // slots behind latent_grad's: the rule's states of w
constexpr int kUpdateRule = at_latent_grad::i_fused + 1;     // ints behind: the rule, its first scalar

// f: the rule's parameters. extra[0]: constants of a step; [1]: whether rows are brought to norm 1. A column is one
// thread's all the way, so barriers are only around sums over a row.
FASTAE_KERNEL(latent_update, kThreads, 1) {
  FASTAE_DYNAMIC_SHARED(memory);
  __shared__ T scale;
  const LatentGrad grad(o);
  const LatentFinish finish(o);
  const int64_t p = grad.p;
  T *const x = (T*)memory, *const g = x + p;  // a row of w, and its gradient
  const View<T> w = o.real(at_latent_grad::s_w);
  T* const state[3] = {o.real(kUpdateStates).p, o.real(kUpdateStates + 1).p, o.real(kUpdateStates + 2).p};
  const UpdateNumbers numbers(o, o.i[kUpdateRule + 1]);
  const auto each_strip = [&](const auto& f) {
    for (int64_t c0 = 0; c0 < p; c0 += grad.strip()) f(c0);
  };
  for (int64_t j = blockIdx.x; j < grad.n; j += gridDim.x) {
    each_strip([&](int64_t c0) {
      T own[kWide];  // numbers that are on their way side by side
      grad.each_own(c0, [&](int v, int64_t c) { own[v] = w(j, c); });
      grad.each_own(c0, [&](int v, int64_t c) { x[c] = own[v], g[c] = T(0); });
    });
    grad.each_chain(j, [&](bool begins, int some, const T* weight, const T* const* place) {
      each_strip([&](int64_t c0) {
        T sum[kWide];
        grad.chain(some, weight, place, c0, sum);
        grad.each_own(c0, [&](int v, int64_t c) { g[c] = begins ? sum[v] + T(0) : g[c] + sum[v]; });
      });
    });
    finish(j, grad.code.start[j] < grad.code.start[j + 1], x, g);
    visit_update<Vec<T>, T>((int)o.i[kUpdateRule], [&](auto formula) {
      constexpr int S = decltype(formula)::n_states;
      each_strip([&](int64_t c0) {
        Vec<T> s[kWide][S + 1];
        grad.each_own(c0, [&](int v, int64_t c) {
          for (int q = 0; q < S; ++q) s[v][q] = state[q][j * p + c];
        });
        grad.each_own(c0, [&](int v, int64_t c) {
          x[c] = numbers.apply(formula, x[c], g[c], s[v]);
          for (int q = 0; q < S; ++q) state[q][j * p + c] = s[v][q].v;
        });
      });
    });
    if (o.extra[1]) {
      __syncthreads();
      if (threadIdx.x < 32) {
        const double norm = ::sqrt(square_of(x, p, threadIdx.x % kLanes));
        if (threadIdx.x == 0) scale = norm > 0 ? (T)(1.0 / norm) : T(1);
      }
      __syncthreads();
    }
    each_strip(
        [&](int64_t c0) { grad.each_own(c0, [&](int, int64_t c) { w(j, c) = o.extra[1] ? x[c] * scale : x[c]; }); });
  }
}

}  // namespace fastae
