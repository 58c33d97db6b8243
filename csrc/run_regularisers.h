// Ops of regularisers beyond elementwise penalties: of pairs of rows, of a layer's Jacobian, of the code's covariance,
// of a weight matrix as a whole.
#pragma once
#include "norm.h"

namespace fastae {
namespace {

struct NoEpilogue {
  void operator()(int64_t, int64_t, int64_t, int64_t) const noexcept {}
};

// c (m,columns) = a (m,depth) * w, or wT
template <class E, class T>
void plain_product(const E& e, View<T> a, View<T> w, bool transposed, int64_t m, int64_t columns, int64_t depth,
                   View<T> c) {
  multiply(a.p, a.ld, w.p, w.ld, transposed, (const T*)nullptr, m, columns, depth, c.p, c.ld, e.threads, e.packing,
           NoEpilogue());
}

// strength [coefficient] |h - h2|^2 by rows
template <class E> void run_pair(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_pair;
  const View<T> h = e.real(o.slot[at::s_h]), h2 = e.real(o.slot[at::s_h2]);
  const View<T> dh = e.real(o.slot[at::s_dh]), dh2 = e.real(o.slot[at::s_dh2]);
  const T* coefficient = e.real(o.slot[at::s_coefficient]).p;
  double* value = e.template view<double>(o.slot[at::s_row_value]).p;
  const int64_t n = e.width(o.slot[at::s_h]);
  e.over_rows((double)n * 4, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r) {
      const double c = f[at::f_strength] * (coefficient ? (double)coefficient[r] : 1.0);
      const Vec<T> factor((T)(2 * c / (double)e.m));
      value[r] = c * row_sum<T>(n, [&](int64_t j, int lanes) {
                   const Vec<T> d = Vec<T>::load(h.at(r, j), lanes) - Vec<T>::load(h2.at(r, j), lanes);
                   const Vec<T> slope = factor * d;
                   (Vec<T>::load(dh.at(r, j), lanes) + slope).store(dh.at(r, j), lanes);
                   (-slope).store(dh2.at(r, j), lanes);
                   return d * d;
                 });
    }
  });
  e.add_value(o.i[at::i_value], sum_in_order(value, e.m) / (double)e.m);
}

// The work of run_contractive on columns [c, c + n) for a formula registered at run time.
template <class T>
__attribute__((noinline)) void contract_registered(const FormulaRecord& formula, View<T> h, View<T> dh, int64_t m,
                                                   int64_t c, int64_t n, const T* p, const T* norm,
                                                   double (*lane)[kColumnBlock]) noexcept {
  FormulaBlock<T> kept, slope, curvature;
  over_pieces<T>(m, n, [&](int64_t first, int64_t rows, int64_t, int64_t) {
    for (int64_t i = 0; i < rows; ++i) memcpy(kept.v + i * n, h.at(first + i, c), (size_t)n * sizeof(T));
    evaluate<T>(formula.part[1], kept, nullptr, p, slope, rows * n);
    evaluate<T>(formula.part[2], kept, nullptr, p, curvature, rows * n);
    for (int64_t i = 0; i < rows; ++i) {
      T* const d = dh.at(first + i, c);
      over_row<T>(n, [&](int64_t j, int lanes) {
        fma(Vec<T>::load(norm + j, lanes), Vec<T>::load(curvature.v + i * n + j, lanes), Vec<T>::load(d + j, lanes))
            .store(d + j, lanes);
      });
      for (int64_t j = 0; j < n; ++j) {
        const T s = slope.v[i * n + j];
        lane[(first + i) % 16][j] += (double)(s * s);
      }
    }
  });
}

// strength sum_j a'(z_j)^2 |w_j|^2 by rows
template <class E> void run_contractive(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_contractive;
  const View<T> h = e.real(o.slot[at::s_h]), dh = e.real(o.slot[at::s_dh]), w = e.real(o.slot[at::s_w]);
  double* factor = e.template view<double>(o.slot[at::s_factor]).p;
  const int64_t width = e.width(o.slot[at::s_h]), k = e.width(o.slot[at::s_w]);
  const double scale = 2 * f[at::f_strength] / (double)e.m;
  const T p[2] = {(T)f[at::f_p0], (T)f[at::f_p1]};
  const FormulaRecord* const formula = e.registered(o);
  over_columns(e.threads, e.m, width, [&](int64_t c, int64_t n) {
    double lane[16][kColumnBlock] = {};
    T norm[kColumnBlock];
    for (int64_t j = 0; j < n; ++j)
      norm[j] = (T)(scale * sum_of(k, [&](int64_t i) { return (double)*w.at(c + j, i) * (double)*w.at(c + j, i); }));
    if (formula) contract_registered(*formula, h, dh, e.m, c, n, p, norm, lane);
    visit_activation<Vec<T>, T>((int)o.i[at::i_activation], [&](auto formula) {
      for (int64_t r = 0; r < e.m; ++r) {
        T square[kColumnBlock + 16];
        over_row<T>(n, [&](int64_t j, int lanes) {
          const Vec<T> s = Vec<T>::load(h.at(r, c + j), lanes), slope = formula.dy(s, p);
          (slope * slope).store(square + j);
          fma(Vec<T>::load(norm + j, lanes), formula.d2y(s, p), Vec<T>::load(dh.at(r, c + j), lanes))
              .store(dh.at(r, c + j), lanes);
        });
        for (int64_t j = 0; j < n; ++j) lane[r % 16][j] += (double)square[j];
      }
    });
    for (int half = 8; half; half /= 2)
      for (int i = 0; i < half; ++i)
        for (int64_t j = 0; j < n; ++j) lane[i][j] += lane[i + half][j];
    for (int64_t j = 0; j < n; ++j) factor[c + j] = scale * lane[0][j];
  });
  double value = 0;
  for (int64_t j = 0; j < width; ++j)
    value += 0.5 * factor[j] * sum_of(k, [&](int64_t i) { return (double)*w.at(j, i) * (double)*w.at(j, i); });
  e.add_value(o.i[at::i_value], value);
}

template <class E> void run_scale_rows(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_scale_rows;
  const View<T> w = e.real(o.slot[at::s_w]), dw = e.real(o.slot[at::s_dw]);
  const double* factor = e.template view<double>(o.slot[at::s_factor]).p;
  const int64_t n = e.plan.buffers[o.slot[at::s_w]].rows, k = e.width(o.slot[at::s_w]);
  for (int64_t j = 0; j < n; ++j) {
    const Vec<T> c((T)factor[j]);
    over_row<T>(k, [&](int64_t i, int lanes) {
      fma(c, Vec<T>::load(w.at(j, i), lanes), Vec<T>::load(dw.at(j, i), lanes)).store(dw.at(j, i), lanes);
    });
  }
}

// a (rows,columns) += factor b
template <class E, class T>
void add_scaled(const E& e, View<T> a, View<T> b, double factor, int64_t rows, int64_t columns) {
  const Vec<T> c((T)factor);
  parallel(useful_threads(e.threads, (double)rows * columns), rows, [&](int64_t r) {
    over_row<T>(columns, [&](int64_t j, int lanes) {
      fma(c, Vec<T>::load(b.at(r, j), lanes), Vec<T>::load(a.at(r, j), lanes)).store(a.at(r, j), lanes);
    });
  });
}

// sum of squares of a matrix after f(row, column, element) has replaced its elements
template <class E, class T, class F>
double replace_and_square(const E& e, View<T> a, int64_t rows, int64_t columns, const F& f) {
  parallel(useful_threads(e.threads, (double)rows * columns), rows, [&](int64_t r) {
    e.sums[r] = sum_of(columns, [&](int64_t j) {
      T* x = a.at(r, j);
      *x = (T)f(r, j, (double)*x);
      return (double)*x * (double)*x;
    });
  });
  return sum_in_order(e.sums, rows);
}

// strength / 2 sum_{i != j} C_ij^2
template <class E> void run_decorrelation(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_decorrelation;
  const View<T> h = e.real(o.slot[at::s_h]), dh = e.real(o.slot[at::s_dh]), centred = e.real(o.slot[at::s_centred]);
  const View<T> covariance = e.real(o.slot[at::s_covariance]), product = e.real(o.slot[at::s_product]);
  double* mean = e.template view<double>(o.slot[at::s_mean]).p;
  const int64_t width = e.width(o.slot[at::s_h]);
  over_columns(e.threads, e.m, width, [&](int64_t c, int64_t n) {
    column_means(View<const T>{h.p, h.ld}, e.m, c, n, mean + c);
    for (int64_t r = 0; r < e.m; ++r)
      for (int64_t j = c; j < c + n; ++j) *centred.at(r, j) = (T)((double)*h.at(r, j) - mean[j]);
  });
  weight_gradient((const T*)centred.p, centred.ld, (const T*)centred.p, centred.ld, e.m, width, width, covariance.p,
                  (T*)nullptr, e.threads, e.packing);
  const double square = replace_and_square(
      e, covariance, width, width, [&](int64_t i, int64_t j, double x) { return i == j ? 0.0 : x / (double)e.m; });
  e.add_value(o.i[at::i_value], 0.5 * f[at::f_strength] * square);
  plain_product(e, centred, covariance, false, e.m, width, width, product);
  add_scaled(e, dh, product, 2 * f[at::f_strength] / (double)e.m, e.m, width);
}

// strength / 2 |w wT - I|^2, or |wT w - I|^2
template <class E> void run_orthogonality(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_orthogonality;
  const View<T> w = e.real(o.slot[at::s_w]), dw = e.real(o.slot[at::s_dw]);
  const View<T> gram = e.real(o.slot[at::s_gram]), product = e.real(o.slot[at::s_product]);
  const int64_t n = e.plan.buffers[o.slot[at::s_w]].rows, k = e.width(o.slot[at::s_w]);
  const bool columns = o.i[at::i_columns] != 0;
  const int64_t q = columns ? k : n;
  if (columns)
    weight_gradient((const T*)w.p, w.ld, (const T*)w.p, w.ld, n, k, k, gram.p, (T*)nullptr, e.threads, e.packing);
  else plain_product(e, w, w, true, n, n, k, gram);
  const double square =
      replace_and_square(e, gram, q, q, [](int64_t i, int64_t j, double x) { return i == j ? x - 1 : x; });
  e.add_value(o.i[at::i_value], 0.5 * f[at::f_strength] * square);
  if (columns) plain_product(e, w, gram, false, n, k, k, product);
  else plain_product(e, gram, w, false, n, k, n, product);
  add_scaled(e, dw, product, 2 * f[at::f_strength], n, k);
}

// strength / 2 |w (I - vT v)|^2
template <class E> void run_projector(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_projector;
  const View<T> w = e.real(o.slot[at::s_w]), v = e.real(o.slot[at::s_v]), dw = e.real(o.slot[at::s_dw]);
  const View<T> coordinates = e.real(o.slot[at::s_coordinates]), rest = e.real(o.slot[at::s_product]);
  const int64_t n = e.plan.buffers[o.slot[at::s_w]].rows, k = e.width(o.slot[at::s_w]);
  const int64_t q = e.plan.buffers[o.slot[at::s_v]].rows;
  plain_product(e, w, v, true, n, q, k, coordinates);
  plain_product(e, coordinates, v, false, n, k, q, rest);
  const double square =
      replace_and_square(e, rest, n, k, [&](int64_t i, int64_t j, double x) { return (double)*w.at(i, j) - x; });
  e.add_value(o.i[at::i_value], 0.5 * f[at::f_strength] * square);
  add_scaled(e, dw, rest, f[at::f_strength], n, k);
}

}  // namespace
}  // namespace fastae
