// Codes that are nearly full: sums over entries as dense products, with the bits that entry by entry gives.
//
// Entries are scattered into small tiles whose other places are 0, and tiles are multiplied. A term fma(0, w, sum) is
// the sum again, so chains are those over the entries alone, but for two things: -0 + 0 is +0, therefore all sums of
// rows end as +0 where they are 0; and 0 times what is not finite is NaN, therefore such sums are made entry by entry.
// No (batch, latents) matrix is made: a tile has some rows and some latents, and stays in cache.
#pragma once
#include "latent.h"

namespace fastae {
namespace {

// A code is full from one entry in so many latents on. Whole steps of 384 -> 12,288 on AVX-512 take 465 and 389 ms entry
// by entry and by products where 13 % of the latents are active, 376 and about 385 at 10 %; of 768 -> 24,576 996 and 742
// at 13 % (benchmarks/sparse_full.py).
constexpr int64_t kFullShare = 8;
constexpr int64_t kFullLatents = 256;   // of a tile
constexpr int64_t kFullWork = 1 << 16;  // weights: fewer are no work either way
constexpr int64_t kDecodeRows = 48;
constexpr int64_t kGradRows = 192, kGradLatents = 64, kGradBytes = 24 << 10;  // rows' bytes that stay in L1

// Whether the sizes allow a full code.
FASTAE_INLINE bool may_be_full(int64_t capacity, int64_t n, int64_t p) {
  return capacity * kFullShare >= n && n * p >= kFullWork;
}

// Whether a code is full, and each segment's latents ascend, so that a tile has a place for every entry.
FASTAE_INLINE bool full_code(View<const int32_t> idx, const Entries& entries, int64_t m, int64_t n, int64_t p) {
  if (!may_be_full(entries.capacity, n, p)) return false;
  double all = 0;
  for (int64_t r = 0; r < m; ++r) entries.each(r, [&](int64_t, int64_t count) { all += (double)count; });
  if (all * (double)kFullShare < (double)m * (double)(n * entries.segments)) return false;
  bool ascending = true;
  for (int64_t r = 0; r < m && ascending; ++r)
    entries.each(r, [&](int64_t position, int64_t count) {
      const int32_t* const at = idx.at(r, position);
      int32_t back = 0;
      for (int64_t i = 1; i < count; ++i) back |= at[i] <= at[i - 1];
      ascending &= !back;
    });
  return ascending;
}

// Fetches the entries of a row that come after those that are done, about as many as the row before had.
template <class T> FASTAE_INLINE void fetch_entries(const int32_t* idx, const T* val, int64_t some) {
  for (int64_t i = 0; i < some + 16; i += 16) __builtin_prefetch(idx + i);
  for (int64_t i = 0; i < some + 16; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(val + i);
}
constexpr int64_t kRowsAhead = 4;  // rows lie pages apart, so no hardware fetches them

// ---- y = [b] + code w --------------------------------------------------------------------------------------------------

template <class T> int64_t decode_full_bytes(int64_t m, int64_t p) {
  Carve c = {nullptr};
  c.take<T>(packed_size<T>(p, kFullLatents));
  c.take<int32_t>(m);
  return c.used;
}

// Chains go on from y over one block of latents after another.
template <class T> void decode_full(const Decode<T>& d, int64_t m, int64_t n, int threads, char* memory) noexcept {
  constexpr int64_t W = kPanelColumns<T>, L = kFullLatents, ld = L + 16;
  Carve carve = {memory};
  T* const packed = carve.take<T>(packed_size<T>(d.p, L));
  int32_t* const next = carve.take<int32_t>(m);  // entries of each row that are done
  threads = useful_threads(threads, (double)m * n * d.p);
  const int64_t run = larger(12, smaller(kDecodeRows, ceil_div(ceil_div(m, 2 * threads), 12) * 12));
  for (int64_t first = 0; first < n || first == 0; first += L) {
    const int64_t depth = smaller(L, n - first), last = first + depth;
    pack_panels(d.w.at(first, 0), d.w.ld, d.p, depth, false, 0, panel_count<T>(d.p), threads, packed);
    parallel(threads, ceil_div(m, run), [&](int64_t task) {
      const int64_t r0 = task * run, rows = smaller(run, m - r0);
      alignas(64) T tile[kDecodeRows * ld];
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t r = r0 + i;
        T *const to = tile + i * ld, *const y = d.y.at(r, 0);
        if (first == 0) {
          next[r] = 0;
          for (int64_t j = 0; j < d.p; ++j) y[j] = d.b ? d.b[j] : T(0);
        }
        memset(to, 0, (size_t)depth * sizeof(T));
        const int64_t count = d.entries.of(r, 0);
        const int32_t* const at = d.idx.at(r, 0);
        const T* const val = d.val.at(r, 0);
        const int64_t done = next[r];
        int64_t e = done;
        for (; e < count && at[e] < last; ++e) to[at[e] - first] = val[e];
        next[r] = (int32_t)e;
        if (i + kRowsAhead < rows) {
          const int64_t ahead = r + kRowsAhead, from = first ? next[ahead] : 0;
          fetch_entries(d.idx.at(ahead, from), d.val.at(ahead, from), e - done);
        }
      }
      for (int64_t panel = 0; panel < panel_count<T>(d.p); ++panel) {
        const int64_t j = panel * W;
        for (int64_t i = 0; i < rows;) {
          const TileArgs<T> t = {depth,  tile + i * ld,       ld,       packed + panel * W * depth, d.y.at(r0 + i, j),
                                 d.y.ld, smaller(W, d.p - j), kContinue};
          i += run_tile<T, false>(panel_vectors<T>(d.p, panel), rows - i, t);
        }
      }
      if (last < n) return;
      for (int64_t r = r0; r < r0 + rows; ++r)
        if (!finish_sum(d.y.at(r, 0), d.p)) d.rows(r, 1, [](int64_t) {});
    });
  }
}

// ---- dval = dy . w -----------------------------------------------------------------------------------------------------

// Vectors x and y of pieces of 2 H lanes, as the one vector of their halves' sums: x's pieces, then y's.
template <class T, int H, int... L>
FASTAE_INLINE Vec<T> add_halves(Vec<T> x, Vec<T> y, std::integer_sequence<int, L...>) {
  constexpr int N = Vec<T>::N, P = N / (2 * H);
  return Vec<T>(lanes_of<(L / H / P * N + L / H % P * 2 * H + L % H)...>(x.v, y.v)) +
         Vec<T>(lanes_of<(L / H / P * N + L / H % P * 2 * H + L % H + H)...>(x.v, y.v));
}
template <class T, int H> FASTAE_INLINE Vec<T> add_tree(Vec<T>* v) {
  for (int i = 0; i < H; ++i)
    v[i] = add_halves<T, H>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, Vec<T>::N>());
  if constexpr (H > 1) return add_tree<T, H / 2>(v);
  else return v[0];
}

// out[i] = s[i].sum() for up to N sums, by the same tree in fewer instructions
template <class T, int COUNT> FASTAE_INLINE void sums_of_lanes(LaneSum<T>* s, T* out) {
  constexpr int N = Vec<T>::N, V = LaneSum<T>::V;
  Vec<T> v[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    if (i >= COUNT) {
      v[i] = v[0];
      continue;
    }
    for (int h = V / 2; h; h /= 2)
      for (int q = 0; q < h; ++q) s[i].lane[q] += s[i].lane[q + h];
    v[i] = s[i].lane[0];
  }
  add_tree<T, N / 2>(v).store(out);
}

// Rows of either side that a block of sums takes: as many as there are registers for.
template <class T> struct DotTile {
  static constexpr int most = (kMaxVectors == 4 ? 24 : 12) / LaneSum<T>::V;
  static constexpr int A = most >= 16 ? 4 : most >= 12 ? 3 : most >= 6 ? 2 : 1;
  static constexpr int B = most >= 12 ? 4 : most >= 3 ? 3 : 1;
};

// out[i][c] = a_i . b_c as dot() makes them
template <class T, int A, int B>
__attribute__((noinline)) void dot_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t p, T* out,
                                        int64_t ldo) noexcept {
  constexpr int N = Vec<T>::N, all = (A * B + N - 1) / N * N, rest = A * B % N;
  LaneSum<T> s[A * B];
  over_lanes<T>(p, [&](int v, int64_t j, int lanes) {
    Vec<T> x[A];
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) x[i] = Vec<T>::load(a + i * lda + j, lanes);
#pragma GCC unroll 4
    for (int c = 0; c < B; ++c) {
      const Vec<T> y = Vec<T>::load(b + c * ldb + j, lanes);
#pragma GCC unroll 4
      for (int i = 0; i < A; ++i) s[i * B + c].lane[v] = fma(x[i], y, s[i * B + c].lane[v]);
    }
  });
  alignas(64) T sum[all];
#pragma GCC unroll 4
  for (int g = 0; g + N <= A * B; g += N) sums_of_lanes<T, N>(s + g, sum + g);
  if constexpr (rest > 0) sums_of_lanes<T, rest>(s + all - N, sum + all - N);
  for (int i = 0; i < A; ++i)
    for (int c = 0; c < B; ++c) out[i * ldo + c] = sum[i * B + c];
}

// All latents' products with a block of rows, of which the entries' are taken.
template <class T> void code_grad_full(const CodeGrad<T>& g, int64_t m, int64_t n, int threads) noexcept {
  constexpr int A = DotTile<T>::A, B = DotTile<T>::B;
  threads = useful_threads(threads, (double)m * n * g.p);
  const int64_t run = larger(A, smaller(kGradRows, ceil_div(m, 4 * threads)));
  const int64_t few = A * larger(1, smaller(16, kGradBytes / ((int64_t)sizeof(T) * larger(1, g.p))) / A);
  parallel(threads, ceil_div(m, run), [&](int64_t task) {
    const int64_t r0 = task * run, rows = smaller(run, m - r0);
    alignas(64) T out[kGradRows * kGradLatents];
    int32_t next[kGradRows] = {};
    for (int64_t first = 0; first < n; first += kGradLatents) {
      const int64_t some = smaller(kGradLatents, n - first), last = first + some;
      for (int64_t near = 0; near < rows; near += few)
        for (int64_t c = 0; c < some;) {
          const T* const w = g.w.at(first + c, 0);
          const bool whole = some - c >= B;
          for (int64_t i = near; i < smaller(rows, near + few);) {
            const T* const dy = g.dy.at(r0 + i, 0);
            T* const to = out + i * kGradLatents + c;
            if (whole && rows - i >= A) {
              dot_tile<T, A, B>(dy, g.dy.ld, w, g.w.ld, g.p, to, kGradLatents);
              i += A;
            } else {
              for (int64_t k = 0; k < (whole ? B : 1); ++k) to[k] = dot(dy, w + k * g.w.ld, g.p);
              ++i;
            }
          }
          c += whole ? B : 1;
        }
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t r = r0 + i, count = g.entries.of(r, 0);
        const int32_t* const at = g.idx.at(r, 0);
        T* const to = g.dval.at(r, 0);
        const T* const from = out + i * kGradLatents - first;
        const int64_t done = next[i];
        int64_t e = done;
        for (; e < count && at[e] < last; ++e) to[e] = from[at[e]];
        next[i] = (int32_t)e;
        if (i + kRowsAhead < rows) {
          const int64_t coming = next[i + kRowsAhead];
          fetch_entries(g.idx.at(r + kRowsAhead, coming), g.dval.at(r + kRowsAhead, coming), e - done);
        }
      }
    }
  });
}

}  // namespace
}  // namespace fastae
