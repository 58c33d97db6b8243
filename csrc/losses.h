// Losses by rows, and penalties on activities.
#pragma once
#include "elementwise.h"
#include "schema.h"

namespace fastae {
namespace {

// Sum of a registered formula's value over a row. use(j, n, slope) takes part `slope` of the formula, -1 for none, on
// each block of columns; it may change a and b there. skip: columns whose b is NaN count as 0.
template <bool skip, class T, class F>
__attribute__((noinline)) double registered_sum(const FormulaRecord& formula, int slope, const T* a, const T* b,
                                                const T* p, int64_t n, const F& use) {
  FormulaBlock<T> first, second, value, change;
  Lanes sum;
  for (int64_t j = 0; j < n; j += kFormulaBlock<T>) {
    const int64_t count = smaller(kFormulaBlock<T>, n - j);
    memcpy(first.v, a + j, (size_t)count * sizeof(T));
    if (b) memcpy(second.v, b + j, (size_t)count * sizeof(T));
    const auto hide = [&](T* v) {
      for (int64_t i = 0; skip && i < count; ++i) v[i] = b[j + i] == b[j + i] ? v[i] : T(0);
    };
    hide(second.v);
    evaluate(formula.part[0], first, b ? &second : nullptr, p, value, count);
    if (slope >= 0) {
      evaluate(formula.part[slope], first, b ? &second : nullptr, p, change, count);
      hide(change.v);
      use(j, count, change.v);
    }
    hide(value.v);
    for (int64_t i = count; i % 16; ++i) value.v[i] = T(0);
    for (int64_t i = 0; i < count; i += 16) sum.add(value.v + i);
  }
  return sum.sum();
}

// Number of a row's targets that are not NaN.
template <class T> FASTAE_INLINE double count_observed(const T* t, int64_t n) {
  return row_sum<T>(n, [&](int64_t j, int lanes) {
    const Vec<T> b = Vec<T>::load(t + j, lanes);
    return select(b == b, Vec<T>(T(1)), Vec<T>(T(0)));
  });
}

// What a row's sum is multiplied by; nothing observed is nothing lost.
template <class T> FASTAE_INLINE double masked_scale(int masked, double scale, const T* t, int64_t n) {
  if (masked != mask_mode::mean) return scale;
  const double count = count_observed(t, n);
  return count > 0 ? scale / count : 0.0;
}

// The vector with 0 where the target is NaN.
template <class T> FASTAE_INLINE Vec<T> where_observed(Vec<T> t, Vec<T> v) { return select(t == t, v, Vec<T>(T(0))); }

template <class T> struct LossRow {
  int kind, masked;
  T p[2];
  double scale;                  // of a row's sum
  const FormulaRecord* formula;  // registered at run time, else null

  // Row value (weight not included); dy = factor scale l'(y, t) when dy is given. dy may be y.
  double operator()(const T* y, const T* t, T* dy, double factor, int64_t n) const noexcept {
    if (masked) return row<true>(y, t, dy, factor, masked_scale(masked, scale, t, n), n);
    return row<false>(y, t, dy, factor, scale, n);
  }

  template <bool skip> double row(const T* y, const T* t, T* dy, double factor, double size, int64_t n) const noexcept {
    const T slope = (T)(factor * size);
    if (kind == kMultinomial) return size * multinomial<skip>(y, t, dy, slope, n);
    if (kind == kCosine) return size * cosine<skip>(y, t, dy, slope, n);
    if (formula) return size * registered<skip>(y, t, dy, slope, n);
    double value = 0;
    visit_loss<Vec<T>, T>(kind, [&](auto formula) {
      value = row_sum<T>(n, [&](int64_t j, int lanes) {
        const Vec<T> a = Vec<T>::load(y + j, lanes), target = Vec<T>::load(t + j, lanes);
        const Vec<T> b = skip ? where_observed(target, target) : target;
        const Vec<T> v = formula.value(a, b, p);
        if (dy) {
          const Vec<T> g = Vec<T>(slope) * formula.dy(a, b, p);
          (skip ? where_observed(target, g) : g).store(dy + j, lanes);
        }
        return skip ? where_observed(target, v) : v;
      });
    });
    return size * value;
  }

  template <bool skip> double registered(const T* y, const T* t, T* dy, T factor, int64_t n) const noexcept {
    return registered_sum<skip>(*formula, dy ? 1 : -1, y, t, p, n, [&](int64_t c, int64_t count, const T* slope) {
      over_row<T>(count, [&](int64_t j, int lanes) {
        (Vec<T>(factor) * Vec<T>::load(slope + j, lanes)).store(dy + c + j, lanes);
      });
    });
  }

  // sum_j t_j (log sum exp z - z_j); derivative softmax(z) sum t - t. Skipping: the softmax of the observed ones.
  template <bool skip> double multinomial(const T* z, const T* t, T* dy, T factor, int64_t n) const noexcept {
    const Vec<T> zero(T(0));
    const T top = skip ? observed_max(z, t, n) : row_max(z, n);
    const Vec<T> m(top);
    const auto target = [&](int64_t j, int lanes) {
      const Vec<T> b = Vec<T>::load(t + j, lanes);
      return skip ? where_observed(b, b) : b;
    };
    const auto power = [&](int64_t j, int lanes) {
      const Vec<T> e = exp(Vec<T>::load(z + j, lanes) - m);
      return skip ? where_observed(Vec<T>::load(t + j, lanes), e) : e;
    };
    const double sum = row_sum<T>(n, power), total = row_sum<T>(n, target);
    if (skip && !(sum > 0) && !(sum != sum)) {  // nothing observed
      if (dy) over_row<T>(n, [&](int64_t j, int lanes) { zero.store(dy + j, lanes); });
      return 0;
    }
    const double dot =
        row_sum<T>(n, [&](int64_t j, int lanes) { return target(j, lanes) * (Vec<T>::load(z + j, lanes) - m); });
    if (dy) {
      const Vec<T> f(factor), a((T)(total / sum));
      over_row<T>(n,
                  [&](int64_t j, int lanes) { (f * (power(j, lanes) * a - target(j, lanes))).store(dy + j, lanes); });
    }
    return total * __builtin_log(sum) - dot;
  }

  static T observed_max(const T* z, const T* t, int64_t n) noexcept {
    T m = -Format<T>::inf;
    for (int64_t j = 0; j < n; ++j)
      if (t[j] == t[j]) m = z[j] > m || z[j] != z[j] ? z[j] : m;
    return m;
  }

  // 1 - cos(y, t) = |u - v|^2 / 2 for the unit vectors u = y / |y| and v = t / |t|; by y: (u - v - value u) / |y|.
  // Lengths are taken in units of the largest element, so that no square overflows. A row of zeros: 1, and 0.
  template <bool skip> double cosine(const T* y, const T* t, T* dy, T factor, int64_t n) const noexcept {
    const auto seen = [&](const T* a) {
      return [=](int64_t j, int lanes) {
        const Vec<T> x = Vec<T>::load(a + j, lanes);
        return skip ? where_observed(Vec<T>::load(t + j, lanes), x) : x;
      };
    };
    const auto a = seen(y), b = seen(t);
    double top[2] = {0, 0}, length[2];
    for (int64_t j = 0; j < n; ++j) {
      if (skip && t[j] != t[j]) continue;
      const double size[2] = {(double)__builtin_fabs((double)y[j]), (double)__builtin_fabs((double)t[j])};
      for (int i = 0; i < 2; ++i) top[i] = size[i] > top[i] || size[i] != size[i] ? size[i] : top[i];
    }
    if (top[0] == 0 || top[1] == 0) {
      if (dy) over_row<T>(n, [&](int64_t j, int lanes) { Vec<T>(T(0)).store(dy + j, lanes); });
      return skip && count_observed(t, n) == 0 ? 0 : 1;
    }
    for (int i = 0; i < 2; ++i) {
      const Vec<T> unit((T)top[i]);
      length[i] = __builtin_sqrt(row_sum<T>(n, [&](int64_t j, int lanes) {
        const Vec<T> x = (i ? b(j, lanes) : a(j, lanes)) / unit;
        return x * x;
      }));
    }
    // in two divisions, as the product of unit and length may overflow
    const Vec<T> unit_y((T)top[0]), unit_t((T)top[1]), length_y((T)length[0]), length_t((T)length[1]);
    const auto u = [&](int64_t j, int lanes) { return a(j, lanes) / unit_y / length_y; };
    const auto v = [&](int64_t j, int lanes) { return b(j, lanes) / unit_t / length_t; };
    const double value = 0.5 * row_sum<T>(n, [&](int64_t j, int lanes) {
                           const Vec<T> e = u(j, lanes) - v(j, lanes);
                           return e * e;
                         });
    if (dy) {
      const Vec<T> c((T)value), f((T)((double)factor / length[0] / top[0]));
      over_row<T>(n, [&](int64_t j, int lanes) {
        const Vec<T> x = u(j, lanes);
        (f * ((x - v(j, lanes)) - c * x)).store(dy + j, lanes);
      });
    }
    return value;
  }
};

// A negative log-likelihood with H outputs per feature, in blocks of n; s: log of the row's size factor.
template <class T> struct LikelihoodRow {
  int kind, masked;
  T p[2];
  double scale;

  double operator()(const T* y, const T* t, T* dy, T s, double factor, int64_t n) const noexcept {
    const double size = masked_scale(masked, scale, t, n);
    const Vec<T> slope((T)(factor * size)), log_size(s);
    double value = 0;
    visit_likelihood<Vec<T>, T>(kind, [&](auto formula) {
      constexpr int H = decltype(formula)::n_outputs;
      value = row_sum<T>(n, [&](int64_t j, int lanes) {
        Vec<T> h[H], g[H];
        for (int k = 0; k < H; ++k) h[k] = Vec<T>::load(y + k * n + j, lanes);
        const Vec<T> target = Vec<T>::load(t + j, lanes), b = masked ? where_observed(target, target) : target;
        const Vec<T> v = formula.value(h, b, log_size, p);
        if (dy) {
          formula.slopes(h, b, log_size, p, g);
          for (int k = 0; k < H; ++k) {
            const Vec<T> slope_k = slope * g[k];
            (masked ? where_observed(target, slope_k) : slope_k).store(dy + k * n + j, lanes);
          }
        }
        return masked ? where_observed(target, v) : v;
      });
    });
    return size * value;
  }
};

// Logarithm of the mean of the targets that are not NaN, cut below.
template <class T> T log_mean_observed(const T* t, int64_t n) noexcept {
  const double sum = row_sum<T>(n, [&](int64_t j, int lanes) {
    const Vec<T> b = Vec<T>::load(t + j, lanes);
    return where_observed(b, b);
  });
  const double count = count_observed(t, n), mean = count > 0 ? sum / count : 0.0;
  return (T)__builtin_log(mean > kSmallestSize ? mean : kSmallestSize);
}

// One parameter of a distribution from its output.
template <class T> void distribution_row(int likelihood, int output, const T* y, T s, T* out, int64_t n) noexcept {
  visit_likelihood<Vec<T>, T>(likelihood, [&](auto formula) {
    over_row<T>(n, [&](int64_t j, int lanes) {
      formula.shown(output, Vec<T>::load(y + j, lanes), Vec<T>(s)).store(out + j, lanes);
    });
  });
}

// [y] = x or log1p(x), 0 where missing; [target] = x, NaN where missing
template <class T> void transform_row(int kind, T missing, const T* x, T* y, T* target, int64_t n) noexcept {
  const Vec<T> nan(Format<T>::inf - Format<T>::inf), zero(T(0));
  over_row<T>(n, [&](int64_t j, int lanes) {
    const Vec<T> v = Vec<T>::load(x + j, lanes);
    const Mask<T> there = (v == v) & (v != Vec<T>(missing));
    if (target) select(there, v, nan).store(target + j, lanes);
    const Vec<T> seen = select(there, v, zero);
    if (y) (kind == input_transform::log1p ? log1p(seen) : seen).store(y + j, lanes);
  });
}

// Sum of values in a fixed order: 16 virtual lanes.
FASTAE_INLINE double sum_in_order(const double* v, int64_t n) {
  double lane[16] = {0};
  for (int64_t i = 0; i < n; ++i) lane[i % 16] += v[i];
  for (int h = 8; h; h /= 2)
    for (int i = 0; i < h; ++i) lane[i] += lane[i + h];
  return lane[0];
}

template <class T>
double activity_row(int penalty, const FormulaRecord* formula, const T* p, const T* h, T* dh, T factor,
                    int64_t n) noexcept {
  if (formula)
    return registered_sum<false>(
        *formula, 1, h, (const T*)nullptr, p, n, [&](int64_t c, int64_t count, const T* slope) {
          over_row<T>(count, [&](int64_t j, int lanes) {
            fma(Vec<T>(factor), Vec<T>::load(slope + j, lanes), Vec<T>::load(dh + c + j, lanes))
                .store(dh + c + j, lanes);
          });
        });
  double value = 0;
  visit_penalty<Vec<T>, T>(penalty, [&](auto formula) {
    value = row_sum<T>(n, [&](int64_t j, int lanes) {
      const Vec<T> x = Vec<T>::load(h + j, lanes);
      fma(Vec<T>(factor), formula.dw(x, p), Vec<T>::load(dh + j, lanes)).store(dh + j, lanes);
      return formula.value(x, p);
    });
  });
  return value;
}

// mean[j] over rows of columns [c, c + n), n <= kColumnBlock: row r goes to virtual lane r % 16
template <class T> void column_means(View<const T> h, int64_t m, int64_t c, int64_t n, double* mean) noexcept {
  double lane[16][kColumnBlock];
  for (int i = 0; i < 16; ++i)
    for (int64_t j = 0; j < n; ++j) lane[i][j] = 0;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = 0; j < n; ++j) lane[r % 16][j] += (double)*h.at(r, c + j);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i)
      for (int64_t j = 0; j < n; ++j) lane[i][j] += lane[i + half][j];
  for (int64_t j = 0; j < n; ++j) mean[j] = lane[0][j] / (double)m;
}

// KL(rho || q) and its derivative, q cut to [1e-7, 1 - 1e-7] where the derivative is 0
FASTAE_INLINE double kl_bernoulli(double rho, double mean, double* slope) {
  constexpr double e = 1e-7;
  const double q = mean < e ? e : mean > 1 - e ? 1 - e : mean;
  *slope = q == mean ? (1 - rho) / (1 - q) - rho / q : 0.0;
  double value = 0;
  if (rho > 0) value += rho * __builtin_log(rho / q);
  if (rho < 1) value += (1 - rho) * __builtin_log((1 - rho) / (1 - q));
  return mean != mean ? mean : value;
}

}  // namespace
}  // namespace fastae
