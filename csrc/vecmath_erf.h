// erf and erfc on registers of float or double, without branches. Included by vecmath.h.
//
//   |x| < 1     erf(x)  = x + x ((2 / sqrt(pi) - 1) + z P(z)),  z = x^2
//   a = |x|     erfc(a) = exp(-a^2) Q(t) / (a + K),  t = (a - K) / (a + K)   (Shepherd & Laframboise 1981)
//
// Floats are computed in double registers with shorter polynomials: the rounding to float is then the only error.
#pragma once
#include "vecmath.h"

namespace fastae {
namespace {

FASTAE_INLINE Vec<double> erf_near_zero(Vec<double> x, bool quick) {
  const Vec<double> z = x * x;
  const Vec<double> p =
      quick ? horner(z, 0.1283791670955126, -0.3761263067426759, 0.11283629135008691, -0.026855445390024272,
                     0.005191204909096069, -0.0008034157448740189, 7.929865503619678e-05)
            : horner(z, 0.1283791670955126, -0.37612638903183615, 0.11283791670947002, -0.026866170643485763,
                     0.005223977608808349, -0.0008548326045381345, 0.00012055296754431085, -1.4924768818745254e-05,
                     1.6447782554927302e-06, -1.6210997241777088e-07, 1.373010660272814e-08, -7.813312949316536e-10);
  return fma(x, p, x);
}

// erfc(a) for 0 <= a < 10.1 to 28 bits; below that the result is no float any more.
FASTAE_INLINE Vec<double> erfc_positive_quick(Vec<double> a) {
  a = clamp(a, 0, 10.1);
  const Vec<double> t = (a - 3) / (a + 3);
  const Vec<double> g = horner(t, 1.074006907699319, -0.8833944851342271, 0.5902283046139469, -0.31046604639240144,
                               0.11952896623736377, -0.026839587682434187, -0.0012258174651405135,
                               0.0030800653193370463, -0.0004843747979378469, -0.0003259538173891921);
  Vec<double> e;
  const Vec<double> shifted = exp_reduce<true>(-(a * a), Vec<double>(-0.0), e);
  // 1 / (a + 3) = (1 - t) / 6 without a second division; exp(-102) is far from a double's limits.
  const Vec<double> h = as_float((bits(shifted) + 1023) << 52);
  return fma(g, e, g) * h * ((Vec<double>(1) - t) * (1.0 / 6));
}

// erfc(a) for a >= 1/2. a^2 = high + low: the square of a's upper half is exact, the rest goes into the exponential.
FASTAE_INLINE Vec<double> erfc_positive(Vec<double> a) {
  a = clamp(a, 0.498, 28);
  const Vec<double> w = Vec<double>(1) / (a + 4), t = (a - 4) * w;
  const Vec<double> q = horner(t, 1.095995661000491, -0.976548729080882, 0.7732087022652362, -0.5408538313132353,
                               0.3308515878780741, -0.17401093723993796, 0.07638151490772846, -0.026370053340076523,
                               0.006112055676396198, -0.0002809588696386134, -0.0004550528429641499,
                               0.0001768128519842648, -3.63440848336051e-06, -1.8861038398994882e-05,
                               4.692071711948599e-06, 1.4245929174747132e-06, -8.416247943639667e-07,
                               -7.612577798767462e-08, 1.1869722284308149e-07, 1.3259755590321322e-09,
                               -1.1869336244784443e-08);
  const Vec<double> upper_half = as_float(bits(a) & ~(((int64_t)1 << 27) - 1));
  const Vec<double> low = (upper_half - a) * (upper_half + a);
  Vec<double> e;
  const Vec<double> shifted = exp_reduce<false>(-(upper_half * upper_half), low, e);
  const Vec<double> g = q * w;
  return scale(fma(g, e, g), shifted);
}

FASTAE_INLINE Vec<double> erf_quick(Vec<double> x) {
  const Vec<double> a = fabs(x), far = copysign(Vec<double>(1) - erfc_positive_quick(a), x);
  return select(a < 1, erf_near_zero(x, true), far);
}

FASTAE_INLINE Vec<double> erfc_quick(Vec<double> x) {
  const Vec<double> y = erfc_positive_quick(fabs(x));
  return select(x < 0, Vec<double>(2) - y, y);
}

FASTAE_INLINE Vec<double> erf(Vec<double> x) {
  const Vec<double> a = fabs(x), far = copysign(Vec<double>(1) - erfc_positive(a), x);
  return select(a < 1, erf_near_zero(x, false), far);
}

FASTAE_INLINE Vec<double> erfc(Vec<double> x) {
  const Vec<double> a = fabs(x), y = erfc_positive(a);
  return select(a < 0.5, Vec<double>(1) - erf_near_zero(x, false), select(x < 0, Vec<double>(2) - y, y));
}

FASTAE_INLINE Vec<float> erf(Vec<float> x) { return narrow(erf_quick(widen_low(x)), erf_quick(widen_high(x))); }
FASTAE_INLINE Vec<float> erfc(Vec<float> x) { return narrow(erfc_quick(widen_low(x)), erfc_quick(widen_high(x))); }

}  // namespace
}  // namespace fastae
