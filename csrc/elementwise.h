// Elementwise work on blocks of rows: activations, their derivatives, inverted dropout, softmax.
#pragma once
#include "formula.h"
#include "philox.h"

namespace fastae {
namespace {

constexpr int64_t kColumnBlock = 64;  // columns whose random words are made at a time; a multiple of philox_row's 64

// A matrix: first element and distance of its rows.
template <class T> struct View {
  T* p;
  int64_t ld;
  FASTAE_INLINE T* at(int64_t r, int64_t c) const { return p + r * ld + c; }
  FASTAE_INLINE explicit operator bool() const { return p != nullptr; }
};

// Memory cut into arrays on cache lines; without memory it only counts.
struct Carve {
  char* p;
  int64_t used = 0;
  template <class U> U* take(int64_t n) {
    U* const here = (U*)(p ? p + used : nullptr);
    used += ((n > 0 ? n : 1) * (int64_t)sizeof(U) + 63) / 64 * 64;
    return here;
  }
};

struct Key {
  uint64_t seed;
  uint32_t epoch;
};

FASTAE_INLINE uint32_t rate_threshold(double rate) { return (uint32_t)(uint64_t)(rate * 4294967296.0); }

// f(vector, column, lanes) over columns [0, n) of a row
template <class T, class F> FASTAE_INLINE void over_row(int64_t n, const F& f) {
  constexpr int N = Vec<T>::N;
  int64_t j = 0;
  for (; j + N <= n; j += N) f(j, N);
  if (j < n) f(j, (int)(n - j));
}

constexpr int64_t kStreamBytes = 1 << 24;  // results that no cache keeps are written past them: no line is read first

// Elements of a row before the first one on a cache line.
template <class T> FASTAE_INLINE int64_t before_line(const T* p) { return (int64_t)(-(uintptr_t)p % 64 / sizeof(T)); }

constexpr int64_t kStreamAhead = 2048;  // bytes; fetched as arithmetic holds back the loads to come

// out[j] = f(column, lanes) over n columns made of `in`, past the caches where whole lines are written
template <class T, class F> FASTAE_INLINE void stream_row(const T* in, T* out, int64_t n, const F& f) {
  constexpr int N = Vec<T>::N;
  const int64_t head = smaller(before_line(out), n);
  over_row<T>(head, [&](int64_t j, int lanes) { f(j, lanes).store(out + j, lanes); });
  int64_t j = head;
  for (; j + N <= n; j += N) {
    __builtin_prefetch((const char*)(in + j) + kStreamAhead);
    f(j, N).stream(out + j);
  }
  if (j < n) f(j, (int)(n - j)).store(out + j, (int)(n - j));
}

// Inverted dropout; rows: ids of the batch's rows.
template <class T> struct Dropout {
  PhiloxKeys keys;
  uint32_t epoch, stream, threshold;
  T scale;
  double rate;
  const int64_t* rows;
  Dropout(Key k, int64_t s, double r, const int64_t* ids)
      : keys(k.seed),
        epoch(k.epoch),
        stream((uint32_t)s),
        threshold(rate_threshold(r)),
        scale((T)(1.0 / (1.0 - r))),
        rate(r),
        rows(ids) {}
  // f(column, lanes, mask of those that stay) over n columns of row r from c on, c a multiple of 4; the first `head`
  // columns by themselves. Words that do not fill a vector yet lie before those that come next.
  template <class F> FASTAE_INLINE void over(int64_t r, int64_t c, int64_t n, const F& f, int64_t head = 0) const {
    constexpr int N = Vec<T>::N;
    // a part of a vector of words is read as a whole one
    alignas(64) uint32_t memory[N + kColumnBlock + N], *const words = memory + N;
    const auto some = [&](int64_t j, int lanes, const uint32_t* w) { f(j, lanes, at_least_mask<T>(w, threshold)); };
    int64_t done = 0;
    for (int64_t j0 = 0; j0 < n; j0 += kColumnBlock) {
      const int64_t known = smaller(j0 + kColumnBlock, n);
      philox_row(keys, epoch, stream, (uint64_t)rows[r], (uint32_t)(c + j0), (int)(known - j0), words);
      if (j0 == 0 && head) {
        done = smaller(head, n);
        over_row<T>(done, [&](int64_t j, int lanes) { some(j, lanes, words + j); });
      }
      for (; done + N <= known; done += N) some(done, N, words + (done - j0));
      if (known == n && done < n) some(done, (int)(n - done), words + (done - j0));
      memcpy(memory, words + kColumnBlock - N, sizeof *words * N);
    }
  }
};

// Rows whose first product is not finite are named to a function: a row with NaN or infinity gives only such ones.
struct Watch {
  void (*suspect)(void* context, int64_t row) noexcept;
  void* context;
};

// z = c + b (kept if asked for); y = a(z), then dropout. c (rows, n) is a block at (row, column) of the layer's output.
template <class T> struct DenseEpilogue {
  View<T> c, z, y;
  const T* b;
  int activation;
  T p[2];
  const Dropout<T>* dropout;
  const FormulaRecord* formula;  // registered at run time, else null
  const Watch* watch = nullptr;

  // What a tile does of it; `rest` is then what is left.
  TileEnd<T> in_tile() const noexcept {
    TileEnd<T> end;
    end.any = !formula && !z && c.p == y.p && (activation == kIdentity || activation == kReLU);
    end.bias = b;
    end.relu = activation == kReLU;
    end.watched = watch != nullptr;
    return end;
  }
  void rest(int64_t row, int64_t rows, int64_t column, int64_t n, uint32_t strange) const noexcept {
    for (int64_t r = row; strange; strange >>= 1, ++r)
      if (strange & 1) watch->suspect(watch->context, r);
    if (dropout) apply(y, row, rows, column, n);
  }

  void operator()(int64_t row, int64_t rows, int64_t column, int64_t n) const noexcept {
    if (watch && column == 0)
      for (int64_t r = row; r < row + rows; ++r)
        if (!(*c.at(r, 0) - *c.at(r, 0) == 0)) watch->suspect(watch->context, r);
    const bool as_it_is = activation == kIdentity && !b && !z;
    if (as_it_is && (dropout || c.p == y.p)) {
      if (dropout) apply(c, row, rows, column, n);
      return;
    }
    if (formula) registered(row, rows, column, n);
    else
      visit_activation<Vec<T>, T>(activation, [&](auto formula) {
        for (int64_t r = row; r < row + rows; ++r) {
          const T* in = c.at(r, column);
          T* out = y.at(r, column);
          over_row<T>(n, [&](int64_t j, int lanes) {
            Vec<T> v = Vec<T>::load(in + j, lanes);
            if (b) v += Vec<T>::load(b + column + j, lanes);
            if (z) v.store(z.at(r, column) + j, lanes);
            formula.y(v, p).store(out + j, lanes);
          });
        }
      });
    if (dropout) apply(y, row, rows, column, n);
  }

  __attribute__((noinline)) void registered(int64_t row, int64_t rows, int64_t column, int64_t n) const noexcept {
    FormulaBlock<T> in, out;
    over_pieces<T>(rows, n, [&](int64_t r0, int64_t count, int64_t j0, int64_t width) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t r = row + r0 + i, first = column + j0;
        over_row<T>(width, [&](int64_t j, int lanes) {
          Vec<T> v = Vec<T>::load(c.at(r, first) + j, lanes);
          if (b) v += Vec<T>::load(b + first + j, lanes);
          if (z) v.store(z.at(r, first) + j, lanes);
          v.store(in.v + i * width + j, lanes);
        });
      }
      evaluate<T>(formula->part[0], in, nullptr, p, out, count * width);
      for (int64_t i = 0; i < count; ++i)
        over_row<T>(width, [&](int64_t j, int lanes) {
          Vec<T>::load(out.v + i * width + j, lanes).store(y.at(row + r0 + i, column + j0) + j, lanes);
        });
    });
  }

  // The same for a large result of no product, with neither bias, z nor a registered formula: past the caches.
  void stream(int64_t row, int64_t rows, int64_t n) const noexcept {
    if (dropout) {
      const Vec<T> scale(dropout->scale);
      for (int64_t r = row; r < row + rows; ++r) {
        const T* in = c.at(r, 0);
        T* out = y.at(r, 0);
        const int64_t head = before_line(out);
        if (before_line(out + n)) __builtin_prefetch(out + n, 1);  // a line that two rows share
        dropout->over(
            r, 0, n,
            [&](int64_t j, int lanes, Mask<T> kept) {
              const Vec<T> v = select(kept, Vec<T>::load(in + j, lanes) * scale, Vec<T>(T(0)));
              __builtin_prefetch((const char*)(in + j) + kStreamAhead);
              if (lanes == Vec<T>::N && before_line(out + j) % Vec<T>::N == 0) v.stream(out + j);
              else v.store(out + j, lanes);
            },
            head);
      }
    } else {
      if (c.ld == n && y.ld == n) n *= rows, rows = 1;  // they follow each other
      visit_activation<Vec<T>, T>(activation, [&](auto formula) {
        for (int64_t r = row; r < row + rows; ++r) {
          const T* in = c.at(r, 0);
          stream_row(in, y.at(r, 0), n,
                     [&](int64_t j, int lanes) { return formula.y(Vec<T>::load(in + j, lanes), p); });
        }
      });
    }
    stream_fence();
  }

  void apply(View<T> from, int64_t row, int64_t rows, int64_t column, int64_t n) const noexcept {
    const Vec<T> scale(dropout->scale);
    for (int64_t r = row; r < row + rows; ++r) {
      const T* in = from.at(r, column);
      T* out = y.at(r, column);
      dropout->over(r, column, n, [&](int64_t j, int lanes, Mask<T> kept) {  // 0 also where v is infinite
        select(kept, Vec<T>::load(in + j, lanes) * scale, Vec<T>(T(0))).store(out + j, lanes);
      });
    }
  }
};

// dz = dropout'(dy) a'(saved); saved = y after dropout, or z. With an identity and no dropout nothing is left to do.
template <class T> struct GradEpilogue {
  View<T> dy, saved, dz;
  int activation;
  T p[2];
  const Dropout<T>* dropout;
  const FormulaRecord* formula;  // registered at run time, else null

  // As in DenseEpilogue. With ReLU a dropped unit's derivative is 0 without its mask.
  TileEnd<T> in_tile() const noexcept {
    TileEnd<T> end;
    end.any = !formula && saved && dy.p == dz.p && activation == kReLU;
    end.saved = saved.p;
    end.lds = saved.ld;
    if (dropout) {
      end.scale = dropout->scale;
      end.back = (T)(1.0 - dropout->rate);
    }
    return end;
  }
  void rest(int64_t, int64_t, int64_t, int64_t, uint32_t) const noexcept {}

  void operator()(int64_t row, int64_t rows, int64_t column, int64_t n) const noexcept {
    if (activation == kIdentity && !dropout && dy.p == dz.p) return;
    if (formula) return registered(row, rows, column, n);
    const Vec<T> scale(dropout ? dropout->scale : T(1));
    // a dropped unit has y = 0: where a'(0) = 0 the derivative is the mask
    const bool masked = dropout && !activation_grad_masks(activation);
    // y before dropout, where the derivative is taken from y: the kept ones were scaled by 1/(1-rate)
    const bool unscale = dropout && !activation_needs_x(activation);
    const Vec<T> back(unscale ? (T)(1.0 - dropout->rate) : T(1));
    visit_activation<Vec<T>, T>(activation, [&](auto formula) {
      for (int64_t r = row; r < row + rows; ++r) {
        const T* in = dy.at(r, column);
        const T* s = saved ? saved.at(r, column) : in;
        T* out = dz.at(r, column);
        const auto each = [&](int64_t j, int lanes, Vec<T> v) {
          (v * formula.dy(Vec<T>::load(s + j, lanes) * back, p)).store(out + j, lanes);
        };
        if (masked) {
          dropout->over(r, column, n, [&](int64_t j, int lanes, Mask<T> kept) {
            each(j, lanes, select(kept, Vec<T>::load(in + j, lanes) * scale, Vec<T>(T(0))));
          });
        } else over_row<T>(n, [&](int64_t j, int lanes) { each(j, lanes, Vec<T>::load(in + j, lanes) * scale); });
      }
    });
  }

  __attribute__((noinline)) void registered(int64_t row, int64_t rows, int64_t column, int64_t n) const noexcept {
    FormulaBlock<T> kept, slope;
    const Vec<T> back(dropout && !formula->from_x ? (T)(1.0 - dropout->rate) : T(1));
    over_pieces<T>(rows, n, [&](int64_t r0, int64_t count, int64_t j0, int64_t width) {
      for (int64_t i = 0; i < count; ++i)
        over_row<T>(width, [&](int64_t j, int lanes) {
          (Vec<T>::load(saved.at(row + r0 + i, column + j0) + j, lanes) * back).store(kept.v + i * width + j, lanes);
        });
      evaluate<T>(formula->part[1], kept, nullptr, p, slope, count * width);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t r = row + r0 + i, first = column + j0;
        const auto each = [&](int64_t j, int lanes, Vec<T> v) {
          (v * Vec<T>::load(slope.v + i * width + j, lanes)).store(dz.at(r, first) + j, lanes);
        };
        const T* in = dy.at(r, first);
        if (dropout) {
          const Vec<T> scale(dropout->scale);
          dropout->over(r, first, width, [&](int64_t j, int lanes, Mask<T> keeps) {
            each(j, lanes, select(keeps, Vec<T>::load(in + j, lanes) * scale, Vec<T>(T(0))));
          });
        } else over_row<T>(width, [&](int64_t j, int lanes) { each(j, lanes, Vec<T>::load(in + j, lanes)); });
      }
    });
  }
};

// ---- sums over a row: 16 virtual lanes in float64, then a fixed tree ---------------------------------------------------

// The lower half of a register; GCC 12 warns at the intrinsic for it.
template <class H, class V> FASTAE_INLINE H low_half(V v) {
  H half;
  memcpy(&half, &v, sizeof half);
  return half;
}

struct Lanes {
  typedef Vec<double> V;
  static constexpr int N = V::N, kVectors = 16 / N;
  V lane[kVectors];
  Lanes() {
    for (V& x : lane) x = V(0.0);
  }
  // adds t[i] to lane i
  template <class T> FASTAE_INLINE void add(const T* t) {
    typedef T part __attribute__((vector_size(N * sizeof(T))));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      part x;
      memcpy(&x, t + v * N, sizeof x);
      lane[v] += V(__builtin_convertvector(x, V::native));
    }
  }
  // adds x to the lanes from `first` on, a multiple of x.N
  FASTAE_INLINE void add(Vec<double> x, int first) { lane[first / N] += x; }
  FASTAE_INLINE void add(Vec<float> x, int first) {
    V* const to = lane + first / N;
#if defined(__AVX512F__)
    to[0] += V(_mm512_maskz_cvtps_pd(0xff, low_half<__m256>(x.v)));
    to[1] += V(_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, x.v, 1)));
#elif defined(__AVX2__)
    to[0] += V(_mm256_cvtps_pd(_mm256_castps256_ps128(x.v)));
    to[1] += V(_mm256_cvtps_pd(_mm256_extractf128_ps(x.v, 1)));
#else
    for (int i = 0; i < Vec<float>::N; ++i) to[i / N].v[i % N] += x[i];
#endif
  }
  FASTAE_INLINE double sum() const {
    V s[kVectors];
    memcpy(s, lane, sizeof s);
#pragma GCC unroll 4
    for (int h = kVectors / 2; h; h /= 2)
      for (int i = 0; i < h; ++i) s[i] += s[i + h];
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256d four = low_half<__m256d>(s[0].v) + _mm512_maskz_extractf64x4_pd(0xf, s[0].v, 1);
#else
    const __m256d four = s[0].v;
#endif
    const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
    return two[0] + two[1];
#else
    double t[N];
    s[0].store(t);
#pragma GCC unroll 4
    for (int h = N / 2; h; h /= 2)
      for (int i = 0; i < h; ++i) t[i] += t[i + h];
    return t[0];
#endif
  }
};

// sum over [0, n) of f(column, lanes) -> Vec, lanes beyond the row giving 0; f may store as it goes
template <class T, class F> FASTAE_INLINE double row_sum(int64_t n, const F& f) {
  constexpr int N = Vec<T>::N;
  Lanes sum;
  for (int64_t j0 = 0; j0 < n; j0 += 16)
#pragma GCC unroll 8
    for (int v = 0; v < 16; v += N) {
      const int lanes = (int)smaller(N, n - j0 - v);
      if (lanes <= 0) break;
      const Vec<T> x = f(j0 + v, lanes);
      sum.add(lanes == N ? x : select(Mask<T>::first(lanes), x, Vec<T>(T(0))), v);
    }
  return sum.sum();
}

template <class T> FASTAE_INLINE T row_max(const T* z, int64_t n) {
  T m = z[0];
  for (int64_t j = 1; j < n; ++j) m = z[j] > m || z[j] != z[j] ? z[j] : m;
  return m;
}

// y = exp(z - max) / sum; y may be z
template <class T> void softmax_row(const T* z, T* y, int64_t n) noexcept {
  const Vec<T> m(row_max(z, n));
  const double sum = row_sum<T>(n, [&](int64_t j, int lanes) {
    const Vec<T> e = exp(Vec<T>::load(z + j, lanes) - m);
    e.store(y + j, lanes);
    return e;
  });
  const Vec<T> s((T)sum);
  over_row<T>(n, [&](int64_t j, int lanes) { (Vec<T>::load(y + j, lanes) / s).store(y + j, lanes); });
}

// dz = y (dy - sum_j dy_j y_j); dz may be dy
template <class T> void softmax_grad_row(const T* dy, const T* y, T* dz, int64_t n) noexcept {
  const Vec<T> dot(
      (T)row_sum<T>(n, [&](int64_t j, int lanes) { return Vec<T>::load(dy + j, lanes) * Vec<T>::load(y + j, lanes); }));
  over_row<T>(n, [&](int64_t j, int lanes) {
    (Vec<T>::load(y + j, lanes) * (Vec<T>::load(dy + j, lanes) - dot)).store(dz + j, lanes);
  });
}

}  // namespace
}  // namespace fastae
