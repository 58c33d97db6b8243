// Work on the flat parameter buffer: update rules, weight penalties, clipping, projections.
//
// Sums over all elements are the CPU's: blocks of 4096 elements by 16 virtual lanes, and then in order, as long as
// there are few blocks.
#pragma once
#include "cuda/formula.cuh"

namespace fastae {

constexpr int kFlatBlock = 4096;
constexpr int64_t kSumInOrder = 512;  // partial sums that one thread adds; more go by a fixed tree

// A rule's constants of the step that runs (extra[0] of them), and its parameters.
struct UpdateNumbers {
  T c[8], p[kMaxFloats];
  FASTAE_INLINE UpdateNumbers(const Launch& o, int64_t scalar) {
    const double* const scalars = o.scalars() + scalar;
    for (int q = 0; q < 8; ++q) c[q] = q < o.extra[0] ? (T)scalars[q] : T(0);
    for (int q = 0; q < kMaxFloats; ++q) p[q] = (T)o.f[q];
  }
  // A weight and its states, those of one place, after a step with gradient g.
  template <class F, class S> FASTAE_INLINE T apply(const F& formula, T w, T g, S& states) const {
    Vec<T> x = w;
    formula.apply(x, Vec<T>(g), states, c, p);
    return x.v;
  }
};

// extra[1], [2]: first parameter and number of them
FASTAE_KERNEL(update, kThreads, 1) {
  namespace at = at_update;
  const int64_t first = o.extra[1];
  T* const w = o.real(at::s_w).p;
  const T* const g = o.real(at::s_g).p;
  T* const state[3] = {o.real(at::s_s0).p, o.real(at::s_s1).p, o.real(at::s_s2).p};
  const UpdateNumbers numbers(o, o.i[at::i_scalar]);
  visit_update<Vec<T>, T>((int)o.i[at::i_rule], [&](auto formula) {
    constexpr int S = decltype(formula)::n_states;
    each_four(1, o.extra[2], [&](int64_t, int64_t k, int n) {
      const int64_t i = first + k;
      bool whole = n == 4 && aligned(w + i) && aligned(g + i);
      for (int q = 0; q < S; ++q) whole = whole && aligned(state[q] + i);
      Four x = load_four(w + i, whole, n), s[S + 1];
      const Four slope = load_four(g + i, whole, n);
#pragma unroll
      for (int q = 0; q < S; ++q) s[q] = load_four(state[q] + i, whole, n);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Vec<T> mine[S + 1];
        for (int q = 0; q < S; ++q) mine[q] = s[q].v[e];
        x.v[e] = numbers.apply(formula, x.v[e], slope.v[e], mine);
        for (int q = 0; q < S; ++q) s[q].v[e] = mine[q].v;
      }
      store_four(w + i, x, whole, n);
#pragma unroll
      for (int q = 0; q < S; ++q) store_four(state[q] + i, s[q], whole, n);
    });
  });
}

// work[b] <- sum over block b of of(f(i)); f(i), a T, may store as it goes. Elements go by coalesced, and through shared
// memory to the lanes that add them in order.
template <class F, class G> FASTAE_INLINE void flat_sums(const Launch& o, int64_t n, const F& f, const G& of) {
  __shared__ T value[kFlatBlock];
  double* const work = (double*)o.work;
  for (int64_t b = blockIdx.x; b * kFlatBlock < n; b += gridDim.x) {
    const int count = (int)smaller<int64_t>(kFlatBlock, n - b * kFlatBlock);
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads) value[i] = f(b * kFlatBlock + i);
    __syncthreads();
    if (threadIdx.x < 32) {  // a warp, as sums want whole ones
      const int lane = threadIdx.x % kLanes;
      const double sum = row_sum(threadIdx.x < kLanes ? count : 0, lane, [&](int64_t i) { return of(value[i]); });
      if (threadIdx.x == 0) work[b] = sum;
    }
    __syncthreads();
  }
}

// Sum of n partial sums, on all threads of a block of 1024.
FASTAE_INLINE double sum_of_blocks(const double* partial, int64_t n) {
  __shared__ double part[kSumInOrder], total;
  if (n > kSumInOrder) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total = sum;
  } else {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) part[i] = partial[i];
    __syncthreads();
    if (threadIdx.x == 0) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += part[i];
      total = sum;
    }
  }
  __syncthreads();
  return total;
}

FASTAE_KERNEL(weight_penalty, kThreads) {
  namespace at = at_weight_penalty;
  T *const w = o.real(at::s_w).p, *const dw = o.real(at::s_dw).p;
  const int64_t n = o.slot[at::s_w].rows * o.slot[at::s_w].columns;
  const T p[2] = {(T)o.f[at::f_p0], (T)o.f[at::f_p1]};
  const DeviceFormula* const own = registered(o);
  flat_sums(
      o, n,
      [&](int64_t i) {
        const T x = w[i];
        T value = T(0), smooth = T(0);
        if (own) {
          smooth = run_program(own->part[2], x, x, p[0], p[1]);
          value = run_program(own->part[0], x, x, p[0], p[1]);
        } else {
          visit_penalty<Vec<T>, T>((int)o.i[at::i_penalty], [&](auto formula) {
            smooth = formula.smooth(Vec<T>(x), p).v;
            value = formula.value(Vec<T>(x), p).v;
          });
        }
        dw[i] = dw[i] + smooth;
        return value;
      },
      [](T v) { return (double)v; });
}

FASTAE_KERNEL(clip_values, kThreads) {
  namespace at = at_clip_gradient;
  T* const g = o.real(at::s_g).p;
  const Vec<T> most = (T)o.f[at::f_limit], least = (T)-o.f[at::f_limit];
  each(o.slot[at::s_g].rows * o.slot[at::s_g].columns,
       [&](int64_t i) { g[i] = max(min(Vec<T>(g[i]), most), least).v; });
}

// float64 throughout: the square of a large float32 gradient must not overflow
FASTAE_KERNEL(clip_squares, kThreads) {
  const Slot& g = o.slot[at_clip_gradient::s_g];
  const T* const p = (const T*)g.p;
  flat_sums(o, g.rows * g.columns, [&](int64_t i) { return p[i]; }, [](T x) { return (double)x * (double)x; });
}

// work[blocks] <- what the gradient is multiplied by, 1 for nothing
FASTAE_KERNEL(clip_factor, 1024) {
  namespace at = at_clip_gradient;
  const int64_t n = o.slot[at::s_g].rows * o.slot[at::s_g].columns, blocks = ceil_div(n, kFlatBlock);
  double* const work = (double*)o.work;
  const double norm = ::sqrt(sum_of_blocks(work, blocks)), limit = o.f[at::f_limit];
  if (threadIdx.x == 0) work[blocks] = norm > limit ? limit / norm : 1.0;
}

FASTAE_KERNEL(clip_scale, kThreads) {
  namespace at = at_clip_gradient;
  T* const g = o.real(at::s_g).p;
  const int64_t n = o.slot[at::s_g].rows * o.slot[at::s_g].columns;
  const double factor = ((const double*)o.work)[ceil_div(n, kFlatBlock)];
  if (factor == 1.0) return;
  each(n, [&](int64_t i) { g[i] = g[i] * (T)factor; });
}

FASTAE_KERNEL(project_elements, kThreads, 1) {
  namespace at = at_project;
  const View<T> w = o.real(at::s_w);
  const T p[2] = {(T)o.f[at::f_p0], (T)o.f[at::f_p1]};
  const int64_t kind = o.i[at::i_kind];
  const T step = kind == project_kind::prox ? (T)o.scalars()[o.i[at::i_scalar]] : T(0);
  const DeviceFormula* const own = registered(o);
  each_cell(w.rows, w.columns, [&](int64_t r, int64_t j) {
    Vec<T> x = w(r, j);
    if (kind == project_kind::range) x = min(max(x, Vec<T>(p[0])), Vec<T>(p[1]));
    else if (kind == project_kind::non_negative) x = max(x, Vec<T>(T(0)));
    else if (own) x = run_program(own->part[3], x.v, step, p[0], p[1]);
    else visit_penalty<Vec<T>, T>((int)o.i[at::i_penalty], [&](auto formula) { x = formula.prox(x, Vec<T>(step), p); });
    w(r, j) = x.v;
  });
}

// |w_r|^2: sixteen lanes of multiply-adds, made again in float64 where float32 could overflow or lose it
FASTAE_INLINE double square_of(const View<T>& w, int64_t r, int lane) {
  const int64_t n = r < 0 ? 0 : w.columns;
  T sum = T(0);
  for (int64_t j = lane; j < n; j += kLanes) sum = mul_add(w(r, j), w(r, j), sum);
  for (int h = kLanes / 2; h; h /= 2) sum += __shfl_down_sync(0xffffffffu, sum, h, kLanes);
  const double square = (double)__shfl_sync(0xffffffffu, sum, 0, kLanes);
  const bool good = square > 1e-30 && square < 1e30;
  if (__all_sync(0xffffffffu, good)) return square;
  const double again = row_sum(n, lane, [&](int64_t j) { return (double)w(r, j) * (double)w(r, j); });
  return good ? square : again;
}

FASTAE_KERNEL(project_unit, kThreads) {
  const View<T> w = o.real(at_project::s_w);
  each_row(w.rows, [&](int64_t r, int lane) {
    const double norm = ::sqrt(square_of(w, r, lane));
    if (r < 0 || !(norm > 0)) return;
    const T scale = (T)(1.0 / norm);
    for (int64_t j = lane; j < w.columns; j += kLanes) w(r, j) = w(r, j) * scale;
  });
}

FASTAE_KERNEL(project_max_norm, kThreads) {
  namespace at = at_project;
  const View<T> w = o.real(at::s_w);
  const double most = (double)(T)o.f[at::f_p0];
  each_row(w.rows, [&](int64_t r, int lane) {
    const double norm = ::sqrt(row_sum(r < 0 ? 0 : w.columns, lane, [&](int64_t j) { return w(r, j) * w(r, j); }));
    if (r < 0 || !(norm > most)) return;
    const T scale = (T)(most / norm);
    for (int64_t j = lane; j < w.columns; j += kLanes) w(r, j) = w(r, j) * scale;
  });
}

}  // namespace fastae
