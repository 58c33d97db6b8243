// Gradients of the rows of w by latents, and other sums over rows and latents. See latent.h.
#pragma once
#include "cuda/latents.cuh"
#include "cuda/product.cuh"

namespace fastae {

// dw (n,p) = sum over latent j's entries of coef u[r, block]: one chain, or with more than kChunk entries chains over
// segments of so many rows, added in order. A block of threads makes kWide columns a thread of one latent's row; entries
// with coef = 0 are left out, and a sum of -0 becomes +0.
constexpr int kWide = 4;
FASTAE_KERNEL(latent_grad, kThreads) {
  namespace at = at_latent_grad;
  __shared__ T weight[kChunk];
  __shared__ const T* place[kChunk];
  __shared__ int length;
  const Listed code(o, at::s_coef, at::s_start, at::s_entry);
  const Groups groups(o, at::s_groups);
  const View<T> u = o.real(at::s_u), dw = o.real(at::s_dw);
  const int64_t p = dw.columns, width = code.coef.columns, capacity = larger<int64_t>(o.i[at::i_capacity], 1);
  const int64_t segments = width / capacity, rows = larger<int64_t>(1, kChunk / larger<int64_t>(1, segments));
  const int64_t blocks = u.columns / p, strip = (int64_t)blockDim.x * kWide;
  for (int64_t j = blockIdx.x; j < dw.rows; j += gridDim.x) {
    const int64_t first = code.start[j], last = code.start[j + 1];
    const int64_t own = blocks == 1 ? 0 : smaller(groups.of(j), blocks - segments);
    for (int64_t c0 = (int64_t)blockIdx.y * strip; c0 < p; c0 += (int64_t)gridDim.y * strip) {
      T total[kWide] = {};
      int some = 0;
      for (int64_t s = first; s < last; s += some) {
        const int most = (int)smaller(kChunk, last - s);
        const int64_t end =
            last - first > kChunk ? (code.entry[s] / width / rows + 1) * rows * width : (int64_t)1 << 62;
        __syncthreads();
        for (int i = threadIdx.x; i < most; i += blockDim.x) {
          const int64_t e = code.entry[s + i], r = e / width, q = (e - r * width) / capacity;
          if (e < end && (i + 1 == most || code.entry[s + i + 1] >= end)) length = i + 1;
          weight[i] = code.coef(r, e - r * width);
          place[i] = u.at(r, blocks == 1 ? 0 : p * (q ? blocks - segments + q : own));
        }
        __syncthreads();
        some = length;
        T sum[kWide] = {};
#pragma unroll 4
        for (int i = 0; i < some; ++i) {
          const T c = weight[i];
          const T* const x = place[i] + c0 + threadIdx.x;
#pragma unroll
          for (int v = 0; v < kWide; ++v)
            if (c != T(0) && c0 + threadIdx.x + v * blockDim.x < p) sum[v] = mul_add(c, x[v * blockDim.x], sum[v]);
        }
#pragma unroll
        for (int v = 0; v < kWide; ++v) total[v] = s == first ? sum[v] : total[v] + sum[v];
      }
#pragma unroll
      for (int v = 0; v < kWide; ++v) {
        const int64_t c = c0 + threadIdx.x + v * blockDim.x;
        if (c < p) dw(j, c) = total[v] + T(0);
      }
    }
  }
}

// Then dw_j += factor w_j, and dw_j -= (dw_j . w_j) w_j / |w_j|^2. A block of threads takes a row of w.
FASTAE_KERNEL(latent_grad_finish, kThreads) {
  namespace at = at_latent_grad;
  const Listed code(o, at::s_coef, at::s_start, at::s_entry);
  const View<T> w = o.real(at::s_w), dw = o.real(at::s_dw);
  const View<const double> factor = o.view<const double>(at::s_factor);
  __shared__ T along;
  __shared__ bool moved;
  const int64_t n = w.rows, p = w.columns;
  for (int64_t j = blockIdx.x; j < n; j += gridDim.x) {
    const T* const x = w.at(j, 0);
    T* const g = dw.at(j, 0);
    if (factor) {
      const int64_t part = p / factor.rows;
      for (int64_t c = threadIdx.x; c < part * factor.rows; c += blockDim.x) {
        const double f = factor.p[c / part * n + j];
        if (f != 0) g[c] = mul_add((T)f, x[c], g[c]);
      }
    }
    if (!o.i[at::i_unit] || !(code.start[j] < code.start[j + 1] || factor)) continue;
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
}

// db (1,p) = sum of dy over rows
FASTAE_KERNEL(bias_grad_segments, kThreads) { column_segments(o.real(at_bias_grad::s_dy), o.m, (T*)o.work); }
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
