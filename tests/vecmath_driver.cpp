// Prints, for each function of vecmath.h, its largest error in ulp over a sweep: "float exp 0.98". The reference is the
// C library in long double. Exits with 1 when a special value comes out wrong.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "philox.h"
#include "vecmath.h"

using namespace fastae;
typedef long double L;

static int failures = 0;

// |got - want| in units of the last place of T at want
template <class T> double ulps(T got, L want) {
  const int mantissa = sizeof(T) == 4 ? 23 : 52, least = sizeof(T) == 4 ? -126 : -1022;
  const L largest = sizeof(T) == 4 ? 3.4028235677973366e38L : 1.7976931348623158079372897e308L;
  if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got) ? 0 : 1e9;
  if (fabsl(want) >= largest || std::isinf(got)) return fabsl(want) >= largest * 0.999L && std::isinf(got) ? 0 : 1e9;
  if (want == 0) return got == 0 ? 0 : 1e9;
  int exponent;
  frexpl(want, &exponent);
  exponent = exponent - 1 < least ? least : exponent - 1;
  return (double)(fabsl((L)got - want) / ldexpl(1, exponent - mantissa));
}

static L sigmoid_l(L x) { return x >= 0 ? 1 / (1 + expl(-x)) : expl(x) / (1 + expl(x)); }
static L sin2pi_l(L u) { return sinl(2 * 3.14159265358979323846264338327950288L * u); }
static L cos2pi_l(L u) { return cosl(2 * 3.14159265358979323846264338327950288L * u); }

template <class T, class F> void sweep(const char* type, const char* name, const F& f, L (*exact)(L), bool unit) {
  constexpr int N = Vec<T>::N;
  double worst = 0;
  T x[N], y[N];
  const auto check = [&] {
    f(Vec<T>::load(x)).store(y);
    for (int i = 0; i < N; ++i) {
      const L want = exact((L)x[i]);
      // near its zeros a sine of an argument that is exact in units of turns is compared absolutely
      const double e = unit && fabsl(want) < 1e-3L ? (double)fabsl((L)y[i] - want) / (sizeof(T) == 4 ? 6e-8 : 1.2e-16)
                                                   : ulps(y[i], want);
      if (!(e <= worst)) worst = e;
      if (x[i] == 0 && want == 0 && std::signbit(want) != std::signbit(y[i])) ++failures;
    }
  };
  const T special[] = {T(0),      T(-0.0), T(1),      T(-1),  T(INFINITY), T(-INFINITY), T(NAN),  T(1e-40),
                       T(-1e-40), T(88.8), T(-103.9), T(710), T(-745),     T(1e-300),    T(3e38), T(-3e38)};
  if (!unit)
    for (int step = 0; step < 2; ++step)  // the same in all lanes, and different ones
      for (size_t s = 0; s < sizeof special / sizeof *special; s += 1) {
        for (int i = 0; i < N; ++i) x[i] = special[(s + step * i) % (sizeof special / sizeof *special)];
        check();
      }
  uint32_t words[64];
  for (uint64_t block = 0; block < 30000; ++block) {
    philox_row(1, 2, 3, block, 0, 64, words);
    for (int i = 0; i < N; ++i) {
      if (unit) {
        x[i] = (T)((double)(words[i] >> 8) * 0x1p-24);
      } else if (block % 2) {  // all magnitudes
        if (sizeof(T) == 4) memcpy(&x[i], &words[i], 4);
        else memcpy(&x[i], &words[2 * i], 8);
      } else {  // those that matter
        x[i] = (T)(((double)words[i] - 2147483648.0) * 0x1p-31 * (block % 4 ? 20 : 2));
      }
    }
    check();
  }
  printf("%s %s %.3f\n", type, name, worst);
}

template <class T> void all(const char* type) {
  typedef Vec<T> V;
  sweep<T>(type, "exp", [](V x) { return exp(x); }, expl, false);
  sweep<T>(type, "expm1", [](V x) { return expm1(x); }, expm1l, false);
  sweep<T>(type, "sigmoid", [](V x) { return sigmoid(x); }, sigmoid_l, false);
  sweep<T>(type, "log", [](V x) { return log(x); }, logl, false);
  sweep<T>(type, "log1p", [](V x) { return log1p(x); }, log1pl, false);
  sweep<T>(type, "tanh", [](V x) { return tanh(x); }, tanhl, false);
  sweep<T>(type, "erf", [](V x) { return erf(x); }, erfl, false);
  sweep<T>(type, "erfc", [](V x) { return erfc(x); }, erfcl, false);
  sweep<T>(type, "sin2pi", [](V x) { return sin2pi(x); }, sin2pi_l, true);
  sweep<T>(type, "cos2pi", [](V x) { return cos2pi(x); }, cos2pi_l, true);
}

// The square root of every float is the correctly rounded one.
void square_roots() {
  constexpr int N = Vec<float>::N;
  for (uint64_t first = 0; first < (1ull << 32); first += N) {
    float x[N], y[N];
    for (int i = 0; i < N; ++i) {
      const uint32_t bits = (uint32_t)(first + i);
      memcpy(x + i, &bits, 4);
    }
    sqrt(Vec<float>::load(x)).store(y);
    for (int i = 0; i < N; ++i) {
      const float want = __builtin_sqrtf(x[i]);
      if (want == want ? memcmp(y + i, &want, 4) != 0 : y[i] == y[i]) ++failures;
    }
  }
}

int main() {
  all<float>("float");
  all<double>("double");
  square_roots();
  return failures != 0;
}
