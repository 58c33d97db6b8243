// What the encoder sees of the input, losses by rows, distributions, penalties on activities.
//
// Sixteen threads a row: sums over it are those of the CPU's virtual lanes. Rows of a warp take every step together,
// whatever they hold, as all threads take part in sums.
#pragma once
#include "cuda/formula.cuh"

namespace fastae {

FASTAE_INLINE T where_observed(T t, T v) { return t == t ? v : T(0); }

// One row as a loss sees it. skip: columns whose target is NaN count as nothing. dy may be y.
struct LossRow {
  const T *y, *t;
  T* dy;  // null for none
  int64_t n;
  int lane;
  bool skip;
  FASTAE_INLINE T seen(int64_t j, T v) const { return skip ? where_observed(t[j], v) : v; }
  FASTAE_INLINE T target(int64_t j) const { return seen(j, t[j]); }
  FASTAE_INLINE double observed() const {
    return row_sum(n, lane, [&](int64_t j) { return where_observed(t[j], T(1)); });
  }
  template <class F> FASTAE_INLINE void each_column(const F& f) const {
    for (int64_t j = lane; j < n; j += kLanes) f(j);
  }
};

// What a row's sum is multiplied by; nothing observed is nothing lost.
FASTAE_INLINE double masked_scale(const LossRow& row, int64_t masked, double scale) {
  if (masked != mask_mode::mean) return scale;
  const double count = row.observed();
  return count > 0 ? scale / count : 0.0;
}

// sum_j value(y, t), dy = slope value'(y, t), of the catalogue or registered
FASTAE_INLINE double elementwise_loss(const LossRow& row, const DeviceFormula* registered, int id, const T* p,
                                      T slope) {
  double sum = 0;
  if (registered) {
    return row_sum<1>(row.n, row.lane, [&](int64_t j) {
      const T a = row.y[j], b = row.target(j);
      const T v = row.seen(j, run_program(registered->part[0], a, b, p[0], p[1]));
      if (row.dy) {
        const T change = row.seen(j, run_program(registered->part[1], a, b, p[0], p[1]));
        row.dy[j] = slope * change;
      }
      return v;
    });
  }
  visit_loss<Vec<T>, T>(id, [&](auto formula) {
    constexpr int kAhead = 4;  // elements that are read before any is written: dy may be y
#pragma unroll 1
    for (int64_t j0 = row.lane; j0 < row.n; j0 += kAhead * kLanes) {
      T y[kAhead], t[kAhead];
#pragma unroll
      for (int q = 0; q < kAhead; ++q) {
        const int64_t j = j0 + q * kLanes;
        y[q] = j < row.n ? row.y[j] : T(0);
        t[q] = j < row.n ? row.t[j] : T(0);
      }
#pragma unroll
      for (int q = 0; q < kAhead; ++q) {
        const int64_t j = j0 + q * kLanes;
        if (j >= row.n) break;
        const bool counts = !row.skip || t[q] == t[q];
        const Vec<T> a = y[q], b = counts ? t[q] : T(0);
        if (row.dy) row.dy[j] = counts ? slope * formula.dy(a, b, p).v : T(0);
        sum += (double)(counts ? formula.value(a, b, p).v : T(0));
      }
    }
  });
  return lanes_sum(sum);
}

// sum_j t_j (log sum exp z - z_j); derivative softmax(z) sum t - t. Skipping: the softmax of the observed ones.
FASTAE_INLINE double multinomial(const LossRow& row, T slope) {
  const T top = row_max(row.n, row.lane,
                        [&](int64_t j) { return row.skip && row.t[j] != row.t[j] ? -Format<T>::inf : row.y[j]; });
  const auto power = [&](int64_t j) { return row.seen(j, exp(Vec<T>(row.y[j]) - Vec<T>(top)).v); };
  const double sum = row_sum<2>(row.n, row.lane, power);
  const double total = row_sum<2>(row.n, row.lane, [&](int64_t j) { return row.target(j); });
  const double dot = row_sum<2>(row.n, row.lane, [&](int64_t j) { return row.target(j) * (row.y[j] - top); });
  const bool nothing = row.skip && !(sum > 0) && !(sum != sum);
  if (row.dy) {
    const T a = (T)(total / sum);
    row.each_column([&](int64_t j) { row.dy[j] = nothing ? T(0) : slope * (power(j) * a - row.target(j)); });
  }
  return nothing ? 0.0 : total * ::log(sum) - dot;
}

// 1 - cos(y, t) = |u - v|^2 / 2 for the unit vectors u = y / |y| and v = t / |t|; by y: (u - v - value u) / |y|.
// Lengths are taken in units of the largest element, so that no square overflows. A row of zeros: 1, and 0.
FASTAE_INLINE double cosine(const LossRow& row, T slope) {
  const auto a = [&](int64_t j) { return row.seen(j, row.y[j]); };
  const auto b = [&](int64_t j) { return row.target(j); };
  const T unit_y = row_max(row.n, row.lane, [&](int64_t j) { return fabs(Vec<T>(a(j))).v; });
  const T unit_t = row_max(row.n, row.lane, [&](int64_t j) { return fabs(Vec<T>(b(j))).v; });
  const auto length = [&](T unit, const auto& x) {
    return ::sqrt(row_sum<2>(row.n, row.lane, [&](int64_t j) {
      const T e = x(j) / unit;
      return e * e;
    }));
  };
  const double length_y = length(unit_y, a), length_t = length(unit_t, b);
  // in two divisions, as the product of unit and length may overflow
  const auto u = [&](int64_t j) { return a(j) / unit_y / (T)length_y; };
  const auto v = [&](int64_t j) { return b(j) / unit_t / (T)length_t; };
  const double value = 0.5 * row_sum<2>(row.n, row.lane, [&](int64_t j) {
                         const T e = u(j) - v(j);
                         return e * e;
                       });
  const double count = row.skip ? row.observed() : 1.0;
  const bool nothing = unit_y == T(0) || unit_t == T(0);
  if (row.dy) {
    const T c = (T)value, f = (T)((double)slope / length_y / (double)unit_y);
    row.each_column([&](int64_t j) {
      const T x = u(j);
      row.dy[j] = nothing ? T(0) : f * ((x - v(j)) - c * x);
    });
  }
  return nothing ? (count == 0 ? 0.0 : 1.0) : value;
}

// A negative log-likelihood with H outputs per feature, in blocks of n; s: log of the row's size factor.
FASTAE_INLINE double likelihood_sum(const LossRow& row, int id, const T* p, T s, T slope) {
  double sum = 0;
  visit_likelihood<Vec<T>, T>(id, [&](auto formula) {
    constexpr int H = decltype(formula)::n_outputs;
    sum = row_sum<1>(row.n, row.lane, [&](int64_t j) {
      Vec<T> h[H], g[H];
      for (int k = 0; k < H; ++k) h[k] = row.y[k * row.n + j];
      const Vec<T> b = row.target(j);
      const T v = row.seen(j, formula.value(h, b, Vec<T>(s), p).v);
      if (row.dy) {
        formula.slopes(h, b, Vec<T>(s), p, g);
        for (int k = 0; k < H; ++k) row.dy[k * row.n + j] = row.seen(j, slope * g[k].v);
      }
      return v;
    });
  });
  return sum;
}

// Rows' values, f(row, weight / m, thread's LossRow) each, into [row_value] (accumulate: added) and, weighted, to work.
template <class F>
FASTAE_INLINE void each_loss(const Launch& o, const View<T>& y, const View<T>& t, const View<T>& dy, int weight_slot,
                             int row_value_slot, bool masked, bool accumulate, const F& f) {
  const View<T> weight = o.real(weight_slot);
  const View<double> out = o.view<double>(row_value_slot);
  double* const work = o.extra[0] ? (double*)o.work : nullptr;
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t q = r < 0 ? 0 : r;
    const LossRow row = {y.at(q, 0), t.at(q, 0), dy ? dy.at(q, 0) : nullptr, r < 0 ? 0 : t.columns, lane, masked};
    const double w = weight ? (double)weight(q, 0) : 1.0;
    const double value = f(q, w / (double)o.m, row);
    if (r < 0 || lane) return;
    if (out) out(r, 0) = accumulate ? out(r, 0) + value : value;
    if (work) work[r] = weight ? value * w : value;
  });
}

FASTAE_KERNEL(loss, kThreads, 1) {
  namespace at = at_loss;
  const T p[2] = {(T)o.f[at::f_p0], (T)o.f[at::f_p1]};
  const int id = (int)o.i[at::i_loss];
  each_loss(o, o.real(at::s_y), o.real(at::s_target), o.real(at::s_dy), at::s_weight, at::s_row_value,
            o.i[at::i_masked] != 0, o.i[at::i_accumulate] > 0, [&](int64_t, double factor, const LossRow& row) {
              const double size = masked_scale(row, o.i[at::i_masked], o.f[at::f_scale]);
              const T slope = (T)(factor * size);
              return size * (id == kMultinomial ? multinomial(row, slope)
                             : id == kCosine    ? cosine(row, slope)
                                                : elementwise_loss(row, registered(o), id, p, slope));
            });
}

// The same for the losses that are sums over columns, with a block a row: threads make values, and sixteen lanes add
// them. Four columns are read before any is written: dy may be y.
FASTAE_KERNEL(loss_wide, kThreads, 1) {
  namespace at = at_loss;
  constexpr int kTile = 2048;  // columns whose values wait in shared memory
  __shared__ Four value[kTile / 4];
  const View<T> y = o.real(at::s_y), t = o.real(at::s_target), dy = o.real(at::s_dy), weight = o.real(at::s_weight);
  const View<double> out = o.view<double>(at::s_row_value);
  const T p[2] = {(T)o.f[at::f_p0], (T)o.f[at::f_p1]};
  const bool masked = o.i[at::i_masked] != 0;
  const Rounded rounded(o, dy);
  const int id = threadIdx.x, lane = id % kLanes;
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) {
    const LossRow row = {y.at(r, 0), t.at(r, 0), nullptr, t.columns, lane, masked};
    const double w = weight ? (double)weight(r, 0) : 1.0;
    const double size = masked_scale(row, o.i[at::i_masked], o.f[at::f_scale]);
    const T slope = (T)(w / (double)o.m * size);
    double sum = 0;
    for (int64_t first = 0; first < t.columns; first += kTile) {
      const int count = (int)smaller<int64_t>(kTile, t.columns - first);
      visit_loss<Vec<T>, T>((int)o.i[at::i_loss], [&](auto formula) {
#pragma unroll 1
        for (int c = 4 * id; c < count; c += 4 * kThreads) {
          const int64_t j = first + c;
          const int n = smaller(4, count - c);
          const bool whole = n == 4 && aligned(y.at(r, j)) && aligned(t.at(r, j)) && (!dy || aligned(dy.at(r, j)));
          const Four a = load_four(y.at(r, j), whole, n), b = load_four(t.at(r, j), whole, n);
          Four v, change = {};
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const bool counts = !masked || b.v[q] == b.v[q];
            const Vec<T> of = a.v[q], target = counts ? b.v[q] : T(0);
            if (dy) change.v[q] = counts ? slope * formula.dy(of, target, p).v : T(0);
            v.v[q] = counts ? formula.value(of, target, p).v : T(0);
          }
          if (dy) {
            store_four(dy.at(r, j), change, whole, n);
            rounded(r, j, change, n);
          }
          value[c / 4] = v;
        }
      });
      __syncthreads();
      if (id < kLanes)
        sum = add_in_order(sum, lane, count, kLanes, [&](int64_t c) { return (double)value[c / 4].v[c % 4]; });
      __syncthreads();
    }
    if (id >= 32) continue;
    const double total = size * lanes_sum(sum);
    if (id) continue;
    if (out) out(r, 0) = o.i[at::i_accumulate] > 0 ? out(r, 0) + total : total;
    if (o.extra[0]) ((double*)o.work)[r] = weight ? total * w : total;
  }
}

FASTAE_KERNEL(likelihood, kThreads, 1) {
  namespace at = at_likelihood;
  const T p[2] = {(T)o.f[at::f_p0], (T)o.f[at::f_p1]};
  const View<T> size = o.real(at::s_size);
  each_loss(o, o.real(at::s_y), o.real(at::s_target), o.real(at::s_dy), at::s_weight, at::s_row_value,
            o.i[at::i_masked] != 0, o.i[at::i_accumulate] > 0, [&](int64_t r, double factor, const LossRow& row) {
              const double scale = masked_scale(row, o.i[at::i_masked], o.f[at::f_scale]);
              return scale *
                     likelihood_sum(row, (int)o.i[at::i_likelihood], p, size ? size(r, 0) : T(0), (T)(factor * scale));
            });
}

// Logarithm of the mean of the targets that are not NaN, cut below.
FASTAE_KERNEL(size_factor, kThreads) {
  namespace at = at_size_factor;
  const View<T> t = o.real(at::s_target), size = o.real(at::s_size);
  each_row(o.m, [&](int64_t r, int lane) {
    const LossRow row = {nullptr, t.at(r < 0 ? 0 : r, 0), nullptr, r < 0 ? 0 : t.columns, lane, true};
    const double sum = row_sum(row.n, lane, [&](int64_t j) { return row.target(j); }), count = row.observed();
    const double mean = count > 0 ? sum / count : 0.0;
    if (row.n && lane == 0) size(r, 0) = (T)::log(mean > kSmallestSize ? mean : kSmallestSize);
  });
}

// One parameter of a distribution from its output; out may be y.
FASTAE_KERNEL(distribution, kThreads) {
  namespace at = at_distribution;
  const View<T> y = o.real(at::s_y), size = o.real(at::s_size), out = o.real(at::s_out);
  each_cell(o.m, y.columns, [&](int64_t r, int64_t j) {
    const Vec<T> x = y(r, j), s = size ? size(r, 0) : T(0);
    visit_likelihood<Vec<T>, T>((int)o.i[at::i_likelihood],
                                [&](auto formula) { out(r, j) = formula.shown((int)o.i[at::i_output], x, s).v; });
  });
}

// [y] = x or log1p(x), 0 where missing; [target] = x, NaN where missing
FASTAE_KERNEL(transform_input, kThreads) {
  namespace at = at_transform_input;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y), target = o.real(at::s_target);
  const T missing = (T)o.f[at::f_missing];
  each_cell(o.m, x.columns, [&](int64_t r, int64_t j) {
    const T v = x(r, j);
    const bool there = v == v && v != missing;
    if (target) target(r, j) = there ? v : Format<T>::inf - Format<T>::inf;
    const Vec<T> seen = there ? v : T(0);
    if (y) y(r, j) = (o.i[at::i_transform] == input_transform::log1p ? log1p(seen) : seen).v;
  });
}

// Rows' values to [row_value] and work; dh += R'(h) / m
FASTAE_KERNEL(activity, kThreads) {
  namespace at = at_activity;
  const View<T> h = o.real(at::s_h), dh = o.real(at::s_dh);
  const View<double> out = o.view<double>(at::s_row_value);
  const T p[2] = {(T)o.f[at::f_p0], (T)o.f[at::f_p1]}, factor = (T)(1.0 / (double)o.m);
  const DeviceFormula* const own = registered(o);
  double* const work = o.extra[0] ? (double*)o.work : nullptr;
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : h.columns;
    double value = 0;
    if (own)
      value = row_sum<1>(n, lane, [&](int64_t j) {
        const T x = h(r, j), v = run_program(own->part[0], x, x, p[0], p[1]);
        dh(r, j) = mul_add(factor, run_program(own->part[1], x, x, p[0], p[1]), dh(r, j));
        return v;
      });
    else
      visit_penalty<Vec<T>, T>((int)o.i[at::i_penalty], [&](auto formula) {
        value = row_sum(n, lane, [&](int64_t j) {
          const Vec<T> x = h(r, j);
          dh(r, j) = mul_add(factor, formula.dw(x, p).v, dh(r, j));
          return formula.value(x, p).v;
        });
      });
    if (!n || lane) return;
    if (out) out(r, 0) = value;
    if (work) work[r] = value;
  });
}

}  // namespace fastae
