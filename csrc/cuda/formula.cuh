// Formulas registered at run time as text: programs of operations (fastae/registry/program.py), run element by element.
//
// Operations are the vector functions that the catalogue's own formulas are made of, on one lane, so the bits are those
// of csrc/formula.h. Functions here are calls: a program's switch, or the catalogue's thirteen activations, in every
// kernel that needs one would make most of the code.
#pragma once
#include "cuda/device.cuh"

namespace fastae {

constexpr int kFormulaArguments = 2, kFormulaParameters = 2, kFormulaFunctions = 4;  // as in kernels.h
constexpr int kMaxFormulaTemporaries = 24;
constexpr int kFormulaStep = 6;  // int32 of a step: operation, temporary of the result, four operands

// Written by fastae/backends/cuda/formulas.py.
struct DevicePart {
  const int32_t* code;
  int64_t length;  // steps; -1 - i: the formula's function i is a Python function
  const T* constants;
  int64_t n_constants;
};
struct DeviceFormula {
  int64_t from_x;                      // an activation's derivative is taken from the pre-activation
  DevicePart part[kFormulaFunctions];  // y, dy, d2y; value, dy; or value, dw, smooth, prox
};

// The record's formula where it was registered at run time, else null.
FASTAE_INLINE const DeviceFormula* registered(const Launch& o) { return (const DeviceFormula*)o.extra[kFormulaExtra]; }

// Python functions. On a device Numba's code is linked in where a kernel is made for a formula (cuda/user.py), and
// FASTAE_USER has a bit for each; on the host they are Numba's C functions.
#ifdef FASTAE_USER
extern "C" __device__ T fastae_user_0(T a, T b, T p0, T p1);
extern "C" __device__ T fastae_user_1(T a, T b, T p0, T p1);
extern "C" __device__ T fastae_user_2(T a, T b, T p0, T p1);
extern "C" __device__ T fastae_user_3(T a, T b, T p0, T p1);
FASTAE_INLINE T user_function(const DevicePart& f, T a, T b, T p0, T p1) {
  constexpr int all = FASTAE_USER;
  const int64_t i = -1 - f.length;
  if constexpr (all & 1)
    if (i == 0) return fastae_user_0(a, b, p0, p1);
  if constexpr (all & 2)
    if (i == 1) return fastae_user_1(a, b, p0, p1);
  if constexpr (all & 4)
    if (i == 2) return fastae_user_2(a, b, p0, p1);
  if constexpr (all & 8)
    if (i == 3) return fastae_user_3(a, b, p0, p1);
  return Format<T>::inf - Format<T>::inf;
}
#elif !defined(__CUDACC__)
inline T user_function(const DevicePart& f, T a, T b, T p0, T p1) { return ((T (*)(T, T, T, T))f.code)(a, b, p0, p1); }
#endif

// A part's value at a, b; p: two parameters
__device__ __noinline__ T run_program(const DevicePart& f, T a, T b, T p0, T p1) {
#if defined(FASTAE_USER) || !defined(__CUDACC__)
  if (f.length < 0) return user_function(f, a, b, p0, p1);
#endif
  T temporary[kMaxFormulaTemporaries] = {};
  const auto operand = [&](int32_t i) {
    constexpr int kFixed = kFormulaArguments + kFormulaParameters;
    if (i < kFixed) return i == 0 ? a : i == 1 ? b : i == 2 ? p0 : p1;
    return i - kFixed < f.n_constants ? f.constants[i - kFixed] : temporary[i - kFixed - f.n_constants];
  };
  T result = a;
  const int32_t* const end = f.code + f.length * kFormulaStep;
#pragma unroll 1
  for (const int32_t* c = f.code; c < end; c += kFormulaStep) {
    const Vec<T> x0 = operand(c[2]), x1 = operand(c[3]), x2 = operand(c[4]), x3 = operand(c[5]);
    visit_operation<Vec<T>>(c[0], [&](auto operation) { result = operation(x0, x1, x2, x3).v; });
    temporary[c[1]] = result;
  }
  return result;
}

// Function `part` of an activation of the catalogue: y(x), or dy or d2y of what they are taken from.
template <int part> FASTAE_INLINE T activation_part(int id, T x, T p0, T p1) {
  const T p[2] = {p0, p1};
  T y = x;
  visit_activation<Vec<T>, T>(id, [&](auto formula) {
    if constexpr (part == 0) y = formula.y(Vec<T>(x), p).v;
    else if constexpr (part == 1) y = formula.dy(Vec<T>(x), p).v;
    else y = formula.d2y(Vec<T>(x), p).v;
  });
  return y;
}

// The same as a call, for kernels in which it stands more than once.
template <int part> __device__ __noinline__ T call_activation(int id, T x, T p0, T p1) {
  return activation_part<part>(id, x, p0, p1);
}

// An activation of the catalogue, parameters at f.
struct Activation {
  int id;
  T p0, p1;
  FASTAE_INLINE Activation(const Launch&, int64_t i, const double* f) : id((int)i), p0((T)f[0]), p1((T)f[1]) {}
  FASTAE_INLINE T y(T x) const { return id == 0 ? x : activation_part<0>(id, x, p0, p1); }
  FASTAE_INLINE T dy(T s) const { return id == 0 ? T(1) : activation_part<1>(id, s, p0, p1); }
  FASTAE_INLINE T d2y(T s) const { return activation_part<2>(id, s, p0, p1); }
  FASTAE_INLINE bool from_x() const { return activation_needs_x(id); }
  // whether the derivative of a dropped unit, which has y = 0, is 0 anyway
  FASTAE_INLINE bool masks() const { return activation_grad_masks(id); }
};

// The same, or one registered at run time.
struct AnyActivation : Activation {
  const DeviceFormula* formula;
  FASTAE_INLINE AnyActivation(const Launch& o, int64_t i, const double* f)
      : Activation(o, i, f), formula(registered(o)) {}
  template <int part> FASTAE_INLINE T called(T x) const {
    return formula ? run_program(formula->part[part], x, x, p0, p1) : call_activation<part>(id, x, p0, p1);
  }
  FASTAE_INLINE T y(T x) const { return formula || id ? called<0>(x) : x; }
  FASTAE_INLINE T dy(T s) const { return formula || id ? called<1>(s) : T(1); }
  FASTAE_INLINE T d2y(T s) const { return formula ? run_program(formula->part[2], s, s, p0, p1) : Activation::d2y(s); }
  FASTAE_INLINE bool from_x() const { return formula ? formula->from_x != 0 : Activation::from_x(); }
  FASTAE_INLINE bool masks() const { return !formula && Activation::masks(); }
};

}  // namespace fastae
