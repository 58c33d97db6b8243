// erf and erfc on registers of float or double, without branches. Included by vecmath.h.
//
//   |x| < 1     erf(x)  = x + x p(z),  z = x^2
//   a >= 1      erfc(a) = exp(-a^2) g(t) / (a + K),  t = (a - K) / (a + K)   (Shepherd & Laframboise 1981)
//
// Floats are computed in double registers with shorter polynomials: only the rounding to float counts.
#pragma once
#include "vecmath.h"

namespace fastae {
namespace {

// p = erf(x) / x - 1 for |x| <= 1, z = x^2
FASTAE_INLINE Vec<double> erf_ratio(Vec<double> z, bool quick) {
  return quick ? horner(z, 0.1283791670955126, -0.3761263067426759, 0.11283629135008691, -0.026855445390024272,
                        0.005191204909096069, -0.0008034157448740189, 7.929865503619678e-05)
               : horner(z, 0.1283791670955126, -0.37612638903183615, 0.11283791670947002, -0.026866170643485763,
                        0.005223977608808349, -0.0008548326045381345, 0.00012055296754431085, -1.4924768818745254e-05,
                        1.6447782554927302e-06, -1.6210997241777088e-07, 1.373010660272814e-08, -7.813312949316536e-10);
}

// erfc(a) for 0 <= a < 10.1 to 28 bits, K = 3; beyond, floats have no such small numbers.
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

// erfc(a) for a >= 1, K = 2. The square of a's upper half is exact; low, the rest of -a^2, is added after the
// reduction of the exponential's argument.
FASTAE_INLINE Vec<double> erfc_positive(Vec<double> a) {
  a = clamp(a, 0.998, 28);
  // a + 2 is rounded: the polynomial is taken at p - 2, and what is missing goes with low, since
  // d log(exp(a^2) erfc(a)) / da = -1.6 / (a + 2), nearly.
  const Vec<double> p = a + 2, missing = a - (p - 2), w = Vec<double>(1) / p, t = (p - 4) * w;
  const Vec<double> q =
      horner(t, 1.021582705242023, -0.6871606844138108, 0.279472092556051, -0.0364422315068105, -0.021510661889116302,
             0.006479185062151446, 0.0030906120495322984, -0.0008372958581570534, -0.0006630735796299837,
             3.436774441077418e-05, 0.0001444776007174588, 3.417917873371142e-05, -2.1804372187241072e-05,
             -1.6157277179307343e-05, -4.7657592274772376e-07, 2.755741548205471e-06, 1.2643613004619787e-06,
             3.4427607389510977e-06, -4.681561668527157e-06, 1.7662331509003896e-06, -1.9794492858169317e-07);
  const Vec<double> upper_half = as_float(bits(a) & ~(((int64_t)1 << 27) - 1));
  const Vec<double> low = (upper_half - a) * (upper_half + a) - missing * w * 1.6;
  Vec<double> e;
  const Vec<double> shifted = exp_reduce<false>(-(upper_half * upper_half), low, e);
  const Vec<double> g = q * w;
  return scale(fma(g, e, g), shifted);
}

FASTAE_INLINE Vec<double> erf_quick(Vec<double> x) {
  const Vec<double> a = fabs(x), far = copysign(Vec<double>(1) - erfc_positive_quick(a), x);
  return select(a < 1, fma(x, erf_ratio(x * x, true), x), far);
}

FASTAE_INLINE Vec<double> erfc_quick(Vec<double> x) {
  const Vec<double> y = erfc_positive_quick(fabs(x));
  return select(x < 0, Vec<double>(2) - y, y);
}

FASTAE_INLINE Vec<double> erf(Vec<double> x) {
  const Vec<double> a = fabs(x), far = copysign(Vec<double>(1) - erfc_positive(a), x);
  return select(a < 1, fma(x, erf_ratio(x * x, false), x), far);
}

FASTAE_INLINE Vec<double> erfc(Vec<double> x) {
  const Vec<double> a = fabs(x), y = erfc_positive(a);
  const Vec<double> near = fma(-x, erf_ratio(x * x, false), Vec<double>(1) - x);  // 1 - x is exact for x >= 1/2
  return select(a < 1, near, select(x < 0, Vec<double>(2) - y, y));
}

FASTAE_INLINE Vec<float> erf(Vec<float> x) { return narrow(erf_quick(widen_low(x)), erf_quick(widen_high(x))); }
FASTAE_INLINE Vec<float> erfc(Vec<float> x) { return narrow(erfc_quick(widen_low(x)), erfc_quick(widen_high(x))); }

}  // namespace
}  // namespace fastae
