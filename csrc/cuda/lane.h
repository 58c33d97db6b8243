// Vec<T>, Mask<T>, IntVec<T> with one lane: what vec.h is on a CPU, for one thread of a GPU.
//
// So vecmath.h and catalog.h are the same text on both, and give the same bits: every operation is one that IEEE 754
// defines, fused multiply-adds are written out, and contraction is off (--fmad=false).
#pragma once
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef uint64_t uintptr_t;
#define __builtin_inff() __builtin_bit_cast(float, 0x7f800000u)
#define __builtin_inf() __builtin_bit_cast(double, 0x7ff0000000000000ull)
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

#define FASTAE_INLINE __device__ __forceinline__

#include "lane_type.h"

namespace fastae {
namespace {

template <class To, class From> FASTAE_INLINE To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
FASTAE_INLINE float mul_add(float a, float b, float c) { return fmaf(a, b, c); }
FASTAE_INLINE double mul_add(double a, double b, double c) { return ::fma(a, b, c); }
FASTAE_INLINE float root(float a) { return sqrtf(a); }
FASTAE_INLINE double root(double a) { return ::sqrt(a); }
FASTAE_INLINE float round_even(float a) { return rintf(a); }
FASTAE_INLINE double round_even(double a) { return rint(a); }

template <class T> struct Vec;

template <class T> struct Mask {
  bool m;
  Mask() = default;
  FASTAE_INLINE explicit Mask(bool m_) : m(m_) {}
  friend FASTAE_INLINE Mask operator&(Mask a, Mask b) { return Mask(a.m & b.m); }
  friend FASTAE_INLINE Mask operator|(Mask a, Mask b) { return Mask(a.m | b.m); }
  friend FASTAE_INLINE Mask operator^(Mask a, Mask b) { return Mask(a.m ^ b.m); }
  friend FASTAE_INLINE Mask operator~(Mask a) { return Mask(!a.m); }
  friend FASTAE_INLINE bool any(Mask a) { return a.m; }
  friend FASTAE_INLINE bool all(Mask a) { return a.m; }
  friend FASTAE_INLINE Vec<T> select(Mask k, Vec<T> a, Vec<T> b) { return k.m ? a : b; }
};

// An integer as wide as T; it wraps around.
template <class T> struct IntVec {
  typedef typename Lane<T>::I I;
  typedef typename Lane<T>::U U;
  I v;
  IntVec() = default;
  FASTAE_INLINE IntVec(I v_) : v(v_) {}
  template <class S> FASTAE_INLINE IntVec(S s) : v((I)s) {}
  friend FASTAE_INLINE IntVec operator+(IntVec a, IntVec b) { return IntVec((I)((U)a.v + (U)b.v)); }
  friend FASTAE_INLINE IntVec operator-(IntVec a, IntVec b) { return IntVec((I)((U)a.v - (U)b.v)); }
  friend FASTAE_INLINE IntVec operator&(IntVec a, IntVec b) { return IntVec(a.v & b.v); }
  friend FASTAE_INLINE IntVec operator|(IntVec a, IntVec b) { return IntVec(a.v | b.v); }
  friend FASTAE_INLINE IntVec operator^(IntVec a, IntVec b) { return IntVec(a.v ^ b.v); }
  friend FASTAE_INLINE IntVec operator~(IntVec a) { return IntVec(~a.v); }
  friend FASTAE_INLINE IntVec operator<<(IntVec a, int n) { return IntVec((I)((U)a.v << n)); }
  friend FASTAE_INLINE IntVec operator>>(IntVec a, int n) { return IntVec(a.v >> n); }           // arithmetic
  friend FASTAE_INLINE IntVec shift_right(IntVec a, int n) { return IntVec((I)((U)a.v >> n)); }  // logical
  friend FASTAE_INLINE Vec<T> as_float(IntVec a) { return Vec<T>(same_bits<T>(a.v)); }           // same bits
  friend FASTAE_INLINE Vec<T> to_float(IntVec a) { return Vec<T>((T)a.v); }                      // same value
};

template <class T> struct Vec {
  typedef T value_type;
  static constexpr int N = 1;
  T v;

  Vec() = default;
  FASTAE_INLINE Vec(T v_) : v(v_) {}
  template <class S> FASTAE_INLINE Vec(S s) : v((T)s) {}

  friend FASTAE_INLINE Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  friend FASTAE_INLINE Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  friend FASTAE_INLINE Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  friend FASTAE_INLINE Vec operator/(Vec a, Vec b) { return Vec(a.v / b.v); }
  friend FASTAE_INLINE Vec operator-(Vec a) { return Vec(-a.v); }
  FASTAE_INLINE Vec& operator+=(Vec b) { return *this = *this + b; }
  FASTAE_INLINE Vec& operator-=(Vec b) { return *this = *this - b; }
  FASTAE_INLINE Vec& operator*=(Vec b) { return *this = *this * b; }
  FASTAE_INLINE Vec& operator/=(Vec b) { return *this = *this / b; }
  friend FASTAE_INLINE Mask<T> operator<(Vec a, Vec b) { return Mask<T>(a.v < b.v); }
  friend FASTAE_INLINE Mask<T> operator<=(Vec a, Vec b) { return Mask<T>(a.v <= b.v); }
  friend FASTAE_INLINE Mask<T> operator>(Vec a, Vec b) { return Mask<T>(a.v > b.v); }
  friend FASTAE_INLINE Mask<T> operator>=(Vec a, Vec b) { return Mask<T>(a.v >= b.v); }
  friend FASTAE_INLINE Mask<T> operator==(Vec a, Vec b) { return Mask<T>(a.v == b.v); }
  friend FASTAE_INLINE Mask<T> operator!=(Vec a, Vec b) { return Mask<T>(a.v != b.v); }

  friend FASTAE_INLINE Vec fma(Vec a, Vec b, Vec c) { return Vec(mul_add(a.v, b.v, c.v)); }
  friend FASTAE_INLINE Vec sqrt(Vec a) { return Vec(root(a.v)); }
  // With a NaN in either argument NaN; of two equal ones (zeros of different signs) the second.
  friend FASTAE_INLINE Vec max(Vec a, Vec b) { return a.v > b.v || a.v != a.v ? a : b; }
  friend FASTAE_INLINE Vec min(Vec a, Vec b) { return a.v < b.v || a.v != a.v ? a : b; }
  // NaN stays NaN in these three.
  friend FASTAE_INLINE Vec at_most(Vec a, Vec high) { return high.v < a.v ? high : a; }
  friend FASTAE_INLINE Vec at_least(Vec a, Vec low) { return low.v > a.v ? low : a; }
  friend FASTAE_INLINE Vec clamp(Vec a, Vec low, Vec high) { return at_most(at_least(a, low), high); }
  friend FASTAE_INLINE Vec round_nearest(Vec a) { return Vec(round_even(a.v)); }
  friend FASTAE_INLINE Vec fabs(Vec a) { return as_float(bits(a) & ~sign_bit()); }
  friend FASTAE_INLINE Vec copysign(Vec size, Vec sign) {
    return as_float((bits(size) & ~sign_bit()) | (bits(sign) & sign_bit()));
  }
  // -1, 0, 1 (both zeros give +0), NaN stays
  friend FASTAE_INLINE Vec sign(Vec a) { return a.v > T(0) ? Vec(T(1)) : a.v < T(0) ? Vec(T(-1)) : Vec(a.v + T(0)); }
  friend FASTAE_INLINE IntVec<T> bits(Vec a) { return IntVec<T>(same_bits<typename Lane<T>::I>(a.v)); }
  friend FASTAE_INLINE IntVec<T> to_int(Vec a) { return IntVec<T>((typename Lane<T>::I)a.v); }  // truncated
  static FASTAE_INLINE IntVec<T> sign_bit() {
    return IntVec<T>((typename Lane<T>::I)((typename Lane<T>::U)1 << (8 * sizeof(T) - 1)));
  }
};

// A register of floats as two of doubles and back, for erf: here both halves are the one lane.
FASTAE_INLINE Vec<double> widen_low(Vec<float> a) { return Vec<double>((double)a.v); }
FASTAE_INLINE Vec<double> widen_high(Vec<float> a) { return widen_low(a); }
FASTAE_INLINE Vec<float> narrow(Vec<double> low, Vec<double>) { return Vec<float>((float)low.v); }

}  // namespace
}  // namespace fastae

#include "stored.h"
