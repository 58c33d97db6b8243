// Codes of a batch: z = x wT + b selected as it is made, never stored.
//
// Latents go by in groups that stay in cache, each group past every panel of rows; products are made with latents as
// the rows of a tile and rows of x as its columns, so that w is read where it lies and a vector holds one latent's z of
// as many rows. What passes a row's limit is appended to the row's candidates; when these are full, the k-th largest
// becomes the limit. A candidate is (z, low): low <= score(z) with equality where z is exact, otherwise z is a bound
// from above (certify.h) and the float32 chain is made up for before the last selection. So every path gives the same.
#pragma once
#include "certify.h"
#include "gemm.h"
#include "kernels.h"
#include "topk.h"

namespace fastae {
namespace {

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
  // largest values: what memory was given for
  int64_t most_m, most_n, most_k;
  bool subsets;

  int32_t latent(int64_t q) const { return subset ? subset[q] : (int32_t)q; }
  T limit(int32_t j) const { return (threshold ? threshold[single ? 0 : j] : T(0)) - margin; }
};

constexpr int64_t kLatentBytes = 1 << 20;  // of a group of latents: in L2 beside a panel of rows
constexpr int64_t kGroupRuns = 2;          // of float32's, in a group in bfloat16

template <class T> struct Encoding {
  static constexpr int64_t W = 2 * Vec<T>::N;  // rows of a panel
  static constexpr int64_t kBlock = 96;        // latents of a group: a multiple of this

  const EncodeArgs<T>& a;
  int64_t group, run_of, room;  // latents of a group, and in float32; candidates of a row
  T *panels, *gathered, *limit, *z, *low;
  int32_t *idx, *held, *full;  // full: number of candidates at which the limit is raised
  // of certified candidates
  uint16_t *halves, *tiles;
  float *row_a, *row_size, *norm, *error;
  bool certified = false, begun = false, panels_made = false, overflow = false;
  float largest_row = 0;
  int64_t redone = 0;
  int64_t bytes;

  static bool has_dots(int how) { return sizeof(T) == 4 && how != bf16_product::rounded; }

  Encoding(const EncodeArgs<T>& args, char* memory) : a(args) {
    Carve c = {memory};
    const int64_t rows = ceil_div(a.most_m, 64) * 64, p = larger(a.p, 1);
    const int64_t wide = larger(1, kLatentBytes / (kBlock * p * (int64_t)sizeof(T)));
    run_of = kBlock * smaller(wide, ceil_div(a.most_n, kBlock));
    group = has_dots(a.how) ? smaller(kGroupRuns * run_of, ceil_div(a.most_n, kBlock) * kBlock) : run_of;
    room = a.kind == code_kind::threshold ? 128 : ceil_div(smaller(a.most_n, 6 * a.most_k + 128), 16) * 16;
    panels = c.take<T>(rows * p);
    gathered = c.take<T>(a.subsets ? run_of * p : 0);
    limit = c.take<T>(rows);
    z = c.take<T>(rows * room);
    low = c.take<T>(has_dots(a.how) ? rows * room : 0);
    idx = c.take<int32_t>(rows * room);
    held = c.take<int32_t>(rows);
    full = c.take<int32_t>(rows);
    halves = tiles = nullptr;
    row_a = row_size = norm = error = nullptr;
#ifdef FASTAE_BF16
    if (has_dots(a.how)) {
      halves = c.take<uint16_t>(rows * whole_tiles(p));
      tiles = c.take<uint16_t>(group * whole_tiles(p));
      row_a = c.take<float>(rows);
      row_size = c.take<float>(rows);
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

  void compact(int64_t r) {
    const int64_t at = r * room;
    if (begun) {
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
      if (held[r] <= room - room / 4) return;
      make_exact(r, true);
    }
    const T kth = kth_largest(z + at, held[r], a.k, limit[r], magnitude());
    limit[r] = kth;
    const int64_t n = held[r];
    keep(r, [&](const auto& f) { each_of_largest(z + at, n, smaller(n, a.k), kth, magnitude(), f); });
  }

  // The chains of candidates that have only bounds. A threshold code's are written and forgotten.
  // next: a row whose candidates come after, or -1.
  void make_exact(int64_t r, bool counted, int64_t next = -1) {
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
        exact_chains(a.x.at(r, 0), a.p, rows, rows + 16, sum);
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
        if (a.kind != code_kind::threshold && low[at + i] == score_of(z[at + i], magnitude())) continue;
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

  // ---- products in float32 ---------------------------------------------------------------------------------------------
  void make_panels() {
    if (panels_made) return;
    panels_made = true;
    parallel(useful_threads(a.threads, (double)a.m * a.p), panel_count(), [&](int64_t i) {
      const int64_t r = i * W, rows = smaller(W, a.m - r);
      pack_transposed(a.x.at(r, 0), a.x.ld, rows, a.p, rows > Vec<T>::N ? 2 : 1, panels + r * a.p);
    });
  }

  // c[i][v N + lane] for latents [q, q + taken) and the rows from r on
  template <int KIND, int NV> FASTAE_INLINE void filter(const T* c, int64_t q, int64_t taken, int64_t r) {
    typedef Vec<T> V;
    constexpr int N = V::N;
    for (int64_t i = 0; i < taken; ++i) {
      const int32_t j = a.latent(q + i);
      V value[NV];
      uint32_t hits[NV], any_hit = 0;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        value[v] = V::load(c + (i * NV + v) * N);
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

  template <int KIND, int NV> void float_block(const T* w, int64_t ldw, int64_t r, int64_t first, int64_t last) {
    alignas(64) T c[kPanelRows * NV * Vec<T>::N];
    for (int64_t q = first; q < last;) {
      const TileArgs<T> t = {a.p, w + (q - first) * ldw, ldw, panels + r * a.p, c, NV * Vec<T>::N, NV * Vec<T>::N,
                             kSet};
      const int taken = run_tile<T, NV, false>(last - q, t);
      filter<KIND, NV>(c, q, taken, r);
      q += taken;
    }
  }

  template <int KIND> void float_group(int64_t first, int64_t last) {
    make_panels();
    if (begun && KIND == code_kind::threshold)  // entries are written in order
      parallel(useful_threads(a.threads, (double)a.m * a.p * 32), ceil_div(a.m, 8), [&](int64_t task) {
        for (int64_t r = task * 8; r < smaller(a.m, task * 8 + 8); ++r) make_exact(r, true);
      });
    const T* w = a.w.at(first, 0);
    int64_t ldw = a.w.ld;
    if (a.subset) {
      for (int64_t q = first; q < last; ++q)
        memcpy(gathered + (q - first) * a.p, a.w.at(a.subset[q], 0), (size_t)a.p * sizeof(T));
      w = gathered;
      ldw = a.p;
    }
    parallel(useful_threads(a.threads, (double)a.m * (last - first) * a.p), panel_count(), [&](int64_t i) {
      if (a.m - i * W > Vec<T>::N) float_block<KIND, 2>(w, ldw, i * W, first, last);
      else float_block<KIND, 1>(w, ldw, i * W, first, last);
    });
  }

  // ---- certified candidates --------------------------------------------------------------------------------------------
#ifdef FASTAE_BF16
  // Whether bounds can save work, and the memory for them is there.
  bool may_certify() const {
    if (!has_dots(a.how) || !Bounds::possible(a.p) || a.p < 1) return false;
    if (a.path == encode_path::bfloat16) return true;
    if (a.path != encode_path::automatic || !fast_dots(a.how)) return false;
    return a.p >= 64 && a.n >= 1024 && (a.kind == code_kind::threshold || a.n >= 16 * a.k);
  }

  void make_halves() {
    const Bounds bounds(a.p);
    const int64_t depth = whole_tiles(a.p);
    parallel(useful_threads(a.threads, (double)a.m * a.p), ceil_div(a.m, kCertifyRows), [&](int64_t i) {
      const int64_t r0 = i * kCertifyRows, rows = smaller(kCertifyRows, a.m - r0);
      pair_transposed((const float*)a.x.at(r0, 0), a.x.ld, rows, a.p, kCertifyRows, halves + r0 * depth);
      for (int64_t r = r0; r < r0 + kCertifyRows; ++r) {
        row_a[r] = row_size[r] = 0;
        if (limit[r] == kInfinity<T>) continue;
        float squares, residual;
        row_norms((const float*)a.x.at(r, 0), a.p, &squares, &residual);
        const float size = bounds.norm(squares, a.p), rest = bounds.norm(residual, a.p);
        row_a[r] = (rest + bounds.g1 * size) * bounds.more;
        row_size[r] = (size + rest) * bounds.more;
      }
    });
    for (int64_t r = 0; r < a.m; ++r) largest_row = row_size[r] > largest_row ? row_size[r] : largest_row;
  }

  // Rows of a panel, for bounds: s and its bound for latent i of a block c (32,32), j by name.
  struct PanelBounds {
    Vec<float> wide[2], size[2];
    PanelBounds(const Encoding& e, int64_t r)
        : wide{Vec<float>::load(e.row_a + r), Vec<float>::load(e.row_a + r + 16)},
          size{Vec<float>::load(e.row_size + r), Vec<float>::load(e.row_size + r + 16)} {}
    template <int KIND>
    FASTAE_INLINE void of(const float* c, int v, float bias, float norm, float error, float tiny, Vec<float>* s,
                          Vec<float>* bound) const {
      *s = Vec<float>::load(c + v * 16) + Vec<float>(bias);
      if constexpr (KIND == code_kind::abs_topk) *s = fabs(*s);
      const Vec<float> fixed(__builtin_fabsf(bias) * 0x1p-21f + tiny);
      *bound = fma(wide[v], Vec<float>(norm), fma(size[v], Vec<float>(error), fixed));
    }
  };

  // c (32,32): latents [q, q + taken) and the rows from r on
  template <int KIND, int C>
  FASTAE_INLINE void filter_bounds(const PanelBounds& rows, const float* c, int64_t q, int64_t taken, int64_t r,
                                   const float* size, const float* slack, float tiny) {
    typedef Vec<float> V;
    for (int64_t i = 0; i < taken; ++i) {
      const int32_t j = a.latent(q + i);
      const float bias = a.b ? a.b[j] : 0.f;
      V s[C], bound[C];
      uint32_t hits = 0;
#pragma GCC unroll 2
      for (int v = 0; v < C; ++v) {
        rows.template of<KIND>(c + i * 32, v, bias, size[i], slack[i], tiny, s + v, bound + v);
        const V least = V::load((const float*)limit + r + v * 16), high = s[v] + bound[v];
        if constexpr (KIND == code_kind::threshold)
          hits |= lane_bits(high > at_least(least, V((float)a.limit(j)))) << (16 * v);
        else hits |= lane_bits(high > least) << (16 * v);
      }
      if (!hits) continue;
      float high[16 * C], least[16 * C];
#pragma GCC unroll 2
      for (int v = 0; v < C; ++v) {
        (s[v] + bound[v]).store(high + 16 * v);
        (s[v] - bound[v]).store(least + 16 * v);
      }
      each_lane(hits, [&](int lane) { take_bounds(r + lane, j, high[lane], least[lane]); });
    }
  }

  // Limits to begin with: latents are dealt out to 2 k heaps, and the k-th largest of the heaps' tops is reached by k
  // latents. Without it half of all candidates would come from the first few latents.
  static constexpr int64_t kMostSeeded = 64;
  bool worth_seeding(int64_t latents) const {
    return a.kind != code_kind::threshold && a.k <= kMostSeeded && latents >= 8 * a.k && a.n >= 4 * latents;
  }
  template <int KIND, int C>
  FASTAE_INLINE void seed(const PanelBounds& rows, const float* c, int64_t q, int64_t taken, const float* size,
                          const float* slack, float tiny, float* top) {
    for (int64_t i = 0; i < taken; ++i) {
      const float bias = a.b ? a.b[a.latent(q + i)] : 0.f;
      float* const heap = top + (q + i) % (2 * a.k) * 32;
#pragma GCC unroll 2
      for (int v = 0; v < C; ++v) {
        Vec<float> s, bound;
        rows.template of<KIND>(c + i * 32, v, bias, size[i], slack[i], tiny, &s, &bound);
        at_least(Vec<float>::load(heap + 16 * v), s - bound).store(heap + 16 * v);
      }
    }
  }
  void set_limits(int64_t r, int64_t rows, const float* top) {
    for (int64_t i = 0; i < rows; ++i) {
      float each[2 * kMostSeeded];
      for (int64_t h = 0; h < 2 * a.k; ++h) each[h] = top[h * 32 + i];
      const float reached = kth_largest(each, 2 * a.k, a.k, -kInfinity<float>, false);
      // the number below: what equals it may come before those that reach it
      if (limit[r + i] != kInfinity<T> && reached > -kInfinity<float>)
        limit[r + i] = (T)number_at<float>(order_of(reached) - 1);
    }
  }

  // False, and nothing done, where bounds could overflow.
  template <int KIND> bool certified_group(int64_t first, int64_t last) {
    const int64_t depth = whole_tiles(a.p), runs = ceil_div(last - first, 16);
    const uint16_t* from = tiles;
    const float *size = norm, *slack = error;
    if (a.packed && !a.subset) {
      const int64_t all = ceil_div(a.n, 64) * 64;
      from = a.packed + first * depth;
      size = (const float*)(a.packed + all * depth) + first;
      slack = size + all;
    } else {
      parallel(useful_threads(a.threads, (double)(last - first) * a.p), ceil_div(runs, 2) * 2, [&](int64_t i) {
        const int64_t q = first + i * 16, some = larger(0, smaller(16, last - q));
        const float* w = (const float*)(a.subset || !some ? a.w.p : a.w.at(q, 0));
        round_latents(w, a.w.ld, a.subset ? a.subset + q : nullptr, some, a.p, tiles + i * 16 * depth, norm + i * 16,
                      error + i * 16);
      });
    }
    float most = 0, most_b = 0;
    for (int64_t q = first; q < last; ++q) {
      const float s = size[q - first], b = a.b ? (float)a.b[a.latent(q)] : 0.f;
      most = s > most ? s : most;
      most_b = b > most_b ? b : -b > most_b ? -b : most_b;
    }
    if (!(most * largest_row < kSafeSize) || !(most < kSafeSize) || !(most_b < kSafeSize)) return false;
    const float tiny = Bounds(a.p).tiny;
    const int64_t blocks = ceil_div(a.m, kCertifyRows);
    parallel(useful_threads(a.threads, (double)a.m * (last - first) * a.p / 4), blocks, [&](int64_t task) {
      Tiles shape;
      if (a.how == bf16_product::tiles) shape.configure(32, 32);
      const int64_t r = task * kCertifyRows, rows = smaller(kCertifyRows, a.m - r);
      // a block's products are begun before the last one's are looked at: tiles work beside the other instructions
      alignas(64) float c[2][kCertifyLatents * kCertifyRows];
      const auto begin = [&](int64_t q) {
        const int64_t i = q - first;
        certify_block(a.how, from + i * depth, depth, halves + r * depth, rows, c[i / kCertifyLatents % 2]);
      };
      const auto each_block = [&](const auto& f) {
        begin(first);
        for (int64_t q = first; q < last; q += kCertifyLatents) {
          if (q + kCertifyLatents < last) begin(q + kCertifyLatents);
          f(q, smaller(kCertifyLatents, last - q), c[(q - first) / kCertifyLatents % 2]);
        }
      };
      const PanelBounds panel(*this, r);
      if (first == 0 && worth_seeding(last)) {
        alignas(64) float top[2 * kMostSeeded * 32];
        for (float& t : top) t = -kInfinity<float>;
        each_block([&](int64_t q, int64_t taken, const float* done) {
          if (rows > 16) seed<KIND, 2>(panel, done, q, taken, size + q, slack + q, tiny, top);
          else seed<KIND, 1>(panel, done, q, taken, size + q, slack + q, tiny, top);
        });
        set_limits(r, rows, top);
      }
      for (int64_t i = r; i < r + rows; ++i) {  // where candidates will go
        const int64_t at = i * room + held[i];
        __builtin_prefetch(z + at, 1);
        __builtin_prefetch(low + at, 1);
        __builtin_prefetch(idx + at, 1);
      }
      // rows that come next, on their way while these are worked at
      const uint16_t* const coming = halves + smaller(r + kCertifyRows, (blocks - 1) * kCertifyRows) * depth;
      const int64_t lines = ceil_div(depth, ceil_div(last - first, kCertifyLatents));  // a panel has as many as depth
      each_block([&](int64_t q, int64_t taken, const float* done) {
        const int64_t i = q - first, line = i / kCertifyLatents * lines;
        for (int64_t l = line; l < smaller(depth, line + lines); ++l) __builtin_prefetch(coming + l * 32, 0, 2);
        if (rows > 16) filter_bounds<KIND, 2>(panel, done, q, taken, r, size + i, slack + i, tiny);
        else filter_bounds<KIND, 1>(panel, done, q, taken, r, size + i, slack + i, tiny);
      });
      if (a.how == bf16_product::tiles) shape.release();
    });
    return true;
  }
#endif

  // ---- the whole ------------------------------------------------------------------------------------------------------
  static bool finite_row(const T* x, int64_t p) {
    Vec<T> sum(T(0));
    over_row<T>(p, [&](int64_t i, int lanes) { sum = fma(Vec<T>::load(x + i, lanes), Vec<T>(T(0)), sum); });
    return all(sum == Vec<T>(T(0)));
  }

  void finish(int64_t r, int64_t next) {
    int32_t& count = *a.count.at(r, 0);
    if (limit[r] == kInfinity<T> && !finite_row(a.x.at(r, 0), a.p)) {
      count = -1;
      return;
    }
    make_exact(r, false, next);
    if (a.kind == code_kind::threshold) {
      if (count > a.capacity) __atomic_store_n(&overflow, true, __ATOMIC_RELAXED);
      return;
    }
    const T* from = z + r * room;
    const int64_t n = held[r], k = smaller(a.k, n);
    count = (int32_t)k;
    if (k == 0) return;
    const T kth = kth_largest(from, n, k, -kInfinity<T>, magnitude());
    int64_t at = 0;
    each_of_largest(from, n, k, kth, magnitude(), [&](int64_t i) {
      *a.idx.at(r, at) = idx[r * room + i];
      *a.val.at(r, at) = !magnitude() && from[i] < 0 ? T(0) : from[i];
      if (a.pre) *a.pre.at(r, at) = from[i];
      ++at;
    });
  }

  template <int KIND> void run_kind() {
    const int64_t rows = ceil_div(a.m, 64) * 64;
    parallel(useful_threads(a.threads, (double)a.m * a.p / 4), ceil_div(rows, 64), [&](int64_t task) {
      for (int64_t r = task * 64; r < task * 64 + 64; ++r) {
        held[r] = 0;
        full[r] = (int32_t)(KIND == code_kind::threshold ? room : smaller(room, some()));
        limit[r] = r < a.m && finite_row(a.x.at(r, 0), a.p) ? -kInfinity<T> : kInfinity<T>;
        if (r < a.m) *a.count.at(r, 0) = 0;
      }
    });
    if (KIND == code_kind::threshold || a.k > 0) {
#ifdef FASTAE_BF16
      if constexpr (sizeof(T) == 4) {
        certified = begun = may_certify();
        if (certified) make_halves();
      }
#endif
      for (int64_t first = 0; first < a.n; first += group) {
        const int64_t last = smaller(a.n, first + group);
#ifdef FASTAE_BF16
        if constexpr (sizeof(T) == 4) {
          if (certified && certified_group<KIND>(first, last)) {
            // more than a few chains over again: bounds don't tell these numbers apart
            certified = redone * 25 <= a.m * last || a.path == encode_path::bfloat16;
            continue;
          }
        }
#endif
        for (int64_t q = first; q < last; q += run_of) float_group<KIND>(q, smaller(last, q + run_of));
      }
    }
    parallel(useful_threads(a.threads, (double)a.m * a.p * 32), ceil_div(a.m, 8), [&](int64_t task) {
      const int64_t end = smaller(a.m, task * 8 + 8);
      for (int64_t r = task * 8; r < end; ++r) finish(r, r + 1 < end ? r + 1 : -1);
    });
  }

  // Returns whether every row fitted.
  bool run() {
    if (a.kind == code_kind::topk) run_kind<code_kind::topk>();
    else if (a.kind == code_kind::abs_topk) run_kind<code_kind::abs_topk>();
    else run_kind<code_kind::threshold>();
    return !overflow;
  }
};

}  // namespace
}  // namespace fastae
