// Between element types: load_as<T>(pointer, n) reads any stored type into a register of float or double;
// widen_low, widen_high and narrow go between one register of floats and two of doubles. Included by vec.h.
#pragma once
#include "stored.h"
#include "vec.h"

namespace fastae {
namespace {

// ---- float <-> double ----------------------------------------------------------------------------------------------
FASTAE_INLINE Vec<double> widen_low(Vec<float> a) {
#if defined(__AVX512F__)
  return Vec<double>(_mm512_maskz_cvtps_pd(0xff, __builtin_shufflevector(a.v, a.v, 0, 1, 2, 3, 4, 5, 6, 7)));
#elif FASTAE_VBYTES == 32
  return Vec<double>(_mm256_cvtps_pd(_mm256_castps256_ps128(a.v)));
#elif defined(__SSE2__)
  return Vec<double>(_mm_cvtps_pd(a.v));
#else
  return Vec<double>(vdouble{a.v[0], a.v[1]});
#endif
}
FASTAE_INLINE Vec<double> widen_high(Vec<float> a) {
#if defined(__AVX512F__)
  return Vec<double>(_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, a.v, 1)));
#elif FASTAE_VBYTES == 32
  return Vec<double>(_mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1)));
#elif defined(__SSE2__)
  return Vec<double>(_mm_cvtps_pd(_mm_movehl_ps(a.v, a.v)));
#else
  return Vec<double>(vdouble{a.v[2], a.v[3]});
#endif
}
FASTAE_INLINE Vec<float> narrow(Vec<double> low, Vec<double> high) {
#if defined(__AVX512F__)
  const __m256 a = _mm512_maskz_cvtpd_ps(0xff, low.v), b = _mm512_maskz_cvtpd_ps(0xff, high.v);
  return Vec<float>(_mm512_maskz_insertf32x8(0xffff, _mm512_castps256_ps512(a), b, 1));
#elif FASTAE_VBYTES == 32
  return Vec<float>(_mm256_set_m128(_mm256_cvtpd_ps(high.v), _mm256_cvtpd_ps(low.v)));
#elif defined(__SSE2__)
  return Vec<float>(_mm_movelh_ps(_mm_cvtpd_ps(low.v), _mm_cvtpd_ps(high.v)));
#else
  return Vec<float>(vfloat{(float)low.v[0], (float)low.v[1], (float)high.v[0], (float)high.v[1]});
#endif
}

// ---- a full register -----------------------------------------------------------------------------------------------
// Small integers to 32-bit lanes.
template <class S> FASTAE_INLINE IntVec<float> load_ints(const S* p) {
#if FASTAE_VBYTES >= 32
  constexpr bool is_signed = (S)-1 < 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 1) {
    const __m128i s = _mm_loadu_si128((const __m128i*)p);
    return IntVec<float>((IntVec<float>::native)(is_signed ? _mm512_maskz_cvtepi8_epi32(0xffff, s)
                                                           : _mm512_maskz_cvtepu8_epi32(0xffff, s)));
  } else {
    const __m256i s = _mm256_loadu_si256((const __m256i*)p);
    return IntVec<float>((IntVec<float>::native)(is_signed ? _mm512_maskz_cvtepi16_epi32(0xffff, s)
                                                           : _mm512_maskz_cvtepu16_epi32(0xffff, s)));
  }
#else
  if constexpr (sizeof(S) == 1) {
    const __m128i s = _mm_loadl_epi64((const __m128i*)p);
    return IntVec<float>((IntVec<float>::native)(is_signed ? _mm256_cvtepi8_epi32(s) : _mm256_cvtepu8_epi32(s)));
  } else {
    const __m128i s = _mm_loadu_si128((const __m128i*)p);
    return IntVec<float>((IntVec<float>::native)(is_signed ? _mm256_cvtepi16_epi32(s) : _mm256_cvtepu16_epi32(s)));
  }
#endif
#else
  return IntVec<float>(IntVec<float>::native{p[0], p[1], p[2], p[3]});
#endif
}

// half_to_float, lane by lane
FASTAE_INLINE Vec<float> halves_to_floats(IntVec<float> h) {
  const IntVec<float> u = (h & 0x7fff) << 13;
  const Vec<float> normal = as_float(u + (112 << 23)), denormal = as_float(u + (113 << 23)) - 0x1p-14f;
  const Vec<float> infinite = as_float(u + (int32_t)(224u << 23));
  const Vec<float> f = select(normal < 0x1p-14f, denormal, select(normal >= 0x1p16f, infinite, normal));
  return as_float(bits(f) | ((h & 0x8000) << 16));
}

template <class T, class S> FASTAE_INLINE Vec<T> load_full(const S* p) {
  constexpr bool integer = std::is_integral<S>::value;
  if constexpr (std::is_same<T, S>::value) {
    return Vec<T>::load(p);
  } else if constexpr (std::is_same<T, float>::value && std::is_same<S, double>::value) {
    return narrow(Vec<double>::load(p), Vec<double>::load(p + Vec<double>::N));
  } else if constexpr (std::is_same<T, float>::value && integer && sizeof(S) <= 2) {
    return to_float(load_ints(p));
  } else if constexpr (std::is_same<T, float>::value && std::is_same<S, int32_t>::value) {
    return to_float(IntVec<float>::load(p));
  } else if constexpr (std::is_same<T, float>::value && std::is_same<S, Half>::value) {
    return halves_to_floats(load_ints(&p->bits));
  } else if constexpr (std::is_same<T, float>::value && std::is_same<S, BFloat16>::value) {
    return as_float(load_ints(&p->bits) << 16);
  } else {
    alignas(FASTAE_VBYTES) T t[Vec<T>::N];
    for (int i = 0; i < Vec<T>::N; ++i) t[i] = convert<T>(p[i]);
    return Vec<T>::load(t);
  }
}

// A register of floats rounded to half precision, to out[0 .. N).
FASTAE_INLINE void store_halves(Vec<float> x, Half* out) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)out, _mm512_maskz_cvtps_ph(0xffff, x.v, _MM_FROUND_TO_NEAREST_INT));
#elif FASTAE_VBYTES == 32
  _mm_storeu_si128((__m128i*)out, _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Vec<float>::N; ++i) out[i].bits = half_from_float(x[i]);
#endif
}

// First n elements converted, the other lanes 0; nothing beyond p[n-1] is read. bool arrays are read as uint8.
template <class T, class S> FASTAE_INLINE Vec<T> load_as(const S* p, int n = Vec<T>::N) {
  constexpr int N = Vec<T>::N;
  if constexpr (std::is_same<T, S>::value) return Vec<T>::load(p, n);
  if (n >= N) return load_full<T>(p);
  S part[N] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return load_full<T>(part);
}

}  // namespace
}  // namespace fastae
