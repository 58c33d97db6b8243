// The error of pre-activations by products in bfloat16 (CPU) or scaled float16 (GPU), with a proven bound.
//
// z is float32's chain plus bias, s = sum_p x^_p w^_p + b as the instructions make it, x^ and w^ rounded.
// With u = 2^-24, norms |.|_2 and all sums over p terms:
//
//   |z - (x w + b)|      <= g1 |x||w| + 4u |b| + tiny        chain of fused multiply-adds, then one addition
//   |x w - x^ w^|        <= |x - x^||w| + |x^||w - w^|       Cauchy-Schwarz on (x - x^) w + x^ (w - w^)
//   |s - (x^ w^ + b)|    <= g2 |x^||w^| + 4u |b| + tiny      any order of additions, rounded to nearest or cut
//
//   B = |w| (|x - x^| + g1 |x|) + |x^| (|w - w^| + g2 |w^|) + 8u |b| + tiny  >=  |z - s|
//
// Products of such numbers are exact in float32, and a power of two that a row of x or w is multiplied by is lost from
// no line above. An instruction adds p products to a sum in some tree, in at most
// 1.25 p + 32 additions on the way of a product (AMX adds its even and its odd products apart; a GPU's tensor cores cut
// the products of a block at the last place of the largest one, an addition more for each block); cutting instead of
// rounding doubles u: g2 = 2u N / (1 - 2u N), N = 1.25 p + 32, the last few for the rounding of s + b and of s +- B.
// tiny = p 2^-120: denormal operands, products and sums may each be taken as 0 (< 2^-126), the chain's underflow is less.
// Norms are float32 sums: (p + 64) 2^-24 more covers their rounding and that of B itself, p 2^-148 their underflow.
#pragma once
#include "vec.h"

namespace fastae {
namespace {

constexpr float kSafeSize = 0x1p100f;  // products of norms, and biases, below this cannot overflow

struct Bounds {
  float g1, g2, more, tiny;
  FASTAE_INLINE explicit Bounds(int64_t p) {
    const double u = 0x1p-24, n = 1.25 * (double)p + 32;
    g1 = (float)(1.01 * (double)(p + 4) * u);
    g2 = (float)(1.01 * 2 * u * n / (1 - 2 * u * n));
    more = (float)(1 + (double)(p + 64) * 2 * u);
    tiny = (float)p * 0x1p-120f;
  }
  static FASTAE_INLINE bool possible(int64_t p) { return p < 1 << 18; }
  FASTAE_INLINE float norm(float squares, int64_t p) const {
    const float s = squares + (float)p * 0x1p-148f;
#ifdef FASTAE_DEVICE
    return root(s) * more;
#else
    return __builtin_sqrtf(s) * more;
#endif
  }
};

}  // namespace
}  // namespace fastae
