// Codes by rows: which entries mean something, sums of weight rows over a row's entries, products with them.
//
// A weight row is a few kilobytes at a random place, so these are bound by memory: rows are named one step ahead and
// fetched while the present ones are summed.
#pragma once
#include "ascending.h"
#include "norm.h"

namespace fastae {
namespace {

// A code's segments: the first min(count[r, q], capacity) entries from position q capacity on mean something.
struct Entries {
  View<const int32_t> count;
  int64_t segments, capacity;

  int64_t of(int64_t r, int64_t q) const { return larger(0, smaller(*count.at(r, q), capacity)); }
  // f(position, entries) over the segments of a row that have entries
  template <class F> FASTAE_INLINE void each(int64_t r, const F& f) const {
    for (int64_t q = 0; q < segments; ++q)
      if (const int64_t n = of(r, q)) f(q * capacity, n);
  }
};

// Ends of groups of latents, ascending; without any, all latents are one group.
struct Groups {
  const int32_t* end;
  int64_t n;

  int64_t count() const { return end ? n : 1; }
  int64_t of(int64_t latent) const {
    int64_t g = 0;
    while (end && g < n && end[g] <= latent) ++g;
    return g;
  }
  // Group g's part of n ascending indices.
  FASTAE_INLINE void range(const int32_t* idx, int64_t n_idx, int64_t g, int64_t* first, int64_t* last) const {
    *first = end && g ? first_from(idx, n_idx, end[g - 1]) : 0;
    *last = end ? first_from(idx, n_idx, end[g]) : n_idx;
  }
};

// ---- sums of two rows' products: 16 virtual lanes of multiply-adds, then a fixed tree ----------------------------------

template <class T> struct LaneSum {
  static constexpr int V = 16 / Vec<T>::N;
  Vec<T> lane[V];
  FASTAE_INLINE LaneSum() {
    for (int v = 0; v < V; ++v) lane[v] = Vec<T>(T(0));
  }
  FASTAE_INLINE T sum() const {
    alignas(64) T t[16];
    for (int v = 0; v < V; ++v) lane[v].store(t + v * Vec<T>::N);
    for (int h = 8; h; h /= 2)
      for (int i = 0; i < h; ++i) t[i] += t[i + h];
    return t[0];
  }
};

// f(v, j, lanes) for vector v of each 16 columns; lanes may be none
template <class T, class F> FASTAE_INLINE void over_lanes(int64_t n, const F& f) {
  constexpr int N = Vec<T>::N;
  int64_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (int v = 0; v < 16 / N; ++v) f(v, j + v * N, N);
  if (j < n)
    for (int v = 0; v < 16 / N; ++v) f(v, j + v * N, (int)(n - j) - v * N);
}

template <class T> FASTAE_INLINE T dot(const T* a, const T* b, int64_t n) {
  LaneSum<T> s;
  over_lanes<T>(n, [&](int v, int64_t j, int lanes) {
    s.lane[v] = fma(Vec<T>::load(a + j, lanes), Vec<T>::load(b + j, lanes), s.lane[v]);
  });
  return s.sum();
}

// out[i] = a . row[i], R rows at a time: each is a chain of dependent multiply-adds
template <class T, int R> FASTAE_INLINE void dots(const T* a, const T* const* row, int64_t n, T* out) {
  LaneSum<T> s[R];
  over_lanes<T>(n, [&](int v, int64_t j, int lanes) {
    const Vec<T> x = Vec<T>::load(a + j, lanes);
    for (int i = 0; i < R; ++i) s[i].lane[v] = fma(x, Vec<T>::load(row[i] + j, lanes), s[i].lane[v]);
  });
  for (int i = 0; i < R; ++i) out[i] = s[i].sum();
}

// s = |a|^2, made again in float64 where float32 could overflow or lose it
template <class T> FASTAE_INLINE double safe_square(const T* a, int64_t n, double s) {
  if (s > 1e-30 && s < 1e30) return s;
  return sum_of(n, [&](int64_t j) { return (double)a[j] * (double)a[j]; });
}
template <class T> FASTAE_INLINE double square_of(const T* a, int64_t n) {
  return safe_square(a, n, (double)dot(a, a, n));
}

// w scaled to norm 1; a row of zeros stays
template <class T> FASTAE_INLINE void unit_row(T* w, int64_t n) {
  const double norm = __builtin_sqrt(square_of(w, n));
  if (!(norm > 0)) return;
  const Vec<T> scale((T)(1.0 / norm));
  over_row<T>(n, [&](int64_t j, int lanes) { (Vec<T>::load(w + j, lanes) * scale).store(w + j, lanes); });
}

// ---- sums of rows ------------------------------------------------------------------------------------------------------

// Rows to be summed, with their coefficients; those with coefficient 0 are left out.
constexpr int64_t kChunk = 256;
template <class T> struct Chunk {
  int64_t n = 0;
  T c[kChunk];
  const T* row[kChunk];
  FASTAE_INLINE void add(T coefficient, const T* at) {
    c[n] = coefficient;
    row[n] = at;
    n += coefficient != T(0);
  }
};

template <class T> FASTAE_INLINE void fetch(const T* row, int64_t n) {
  for (int64_t j = 0; j < n; j += 64 / (int64_t)sizeof(T)) __builtin_prefetch(row + j, 0, 2);
}

constexpr int kSumVectors = FASTAE_VBYTES == 64 ? 24 : 12;  // columns that a pass over the rows holds in registers

// V vectors of columns from j on (the last one with `lanes` columns); next: what is fetched meanwhile
template <class T, int V, bool after>
FASTAE_INLINE void sum_block(const Chunk<T>& rows, const Chunk<T>* next, int64_t j, int lanes, const T* from, T* to) {
  constexpr int N = Vec<T>::N;
  constexpr bool whole = V > 1;
  const auto load = [&](const T* p, int v) { return whole ? Vec<T>::load(p + v * N) : Vec<T>::load(p, lanes); };
  Vec<T> sum[V];
#pragma GCC unroll 24
  for (int v = 0; v < V; ++v) sum[v] = from && !after ? load(from + j, v) : Vec<T>(T(0));
  for (int64_t i = 0; i < rows.n; ++i) {
    const Vec<T> c(rows.c[i]);
    const T* const x = rows.row[i] + j;
#pragma GCC unroll 24
    for (int v = 0; v < V; ++v) sum[v] = fma(c, load(x, v), sum[v]);
    if (next && i < next->n) fetch(next->row[i] + j, V * N);
  }
  if (next)
    for (int64_t i = rows.n; i < next->n; ++i) fetch(next->row[i] + j, V * N);
#pragma GCC unroll 24
  for (int v = 0; v < V; ++v) {
    if (after) sum[v] = load(to + j, v) + sum[v];
    sum[v] += Vec<T>(T(0));  // -0 becomes +0, as in full.h
    if (whole) sum[v].store(to + j + v * N);
    else sum[v].store(to + j, lanes);
  }
}

// to = [from] + sum of the rows, one chain per column that starts at from; after: to += a chain that starts at 0
template <class T, bool after = false>
void sum_rows(const Chunk<T>& rows, const Chunk<T>* next, const T* from, T* to, int64_t p) noexcept {
  constexpr int N = Vec<T>::N;
  int64_t j = 0;
  for (; j + kSumVectors * N <= p; j += kSumVectors * N) sum_block<T, kSumVectors, after>(rows, next, j, N, from, to);
  for (; j + 4 * N <= p; j += 4 * N) sum_block<T, 4, after>(rows, next, j, N, from, to);
  for (; j < p; j += N) sum_block<T, 1, after>(rows, next, j, (int)smaller(N, p - j), from, to);
}

// A sum that was made with terms of 0 in it: -0 becomes +0. Returns whether all is finite.
template <class T> FASTAE_INLINE bool finish_sum(T* y, int64_t p) {
  Vec<T> none(T(0));
  over_row<T>(p, [&](int64_t j, int lanes) {
    const Vec<T> v = Vec<T>::load(y + j, lanes) + Vec<T>(T(0));
    none = fma(v, Vec<T>(T(0)), none);
    v.store(y + j, lanes);
  });
  return all(none == Vec<T>(T(0)));
}

// y (m,p), or block g of y (m, G p) = [b] + sum of val w[idx] over the entries, those of the groups up to g
template <class T> struct Decode {
  View<const T> val;
  View<const int32_t> idx;
  Entries entries;
  View<const T> w;
  const T* b;
  View<T> y;
  Groups groups;
  int64_t p;

  // done(r) follows when row r is made, while its weight rows are in cache
  template <class F> void rows(int64_t first, int64_t count, const F& done) const noexcept {
    struct Task {
      Chunk<T> chunk;
      const T* from;
      T* to;
      int64_t row;  // that it completes, or -1
    } task[2];
    int now = 0;
    bool waiting = false;
    const auto run = [&](const Chunk<T>* next) {
      const Task& t = task[now];
      sum_rows(t.chunk, next, t.from, t.to, p);
      if (t.row >= 0) done(t.row);
    };
    const auto put = [&] {  // the other one is complete: run the one that waits, and fetch its rows meanwhile
      if (waiting) run(&task[1 - now].chunk);
      waiting = true;
      now = 1 - now;
    };
    for (int64_t r = first; r < first + count; ++r)
      for (int64_t g = 0; g < groups.count(); ++g) {
        const auto begin = [&](const T* from) -> Task& {
          Task& t = task[1 - now];
          t.chunk.n = 0;
          t.from = from;
          t.to = y.at(r, g * p);
          t.row = -1;
          return t;
        };
        Task* t = &begin(g ? y.at(r, (g - 1) * p) : b);
        entries.each(r, [&](int64_t position, int64_t n) {
          const int32_t* const at = idx.at(r, position);
          int64_t i, last;
          groups.range(at, n, g, &i, &last);
          for (; i < last; ++i) {
            if (t->chunk.n == kChunk) {
              put();
              t = &begin(y.at(r, g * p));
            }
            t->chunk.add(*val.at(r, position + i), w.at(at[i], 0));
          }
        });
        if (g + 1 == groups.count()) t->row = r;
        put();
      }
    if (waiting) run(nullptr);
  }
};

// dval = dy[r, block of the latent's group] . w[idx]
template <class T> struct CodeGrad {
  View<const T> dy;
  View<const int32_t> idx;
  Entries entries;
  View<const T> w;
  View<T> dval;
  Groups groups;
  int64_t p;

  // ahead: entries of row `ahead` are fetched meanwhile, -1 for none
  void row(int64_t r, int64_t ahead) const noexcept {
    constexpr int R = 4;
    for (int64_t q = 0; q < entries.segments; ++q) {
      const int64_t position = q * entries.capacity, n = entries.of(r, q);
      const int32_t* const at = idx.at(r, position);
      const int32_t* const coming = ahead >= 0 ? idx.at(ahead, position) : nullptr;
      const int64_t n_coming = coming ? entries.of(ahead, q) : 0;
      int64_t fetched = 0;
      for (int64_t g = 0; g < groups.count(); ++g) {
        int64_t i, last;
        groups.range(at, n, g, &i, &last);
        const T* const d = dy.at(r, g * p);
        T* const out = dval.at(r, position);
        for (; i < last; i += R) {
          for (; fetched < smaller(n_coming, i + R); ++fetched) fetch(w.at(coming[fetched], 0), p);
          const T* row[R];
          for (int64_t k = 0; k < smaller(R, last - i); ++k) row[k] = w.at(at[i + k], 0);
          if (i + R <= last) dots<T, R>(d, row, p, out + i);
          else
            for (int64_t k = i; k < last; ++k) out[k] = dot(d, row[k - i], p);
        }
      }
      for (; fetched < n_coming; ++fetched) fetch(w.at(coming[fetched], 0), p);
      if (groups.end)  // latents of no group
        for (int64_t i = first_from(at, n, groups.end[groups.n - 1]); i < n; ++i) *dval.at(r, position + i) = T(0);
    }
  }
};

// Elements of a table at up to N indices, 0 in the other lanes.
template <class T> FASTAE_INLINE Vec<T> gathered(const T* table, const int32_t* idx, int lanes) {
  T t[Vec<T>::N] = {};
  for (int i = 0; i < lanes; ++i) t[i] = table[idx[i]];
  return Vec<T>::load(t);
}

}  // namespace
}  // namespace fastae
