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
FASTAE_KERNEL(latent_update, kThreads) {
  FASTAE_DYNAMIC_SHARED(memory);
  __shared__ T scale;
  T* const row = (T*)memory;  // the gradient, then the new weights
  const LatentGrad grad(o);
  const LatentFinish finish(o);
  const View<T> w = o.real(at_latent_grad::s_w);
  T* const state[3] = {o.real(kUpdateStates).p, o.real(kUpdateStates + 1).p, o.real(kUpdateStates + 2).p};
  const UpdateNumbers numbers(o, o.i[kUpdateRule + 1]);
  const int64_t p = grad.p;
  for (int64_t j = blockIdx.x; j < grad.n; j += gridDim.x) {
    T* const x = w.at(j, 0);
    for (int64_t c0 = 0; c0 < p; c0 += grad.strip()) grad.make(j, c0, [&](int64_t c, T g) { row[c] = g; });
    finish(j, grad.code.start[j] < grad.code.start[j + 1], x, row);
    visit_update<Vec<T>, T>((int)o.i[kUpdateRule], [&](auto formula) {
      for (int64_t c = threadIdx.x; c < p; c += blockDim.x)
        row[c] = numbers.apply(formula, x[c], row[c], state, j * p + c);
    });
    if (o.extra[1]) {
      __syncthreads();
      if (threadIdx.x < 32) {
        const double norm = ::sqrt(square_of(row, p, threadIdx.x % kLanes));
        if (threadIdx.x == 0) scale = norm > 0 ? (T)(1.0 / norm) : T(1);
      }
      __syncthreads();
    }
    for (int64_t c = threadIdx.x; c < p; c += blockDim.x) x[c] = o.extra[1] ? row[c] * scale : row[c];
  }
}

}  // namespace fastae
