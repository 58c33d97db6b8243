// Vec<T>, Mask<T>, IntVec<T>: one register of float or double, its comparisons, and integers of the same lane width.
//
// Built on GCC vector extensions, with intrinsics only where the extensions have no word for it (fma, sqrt, masked
// load). The width follows the instruction set this file is compiled for. Everything has internal linkage: the same
// source is compiled once per instruction set and linked into one module.
//
//   Vec<float> x = Vec<float>::load(p), y = fma(x, 2, 1);      scalars of any type broadcast
//   y = select((x > 0) & (x < 1), y, 0);                       branch-free choice per lane
#pragma once
#ifdef FASTAE_DEVICE
#include "cuda/lane.h"
#else
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define FASTAE_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define FASTAE_VBYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define FASTAE_VBYTES 32
#else
#define FASTAE_VBYTES 16
#endif

#include "lane_type.h"

namespace fastae {
namespace {

template <class T> struct Native {
  typedef T type __attribute__((vector_size(FASTAE_VBYTES)));
  typedef typename Lane<T>::I ints __attribute__((vector_size(FASTAE_VBYTES)));
  typedef typename Lane<T>::U uints __attribute__((vector_size(FASTAE_VBYTES)));
};
typedef Native<float>::type vfloat;
typedef Native<double>::type vdouble;
template <class S> using if_arithmetic = typename std::enable_if<std::is_arithmetic<S>::value, int>::type;

// ---- what differs between instruction sets --------------------------------------------------------------------------
// With a NaN in either argument nmax and nmin give NaN, upper and lower give b (what the x86 instruction does).
enum { LT, LE, EQ, NE };

#if defined(__AVX512F__)
constexpr int compare_code[4] = {_CMP_LT_OQ, _CMP_LE_OQ, _CMP_EQ_OQ, _CMP_NEQ_UQ};
template <class T> struct MaskNative;
template <> struct MaskNative<float> {
  typedef __mmask16 type;
};
template <> struct MaskNative<double> {
  typedef __mmask8 type;
};
template <int OP> FASTAE_INLINE __mmask16 compare(vfloat a, vfloat b) {
  return _mm512_cmp_ps_mask(a, b, compare_code[OP]);
}
template <int OP> FASTAE_INLINE __mmask8 compare(vdouble a, vdouble b) {
  return _mm512_cmp_pd_mask(a, b, compare_code[OP]);
}
FASTAE_INLINE vfloat blend(__mmask16 m, vfloat a, vfloat b) { return _mm512_mask_blend_ps(m, b, a); }
FASTAE_INLINE vdouble blend(__mmask8 m, vdouble a, vdouble b) { return _mm512_mask_blend_pd(m, b, a); }
FASTAE_INLINE bool any_lane(__mmask16 m) { return m != 0; }
FASTAE_INLINE bool any_lane(__mmask8 m) { return m != 0; }
FASTAE_INLINE __mmask16 first_lanes(int n, float) { return (__mmask16)((1u << (n < 16 ? n : 16)) - 1); }
FASTAE_INLINE __mmask8 first_lanes(int n, double) { return (__mmask8)((1u << (n < 8 ? n : 8)) - 1); }
FASTAE_INLINE vfloat load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n, 0.f), p); }
FASTAE_INLINE vdouble load_first(const double* p, int n) { return _mm512_maskz_loadu_pd(first_lanes(n, 0.), p); }
FASTAE_INLINE void store_first(float* p, vfloat v, int n) { _mm512_mask_storeu_ps(p, first_lanes(n, 0.f), v); }
FASTAE_INLINE void store_first(double* p, vdouble v, int n) { _mm512_mask_storeu_pd(p, first_lanes(n, 0.), v); }
FASTAE_INLINE vfloat mul_add(vfloat a, vfloat b, vfloat c) { return _mm512_fmadd_ps(a, b, c); }
FASTAE_INLINE vdouble mul_add(vdouble a, vdouble b, vdouble c) { return _mm512_fmadd_pd(a, b, c); }
// The instruction holds up the divider for twelve cycles, beside a division for most of an update's time. Two Newton
// steps from the approximation give the same bits where no residual is denormal: tested over every significand, and the
// approximation may be off by all that the instruction set allows.
FASTAE_INLINE vfloat root(vfloat a) {
  const __m512i least = _mm512_set1_epi32(0x0d800000), range = _mm512_set1_epi32(0x7f000000 - 0x0d800000);  // 2^-100
  if (__builtin_expect(_mm512_cmpgt_epu32_mask(_mm512_sub_epi32((__m512i)a, least), range) != 0, 0))
    return _mm512_maskz_sqrt_ps(0xffff, a);
  const vfloat half = 0.5f - vfloat{}, y = _mm512_maskz_rsqrt14_ps(0xffff, a), g0 = a * y, h0 = y * half;
  const vfloat r = _mm512_fnmadd_ps(h0, g0, half), g = _mm512_fmadd_ps(g0, r, g0), h = _mm512_fmadd_ps(h0, r, h0);
  return _mm512_fmadd_ps(h, _mm512_fnmadd_ps(g, g, a), g);
}
FASTAE_INLINE vdouble root(vdouble a) { return _mm512_maskz_sqrt_pd(0xff, a); }
FASTAE_INLINE vfloat round_even(vfloat a) { return _mm512_maskz_roundscale_ps(0xffff, a, 8); }
FASTAE_INLINE vdouble round_even(vdouble a) { return _mm512_maskz_roundscale_pd(0xff, a, 8); }
FASTAE_INLINE vfloat upper(vfloat a, vfloat b) { return _mm512_maskz_max_ps(0xffff, a, b); }
FASTAE_INLINE vdouble upper(vdouble a, vdouble b) { return _mm512_maskz_max_pd(0xff, a, b); }
FASTAE_INLINE vfloat lower(vfloat a, vfloat b) { return _mm512_maskz_min_ps(0xffff, a, b); }
FASTAE_INLINE vdouble lower(vdouble a, vdouble b) { return _mm512_maskz_min_pd(0xff, a, b); }
FASTAE_INLINE vfloat nmax(vfloat a, vfloat b) { return _mm512_mask_max_ps(a, compare<EQ>(a, a), a, b); }
FASTAE_INLINE vdouble nmax(vdouble a, vdouble b) { return _mm512_mask_max_pd(a, compare<EQ>(a, a), a, b); }
FASTAE_INLINE vfloat nmin(vfloat a, vfloat b) { return _mm512_mask_min_ps(a, compare<EQ>(a, a), a, b); }
FASTAE_INLINE vdouble nmin(vdouble a, vdouble b) { return _mm512_mask_min_pd(a, compare<EQ>(a, a), a, b); }
#else
template <class T> struct MaskNative {
  typedef typename Native<T>::ints type;
};
typedef MaskNative<float>::type mfloat;
typedef MaskNative<double>::type mdouble;
template <int OP, class V> FASTAE_INLINE auto compare(V a, V b) {
  if constexpr (OP == LT) return a < b;
  else if constexpr (OP == LE) return a <= b;
  else if constexpr (OP == EQ) return a == b;
  else return a != b;
}
FASTAE_INLINE vfloat blend(mfloat m, vfloat a, vfloat b) { return m ? a : b; }
FASTAE_INLINE vdouble blend(mdouble m, vdouble a, vdouble b) { return m ? a : b; }
template <class M> FASTAE_INLINE bool any_lane(M m) {
  uint64_t w[sizeof(M) / 8], all = 0;
  memcpy(w, &m, sizeof m);
  for (unsigned i = 0; i < sizeof(M) / 8; ++i) all |= w[i];
  return all != 0;
}
FASTAE_INLINE mfloat first_lanes(int n, float) {
#if FASTAE_VBYTES == 32
  return mfloat{0, 1, 2, 3, 4, 5, 6, 7} < n;
#else
  return mfloat{0, 1, 2, 3} < n;
#endif
}
FASTAE_INLINE mdouble first_lanes(int n, double) {
#if FASTAE_VBYTES == 32
  return mdouble{0, 1, 2, 3} < (int64_t)n;
#else
  return mdouble{-(int64_t)(n > 0), -(int64_t)(n > 1)};
#endif
}
#if FASTAE_VBYTES == 32
FASTAE_INLINE vfloat load_first(const float* p, int n) { return _mm256_maskload_ps(p, (__m256i)first_lanes(n, 0.f)); }
FASTAE_INLINE vdouble load_first(const double* p, int n) { return _mm256_maskload_pd(p, (__m256i)first_lanes(n, 0.)); }
FASTAE_INLINE void store_first(float* p, vfloat v, int n) { _mm256_maskstore_ps(p, (__m256i)first_lanes(n, 0.f), v); }
FASTAE_INLINE void store_first(double* p, vdouble v, int n) { _mm256_maskstore_pd(p, (__m256i)first_lanes(n, 0.), v); }
FASTAE_INLINE vfloat mul_add(vfloat a, vfloat b, vfloat c) { return _mm256_fmadd_ps(a, b, c); }
FASTAE_INLINE vdouble mul_add(vdouble a, vdouble b, vdouble c) { return _mm256_fmadd_pd(a, b, c); }
FASTAE_INLINE vfloat root(vfloat a) { return _mm256_sqrt_ps(a); }
FASTAE_INLINE vdouble root(vdouble a) { return _mm256_sqrt_pd(a); }
FASTAE_INLINE vfloat round_even(vfloat a) { return _mm256_round_ps(a, 8); }
FASTAE_INLINE vdouble round_even(vdouble a) { return _mm256_round_pd(a, 8); }
#else
template <class T> FASTAE_INLINE typename Native<T>::type load_first(const T* p, int n) {
  constexpr int N = FASTAE_VBYTES / (int)sizeof(T);
  typename Native<T>::type v = {};
  for (int i = 0; i < N; ++i)
    if (i < n) v[i] = p[i];
  return v;
}
template <class T, class V> FASTAE_INLINE void store_first(T* p, V v, int n) {
  constexpr int N = FASTAE_VBYTES / (int)sizeof(T);
  for (int i = 0; i < N; ++i)
    if (i < n) p[i] = v[i];
}
#if defined(__aarch64__)
FASTAE_INLINE vfloat mul_add(vfloat a, vfloat b, vfloat c) { return vfmaq_f32(c, a, b); }
FASTAE_INLINE vdouble mul_add(vdouble a, vdouble b, vdouble c) { return vfmaq_f64(c, a, b); }
FASTAE_INLINE vfloat root(vfloat a) { return vsqrtq_f32(a); }
FASTAE_INLINE vdouble root(vdouble a) { return vsqrtq_f64(a); }
FASTAE_INLINE vfloat round_even(vfloat a) { return vrndnq_f32(a); }
FASTAE_INLINE vdouble round_even(vdouble a) { return vrndnq_f64(a); }
#else
template <class V> FASTAE_INLINE V mul_add(V a, V b, V c) { return a * b + c; }
template <class V> FASTAE_INLINE V round_even(V a) {
  typedef typename std::remove_reference<decltype(a[0])>::type T;
  return (a + Lane<T>::magic) - Lane<T>::magic;
}
#if defined(__SSE2__)
FASTAE_INLINE vfloat root(vfloat a) { return _mm_sqrt_ps(a); }
FASTAE_INLINE vdouble root(vdouble a) { return _mm_sqrt_pd(a); }
#else
FASTAE_INLINE vfloat root(vfloat a) {
  for (int i = 0; i < 4; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
FASTAE_INLINE vdouble root(vdouble a) { return vdouble{__builtin_sqrt(a[0]), __builtin_sqrt(a[1])}; }
#endif
#endif
#endif
template <class V> FASTAE_INLINE V upper(V a, V b) { return a > b ? a : b; }
template <class V> FASTAE_INLINE V lower(V a, V b) { return a < b ? a : b; }
template <class V> FASTAE_INLINE V nmax(V a, V b) { return blend((a > b) | (a != a), a, b); }
template <class V> FASTAE_INLINE V nmin(V a, V b) { return blend((a < b) | (a != a), a, b); }
#endif

template <class T> struct Vec;

// ---- one truth value per lane ------------------------------------------------------------------------------------
template <class T> struct Mask {
  typedef typename MaskNative<T>::type native;
  native m;
  FASTAE_INLINE Mask() = default;
  FASTAE_INLINE explicit Mask(native m_) : m(m_) {}
  static FASTAE_INLINE Mask first(int n) { return Mask(first_lanes(n, T())); }  // lanes 0 .. n-1
  friend FASTAE_INLINE Mask operator&(Mask a, Mask b) { return Mask((native)(a.m & b.m)); }
  friend FASTAE_INLINE Mask operator|(Mask a, Mask b) { return Mask((native)(a.m | b.m)); }
  friend FASTAE_INLINE Mask operator^(Mask a, Mask b) { return Mask((native)(a.m ^ b.m)); }
  friend FASTAE_INLINE Mask operator~(Mask a) { return Mask((native)~a.m); }
  friend FASTAE_INLINE bool any(Mask a) { return any_lane(a.m); }
  friend FASTAE_INLINE bool all(Mask a) { return !any_lane((native)~a.m); }
  friend FASTAE_INLINE Vec<T> select(Mask k, Vec<T> a, Vec<T> b) { return Vec<T>(blend(k.m, a.v, b.v)); }
};

// ---- integers as wide as T: int32 beside float, int64 beside double -------------------------------------------------
template <class T> struct IntVec {
  typedef typename Native<T>::ints native;
  typedef typename Native<T>::uints uints;
  typedef typename Lane<T>::I I;
  static constexpr int N = FASTAE_VBYTES / (int)sizeof(T);
  native v;
  FASTAE_INLINE IntVec() = default;
  FASTAE_INLINE explicit IntVec(native v_) : v(v_) {}
  template <class S, if_arithmetic<S> = 0> FASTAE_INLINE IntVec(S s) : v((I)s - native{}) {}
  static FASTAE_INLINE IntVec load(const I* p) {
    IntVec r;
    memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  FASTAE_INLINE void store(I* p) const { memcpy(p, &v, sizeof v); }
  friend FASTAE_INLINE IntVec operator+(IntVec a, IntVec b) { return IntVec((native)((uints)a.v + (uints)b.v)); }
  friend FASTAE_INLINE IntVec operator-(IntVec a, IntVec b) { return IntVec((native)((uints)a.v - (uints)b.v)); }
  friend FASTAE_INLINE IntVec operator&(IntVec a, IntVec b) { return IntVec(a.v & b.v); }
  friend FASTAE_INLINE IntVec operator|(IntVec a, IntVec b) { return IntVec(a.v | b.v); }
  friend FASTAE_INLINE IntVec operator^(IntVec a, IntVec b) { return IntVec(a.v ^ b.v); }
  friend FASTAE_INLINE IntVec operator~(IntVec a) { return IntVec(~a.v); }
  friend FASTAE_INLINE IntVec operator<<(IntVec a, int n) { return IntVec((native)((uints)a.v << n)); }
  friend FASTAE_INLINE IntVec operator>>(IntVec a, int n) { return IntVec(a.v >> n); }                    // arithmetic
  friend FASTAE_INLINE IntVec shift_right(IntVec a, int n) { return IntVec((native)((uints)a.v >> n)); }  // logical
  friend FASTAE_INLINE Vec<T> as_float(IntVec a) { return Vec<T>((typename Native<T>::type)a.v); }        // same bits
  friend FASTAE_INLINE Vec<T> to_float(IntVec a) {                                                        // same value
    return Vec<T>(__builtin_convertvector(a.v, typename Native<T>::type));
  }
};

// ---- floating-point lanes ------------------------------------------------------------------------------------------
template <class T> struct Vec {
  typedef typename Native<T>::type native;
  typedef typename Native<T>::ints ints;
  typedef T value_type;
  static constexpr int N = FASTAE_VBYTES / (int)sizeof(T);
  native v;

  FASTAE_INLINE Vec() = default;
  FASTAE_INLINE explicit Vec(native v_) : v(v_) {}
  template <class S, if_arithmetic<S> = 0> FASTAE_INLINE Vec(S s) : v((T)s - native{}) {}  // x - 0 keeps -0

  static FASTAE_INLINE Vec load(const T* p) {
    Vec r;
    memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  FASTAE_INLINE void store(T* p) const { memcpy(p, &v, sizeof v); }
  // First n lanes, the others 0; nothing beyond p[n-1] is touched. n <= 0 is none, n >= N all lanes.
  static FASTAE_INLINE Vec load(const T* p, int n) { return n >= N ? load(p) : Vec(load_first(p, n > 0 ? n : 0)); }
  FASTAE_INLINE void store(T* p, int n) const {
    if (n >= N) store(p);
    else store_first(p, v, n > 0 ? n : 0);
  }
  // Past the caches, to a multiple of FASTAE_VBYTES; `stream_fence` comes after the last.
  FASTAE_INLINE void stream(T* p) const {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
    store(p);
#endif
  }
  FASTAE_INLINE T operator[](int lane) const { return v[lane]; }

  friend FASTAE_INLINE Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  friend FASTAE_INLINE Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  friend FASTAE_INLINE Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  friend FASTAE_INLINE Vec operator/(Vec a, Vec b) { return Vec(a.v / b.v); }
  friend FASTAE_INLINE Vec operator-(Vec a) { return Vec(-a.v); }
  FASTAE_INLINE Vec& operator+=(Vec b) { return *this = *this + b; }
  FASTAE_INLINE Vec& operator-=(Vec b) { return *this = *this - b; }
  FASTAE_INLINE Vec& operator*=(Vec b) { return *this = *this * b; }
  FASTAE_INLINE Vec& operator/=(Vec b) { return *this = *this / b; }
  // Ordered comparisons: false with a NaN, except != which is true.
  friend FASTAE_INLINE Mask<T> operator<(Vec a, Vec b) { return Mask<T>(compare<LT>(a.v, b.v)); }
  friend FASTAE_INLINE Mask<T> operator<=(Vec a, Vec b) { return Mask<T>(compare<LE>(a.v, b.v)); }
  friend FASTAE_INLINE Mask<T> operator>(Vec a, Vec b) { return b < a; }
  friend FASTAE_INLINE Mask<T> operator>=(Vec a, Vec b) { return b <= a; }
  friend FASTAE_INLINE Mask<T> operator==(Vec a, Vec b) { return Mask<T>(compare<EQ>(a.v, b.v)); }
  friend FASTAE_INLINE Mask<T> operator!=(Vec a, Vec b) { return Mask<T>(compare<NE>(a.v, b.v)); }

  friend FASTAE_INLINE Vec fma(Vec a, Vec b, Vec c) { return Vec(mul_add(a.v, b.v, c.v)); }  // two roundings on SSE2
  friend FASTAE_INLINE Vec sqrt(Vec a) { return Vec(root(a.v)); }
  friend FASTAE_INLINE Vec max(Vec a, Vec b) { return Vec(nmax(a.v, b.v)); }
  friend FASTAE_INLINE Vec min(Vec a, Vec b) { return Vec(nmin(a.v, b.v)); }
  // NaN stays NaN in these three.
  friend FASTAE_INLINE Vec at_most(Vec a, Vec high) { return Vec(lower(high.v, a.v)); }
  friend FASTAE_INLINE Vec at_least(Vec a, Vec low) { return Vec(upper(low.v, a.v)); }
  friend FASTAE_INLINE Vec clamp(Vec a, Vec low, Vec high) { return Vec(lower(high.v, upper(low.v, a.v))); }
  friend FASTAE_INLINE Vec round_nearest(Vec a) { return Vec(round_even(a.v)); }  // SSE2: |a| < 2^22, 2^51; -0 lost
  friend FASTAE_INLINE Vec fabs(Vec a) { return as_float(bits(a) & ~sign_bit()); }
  friend FASTAE_INLINE Vec copysign(Vec size, Vec sign) {
    return as_float((bits(size) & ~sign_bit()) | (bits(sign) & sign_bit()));
  }
  // -1, 0, 1 (both zeros give +0), NaN stays
  friend FASTAE_INLINE Vec sign(Vec a) { return select(a > 0, Vec(1), select(a < 0, Vec(-1), a + 0)); }
  friend FASTAE_INLINE IntVec<T> bits(Vec a) { return IntVec<T>((ints)a.v); }                             // same bits
  friend FASTAE_INLINE IntVec<T> to_int(Vec a) { return IntVec<T>(__builtin_convertvector(a.v, ints)); }  // truncated
  static FASTAE_INLINE IntVec<T> sign_bit() { return IntVec<T>((typename Lane<T>::U)1 << (8 * sizeof(T) - 1)); }
};

FASTAE_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// x times 1 or 0, so that -0 and NaN come out as of a product
template <class T> FASTAE_INLINE Vec<T> times(Vec<T> x, Mask<T> one) { return select(one, x, x * Vec<T>(T(0))); }
#if defined(__AVX512F__)
FASTAE_INLINE Vec<float> times(Vec<float> x, Mask<float> one) {
  return Vec<float>(_mm512_mask_mul_ps(x.v, (__mmask16)~one.m, x.v, _mm512_setzero_ps()));
}
#endif

// The same value, loaded once: compilers like to load it again for every use.
template <class T> FASTAE_INLINE Vec<T> in_register(Vec<T> x) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(x.v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(x.v));
#endif
  return x;
}

}  // namespace
}  // namespace fastae

#include "convert.h"
#endif
