// Reading rows of any stored type, dense or CSR.
#pragma once
#include "gemm.h"
#include "kernels.h"

namespace fastae {
namespace {

FASTAE_INLINE int64_t index_at(const void* p, bool wide, int64_t i) {
  return wide ? ((const int64_t*)p)[i] : ((const int32_t*)p)[i];
}

constexpr int64_t kShortRow = 256;  // elements: a call to copy them would cost more than the copy

// Fetches the beginning of a dense row that is read some rows later.
FASTAE_INLINE void fetch_row(const SourceRecord& s, int64_t row) {
  visit_dtype(s.dtype, [&](auto* type) {
    const char* p = (const char*)s.data + row * s.row_stride * (int64_t)sizeof *type;
    const int64_t bytes = smaller(s.columns * (int64_t)sizeof *type, 512);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
    __builtin_prefetch(p + bytes - 1);
  });
}

template <class T> void read_row(const SourceRecord& s, int64_t row, T* out) noexcept {
  visit_dtype(s.dtype, [&](auto* type) {
    typedef typename std::remove_const<typename std::remove_pointer<decltype(type)>::type>::type S;
    const S* data = (const S*)s.data;
    if (!s.indptr) {
      data += row * s.row_stride;
      if (std::is_same<S, T>::value && s.columns > kShortRow) {
        __builtin_memcpy(out, data, (size_t)s.columns * sizeof(T));
      } else {
        for (int64_t j = 0; j < s.columns; j += Vec<T>::N) {
          const int n = (int)smaller(Vec<T>::N, s.columns - j);
          load_as<T>(data + j, n).store(out + j, n);
        }
      }
      return;
    }
    for (int64_t j = 0; j < s.columns; ++j) out[j] = T(0);
    const int64_t end = index_at(s.indptr, s.indptr64, row + 1);
    for (int64_t q = index_at(s.indptr, s.indptr64, row); q < end; ++q)
      out[index_at(s.indices, s.indices64, q)] += convert<T>(data[q]);  // duplicates add up
  });
}

// Whether 0 x, summed over what of(x) leaves of x, is 0: so for finite x, NaN otherwise.
template <class S, class F> FASTAE_INLINE bool sum_finite(const S* q, int64_t n, const F& of) {
  typedef Vec<S> V;
  V sum[4] = {V(S(0)), V(S(0)), V(S(0)), V(S(0))};
  int64_t j = 0;
  for (; j + 4 * V::N <= n; j += 4 * V::N)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] = fma(of(V::load(q + j + v * V::N)), V(S(0)), sum[v]);
  for (; j < n; j += V::N) sum[0] = fma(of(V::load(q + j, (int)smaller(V::N, n - j))), V(S(0)), sum[0]);
  return !any(((sum[0] + sum[1]) + (sum[2] + sum[3])) != V(S(0)));
}

// Whether every element is finite (or NaN, where that is allowed).
template <class S>
bool rows_finite(const S* p, int64_t rows, int64_t columns, int64_t stride, int threads,
                 bool allow_nan = false) noexcept {
  if (stride == columns) {  // one long row
    columns *= rows;
    rows = 1;
  }
  constexpr int64_t kBlock = 1 << 15;
  const int64_t blocks = ceil_div(columns, kBlock);
  int bad = 0;
  parallel(useful_threads(threads, (double)rows * columns), rows * blocks, [&](int64_t task) {
    const int64_t first = task % blocks * kBlock, n = smaller(kBlock, columns - first);
    const S* q = p + task / blocks * stride + first;
    if constexpr (std::is_same<S, float>::value || std::is_same<S, double>::value) {
      typedef Vec<S> V;
      const bool good = allow_nan ? sum_finite(q, n, [](V x) { return select(x == x, x, V(S(0))); })
                                  : sum_finite(q, n, [](V x) { return x; });
      if (!good) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
    } else {
      int found = 0;
      constexpr uint16_t exponent = std::is_same<S, Half>::value ? 0x7c00 : 0x7f80;
      if (allow_nan)
        for (int64_t j = 0; j < n; ++j) found |= (q[j].bits & 0x7fff) == exponent;
      else
        for (int64_t j = 0; j < n; ++j) found |= (q[j].bits & exponent) == exponent;
      if (found) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
    }
  });
  return !bad;
}

// Rows [first, first + m) of a dense source.
FASTAE_INLINE bool source_finite(const SourceRecord& s, int64_t first, int64_t m, bool allow_nan) noexcept {
  bool good = true;
  visit_dtype(s.dtype, [&](auto* type) {
    typedef typename std::remove_const<typename std::remove_pointer<decltype(type)>::type>::type S;
    if constexpr (!std::is_integral<S>::value)
      good = rows_finite((const S*)s.data + first * s.row_stride, m, s.columns, s.row_stride, 1, allow_nan);
  });
  return good;
}

bool all_finite(const void* data, int64_t dtype, int64_t rows, int64_t columns, int64_t stride, int threads) noexcept {
  switch (dtype) {
    case source_dtype::f32: return rows_finite((const float*)data, rows, columns, stride, threads);
    case source_dtype::f64: return rows_finite((const double*)data, rows, columns, stride, threads);
    case source_dtype::f16: return rows_finite((const Half*)data, rows, columns, stride, threads);
    case source_dtype::bf16: return rows_finite((const BFloat16*)data, rows, columns, stride, threads);
    default: return true;
  }
}

}  // namespace
}  // namespace fastae
