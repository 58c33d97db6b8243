// Codes by entries: what their slots hold, and work that goes entry by entry. See run_codes.h and run_encode.h, whose
// order of operations this is.
#pragma once
#include "cuda/device.cuh"

namespace fastae {

// A code's segments: the first min(count[r, q], capacity) entries from position q capacity on mean something.
struct Entries {
  View<const int32_t> count;
  int64_t segments, capacity;
  FASTAE_INLINE Entries(const Launch& o, int count_slot, int64_t width)
      : count(o.view<const int32_t>(count_slot)), segments(count.columns), capacity(width / count.columns) {}

  FASTAE_INLINE int64_t of(int64_t r, int64_t q) const {
    return larger<int64_t>(0, smaller<int64_t>(count(r, q), capacity));
  }
  FASTAE_INLINE bool has(int64_t r, int64_t position) const { return position % capacity < of(r, position / capacity); }
};

// f(row, position) for every entry: a thread for every place that an entry may have.
template <class F> FASTAE_INLINE void each_entry(int64_t m, const Entries& e, const F& f) {
  each_cell(m, e.segments * e.capacity, [&](int64_t r, int64_t c) {
    if (e.has(r, c)) f(r, c);
  });
}

// Sum over a row's entries of f(position), on sixteen threads; r < 0: a thread without a row.
template <class F> FASTAE_INLINE double entries_sum(const Entries& e, int64_t r, int lane, const F& f) {
  double sum = 0;
  for (int64_t q = 0; q < e.segments; ++q)
    sum += row_sum(r < 0 ? 0 : e.of(r, q), lane, [&](int64_t i) { return f(q * e.capacity + i); });
  return sum;
}

// The sum of f(i) over [0, n) by sixteen virtual lanes, as sum_of: on the first thread of a block of whole warps.
template <class F> FASTAE_INLINE double ordered_sum_of(int64_t n, const F& f) {
  constexpr int kStage = 2048;
  __shared__ double stage[kStage];
  double sum = 0;
  for (int64_t first = 0; first < n; first += kStage) {
    const int some = (int)smaller<int64_t>(kStage, n - first);
    __syncthreads();
    for (int i = threadIdx.x; i < some; i += blockDim.x) stage[i] = f(first + i);
    __syncthreads();
    if (threadIdx.x < kLanes)
      for (int i = threadIdx.x; i < some; i += kLanes) sum += stage[i];
  }
  return lanes_sum(sum);
}
FASTAE_INLINE double ordered_sum(const double* v, int64_t n) {
  return ordered_sum_of(n, [&](int64_t i) { return v[i]; });
}

// strength, times the step's scalar where the record names one
FASTAE_INLINE double strength_of(const Launch& o, double strength, int64_t scalar) {
  return scalar < 0 ? strength : strength * o.scalars()[scalar];
}

FASTAE_INLINE int64_t present_k(const Launch& o, int64_t k, int64_t scalar) {
  return scalar < 0 ? k : larger<int64_t>(0, smaller(k, (int64_t)o.scalars()[scalar]));
}

// ---- dot products of rows of weights ---------------------------------------------------------------------------------

// a . b on sixteen threads: chains of multiply-adds in T, then the CPU's tree, on all of them.
FASTAE_INLINE T lanes_dot_sum(T x) {
  for (int h = kLanes / 2; h; h /= 2) x += __shfl_down_sync(0xffffffffu, x, h, kLanes);
  return __shfl_sync(0xffffffffu, x, 0, kLanes);
}
FASTAE_INLINE T dot(const T* a, const T* b, int64_t n, int lane) {
  T sum = T(0);
  int64_t j = lane;
#pragma unroll 8
  for (; j < n; j += kLanes) sum = mul_add(a[j], b[j], sum);
  return lanes_dot_sum(sum);
}

// s = |a|^2, made again in float64 where float32 could overflow or lose it. All threads of a warp take part.
FASTAE_INLINE double safe_square(const T* a, int64_t n, double s, int lane) {
  const bool fine = s > 1e-30 && s < 1e30;
  if (__all_sync(0xffffffffu, fine || n < 1)) return s;
  const double again = row_sum(n, lane, [&](int64_t j) { return (double)a[j] * (double)a[j]; });
  return fine ? s : again;
}
FASTAE_INLINE double square_of(const T* a, int64_t n, int lane) {
  return safe_square(a, n, (double)dot(a, a, n, lane), lane);
}

// ---- norms of the weights that a code's entries have -------------------------------------------------------------------
// work: sums (m) float64, control (8) float64, norms (n). Norms are made for the latents that are marked.
struct CodeWork {
  double *sums, *control;
  T* norms;
  FASTAE_INLINE explicit CodeWork(const Launch& o)
      : sums((double*)o.work), control(sums + o.m), norms((T*)(control + 8)) {}
};

// extra: slots of w and of idx, behind which count's is; number of spaces
FASTAE_KERNEL(norms_clear, kThreads) {
  T* const norms = CodeWork(o).norms;
  each(o.slot[o.extra[0]].rows, [&](int64_t j) { norms[j] = T(0); });
}
FASTAE_KERNEL(norms_mark, kThreads) {
  T* const norms = CodeWork(o).norms;
  const View<const int32_t> idx = o.view<const int32_t>((int)o.extra[1]);
  each_entry(o.m, Entries(o, (int)o.extra[1] + 1, idx.columns), [&](int64_t r, int64_t c) { norms[idx(r, c)] = T(1); });
}
FASTAE_KERNEL(norms_make, kThreads) {
  T* const norms = CodeWork(o).norms;
  const View<T> w = o.real((int)o.extra[0]);
  const int64_t spaces = larger<int64_t>(o.extra[2], 1), p = w.columns / spaces;
  each_row(w.rows, [&](int64_t j, int lane) {
    const bool wanted = j >= 0 && norms[j] != T(0);
    double norm = 0;
    for (int64_t s = 0; s < spaces; ++s)
      norm += ::sqrt(square_of(w.p + (wanted ? j * w.ld + s * p : 0), wanted ? p : 0, lane));
    if (wanted && lane == 0) norms[j] = (T)norm;
  });
}

// values[extra[0]] += f of the rows' sums: extra[1] 0: the sum, 1: sum / m, 2: control[0] sum, 3: control[1] sum / m
FASTAE_KERNEL(code_value, kThreads) {
  const CodeWork work(o);
  const double sum = ordered_sum(work.sums, o.m), m = (double)o.m;
  if (threadIdx.x || blockIdx.x) return;
  const int64_t how = o.extra[1];
  o.add_value(o.extra[0], how == 0   ? sum
                          : how == 1 ? sum / m
                          : how == 2 ? work.control[0] * sum
                                     : work.control[1] * sum / m);
}

// ---- before and after ------------------------------------------------------------------------------------------------

FASTAE_KERNEL(centre, kThreads) {
  namespace at = at_centre;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  const T* const b = o.real(at::s_b).p;
  const T scale = (T)o.f[at::f_scale];
  each_cell(o.m, y.columns, [&](int64_t r, int64_t j) {
    const T v = scale * x(r, j);
    y(r, j) = b ? v - b[j] : v;
  });
}

FASTAE_KERNEL(standardize, kThreads) {
  namespace at = at_standardize;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  const View<double> statistics = o.view<double>(at::s_statistics);
  const int64_t p = y.columns;
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : p;
    const double mean = row_sum(n, lane, [&](int64_t j) { return (double)x(r, j); }) / (double)p;
    const double squares = row_sum(n, lane, [&](int64_t j) {
      const double d = (double)x(r, j) - mean;
      return d * d;
    });
    const double spread = p > 1 ? ::sqrt(squares / (double)(p - 1)) : 0;
    // a row whose squares overflow must not pass for zeros
    const double deviation = spread < 1e300 ? spread + o.f[at::f_epsilon] : ::sqrt(-1.0);
    if (r >= 0 && statistics && lane == 0) statistics(r, 0) = mean, statistics(r, 1) = deviation;
    for (int64_t j = lane; j < n; j += kLanes) y(r, j) = (T)(((double)x(r, j) - mean) / deviation);
  });
}

FASTAE_KERNEL(exponential, kThreads) {
  const T* const x = o.real(at_exponential::s_x).p;
  T* const y = o.real(at_exponential::s_y).p;
  each(o.slot[at_exponential::s_x].columns, [&](int64_t j) { y[j] = exp(Vec<T>(x[j])).v; });
}

FASTAE_KERNEL(restore, kThreads) {
  namespace at = at_restore;
  const View<T> y = o.real(at::s_y), out = o.real(at::s_out);
  const View<double> statistics = o.view<double>(at::s_statistics);
  each_cell(o.m, out.columns,
            [&](int64_t r, int64_t j) { out(r, j) = (T)((double)y(r, j) * statistics(r, 1) + statistics(r, 0)); });
}

FASTAE_KERNEL(average, kThreads) {
  namespace at = at_average;
  const View<T> w = o.real(at::s_w), mean = o.real(at::s_mean);
  const T kept = (T)o.f[at::f_decay], rest = (T)(1.0 - o.f[at::f_decay]);
  each_cell(w.rows, w.columns, [&](int64_t r, int64_t j) { mean(r, j) = mul_add(kept, mean(r, j), rest * w(r, j)); });
}

FASTAE_KERNEL(code_statistics, kThreads) {
  const View<T> val = o.real(at_code_statistics::s_val);
  const Entries entries(o, at_code_statistics::s_count, val.columns);
  double* const sums = CodeWork(o).sums;
  each_row(o.m, [&](int64_t r, int lane) {
    const double active = entries_sum(entries, r, lane, [&](int64_t c) { return val(r, c) != T(0) ? 1.0 : 0.0; });
    if (r >= 0 && lane == 0) sums[r] = active;
  });
}

// since: first all rows further, then none for the latents that are active
FASTAE_KERNEL(fired_rows, kThreads) {
  const View<int64_t> since = o.view<int64_t>(at_fired::s_since);
  each(since.columns, [&](int64_t j) { since.p[j] += o.m; });
}
FASTAE_KERNEL(fired_latents, kThreads) {
  namespace at = at_fired;
  const View<T> val = o.real(at::s_val);
  const View<const int32_t> idx = o.view<const int32_t>(at::s_idx);
  int64_t* const since = o.view<int64_t>(at::s_since).p;
  each_entry(o.m, Entries(o, at::s_count, val.columns), [&](int64_t r, int64_t c) {
    if (val(r, c) != T(0)) since[idx(r, c)] = 0;
  });
}

}  // namespace fastae
