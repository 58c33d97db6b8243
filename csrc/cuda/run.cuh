// What a run itself needs: rows in, and the step's end.
#pragma once
#include "cuda/dense.cuh"

namespace fastae {

template <class S> FASTAE_INLINE const S* typed(const void* p, const S*) { return (const S*)p; }
template <class P> constexpr bool kToReals = false;
template <> constexpr bool kToReals<const T*> = true;

// Row `place` of a source into row r of x, and into its copy in bfloat16 where there is one, on the threads along x of
// the blocks along y.
FASTAE_INLINE void read_row(const DeviceSource& s, int64_t place, const View<T>& x, int64_t r, const Rounded& rounded) {
  const int64_t first = 4 * ((int64_t)blockIdx.y * blockDim.x + threadIdx.x),
                step = 4 * (int64_t)gridDim.y * blockDim.x;
  visit_dtype(s.dtype, [&](auto* type) {
    const auto* data = typed(s.data, type);
    constexpr bool same = kToReals<decltype(type)>;
    if (!s.indptr) {
      data += place * s.row_stride;
#pragma unroll 1
      for (int64_t j = first; j < s.columns; j += step) {
        const int n = (int)smaller<int64_t>(4, s.columns - j);
        const bool whole = n == 4 && aligned(x.at(r, j));
        Four v;
        if constexpr (same) {
          v = load_four(data + j, whole && aligned(data + j), n);
        } else {
#pragma unroll
          for (int q = 0; q < 4; ++q) v.v[q] = q < n ? convert<T>(data[j + q]) : T(0);
        }
        store_four(x.at(r, j), v, whole, n);
        rounded(r, j, v, n);
      }
    } else if (first == 0) {  // duplicates add up, in their order
      T* const out = x.at(r, 0);
      for (int64_t j = 0; j < s.columns; ++j) out[j] = T(0);
      for (int64_t q = s.indptr[place]; q < s.indptr[place + 1]; ++q) out[s.indices[q]] += convert<T>(data[q]);
      for (int64_t j = 0; j < s.columns; j += 4) {
        const int n = (int)smaller<int64_t>(4, s.columns - j);
        rounded(r, j, load_four(out + j, false, n), n);
      }
    }
  });
}

FASTAE_KERNEL(gather, kThreads, 1) {
  namespace at = at_gather;
  const Step& step = *o.step;
  const DeviceSource& s = step.source[o.i[at::i_source]];
  const View<T> x = o.real(at::s_x);
  const Rounded rounded(o, x);
  for (int64_t r = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; r < o.m; r += (int64_t)gridDim.x * blockDim.y) {
    const int64_t position = step.start + r, id = step.order ? step.order[position] : position;
    const int64_t place = step.first >= 0 ? position - step.first : id;
    read_row(s, place, x, r, rounded);
    if (threadIdx.x == 0 && blockIdx.y == 0) {
      if (o.has(at::s_rows)) ((int64_t*)o.slot[at::s_rows].p)[r] = step.first_row + id;
      if (o.has(at::s_weight))
        o.real(at::s_weight).p[r * o.slot[at::s_weight].ld] = s.weight ? (T)s.weight[place] : T(1);
    }
  }
}

FASTAE_KERNEL(take, kThreads, 1) {
  namespace at = at_take;
  const DeviceSource& s = o.step->source[o.i[at::i_source]];
  const int64_t* rows = (const int64_t*)o.slot[at::s_rows].p;
  const View<T> x = o.real(at::s_x);
  const Rounded rounded(o, x);
  for (int64_t r = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; r < o.m; r += (int64_t)gridDim.x * blockDim.y)
    read_row(s, rows[r], x, r, rounded);
}

// The sources of the next block of rows: source q is told by slots 2 q and 2 q + 1 (data and weight, indptr and indices
// by `p` and `ld`); extra: position of the first row, number of sources.
FASTAE_KERNEL(enter_block, 32) {
  if (threadIdx.x || blockIdx.x) return;
  Step& step = *o.step;
  step.first = o.extra[0];
  for (int q = 0; q < (int)o.extra[1]; ++q) {
    DeviceSource& s = step.source[q];
    const Slot &data = o.slot[2 * q], &sparse = o.slot[2 * q + 1];
    s.data = data.p;
    s.weight = (const double*)(uintptr_t)data.ld;
    s.indptr = (const int64_t*)sparse.p;
    s.indices = (const int32_t*)(uintptr_t)sparse.ld;
    s.row_stride = data.columns;
  }
}

// After a step's gradients: whether its values are finite.
FASTAE_KERNEL(check, 32) {
  if (threadIdx.x || blockIdx.x) return;
  Step& step = *o.step;
  for (int64_t i = 0; i < step.n_values; ++i) {
    const double v = step.values[step.number * step.n_values + i];
    if (!(v - v == 0)) step.stopped = 1;
  }
}

FASTAE_KERNEL(advance, 32) {
  if (threadIdx.x || blockIdx.x) return;
  o.step->number += 1;
  o.step->start += o.step->batch;
}

// work[0] (int64) = 1 where a number of slot 0 is not finite; every thread that finds one writes the same.
FASTAE_KERNEL(find_not_finite, kThreads) {
  const T* const x = o.real(0).p;
  each(o.slot[0].columns, [&](int64_t i) {
    if (!(x[i] - x[i] == T(0))) *(int64_t*)o.work = 1;
  });
}

// Sums of numbers that an op's kernels left at `work`, for values of the run: of the m rows' values over m, and of
// extra[1] numbers times a factor (extra[2]: the bits of a float64).
FASTAE_INLINE double work_sum(const Launch& o, int64_t n) {
  const double* v = (const double*)o.work;
  return block_sum(add_in_order(0.0, threadIdx.x, n, blockDim.x, [&](int64_t r) { return v[r]; }));
}
FASTAE_KERNEL(mean_value, 1024) {
  const double sum = work_sum(o, o.m);
  if (threadIdx.x == 0) o.add_value(o.extra[0], sum / (double)o.m);
}
FASTAE_KERNEL(sum_value, 1024) {
  const double sum = work_sum(o, o.extra[1]);
  if (threadIdx.x == 0) o.add_value(o.extra[0], same_bits<double>(o.extra[2]) * sum);
}

}  // namespace fastae
