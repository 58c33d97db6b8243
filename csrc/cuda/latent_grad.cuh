// Gradients of the rows of w by latents, and other sums over rows and latents. See latent.h.
#pragma once
#include "cuda/latents.cuh"
#include "cuda/product.cuh"

namespace fastae {

// dw (n,p) = sum over latent j's entries of coef u[r, block]: one chain, or with more than kChunk entries chains over
// segments of so many rows, added in order. A block of threads makes kWide columns a thread of one latent's row; entries
// with coef = 0 are left out, and a sum of -0 becomes +0.
constexpr int kWide = 4;
struct LatentGrad {
  Listed code;
  Groups groups;
  View<T> u;
  int64_t n, p, width, capacity, segments, rows, blocks;
  FASTAE_INLINE explicit LatentGrad(const Launch& o)
      : code(o, at_latent_grad::s_coef, at_latent_grad::s_start, at_latent_grad::s_entry),
        groups(o, at_latent_grad::s_groups),
        u(o.real(at_latent_grad::s_u)),
        n(o.slot[at_latent_grad::s_w].rows),
        p(o.slot[at_latent_grad::s_w].columns),
        width(code.coef.columns),
        capacity(larger<int64_t>(o.i[at_latent_grad::i_capacity], 1)),
        segments(width / capacity),
        rows(larger<int64_t>(1, kChunk / larger<int64_t>(1, segments))),
        blocks(u.columns / p) {}

  FASTAE_INLINE int64_t strip() const { return (int64_t)blockDim.x * kWide; }

  // f(whether it is the first, entries, coefficients, rows of u) for each chain of latent j's entries, for a block.
  template <class F> FASTAE_INLINE void each_chain(int64_t j, const F& f) const {
    __shared__ T weight[kChunk];
    __shared__ const T* place[kChunk];
    __shared__ int length;
    const int64_t first = code.start[j], last = code.start[j + 1];
    const int64_t own = blocks == 1 ? 0 : smaller(groups.of(j), blocks - segments);
    int some = 0;
    for (int64_t s = first; s < last; s += some) {
      const int most = (int)smaller(kChunk, last - s);
      const int64_t end = last - first > kChunk ? (code.entry[s] / width / rows + 1) * rows * width : (int64_t)1 << 62;
      __syncthreads();
      for (int i = threadIdx.x; i < most; i += blockDim.x) {
        const int64_t e = code.entry[s + i], r = e / width, q = (e - r * width) / capacity;
        if (e < end && (i + 1 == most || code.entry[s + i + 1] >= end)) length = i + 1;
        weight[i] = code.coef(r, e - r * width);
        place[i] = u.at(r, blocks == 1 ? 0 : p * (q ? blocks - segments + q : own));
      }
      __syncthreads();
      some = length;
      f(s == first, some, weight, place);
    }
  }
  // A chain's sums for the thread's columns of the strip from c0 on.
  FASTAE_INLINE void chain(int some, const T* weight, const T* const* place, int64_t c0, T (&sum)[kWide]) const {
#pragma unroll
    for (int v = 0; v < kWide; ++v) sum[v] = T(0);
#pragma unroll 4
    for (int i = 0; i < some; ++i) {
      const T c = weight[i];
      const T* const x = place[i] + c0 + threadIdx.x;
#pragma unroll
      for (int v = 0; v < kWide; ++v)
        if (c != T(0) && c0 + threadIdx.x + v * blockDim.x < p) sum[v] = mul_add(c, x[v * blockDim.x], sum[v]);
    }
  }
  // f(v, column) for the thread's columns of the strip from c0 on.
  template <class F> FASTAE_INLINE void each_own(int64_t c0, const F& f) const {
#pragma unroll
    for (int v = 0; v < kWide; ++v) {
      const int64_t c = c0 + threadIdx.x + v * blockDim.x;
      if (c < p) f(v, c);
    }
  }
};

FASTAE_KERNEL(latent_grad, kThreads) {
  const LatentGrad grad(o);
  const View<T> dw = o.real(at_latent_grad::s_dw);
  for (int64_t j = blockIdx.x; j < grad.n; j += gridDim.x)
    for (int64_t c0 = (int64_t)blockIdx.y * grad.strip(); c0 < grad.p; c0 += (int64_t)gridDim.y * grad.strip()) {
      T total[kWide] = {};
      grad.each_chain(j, [&](bool begins, int some, const T* weight, const T* const* place) {
        T sum[kWide];
        grad.chain(some, weight, place, c0, sum);
#pragma unroll
        for (int v = 0; v < kWide; ++v) total[v] = begins ? sum[v] : total[v] + sum[v];
      });
      grad.each_own(c0, [&](int v, int64_t c) { dw(j, c) = total[v] + T(0); });
    }
}

// Then dw_j += factor w_j, and dw_j -= (dw_j . w_j) w_j / |w_j|^2, for a row of w and its gradient, by a block.
struct LatentFinish {
  View<const double> factor;
  bool unit;
  int64_t n, p;
  FASTAE_INLINE explicit LatentFinish(const Launch& o)
      : factor(o.view<const double>(at_latent_grad::s_factor)),
        unit(o.i[at_latent_grad::i_unit] != 0),
        n(o.slot[at_latent_grad::s_w].rows),
        p(o.slot[at_latent_grad::s_w].columns) {}

  // Whether there is anything to do; any: whether the latent has entries.
  FASTAE_INLINE bool changes(bool any) const { return factor || (unit && any); }

  FASTAE_INLINE void operator()(int64_t j, const T* x, T* g) const {
    __shared__ T along;
    __shared__ bool moved;
    if (factor) {
      const int64_t part = p / factor.rows;
      for (int64_t c = threadIdx.x; c < part * factor.rows; c += blockDim.x) {
        const double f = factor.p[c / part * n + j];
        if (f != 0) g[c] = mul_add((T)f, x[c], g[c]);
      }
    }
    if (!unit) return;
    __syncthreads();
    if (threadIdx.x < 32) {
      const int lane = threadIdx.x % kLanes;
      const T product = dot(x, threadIdx.x < kLanes ? g : x, p, lane);  // both at a time
      const T squares = __shfl_sync(0xffffffffu, product, kLanes);
      const double square = safe_square(x, p, (double)squares, lane);
      if (threadIdx.x == 0) moved = square > 0, along = moved ? (T)(-(double)product / square) : T(0);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; moved && i < p; i += blockDim.x) g[i] = mul_add(along, x[i], g[i]);
    __syncthreads();
  }
};

FASTAE_KERNEL(latent_grad_finish, kThreads) {
  const Listed code(o, at_latent_grad::s_coef, at_latent_grad::s_start, at_latent_grad::s_entry);
  const View<T> w = o.real(at_latent_grad::s_w), dw = o.real(at_latent_grad::s_dw);
  const LatentFinish finish(o);
  for (int64_t j = blockIdx.x; j < w.rows; j += gridDim.x)
    if (finish.changes(code.start[j] < code.start[j + 1])) finish(j, w.at(j, 0), dw.at(j, 0));
}

// db (1,p) = sum of dy over rows
FASTAE_KERNEL(bias_grad_segments, kThreads) {
  namespace at = at_bias_grad;
  column_segments(o.real(at::s_dy), o.m, (T*)o.work, o.extra[0] ? o.real(at::s_db).p : nullptr, o.i[at::i_add] != 0);
}
FASTAE_KERNEL(bias_grad_sum, kThreads) {
  namespace at = at_bias_grad;
  add_segments((const T*)o.work, o.m, o.slot[at::s_dy].columns, o.real(at::s_db).p, o.i[at::i_add] != 0);
}

// dbias -= scale sum_j db_j w_j: a chain over each kLatentBlock latents, those with db_j = 0 left out, added in order.
FASTAE_KERNEL(pre_bias_blocks, kThreads) {
  namespace at = at_pre_bias_grad;
  const View<T> w = o.real(at::s_w);
  const T* const db = o.real(at::s_db).p;
  T* const part = (T*)o.work;
  each_cell(ceil_div(w.rows, kLatentBlock), w.columns, [&](int64_t block, int64_t c) {
    T sum = T(0);
#pragma unroll 8
    for (int64_t j = block * kLatentBlock; j < smaller(w.rows, (block + 1) * kLatentBlock); ++j)
      if (db[j] != T(0)) sum = mul_add(db[j], w(j, c), sum);
    part[block * w.columns + c] = sum + T(0);
  });
}
FASTAE_KERNEL(pre_bias_sum, kThreads) {
  namespace at = at_pre_bias_grad;
  const View<T> w = o.real(at::s_w);
  T* const dbias = o.real(at::s_dbias).p;
  const T* const part = (const T*)o.work;
  const T scale = (T)o.f[at::f_scale];
  each(w.columns, [&](int64_t c) {
    T sum = T(0);
#pragma unroll 8
    for (int64_t b = 0; b < ceil_div(w.rows, kLatentBlock); ++b) sum += part[b * w.columns + c];
    dbias[c] = dbias[c] - scale * sum;
  });
}

}  // namespace fastae
