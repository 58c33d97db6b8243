// A row's candidates for its code, and what an encode op is given.
//
// A candidate is (z, low): low <= score(z) with equality where z is exact, otherwise z is a bound from above (certify.h)
// and the chain is made up for before the last selection. When candidates are many the k-th largest low becomes
// the row's limit, which others have to pass. Where z is to be that of products in bfloat16, so is the chain, and tiles
// say z itself.
#pragma once
#include "certify.h"
#include "gemm.h"
#include "kernels.h"
#include "topk.h"

namespace fastae {
namespace {

// A row of x in 8-bit integers (quantized.h): its scale, norms, and what sums of either byte begin with.
struct QuantizedRow {
  float scale, squares, residual;
  int32_t start[2];
};
FASTAE_INLINE int64_t whole_lines(int64_t p) { return ceil_div(p, 64) * 64; }

template <class T> struct EncodeArgs {
  View<T> x, w;            // (m,p), (all latents,p)
  const T *b, *threshold;  // (1,n); threshold (1,1) where single
  bool single;
  T margin;
  int kind, path, how;     // code_kind, encode_path, bf16_product
  int64_t m, n, p, k;      // n: latents that take part
  const int32_t* subset;   // their names, or null
  const uint16_t* packed;  // of all latents: pack_encoder
  View<T> val, pre;
  View<int32_t> idx;
  View<int32_t> count;
  int64_t capacity;  // columns of val
  int threads;
  bool eight;  // products of 8-bit integers are there, and weights packed for them
  bool bf16;   // z is made of operands rounded to bfloat16; x is so already
  // largest values: what memory was given for
  int64_t most_m, most_n, most_k;
  bool subsets;

  int32_t latent(int64_t q) const { return subset ? subset[q] : (int32_t)q; }
  T limit(int32_t j) const { return (threshold ? threshold[single ? 0 : j] : T(0)) - margin; }
};

constexpr int64_t kLatentBytes = 1 << 20;  // of a group of latents: in L2 beside a panel of rows
constexpr int64_t kGroupRuns = 2;          // of float32's, in a group in bfloat16

// Lists of what a first look leaves (coarse.h).
constexpr int64_t kCoarseRows = 3;      // of a batch
constexpr int64_t kCoarseFirst = 1024;  // latents of the first group, and at most of one
constexpr int64_t kCoarseGroup = 4096;
constexpr int64_t kCoarseParts = 8;    // of a group, side by side
constexpr int64_t kCoarseKept = 8192;  // of a list between groups
constexpr int64_t kCoarseRoom = 2 * (kCoarseKept + kCoarseGroup) + (kCoarseParts + 4) * 64;

template <class T> struct Candidates {
  static constexpr int64_t W = 2 * Vec<T>::N;  // rows of a panel
  static constexpr int64_t kBlock = 96;        // latents of a group: a multiple of this

  const EncodeArgs<T>& a;
  int64_t group, run_of, room;                       // latents of a group, and in float32; candidates of a row
  T *panels, *gathered, *upright, *limit, *z, *low;  // upright: latents as columns, of codes that are nearly full
  int32_t *idx, *held, *full;                        // full: number of candidates at which the limit is raised
  // of certified candidates
  uint16_t *halves, *tiles;
  int8_t* bytes_x;
  QuantizedRow* rows_x;
  float *row_a, *row_size, *norm, *error, *coarse;
  bool certified = false, begun = false, panels_made = false, overflow = false;
  float largest_row = 0;
  int64_t redone = 0;
  int64_t bytes;

  static bool has_dots(int how) { return sizeof(T) == 4 && how != bf16_product::rounded; }
  static bool has_bounds(const EncodeArgs<T>& a) { return a.eight || (has_dots(a.how) && !a.bf16); }

  Candidates(const EncodeArgs<T>& args, char* memory) : a(args) {
    Carve c = {memory};
    const int64_t rows = ceil_div(a.most_m, 64) * 64, p = larger(a.p, 1);
    const int64_t wide = larger(1, kLatentBytes / (kBlock * p * (int64_t)sizeof(T)));
    run_of = kBlock * smaller(wide, ceil_div(a.most_n, kBlock));
    group = has_dots(a.how) ? smaller(kGroupRuns * run_of, ceil_div(a.most_n, kBlock) * kBlock) : run_of;
    room = a.kind == code_kind::threshold ? 128 : ceil_div(smaller(a.most_n, 6 * a.most_k + 128), 16) * 16;
    panels = c.take<T>(rows * p);
    gathered = c.take<T>(a.subsets || (a.bf16 && !has_dots(a.how)) ? run_of * p : 0);
    upright = c.take<T>(a.kind == code_kind::threshold && !a.subsets ? packed_size<T>(run_of, p) : 0);
    limit = c.take<T>(rows);
    z = c.take<T>(rows * room);
    low = c.take<T>(has_bounds(a) ? rows * room : 0);
    idx = c.take<int32_t>(rows * room);
    held = c.take<int32_t>(rows);
    full = c.take<int32_t>(rows);
    halves = tiles = nullptr;
    row_a = row_size = norm = error = coarse = nullptr;
    bytes_x = nullptr;
    rows_x = nullptr;
#ifdef FASTAE_BF16
    if (a.eight) {
      bytes_x = c.take<int8_t>(rows * 2 * whole_lines(p));
      rows_x = c.take<QuantizedRow>(rows);
      coarse = c.take<float>(smaller(a.most_m, kCoarseRows) * 4 * kCoarseRoom);
    }
    if (has_bounds(a)) {
      row_a = c.take<float>(rows);
      row_size = c.take<float>(rows);
    }
    if (has_dots(a.how)) {
      halves = c.take<uint16_t>(rows * whole_tiles(p));
      tiles = c.take<uint16_t>(group * whole_tiles(p));
      norm = c.take<float>(group);
      error = c.take<float>(group);
    }
#endif
    bytes = c.used;
  }

  // Candidates that come before a limit is raised: few, so that it rises early, yet enough to pay for it.
  int64_t some() const { return 2 * a.k + 32; }
  bool magnitude() const { return a.kind == code_kind::abs_topk; }
  int64_t panel_count() const { return ceil_div(a.m, W); }

  // ---- a row's candidates --------------------------------------------------------------------------------------------
  // held: candidates of a row; for threshold codes those whose z is still to be made, count holds the entries.
  FASTAE_INLINE void emit(int64_t r, int32_t j, T value) {
    const int32_t at = (*a.count.at(r, 0))++;
    if (at < a.capacity) {
      const T t = a.threshold ? a.threshold[a.single ? 0 : j] : T(0);
      *a.idx.at(r, at) = j;
      *a.val.at(r, at) = value > t ? value : T(0);
      if (a.pre) *a.pre.at(r, at) = value;
    }
  }

  FASTAE_INLINE void take_exact(int64_t r, int32_t j, T value) {
    if (limit[r] == kInfinity<T>) return;
    if (a.kind == code_kind::threshold) return emit(r, j, value);
    const int64_t at = r * room + held[r]++;
    z[at] = value;
    idx[at] = j;
    if (begun) low[at] = score_of(value, magnitude());
    if (held[r] == full[r]) compact(r);
  }

  FASTAE_INLINE void take_bounds(int64_t r, int32_t j, T high, T least) {
    if (limit[r] == kInfinity<T>) return;
    const int64_t at = r * room + held[r]++;
    z[at] = high;
    low[at] = least;
    idx[at] = j;
    if (held[r] == full[r]) {
      if (a.kind == code_kind::threshold) make_exact(r, true);
      else compact(r);
    }
  }

  // c[i][v N + lane], rows of c ldc apart: z but for the bias of latents [q, q + taken) and the rows from r on
  template <int KIND, int NV> FASTAE_INLINE void filter(const T* c, int64_t ldc, int64_t q, int64_t taken, int64_t r) {
    typedef Vec<T> V;
    constexpr int N = V::N;
    for (int64_t i = 0; i < taken; ++i) {
      const int32_t j = a.latent(q + i);
      V value[NV];
      uint32_t hits[NV], any_hit = 0;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        value[v] = V::load(c + i * ldc + v * N);
        if (a.b) value[v] += V(a.b[j]);
        const V least = V::load(limit + r + v * N);
        if constexpr (KIND == code_kind::threshold) hits[v] = lane_bits(value[v] > at_least(least, V(a.limit(j))));
        else hits[v] = lane_bits(~(score_of(value[v], KIND == code_kind::abs_topk) <= least));
        if constexpr (N < 16) hits[v] &= (1u << N) - 1;
        any_hit |= hits[v];
      }
      if (!any_hit) continue;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        if (!hits[v]) continue;
        T each[N];
        value[v].store(each);
        each_lane(hits[v], [&](int lane) { take_exact(r + v * N + lane, j, each[lane]); });
      }
    }
  }

  // Keeps the candidates that f names, in order.
  template <class F> void keep(int64_t r, const F& each) {
    int64_t n = 0;
    const int64_t at = r * room;
    each([&](int64_t i) {
      z[at + n] = z[at + i];
      if (begun) low[at + n] = low[at + i];
      idx[at + n] = idx[at + i];
      ++n;
    });
    held[r] = (int32_t)n;
    full[r] = (int32_t)smaller(room, n + some());
  }

  // Raises the limit to the k-th largest low, and leaves out what cannot reach it.
  void drop(int64_t r) {
    const int64_t at = r * room;
    const T floor = kth_largest(low + at, held[r], a.k, limit[r], false);
    limit[r] = floor;
    int64_t n = 0;
    for (int64_t i = at; i < at + held[r]; ++i) {
      const bool kept = !(score_of(z[i], magnitude()) < floor);
      z[at + n] = z[i];
      low[at + n] = low[i];
      idx[at + n] = idx[i];
      n += kept;
    }
    held[r] = (int32_t)n;
    full[r] = (int32_t)smaller(room, n + some());
  }

  // The k largest bounds' chains first: these raise the limit by twice the bounds' width.
  void sharpen(int64_t r, bool counted) {
    if (held[r] <= a.k) return;
    const T least = kth_largest(z + r * room, held[r], a.k, -kInfinity<T>, magnitude());
    make_exact(r, counted, -1, least);
    drop(r);
  }

  void compact(int64_t r) {
    const int64_t at = r * room;
    if (begun) {
      drop(r);
      if (held[r] <= room - room / 4) return;
      sharpen(r, true);
      if (held[r] <= room - room / 4) return;
      make_exact(r, true);
    }
    const T kth = kth_largest(z + at, held[r], a.k, limit[r], magnitude());
    limit[r] = kth;
    const int64_t n = held[r];
    keep(r, [&](const auto& f) { each_of_largest(z + at, n, smaller(n, a.k), kth, magnitude(), f); });
  }

  // The chains of candidates that have only bounds. A threshold code's are written and forgotten.
  // next: a row whose candidates come after, or -1. least: only of those that may reach it.
  void make_exact(int64_t r, bool counted, int64_t next = -1, T least = -kInfinity<T>) {
#ifdef FASTAE_BF16
    if constexpr (sizeof(T) == 4) {
      if (!begun) return;
      const int64_t at = r * room, n = held[r];
      const float* rows[32];  // those of the present chains, and the next ones
      int64_t places[32], open = 0, made = 0;
      const auto flush = [&](int64_t some, int64_t then) {
        float sum[16];
        for (int64_t i = some; i < 16; ++i) rows[i] = rows[0];
        for (int64_t i = 16 + then; i < 32; ++i) rows[i] = rows[0];
        if (!a.bf16) exact_chains<false>(a.x.at(r, 0), a.p, rows, rows + 16, sum);
        else if (!has_dots(a.how)) exact_chains<true>(a.x.at(r, 0), a.p, rows, rows + 16, sum);
        else rounded_chains(a.how, halves + r / 32 * 32 * whole_tiles(a.p), r % 32, a.p, rows, rows + 16, sum);
        for (int64_t i = 0; i < some; ++i) {
          const int64_t c = at + places[i];
          z[c] = a.b ? sum[i] + a.b[idx[c]] : sum[i];
          low[c] = score_of(z[c], magnitude());
        }
        made += some;
        memcpy(rows, rows + 16, 16 * sizeof *rows);
        memcpy(places, places + 16, 16 * sizeof *places);
      };
      for (int64_t i = 0; i < n; ++i) {
        const T high = score_of(z[at + i], magnitude());
        if (a.kind != code_kind::threshold && (low[at + i] == high || high < least)) continue;
        rows[open] = a.w.at(idx[at + i], 0);
        places[open++] = i;
        if (open < 32) continue;
        flush(16, 16);
        open = 16;
      }
      if (open > 16) {
        flush(16, open - 16);
        open -= 16;
      }
      if (open) {
        const int64_t coming = next < 0 ? 0 : smaller(16, held[next]);
        for (int64_t i = 0; i < coming; ++i) rows[16 + i] = a.w.at(idx[next * room + i], 0);
        flush(open, coming);
      }
      if (counted) __atomic_fetch_add(&redone, made, __ATOMIC_RELAXED);
      if (a.kind != code_kind::threshold) return;
      for (int64_t i = 0; i < n; ++i)
        if (z[at + i] > a.limit(idx[at + i])) emit(r, idx[at + i], z[at + i]);
      held[r] = 0;
    }
#endif
  }
};

}  // namespace
}  // namespace fastae
