// Stored element types -> float or double: convert<T>(element) and load_as<T>(pointer, n) for a register of them.
#pragma once
#include "vec.h"

namespace fastae {
namespace {

struct Half {
  uint16_t bits;  // IEEE binary16
};
struct BFloat16 {
  uint16_t bits;  // upper half of a float32
};

FASTAE_INLINE float float_from_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

// Exact for every binary16 value. Exponent 31 (inf, NaN) becomes 255; exponent 0 is a denormal m * 2^-24, got
// as (2^-14 + m * 2^-24) - 2^-14 so that no float32 denormal takes part; other exponents move by 127 - 15.
FASTAE_INLINE float half_to_float(uint32_t h) {
  const uint32_t u = (h & 0x7fffu) << 13, exponent = h & 0x7c00u;
  const float tiny = float_from_bits(u + (113u << 23)) - float_from_bits(113u << 23);
  uint32_t t;
  memcpy(&t, &tiny, sizeof t);
  const uint32_t normal = u + (exponent == 0x7c00u ? 224u << 23 : 112u << 23);
  return float_from_bits((exponent == 0 ? t : normal) | (h & 0x8000u) << 16);
}

template <class T, class S> FASTAE_INLINE T convert(S s) { return (T)s; }
template <class T> FASTAE_INLINE T convert(Half s) { return (T)half_to_float(s.bits); }
template <class T> FASTAE_INLINE T convert(BFloat16 s) { return (T)float_from_bits((uint32_t)s.bits << 16); }

// First n elements converted, the other lanes 0; nothing beyond p[n-1] is read. bool arrays are read as uint8.
template <class T, class S> FASTAE_INLINE Vec<T> load_as(const S* p, int n = Vec<T>::N) {
  constexpr int N = Vec<T>::N;
  if constexpr (std::is_same<T, S>::value) {
    return Vec<T>::load(p, n);
  } else {
    alignas(FASTAE_VBYTES) T t[N];
    if (n >= N) {
      for (int i = 0; i < N; ++i) t[i] = convert<T>(p[i]);
    } else {
      for (int i = 0; i < N; ++i) t[i] = 0;
      for (int i = 0; i < n; ++i) t[i] = convert<T>(p[i]);
    }
    return Vec<T>::load(t);
  }
}

}  // namespace
}  // namespace fastae
