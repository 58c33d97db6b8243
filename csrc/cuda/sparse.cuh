// Codes by rows: sums of weight rows, products with them, the error of what they give. Chains and sums are those of
// sparse.h and run_decode.h.
#pragma once
#include "ascending.h"
#include "cuda/codes.cuh"

namespace fastae {

// Ends of groups of latents, ascending; without any, all latents are one group.
struct Groups {
  const int32_t* end;
  int64_t n;
  FASTAE_INLINE Groups(const Launch& o, int slot)
      : end(o.view<const int32_t>(slot).p), n(end ? o.slot[slot].columns : 0) {}

  FASTAE_INLINE int64_t count() const { return end ? n : 1; }
  FASTAE_INLINE int64_t of(int64_t latent) const {
    int64_t g = 0;
    while (end && g < n && end[g] <= latent) ++g;
    return g;
  }
};

// y (m,p), or block g of y (m, G p) = [b] + sum of val w[idx] over the entries, those of the groups up to g: a chain per
// column, entries with val = 0 left out. A thread makes N neighbouring columns of all blocks; several entries' weights
// are on their way at a time. Blocks of threads lie over 16 N columns, and those of one such strip of w run one after
// another, so that it is in the cache for all rows.
template <int N> FASTAE_INLINE void decode_columns(const Launch& o) {
  namespace at = at_decode;
  constexpr int kAhead = 8;
  struct alignas(N * sizeof(T)) Own {
    T v[N];
  };
  const View<T> val = o.real(at::s_val), w = o.real(at::s_w), y = o.real(at::s_y);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  const T* const b = o.real(at::s_b).p;
  const Entries entries(o, at::s_count, val.columns);
  const Groups groups(o, at::s_groups);
  const int64_t p = w.columns;
  each_cell(o.m, p / N, [&](int64_t r, int64_t part) {
    const int64_t j = part * N;
    Own sum = {};
    if (b) sum = *(const Own*)(b + j);
    const auto add = [&](T c, const Own& x) {
#pragma unroll
      for (int q = 0; q < N; ++q)
        if (c != T(0)) sum.v[q] = mul_add(c, x.v[q], sum.v[q]);
    };
    for (int64_t g = 0; g < groups.count(); ++g) {
      for (int64_t q = 0; q < entries.segments; ++q) {
        const int64_t n = entries.of(r, q);
        const int32_t* const at = idx.at(r, q * entries.capacity);
        const T* const c = val.at(r, q * entries.capacity);
        int64_t i = groups.end && g ? first_from(at, n, groups.end[g - 1]) : 0;
        const int64_t last = groups.end ? first_from(at, n, groups.end[g]) : n;
        for (; i + kAhead <= last; i += kAhead) {
          Own x[kAhead];
#pragma unroll
          for (int k = 0; k < kAhead; ++k) x[k] = *(const Own*)w.at(at[i + k], j);
#pragma unroll
          for (int k = 0; k < kAhead; ++k) add(c[i + k], x[k]);
        }
        for (; i < last; ++i) add(c[i], *(const Own*)w.at(at[i], j));
      }
#pragma unroll
      for (int q = 0; q < N; ++q) sum.v[q] += T(0);  // -0 becomes +0
      *(Own*)y.at(r, g * p + j) = sum;
    }
  });
}
FASTAE_KERNEL(decode, kThreads) { decode_columns<1>(o); }
FASTAE_KERNEL(decode_parts, kThreads) { decode_columns<kPart>(o); }

// dval = dy[r, block of the latent's group] . w[idx], sixteen threads an entry; 0 for latents of no group. Blocks: x over
// rows, y over runs of a row's places.
FASTAE_KERNEL(code_grad, kThreads) {
  namespace at = at_code_grad;
  const View<T> dy = o.real(at::s_dy), w = o.real(at::s_w), dval = o.real(at::s_dval);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  const Entries entries(o, at::s_count, idx.columns);
  const Groups groups(o, at::s_groups);
  const int64_t p = w.columns;
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x)
    for (int64_t first = (int64_t)blockIdx.y * blockDim.y; first < idx.columns; first += gridDim.y * blockDim.y) {
      const int64_t c = first + threadIdx.y;
      const bool here = c < idx.columns && entries.has(r, c);
      if (!__any_sync(0xffffffffu, here)) continue;
      const int64_t j = here ? idx(r, c) : 0, g = here ? groups.of(j) : 0;
      const bool inside = here && g < groups.count();
      const T product = dot(dy.at(r, inside ? g * p : 0), w.at(j, 0), inside ? p : 0, threadIdx.x);
      if (here && threadIdx.x == 0) dval(r, c) = inside ? product : T(0);
    }
}

// x (m, blocks p): block g += block g + 1, from the last but one down to 0
FASTAE_KERNEL(suffix_sum, kThreads) {
  const View<T> x = o.real(at_suffix_sum::s_x);
  const int64_t p = x.columns / o.i[at_suffix_sum::i_blocks];
  each_cell(o.m, p, [&](int64_t r, int64_t j) {
    T sum = x(r, x.columns - p + j);
    for (int64_t c = x.columns - 2 * p; c >= 0; c -= p) x(r, c + j) = sum = x(r, c + j) + sum;
  });
}

// ---- squared error -----------------------------------------------------------------------------------------------------
// work: sums (m) float64, control (8): factor, then a column's sum of squares for the residual and for the target (p each)

FASTAE_INLINE double* column_squares(const Launch& o) { return CodeWork(o).control + 8; }

// extra[0]: 1 for the target without base. Blocks of (32 columns, 16 lanes of rows): lane l takes the rows l, l + 16, ...
FASTAE_KERNEL(squares_by_column, 512) {
  namespace at = at_squared_error;
  __shared__ double part[kLanes][33];
  const View<T> target = o.real(at::s_target), base = o.real(at::s_base);
  const int64_t p = target.columns, lane = threadIdx.y;
  const bool shifted = base && !o.extra[0];
  double* const out = column_squares(o) + (o.extra[0] ? p : 0);
  for (int64_t first = (int64_t)blockIdx.x * 32; first < p; first += (int64_t)gridDim.x * 32) {
    const int64_t j = first + threadIdx.x;
    const auto t = [&](int64_t r) { return (double)target(r, j) - (shifted ? (double)base(r, j) : 0.0); };
    const auto total = [&](const auto& f) {
      double sum = 0;
      if (j < p)
#pragma unroll 2
        for (int64_t r = lane; r < o.m; r += kLanes) sum += f(r);
      part[lane][threadIdx.x] = sum;
      __syncthreads();
      for (int h = kLanes / 2; h; h /= 2) {
        if (lane < h) part[lane][threadIdx.x] += part[lane + h][threadIdx.x];
        __syncthreads();
      }
      sum = part[0][threadIdx.x];
      __syncthreads();
      return sum;
    };
    const double mean = total(t) / (double)o.m;
    const double squares = total([&](int64_t r) {
      const double d = t(r) - mean;
      return d * d;
    });
    if (lane == 0 && j < p) out[j] = squares;
  }
}

FASTAE_KERNEL(error_factor, kThreads) {
  namespace at = at_squared_error;
  const int64_t norm = o.i[at::i_norm], k_aux = o.i[at::i_k_aux], p = o.slot[at::s_target].columns;
  const bool asked = o.i[at::i_variance] >= 0;
  double residual = 0, divisor = 1, scale = o.f[at::f_scale];
  if (norm == error_norm::residual || asked) residual = ordered_sum(column_squares(o), p) / (double)o.m;
  if (norm == error_norm::residual) divisor = residual;
  else if (norm == error_norm::target) divisor = ordered_sum(column_squares(o) + p, p) / (double)o.m;
  if (threadIdx.x || blockIdx.x) return;
  if (asked) o.add_value(o.i[at::i_variance], residual);
  if (k_aux > 0) {
    const double share = (double)*o.view<const int32_t>(at::s_n_dead).p / (double)k_aux;
    scale *= share < 1 ? share : 1;
  }
  CodeWork(o).control[0] = divisor > 0 ? scale / ((double)o.m * divisor) : 0;
}

FASTAE_KERNEL(squared_error, kThreads) {
  namespace at = at_squared_error;
  const View<T> y = o.real(at::s_y), target = o.real(at::s_target), base = o.real(at::s_base), dy = o.real(at::s_dy);
  const View<T> weight = o.real(at::s_weight);
  const CodeWork work(o);
  const double factor = work.control[0];
  each_row(o.m, [&](int64_t r, int lane) {
    const double c = weight && r >= 0 ? (double)weight(r, 0) : 1.0;
    const T slope = (T)(2 * factor * c);
    const double sum = row_sum(r < 0 ? 0 : y.columns, lane, [&](int64_t j) {
      T t = target(r, j);
      if (base) t = t - base(r, j);
      const T d = y(r, j) - t;
      if (dy) dy(r, j) = slope * d;
      return d * d;
    });
    if (r >= 0 && lane == 0) work.sums[r] = c * sum;
  });
}

}  // namespace fastae
