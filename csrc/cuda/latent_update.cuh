// Gradients of the rows of w given to the update rule as they are made: a block of threads keeps a latent's row and its
// gradient, so that weights and states are read and written once, and the gradient never. See run_latents.h.
#pragma once
#include "cuda/latent_grad.cuh"
#include "cuda/update.cuh"

namespace fastae {

constexpr int kUpdateStates = at_latent_grad::s_groups + 1;  // slots behind latent_grad's: the rule's states of w
constexpr int kUpdateRule = at_latent_grad::i_fused + 1;     // ints behind: the rule, its first scalar
constexpr int kUpdateParts = 4;                              // of 16 bytes, that a thread has of a row

// A thread's numbers of a row: parts blockDim.x apart.
struct OwnParts {
  Part part[kUpdateParts];
  // f(part, its first column) for those that are in a row of p
  template <class F> static FASTAE_INLINE void each(int64_t p, const F& f) {
#pragma unroll
    for (int s = 0; s < kUpdateParts; ++s) {
      const int64_t c = ((int64_t)s * blockDim.x + threadIdx.x) * kPart;
      if (c < p) f(s, c);
    }
  }
  FASTAE_INLINE void read(const T* row, int64_t p) {
    each(p, [&](int s, int64_t c) { part[s] = *(const Part*)(row + c); });
  }
  FASTAE_INLINE void write(T* row, int64_t p) const {
    each(p, [&](int s, int64_t c) { *(Part*)(row + c) = part[s]; });
  }
  FASTAE_INLINE void add(T factor, const OwnParts& other) {
#pragma unroll
    for (int s = 0; s < kUpdateParts; ++s)
#pragma unroll
      for (int k = 0; k < kPart; ++k) part[s].v[k] = mul_add(factor, other.part[s].v[k], part[s].v[k]);
  }
};

// f: the rule's parameters. extra[0]: constants of a step; [1]: whether rows are brought to norm 1. Rows are whole parts
// on 16 bytes, at most kUpdateParts a thread. The gradient is made in registers; then it lies beside the row in shared
// memory, for sums over the row. A column is one thread's all the way, so barriers are only around those. A block for
// each latent: in a loop, what does not change would take the registers.
FASTAE_KERNEL(latent_update, kThreads, sizeof(T) == 4 ? 3 : 2) {
  FASTAE_DYNAMIC_SHARED(memory);
  __shared__ T scale;
  const LatentGrad grad(o);
  const LatentFinish finish(o);
  const int64_t p = grad.p;
  T *const row = (T*)memory, *const slope = row + p;
  const View<T> w = o.real(at_latent_grad::s_w);
  const int64_t j = blockIdx.x;
  OwnParts{}.write(slope, p);
  grad.each_chain(j, [&](bool begins, int some, const T* weight, const T* const* place) {
    OwnParts sum = {};
    for (int i = 0; i < some; i += 2) {  // two rows of u are on their way at a time
      const T a = weight[i], b = i + 1 < some ? weight[i + 1] : T(0);
      OwnParts u, v;
      if (a != T(0)) u.read(place[i], p);
      if (b != T(0)) v.read(place[i + 1], p);
      if (a != T(0)) sum.add(a, u);
      if (b != T(0)) sum.add(b, v);
    }
    OwnParts::each(p, [&](int s, int64_t c) {
      Part& to = *(Part*)(slope + c);
#pragma unroll
      for (int k = 0; k < kPart; ++k) to.v[k] = (begins ? T(0) : to.v[k]) + sum.part[s].v[k];
    });
  });
  OwnParts x;
  x.read(w.at(j, 0), p);
  x.write(row, p);
  if (finish.changes(grad.code.start[j] < grad.code.start[j + 1])) {
    __syncthreads();
    finish(j, row, slope);
    __syncthreads();
  }
  visit_update<Vec<T>, T>((int)o.i[kUpdateRule], [&](auto formula) {
    constexpr int S = decltype(formula)::n_states;
    const UpdateNumbers numbers(o, o.i[kUpdateRule + 1]);  // here, where no registers hold what is not used
    const auto state = [&](int q, int64_t c) { return (Part*)(o.real(kUpdateStates + q).p + j * p + c); };
    Part own[S + 1], next[S + 1];  // of this part and of the one behind, which is on its way meanwhile
    const int64_t step = (int64_t)blockDim.x * kPart, first = (int64_t)threadIdx.x * kPart;
#pragma unroll
    for (int q = 0; q < S; ++q)
      if (first < p) next[q] = *state(q, first);
#pragma unroll 1
    for (int64_t c = first; c < p; c += step) {
#pragma unroll
      for (int q = 0; q < S; ++q) {
        own[q] = next[q];
        if (c + step < p) next[q] = *state(q, c + step);
      }
      Part x = *(const Part*)(row + c);
      const Part change = *(const Part*)(slope + c);
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        Vec<T> numbers_of[S + 1];
#pragma unroll
        for (int q = 0; q < S; ++q) numbers_of[q] = own[q].v[k];
        x.v[k] = numbers.apply(formula, x.v[k], change.v[k], numbers_of);
#pragma unroll
        for (int q = 0; q < S; ++q) own[q].v[k] = numbers_of[q].v;
      }
#pragma unroll
      for (int q = 0; q < S; ++q) *state(q, c) = own[q];
      *(Part*)(row + c) = x;
    }
  });
  T factor = T(1);
  if (o.extra[1]) {
    __syncthreads();
    if (threadIdx.x < 32) {
      const double norm = ::sqrt(square_of(row, p, threadIdx.x % kLanes));
      if (threadIdx.x == 0) scale = norm > 0 ? (T)(1.0 / norm) : T(1);
    }
    __syncthreads();
    factor = scale;
  }
  OwnParts::each(p, [&](int, int64_t c) {
    Part x = *(const Part*)(row + c);
#pragma unroll
    for (int k = 0; k < kPart; ++k) x.v[k] *= factor;
    *(Part*)w.at(j, c) = x;
  });
}

}  // namespace fastae
