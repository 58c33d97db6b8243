// exp, expm1, sigmoid, log, log1p, tanh, sin(2 pi u), cos(2 pi u) on registers of float or double, without a branch by
// lane. erf and erfc are in vecmath_erf.h, included at the end.
//
// Errors: float at most 2 ulp, double at most 4 (measured: 2.2, for erfc 3.7). Signed zeros, denormals,
// infinities and NaN come out as the C library's functions give them. Polynomials are minimax fits (Remez) of the
// quotient named beside them; the reductions are those of Cody & Waite (1980) and Tang (1990).
#pragma once
#include "vec.h"

namespace fastae {
namespace {

// c0 + c1 x + c2 x^2 + ...
template <class T> FASTAE_INLINE Vec<T> horner(Vec<T>, double c) { return Vec<T>(c); }
template <class T, class... C> FASTAE_INLINE Vec<T> horner(Vec<T> x, double c0, C... c) {
  return fma(horner(x, c...), x, c0);
}

template <class T> struct Format;
template <> struct Format<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float exp_low = -104.5f, exp_high = 89.f, expm1_low = -18.f, sigmoid_one = 20.f,
                         inf = __builtin_inff();
  static constexpr float tiny = 0x1p-24f, normal = 0x1p-126f, two_mantissa = 0x1p23f, denormal_scale = 0x1p25f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.1219444005469057e-4f;  // k * ln2_high is exact
  static constexpr int32_t sqrt_half = 0x3f3504f3;
};
template <> struct Format<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double exp_low = -746., exp_high = 709.9, expm1_low = -38., sigmoid_one = 40., inf = __builtin_inf();
  static constexpr double tiny = 0x1p-53, normal = 0x1p-1022, two_mantissa = 0x1p52, denormal_scale = 0x1p54;
  static constexpr double ln2_high = 0x1.62e42fefa2p-1, ln2_low = 7.371002565167799e-13;
  static constexpr int64_t sqrt_half = 0x3fe6a09e667f3bcd;
};

// ---- exponentials: x + tail = k ln2 + r, |r| <= ln2 / 2 -------------------------------------------------------------
// Gives e = exp(r) - 1 and k + magic, whose low bits are the integer k. quick: single-precision polynomial.
template <bool quick, class T> FASTAE_INLINE Vec<T> exp_reduce(Vec<T> x, Vec<T> tail, Vec<T>& e) {
  typedef Format<T> F;
  const Vec<T> shifted = fma(x, 1.4426950408889634, Lane<T>::magic), k = shifted - Lane<T>::magic;
  const Vec<T> r = fma(k, -F::ln2_low, fma(k, -F::ln2_high, x)) + tail;
  Vec<T> q;  // (exp(r) - 1 - r) / r^2
  if constexpr (quick) q = horner(r, 0.5, 0.1666652, 0.04166639, 0.008368759, 0.0013942008);
  else
    q = horner(r, 0.5, 0.16666666666666685, 0.04166666666660264, 0.008333333333313927, 0.0013888888927336047,
               0.0001984126990491148, 2.4801507999777594e-05, 2.7557226077571243e-06, 2.762545905473199e-07,
               2.5115096745688206e-08);
  e = fma(r * r, q, r);
  return shifted;
}

// p 2^k for p of the order of 1 and any k in reach, rounded once also where the result is denormal.
template <class T> FASTAE_INLINE Vec<T> scale(Vec<T> p, Vec<T> shifted) {
#if defined(__AVX512F__) && !defined(FASTAE_DEVICE)
  const Vec<T> k = shifted - Lane<T>::magic;
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm512_maskz_scalef_ps(0xffff, p.v, k.v));
  else return Vec<T>(_mm512_maskz_scalef_pd(0xff, p.v, k.v));
#else
  constexpr int m = Format<T>::mantissa, bias = Format<T>::bias;
  const IntVec<T> b = bits(shifted), half = shift_right(b, 1), rest = b - half;
  return p * as_float((half + bias) << m) * as_float((rest + bias) << m);
#endif
}

template <class T> FASTAE_INLINE Vec<T> exp(Vec<T> x) {
  Vec<T> e;
  const Vec<T> shifted = exp_reduce<sizeof(T) == 4>(clamp(x, Format<T>::exp_low, Format<T>::exp_high), Vec<T>(-0.0), e);
  return scale(e + 1, shifted);
}

// exp(x) - 1 = 2 (h e + (h - 1/2)) with h = 2^(k-1), which is finite where the result is.
template <class T> FASTAE_INLINE Vec<T> expm1(Vec<T> x) {
  typedef Format<T> F;
  Vec<T> e;
  const Vec<T> shifted = exp_reduce<sizeof(T) == 4>(clamp(x, F::expm1_low, F::exp_high), Vec<T>(-0.0), e);
  const Vec<T> h = as_float((bits(shifted) + (F::bias - 1)) << F::mantissa);
  const Vec<T> half = fma(h, e, h - 0.5);
  return select(fabs(x) < F::tiny, x, half + half);  // keeps -0 and denormals
}

// 1 / (1 + exp(-x)) = c / (c + s + s e) with exp(-x) = (1 + e) s / c, s / c = 2^k. The factor c = 2^-(mantissa + 1)
// keeps the divisor finite where the result is denormal; its larger part is added last, so little is rounded away.
template <class T> FASTAE_INLINE Vec<T> sigmoid(Vec<T> x) {
  typedef Format<T> F;
  constexpr T c = F::tiny;
  Vec<T> e;
  const Vec<T> shifted = exp_reduce<sizeof(T) == 4>(clamp(-x, -F::sigmoid_one, -F::exp_low), Vec<T>(-0.0), e);
  const Vec<T> s = as_float((bits(shifted) + (F::bias - F::mantissa - 1)) << F::mantissa);
  return Vec<T>(1) / (fma(s, e, at_most(s, c)) + at_least(s, c)) * c;
}

// exp(-2|x|) = s (1 + e): |tanh x| = (1 - s - s e) / (1 + s + s e)
template <class T> FASTAE_INLINE Vec<T> tanh(Vec<T> x) {
  typedef Format<T> F;
  Vec<T> e;
  const Vec<T> shifted = exp_reduce<sizeof(T) == 4>(at_least(fabs(x) * -2, F::expm1_low), Vec<T>(-0.0), e);
  const Vec<T> s = as_float((bits(shifted) + F::bias) << F::mantissa);
  return copysign(fma(s, e, s - 1) / fma(s, e, s + 1), x);
}

// ---- logarithms: x = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2) ------------------------------------------------------
// Gives 1 + f for a positive normal x.
template <class T> FASTAE_INLINE Vec<T> split(Vec<T> x, Vec<T>& k) {
  typedef Format<T> F;
  typedef typename Lane<T>::I I;
  constexpr I one = (I)F::bias << F::mantissa, fraction = ((I)1 << F::mantissa) - 1;
  const IntVec<T> b = bits(x) + (one - F::sqrt_half);
  const IntVec<T> biased = shift_right(b, F::mantissa);
  k = as_float(biased | bits(Vec<T>(F::two_mantissa))) - (F::two_mantissa + F::bias);
  return as_float((b & fraction) + F::sqrt_half);
}

// k ln2 + log(1 + f)
template <class T> FASTAE_INLINE Vec<T> log_sum(Vec<T> k, Vec<T> f) {
  typedef Format<T> F;
  if constexpr (sizeof(T) == 4) {  // (log(1 + f) - f + f^2 / 2) / f^3
    const Vec<T> z = f * f;
    const Vec<T> q =
        horner(f, 0.3333333, -0.25000823, 0.20001231, -0.16623251, 0.1420157, -0.13161094, 0.12763469, -0.07634401);
    const Vec<T> y = fma(z, -0.5, fma(z * f, q, k * F::ln2_low));
    return fma(k, F::ln2_high, f + y);
  } else {  // s = f / (2 + f), log(1 + f) = 2 atanh(s) = 2 s + s R(s^2) = f - (f^2 / 2 - s (f^2 / 2 + R))
    const Vec<T> s = f / (f + 2), z = s * s, h = f * f * 0.5;
    const Vec<T> q = horner(z, 0.6666666666666735, 0.399999999994111, 0.285714287432618, 0.22222198476058086,
                            0.18183569736446728, 0.15313903325141737, 0.1479750701324376);
    const Vec<T> y = fma(s, fma(z, q, h), k * F::ln2_low);
    return fma(k, F::ln2_high, f - (h - y));
  }
}

// The pole gives -inf, what lies left of it NaN; +inf and NaN stay.
template <class T> FASTAE_INLINE Vec<T> log_edges(Vec<T> x, T pole, Vec<T> y) {
  const T inf = Format<T>::inf;
  y = select(x < inf, y, x);
  return select(x > pole, y, select(x == pole, Vec<T>(-inf), Vec<T>(inf - inf)));
}

template <class T> FASTAE_INLINE Vec<T> log(Vec<T> x) {
  typedef Format<T> F;
  const Mask<T> denormal = x < F::normal;
  Vec<T> k;
  const Vec<T> m = split(select(denormal, x * F::denormal_scale, x), k);
  k = select(denormal, k - (F::mantissa + 2), k);
  return log_edges(x, (T)0, log_sum(k, m - 1));
}

// u = 1 + x rounded, 1 + x = u + d exactly (Knuth's two-sum); d 2^-k joins f, which makes f = x where k = 0.
// Above 0 and up to 1, where exponentials lie, that is f = (x - 1) / 2 rounded once for k = 1, and there are no edges.
template <class T> FASTAE_INLINE Vec<T> log1p(Vec<T> x) {
  typedef Format<T> F;
  typedef typename Lane<T>::I I;
  const Vec<T> u = x + 1;
  if (__builtin_expect(all((x > 0) & (x <= 1)), 1)) {
    const Mask<T> upper = u >= as_float(IntVec<T>(F::sqrt_half + ((I)1 << F::mantissa)));
    return log_sum(select(upper, Vec<T>(1), Vec<T>(0)), select(upper, fma(x, 0.5, -0.5), x));
  }
  const Vec<T> t = u - 1, d = (x - t) + (Vec<T>(1) - (u - t));
  Vec<T> k;
  const Vec<T> m = split(u, k);
  // 2^(1-k), because 2^-k would have no exponent left for the largest x
  const IntVec<T> power = bits(m) - bits(u) + ((I)(F::bias + 1) << F::mantissa);
  const Vec<T> f = fma(d, as_float(power) * 0.5, m - 1);
  const Vec<T> y = select(x == 0, x, log_sum(k, f));
  return log_edges(x, (T)-1, y);
}

// ---- sin(2 pi u) and cos(2 pi u), 0 <= u < 1: u = q / 4 + r, |r| <= 1/8, both exact ---------------------------------
template <class T> FASTAE_INLINE void sincos2pi(Vec<T> u, Vec<T>& sine, Vec<T>& cosine) {
  const Vec<T> shifted = fma(u, 4, Lane<T>::magic), quarter = shifted - Lane<T>::magic;
  const Vec<T> r = fma(quarter, -0.25, u), z = r * r;
  Vec<T> s, c;  // sin(2 pi r) and cos(2 pi r)
  if constexpr (sizeof(T) == 4) {
    s = fma(r, 6.2831855f, r * fma(z, horner(z, -41.341675, 81.59394, -75.45339), -1.7484556e-7));
    c = fma(z, horner(z, -19.739208802178716, 64.93936, -85.44746, 59.36256), 1);
  } else {
    s = fma(r, 6.283185307179586,
            r * fma(z,
                    horner(z, -41.34170224039976, 81.60524927607496, -76.70585975300455, 42.05869393000366,
                           -15.094640489607261, 3.8197917991873607, -0.7116988861250859),
                    2.4492935982947064e-16));
    c = fma(z,
            horner(z, -19.739208802178716, 64.93939402266818, -85.45681720660298, 60.24464134249608,
                   -26.426252114458645, 7.903145181726408, -1.6977895642779945),
            1);
  }
  // The two low bits of q: bit 0 swaps sine and cosine, bit 1 negates the sine, bit 1 of q + 1 the cosine.
  constexpr int top = 8 * sizeof(T) - 2;
  const IntVec<T> q = bits(shifted), sign_bit = Vec<T>::sign_bit();
  const Mask<T> odd = (quarter == 1) | (quarter == 3);
  sine = as_float(bits(select(odd, c, s)) ^ ((q << top) & sign_bit));
  cosine = as_float(bits(select(odd, s, c)) ^ (((q + 1) << top) & sign_bit));
}

template <class T> FASTAE_INLINE Vec<T> sin2pi(Vec<T> u) {
  Vec<T> s, c;
  sincos2pi(u, s, c);
  return s;
}

template <class T> FASTAE_INLINE Vec<T> cos2pi(Vec<T> u) {
  Vec<T> s, c;
  sincos2pi(u, s, c);
  return c;
}

}  // namespace
}  // namespace fastae

#include "vecmath_erf.h"
