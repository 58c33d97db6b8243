// Formulas registered at run time, worked out on blocks of elements that stay in the first-level cache.
//
// A formula given as text is a program (fastae/registry/program.py): every operation is one pass over the block with the vector
// functions that the catalogue's own formulas are made of, so the bits are those of a formula that was compiled in.
// A formula given as a Python function is a C function made by Numba, called once per block.
#pragma once
#include "kernels.h"
#include "pack.h"
#include "vecmath.h"

#include "catalog.h"

namespace fastae {
namespace {

template <class T> constexpr int64_t kFormulaBlock = 1024 / (int64_t)sizeof(T);  // elements
constexpr int64_t kFormulaRound = 64;  // compiled functions take multiples of it: no element falls into a scalar rest

template <class T> struct alignas(64) FormulaBlock {
  T v[kFormulaBlock<T>];
};

// out[j] = the program's value at a[j], b[j]; n a multiple of the vectors' width
template <class T>
__attribute__((noinline)) void run_program(const FormulaPart& f, const T* a, const T* b, const T* p, T* out,
                                           int64_t n) noexcept {
  typedef Vec<T> V;
  constexpr int kFixed = kFormulaParameters + kMaxFormulaConstants;
  FormulaBlock<T> temporary[kMaxFormulaTemporaries];
  alignas(64) T fixed[kFixed][V::N];
  const T* at[kFormulaArguments + kFixed + kMaxFormulaTemporaries];
  int64_t moves[kFormulaArguments + kFixed + kMaxFormulaTemporaries];  // 0: the same vector everywhere
  at[0] = a, at[1] = b;
  moves[0] = moves[1] = -1;
  int64_t k = kFormulaArguments;
  const auto hold = [&](T value) {
    T* const place = fixed[k - kFormulaArguments];
    V(value).store(place);
    at[k] = place;
    moves[k++] = 0;
  };
  for (int i = 0; i < kFormulaParameters; ++i) hold(p[i]);
  for (int64_t i = 0; i < f.n_constants; ++i) hold((T)f.constants[i]);
  for (int64_t i = 0; i < f.n_temporaries; ++i) {
    at[k] = temporary[i].v;
    moves[k++] = -1;
  }
  const int32_t* const end = f.code + f.length * kFormulaStep;
  for (const int32_t* c = f.code; c < end; c += kFormulaStep) {
    T* const to = c + kFormulaStep == end ? out : temporary[c[1]].v;
    const T *const x0 = at[c[2]], *const x1 = at[c[3]], *const x2 = at[c[4]], *const x3 = at[c[5]];
    const int64_t m0 = moves[c[2]], m1 = moves[c[3]], m2 = moves[c[4]], m3 = moves[c[5]];
    visit_operation<V>(c[0], [&](auto operation) {
      for (int64_t j = 0; j < n; j += V::N)
        operation(V::load(x0 + (j & m0)), V::load(x1 + (j & m1)), V::load(x2 + (j & m2)), V::load(x3 + (j & m3)))
            .store(to + j);
    });
  }
}

// out[j] = f(a[j], b[j]) for j < n <= kFormulaBlock; what lies behind n in the blocks is overwritten. b may be null.
template <class T>
void evaluate(const FormulaPart& f, FormulaBlock<T>& a, FormulaBlock<T>* b, const T* p, FormulaBlock<T>& out,
              int64_t n) noexcept {
  const int64_t round = f.function ? kFormulaRound : Vec<T>::N, whole = ceil_div(n, round) * round;
  for (int64_t j = n; j < whole; ++j) {
    a.v[j] = T(0);
    if (b) b->v[j] = T(0);
  }
  const T* const second = b ? b->v : a.v;
  if (!f.function) return run_program(f, a.v, second, p, out.v, whole);
  typedef int64_t Function(const T*, const T*, const T*, T*, int64_t);
  if (((Function*)f.function)(a.v, second, p, out.v, whole) == whole) return;
  for (int64_t j = 0; j < n; ++j) out.v[j] = (T)__builtin_nan("");  // an exception: the loss says so
}

// f(first row, rows, first column, columns) over the pieces of a matrix that fit a block
template <class T, class F> FASTAE_INLINE void over_pieces(int64_t rows, int64_t columns, const F& f) {
  for (int64_t j = 0; j < columns; j += kFormulaBlock<T>) {
    const int64_t width = smaller(kFormulaBlock<T>, columns - j), most = kFormulaBlock<T> / width;
    for (int64_t r = 0; r < rows; r += most) f(r, smaller(most, rows - r), j, width);
  }
}

}  // namespace
}  // namespace fastae
