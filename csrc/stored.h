// Stored element types, one element at a time: half precision, bfloat16, integers. Host and device.
#pragma once
#include "schema.h"

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

// Exact. Exponent 31 (inf, NaN) becomes 255, the others move by 127 - 15; a denormal m * 2^-24 is got as
// (2^-14 + m * 2^-24) - 2^-14, so that no float32 denormal takes part.
FASTAE_INLINE float half_to_float(uint32_t h) {
  const uint32_t u = (h & 0x7fffu) << 13, exponent = h & 0x7c00u;
  const float denormal = float_from_bits(u + (113u << 23)) - 0x1p-14f;
  const float f = float_from_bits(u + (exponent == 0x7c00u ? 224u << 23 : 112u << 23));
  uint32_t magnitude, other;
  memcpy(&magnitude, &f, sizeof f);
  memcpy(&other, &denormal, sizeof f);
  return float_from_bits((exponent == 0 ? other : magnitude) | (h & 0x8000u) << 16);
}

template <class T, class S> FASTAE_INLINE T convert(S s) { return (T)s; }
template <class T> FASTAE_INLINE T convert(Half s) { return (T)half_to_float(s.bits); }
template <class T> FASTAE_INLINE T convert(BFloat16 s) { return (T)float_from_bits((uint32_t)s.bits << 16); }

// Rounded to nearest even; beyond 65519.99 infinite. A NaN keeps its sign and upper bits, and becomes quiet.
FASTAE_INLINE uint16_t half_from_float(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  const uint32_t sign = u >> 16 & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x3ffu));
  if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (u >= 0x38800000u) return (uint16_t)(sign | ((u - 0x38000000u + 0xfffu + (u >> 13 & 1u)) >> 13));
  const float denormal = float_from_bits(u) + 0.5f;  // 0.5 has a last place of 2^-24, a half's denormals' unit
  memcpy(&u, &denormal, sizeof u);
  return (uint16_t)(sign | (u - 0x3f000000u));
}

// f(typed null pointer) for a source's element type
template <class F> FASTAE_INLINE void visit_dtype(int64_t dtype, const F& f) {
  switch (dtype) {
    case source_dtype::f32: f((const float*)nullptr); break;
    case source_dtype::f64: f((const double*)nullptr); break;
    case source_dtype::f16: f((const Half*)nullptr); break;
    case source_dtype::bf16: f((const BFloat16*)nullptr); break;
    case source_dtype::u8: f((const uint8_t*)nullptr); break;
    case source_dtype::i8: f((const int8_t*)nullptr); break;
    case source_dtype::u16: f((const uint16_t*)nullptr); break;
    case source_dtype::i16: f((const int16_t*)nullptr); break;
    case source_dtype::u32: f((const uint32_t*)nullptr); break;
    case source_dtype::i32: f((const int32_t*)nullptr); break;
    case source_dtype::u64: f((const uint64_t*)nullptr); break;
    case source_dtype::i64: f((const int64_t*)nullptr); break;
    default: break;
  }
}

}  // namespace
}  // namespace fastae
