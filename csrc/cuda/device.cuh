// What every kernel sees: its record as a Launch, the step it belongs to, and how threads are laid over rows.
//
// A kernel is one op of a plan, or a part of one. Its record comes by value; everything that changes from step to step
// lies in device memory, so that a captured graph can be replayed. T is the plan's real type: the sources are compiled
// once for float and once for double.
#pragma once
#include "vecmath.h"

#include "catalog.h"
#include "philox.h"
#include "schema.h"

#ifndef FASTAE_REAL
#define FASTAE_REAL float
#endif

#ifndef FASTAE_DYNAMIC_SHARED  // of a launch's own size; once in a kernel
#define FASTAE_DYNAMIC_SHARED(NAME) extern __shared__ __align__(16) unsigned char NAME[]
#endif

namespace fastae {

typedef FASTAE_REAL T;

// Rows that gather reads, as Source in plan.py.
struct DeviceSource {
  const void* data;
  int64_t dtype, row_stride, columns;
  const int64_t* indptr;  // CSR where not null
  const int32_t* indices;
  const double* weight;
};

constexpr int kMaxSources = 4;
constexpr int kFormulaExtra = 3;

// One per run, in device memory.
struct Step {
  int64_t number, start;  // of the step; its first row
  int64_t stopped;        // a step's values were not finite: nothing moves any more
  int64_t batch, n_values, n_scalars;
  int64_t first_row;     // added to a row's place to make its id
  const int64_t* order;  // places of rows in training order, null where they come in sequence
  int64_t first;         // sources that hold a block of rows in training order: the position of its first, else -1
  double* values;
  const double* scalars;
  uint64_t seed, epoch;
  DeviceSource source[kMaxSources];
};

struct Slot {
  void* p;  // null where the record names no buffer
  int64_t ld, rows, columns;
};

// A matrix: first element and distance of its rows.
template <class E> struct View {
  E* p;
  int64_t ld, rows, columns;
  FASTAE_INLINE E* at(int64_t r, int64_t c) const { return p + r * ld + c; }
  FASTAE_INLINE E& operator()(int64_t r, int64_t c) const { return p[r * ld + c]; }
  FASTAE_INLINE explicit operator bool() const { return p != nullptr; }
};

struct Launch {
  Step* step;
  int64_t m;   // rows of the batch
  void* work;  // memory of the op's own kernels
  Slot slot[kMaxSlots];
  int64_t i[kMaxInts];
  double f[kMaxFloats];
  int64_t extra[4];  // what the backend adds to a record; the last one a registered formula's address

  template <class E> FASTAE_INLINE View<E> view(int s) const {
    return View<E>{(E*)slot[s].p, slot[s].ld, slot[s].rows, slot[s].columns};
  }
  FASTAE_INLINE View<T> real(int s) const { return view<T>(s); }
  FASTAE_INLINE bool has(int s) const { return slot[s].p != nullptr; }
  // A row's scalars of the step that runs.
  FASTAE_INLINE const double* scalars() const { return step->scalars + step->number * step->n_scalars; }
  FASTAE_INLINE void add_value(int64_t column, double value) const {
    if (column >= 0) step->values[step->number * step->n_values + column] += value;
  }
};

// Body of a kernel that any run may stop before: FASTAE_KERNEL(name, threads) { ... o.slot ... }. A third argument 1
// lets it have the registers of one block, where more blocks side by side would cost spills.
#define FASTAE_KERNEL(NAME, ...)                                                            \
  FASTAE_INLINE void NAME##_body(const Launch& o);                                          \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) fastae_##NAME(const Launch o) { \
    if (!o.step->stopped) NAME##_body(o);                                                   \
  }                                                                                         \
  FASTAE_INLINE void NAME##_body(const Launch& o)

// What a thread reads or writes at a time where memory lies on 16 bytes.
constexpr int kPart = 16 / sizeof(T);
struct alignas(16) Part {
  T v[kPart];
};

constexpr int kThreads = 256;  // of a block, where nothing else is said
constexpr int kLanes = 16;     // virtual lanes of a sum over a row

FASTAE_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class A> FASTAE_INLINE A smaller(A a, A b) { return a < b ? a : b; }
template <class A> FASTAE_INLINE A larger(A a, A b) { return a > b ? a : b; }

// f(row, column) for every element; the block's threads lie over (columns, rows), the grid over (rows, columns). Most
// threads have one element: unrolled, the loops would only be longer.
template <class F> FASTAE_INLINE void each_cell(int64_t rows, int64_t columns, const F& f) {
#pragma unroll 1
  for (int64_t r = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; r < rows; r += (int64_t)gridDim.x * blockDim.y)
#pragma unroll 1
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < columns; j += (int64_t)gridDim.y * blockDim.x)
      f(r, j);
}

// f(i) for i in [0, n)
template <class F> FASTAE_INLINE void each(int64_t n, const F& f) {
#pragma unroll 1
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) f(i);
}

// Four neighbouring elements.
struct alignas(16) Four {
  T v[4];
};
template <class E> FASTAE_INLINE bool aligned(const E* p) { return ((uintptr_t)p & (sizeof(E) == 2 ? 7 : 15)) == 0; }
// The first n of four elements at p; whole: all four, at a place that is `aligned`.
FASTAE_INLINE Four load_four(const T* p, bool whole, int n) {
  if (whole) return *(const Four*)p;
  Four x;
#pragma unroll
  for (int q = 0; q < 4; ++q) x.v[q] = q < n ? p[q] : T(0);
  return x;
}
FASTAE_INLINE void store_four(T* p, const Four& x, bool whole, int n) {
  if (whole) {
    *(Four*)p = x;
    return;
  }
#pragma unroll
  for (int q = 0; q < 4; ++q)
    if (q < n) p[q] = x.v[q];
}

// f(row, column, n) for every four neighbours of a row, or the n that are left of them, laid out as for each_cell.
template <class F> FASTAE_INLINE void each_four(int64_t rows, int64_t columns, const F& f) {
  each_cell(rows, ceil_div(columns, 4),
            [&](int64_t r, int64_t q) { f(r, 4 * q, (int)smaller<int64_t>(4, columns - 4 * q)); });
}

// sum + f(from) + f(from + by) + ... below `to`, in that order; sixteen numbers are fetched before they are added.
template <class A, class F> FASTAE_INLINE A add_in_order(A sum, int64_t from, int64_t to, int64_t by, const F& f) {
  constexpr int kAhead = 16;
#pragma unroll 1
  for (; from + (kAhead - 1) * by < to; from += kAhead * by) {
    A x[kAhead];
#pragma unroll
    for (int q = 0; q < kAhead; ++q) x[q] = f(from + q * by);
#pragma unroll
    for (int q = 0; q < kAhead; ++q) sum += x[q];
  }
#pragma unroll 1
  for (; from < to; from += by) sum += f(from);
  return sum;
}

// f(row, lane) on sixteen threads a row, for blocks of (16, rows); all sixteen arrive together. Rows beyond the last
// are given as -1, so that every thread of a warp takes part in what follows.
template <class F> FASTAE_INLINE void each_row(int64_t rows, const F& f) {
  const int64_t stride = (int64_t)gridDim.x * blockDim.y;
#pragma unroll 1
  for (int64_t first = (int64_t)blockIdx.x * blockDim.y; first < rows; first += stride) {
    const int64_t r = first + threadIdx.y;
    f(r < rows ? r : -1, (int)threadIdx.x);
  }
}

// The sum of sixteen threads' numbers, by the tree of the CPU's Lanes::sum, on all of them.
FASTAE_INLINE double lanes_sum(double x) {
  for (int h = kLanes / 2; h; h /= 2) x += __shfl_down_sync(0xffffffffu, x, h, kLanes);
  return __shfl_sync(0xffffffffu, x, 0, kLanes);
}

// sum of f(column) over [0, n): lane l takes the columns l, l + 16, ...; n < 1 for threads without a row. Unroll: 1 for
// an f that is long.
template <int Unroll = 4, class F> FASTAE_INLINE double row_sum(int64_t n, int lane, const F& f) {
  double sum = 0;
#pragma unroll Unroll
  for (int64_t j = lane; j < n; j += kLanes) sum += (double)f(j);
  return lanes_sum(sum);
}

// The largest of f(column), NaN where there is one; -infinity for none.
template <class F> FASTAE_INLINE T row_max(int64_t n, int lane, const F& f) {
  T m = -Format<T>::inf;
  for (int64_t j = lane; j < n; j += kLanes) m = max(Vec<T>(f(j)), Vec<T>(m)).v;
  for (int h = kLanes / 2; h; h /= 2) m = max(Vec<T>(m), Vec<T>(__shfl_down_sync(0xffffffffu, m, h, kLanes))).v;
  return __shfl_sync(0xffffffffu, m, 0, kLanes);
}

// The sum of a block's numbers, thread by thread in a fixed tree, on its first thread. Up to 1024 threads, a multiple
// of 32 of them or a power of two.
FASTAE_INLINE double block_sum(double x) {
  __shared__ double part[1024];
  const int id = threadIdx.y * blockDim.x + threadIdx.x, n = blockDim.x * blockDim.y;
  part[id] = x;
  int width = 1;
  while (width < n) width *= 2;
  __syncthreads();
  for (int h = width / 2; h; h /= 2) {
    if (id < h && id + h < n) part[id] += part[id + h];
    __syncthreads();
  }
  const double sum = part[0];
  __syncthreads();
  return sum;
}

// The upper half of a float, rounded to nearest even; a NaN stays one.
FASTAE_INLINE uint16_t bf16_from(float x) {
  const uint32_t u = same_bits<uint32_t>(x);
  return (uint16_t)(x != x ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

FASTAE_INLINE uint32_t rate_threshold(double rate) { return (uint32_t)(uint64_t)(rate * 4294967296.0); }

// The four words of the columns that share a block with `column`, of a row's id.
FASTAE_INLINE void random_words(const Step* step, uint32_t stream, int64_t row, int64_t column, uint32_t w[4]) {
  w[0] = (uint32_t)(column / 4) | stream << 24;
  w[1] = (uint32_t)row;
  w[2] = (uint32_t)((uint64_t)row >> 32);
  w[3] = (uint32_t)step->epoch;
  philox_block(w, (uint32_t)step->seed, (uint32_t)(step->seed >> 32));
}

// Inverted dropout of one element; 0 also where it is infinite.
struct Dropout {
  const Step* step;
  const int64_t* rows;
  uint32_t stream, threshold;
  T scale, back;
  FASTAE_INLINE Dropout(const Launch& o, int rows_slot, int64_t s, double rate)
      : step(o.step),
        rows((const int64_t*)o.slot[rows_slot].p),
        stream((uint32_t)s),
        threshold(rate_threshold(rate)),
        scale((T)(1.0 / (1.0 - rate))),
        back((T)(1.0 - rate)) {}
  // The words that decide about four columns.
  FASTAE_INLINE void words(int64_t r, int64_t j, uint32_t w[4]) const { random_words(step, stream, rows[r], j, w); }
  FASTAE_INLINE T dropped(uint32_t word, T x) const { return word >= threshold ? x * scale : T(0); }
  FASTAE_INLINE T operator()(int64_t r, int64_t j, T x) const {
    uint32_t w[4];
    words(r, j, w);
    return dropped(w[j & 3], x);
  }
  FASTAE_INLINE void four(int64_t r, int64_t j, Four& x) const {
    uint32_t w[4];
    words(r, j, w);
#pragma unroll
    for (int q = 0; q < 4; ++q) x.v[q] = dropped(w[q], x.v[q]);
  }
};

}  // namespace fastae
