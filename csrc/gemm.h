// Products of dense layers, without transposing anything in memory.
//
//   y  (m,n) = x (m,k) wT        w packed transposed; chains over k
//   dx (m,k) = dz (m,n) w        w packed straight;   chains over n
//   dw (n,k) = dzT x             packed, or small as they lie; chains over segments of 256 rows, added in order
//
// Every element of a result is the same chain however the work is cut, so threads and blocking change no bit.
// `finish(row, rows, column, columns)` runs on each finished block while it is in cache, or what the tile can do of it
// in its registers.
#pragma once
#include "pack.h"
#include "threads.h"

namespace fastae {
namespace {

constexpr int64_t kSegment = 256;     // rows of a gradient's chain
constexpr int64_t kDepthBlock = 768;  // chain elements per pass: a panel of them stays in L2
constexpr int64_t kRowBlock = 192;    // rows of x per task: a block of them stays in L2
// Packed panels in use at a time: they stay in L2 beside a block of rows. A share of other programs is kept free.
constexpr int64_t kGroupBytes = 768 << 10, kSmallGroupBytes = 1 << 19;

// A lambda as a pool task.
template <class F> FASTAE_INLINE void parallel(int threads, int64_t tasks, const F& f) noexcept {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
  struct Call {
    static void run(void* context, int64_t task, int) noexcept { (*static_cast<const F*>(context))(task); }
  };
  parallel_for(threads, tasks, &Call::run, const_cast<void*>(static_cast<const void*>(&f)));
}

// Threads worth waking for work in elements of plain passes: a wake-up costs about as much as 2^17 of them, and 2^19
// multiply-adds of a product in cache.
FASTAE_INLINE int useful_threads(int threads, double work) {
  const double most = work / (1 << 17);
  return most < 2 ? 1 : most < threads ? (int)most : threads;
}

template <class T> FASTAE_INLINE int64_t packed_size(int64_t columns, int64_t depth) {
  return ceil_div(columns, Vec<T>::N) * Vec<T>::N * depth;
}

// Whether a right operand (depth, columns) lies as its only packed panel would.
template <class T> FASTAE_INLINE bool is_panel(int64_t ld, int64_t columns) {
  return ld == columns && columns <= kPanelColumns<T> && columns % Vec<T>::N == 0;
}

// Packs panels [first, last) of the right operand. transposed: w (columns, depth), else w (depth, columns).
template <class T>
void pack_panels(const T* w, int64_t ldw, int64_t columns, int64_t depth, bool transposed, int64_t first, int64_t last,
                 int threads, T* packed) noexcept {
  constexpr int64_t W = kPanelColumns<T>;
  parallel(useful_threads(threads, 4.0 * (last - first) * W * depth), last - first, [&](int64_t i) {
    const int64_t j = (first + i) * W, n = smaller(W, columns - j);
    const int nv = panel_vectors<T>(columns, first + i);
    if (transposed) pack_transposed(w + j * ldw, ldw, n, depth, nv, packed + i * W * depth);
    else pack_straight(w + j, ldw, n, depth, nv, packed + i * W * depth);
  });
}

// Whether tiles do a part of `finish` in their registers: then in_tile() says which, and rest() does what is left.
template <class F, class = void> struct EndsInTile : std::false_type {};
template <class F> struct EndsInTile<F, std::void_t<decltype(std::declval<const F&>().in_tile())>> : std::true_type {};

// Chains of the panels [first, last) for rows [row, row + rows) of a.
template <class T, class F>
void multiply_block(const T* a, int64_t lda, const T* packed, int64_t row, int64_t rows, int64_t columns, int64_t depth,
                    int64_t first, int64_t last, T* c, int64_t ldc, const F& finish) noexcept {
  constexpr int64_t W = kPanelColumns<T>;
  TileEnd<T> end;
  if constexpr (EndsInTile<F>::value) end = finish.in_tile();
  // equal passes over the chain
  const int64_t passes = ceil_div(depth, kDepthBlock + kDepthBlock / 2);
  const int64_t step = passes > 1 ? ceil_div(depth, passes) : depth;
  for (int64_t p = 0; p < depth || p == 0; p += larger(step, 1)) {
    const int64_t n = smaller(step, depth - p);
    for (int64_t panel = first; panel < last; ++panel) {
      const int nv = panel_vectors<T>(columns, panel);
      const int64_t j = panel * W, width = smaller(W, columns - j);
      const T* b = packed + (panel - first) * W * depth + p * nv * Vec<T>::N;
      for (int64_t i = row; i < row + rows;) {
        const bool done = p + n >= depth;
        uint32_t strange = 0;
        const TileArgs<T> t = {n,
                               a + i * lda + p,
                               lda,
                               b,
                               c + i * ldc + j,
                               ldc,
                               width,
                               p ? kContinue : kSet,
                               done && end.any ? &end : nullptr,
                               i,
                               j,
                               &strange};
        const int taken = run_tile<T, false>(nv, row + rows - i, t);
        if (done && !end.any) finish(i, (int64_t)taken, j, width);
        if constexpr (EndsInTile<F>::value) {
          if (done && end.any) finish.rest(i, taken, j, width, strange);
        }
        i += taken;
      }
    }
    if (depth == 0) break;
  }
}

// c (m,columns) = a (m,depth) * right operand. packed != null: all panels packed before; else scratch takes them in
// groups of at most kGroupBytes (one panel at least).
template <class T, class F>
void multiply(const T* a, int64_t lda, const T* w, int64_t ldw, bool transposed, const T* packed, int64_t m,
              int64_t columns, int64_t depth, T* c, int64_t ldc, int threads, T* scratch, const F& finish) noexcept {
  constexpr int64_t W = kPanelColumns<T>;
  threads = useful_threads(threads, (double)m * columns * depth / 4);
  if (!packed && !transposed && is_panel<T>(ldw, columns)) packed = w;
  const int64_t panels = panel_count<T>(columns);
  if (threads == 1 && (packed || panels * W * depth * (int64_t)sizeof(T) <= kSmallGroupBytes)) {
    // short, and without the divisions below, which a small network's products would feel
    if (!packed) pack_panels(w, ldw, columns, depth, transposed, 0, panels, 1, scratch);
    for (int64_t row = 0; row < m; row += kRowBlock)
      multiply_block(a, lda, packed ? packed : scratch, row, smaller(kRowBlock, m - row), columns, depth, (int64_t)0,
                     panels, c, ldc, finish);
    return;
  }
  const int64_t bytes = m <= 2 * kRowBlock ? kSmallGroupBytes : kGroupBytes;
  const int64_t group = packed ? panels : larger(1, bytes / (int64_t)sizeof(T) / (W * larger(depth, 1)));
  for (int64_t first = 0; first < panels; first += group) {
    const int64_t last = smaller(panels, first + group);
    const T* b = packed;
    if (!packed) {
      pack_panels(w, ldw, columns, depth, transposed, first, last, threads, scratch);
      b = scratch;
    }
    const int64_t blocks = ceil_div(m, kRowBlock);
    // few row blocks: cut the panels as well, to feed every thread
    const int64_t cuts = threads > 1 ? smaller(last - first, ceil_div(4 * threads, larger(blocks, 1))) : 1;
    const int64_t per = ceil_div(last - first, larger(cuts, 1));
    const int64_t parts = ceil_div(last - first, per);
    parallel(threads, blocks * parts, [&](int64_t task) {
      const int64_t row = task / parts * kRowBlock, from = first + task % parts * per;
      multiply_block(a, lda, b + (from - first) * W * depth, row, smaller(kRowBlock, m - row), columns, depth, from,
                     smaller(last, from + per), c, ldc, finish);
    });
  }
}

constexpr int64_t kRightBytes = 1 << 20;  // of column panels that a row panel meets in turn
// Columns of a gradient that are taken at once: bands lie on stacks, which C libraries may make small.
template <class T> constexpr int64_t kBandColumns = 4096 / (int64_t)sizeof(T);

template <class T> FASTAE_INLINE int64_t gradient_left_size(int64_t n) {
  return ceil_div(n, kPanelRows) * (kPanelRows * kSegment + 2 * Vec<T>::N);
}

// Takes finished rows of a gradient while they are in cache.
template <class T> struct GradientUse {
  const void* context;
  void (*expect)(const void* context, int64_t row, int64_t rows, int64_t column,
                 int64_t columns);  // before it is made; bf16.h
  void (*take)(const void* context, const T* g, int64_t ldg, int64_t row, int64_t rows, int64_t column,
               int64_t columns);
};

// db = sum_r d for NV vectors of columns, of which the last may be a part
template <class T, int NV, bool FULL>
void sum_columns(const T* d, int64_t ldd, int64_t m, int64_t width, T* db, bool add) noexcept {
  for (int64_t s = 0; s < m; s += kSegment) {
    Vec<T> sum[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[v] = Vec<T>(T(0));
    for (int64_t r = s; r < smaller(m, s + kSegment); ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[v] += load_part<T, NV, FULL>(d + r * ldd, v, width);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if (s || add) sum[v] = load_part<T, NV, FULL>(db, v, width) + sum[v];
      store_part<T, NV, FULL>(db, v, sum[v], width);
    }
  }
}

// db (n) = sum_r d, by the same chains as weight_gradient's
template <class T>
void bias_gradient(const T* d, int64_t ldd, int64_t m, int64_t n, T* db, int threads, bool add) noexcept {
  constexpr int64_t N = Vec<T>::N, W = 4 * N;
  parallel(useful_threads(threads, (double)m * n), ceil_div(n, W), [&](int64_t task) {
    const int64_t j = task * W, width = smaller(W, n - j);
    const auto sum = [&](auto vectors) {
      constexpr int V = decltype(vectors)::value;
      if (width == V * N) sum_columns<T, V, true>(d + j, ldd, m, width, db + j, add);
      else sum_columns<T, V, false>(d + j, ldd, m, width, db + j, add);
    };
    if (width > 3 * N) sum(std::integral_constant<int, 4>());
    else if (width > 2 * N) sum(std::integral_constant<int, 3>());
    else if (width > N) sum(std::integral_constant<int, 2>());
    else sum(std::integral_constant<int, 1>());
  });
}

// d is read where it lies where its segment stays in a first-level cache, or nearly.
constexpr int64_t kUprightBytes = 1 << 16;

// dw (n,k) = dT x and db (n) = sum_r d for d (m,n), x (m,k); either may be null. add: added to what they hold.
// With `use` bands of rows go there from the last segment of d's rows, and dw is left with the sum of those before.
// scratch: gradient_left_size(n) and packed_size(k, kSegment) elements.
template <class T>
void weight_gradient(const T* d, int64_t ldd, const T* x, int64_t ldx, int64_t m, int64_t n, int64_t k, T* dw, T* db,
                     int threads, T* scratch, bool add = false, bool add_bias = false,
                     const GradientUse<T>* use = nullptr) noexcept {
  constexpr int64_t W = kPanelColumns<T>;
  T* left = scratch;
  T* right = scratch + gradient_left_size<T>(n);
  const bool upright = smaller(kSegment, m) * ldd * (int64_t)sizeof(T) <= kUprightBytes;
  const bool on_the_way = db && dw && !upright;  // what packing d makes of db
  if (db && !on_the_way) bias_gradient(d, ldd, m, n, db, threads, add_bias);
  if (!dw) return;
  const int64_t stride = kPanelRows * kSegment + 2 * Vec<T>::N;
  const int64_t row_panels = ceil_div(n, kPanelRows), panels = panel_count<T>(k);
  const int64_t left_panels = upright ? 0 : row_panels;
  for (int64_t s = 0; s < m; s += kSegment) {
    const int64_t rows = smaller(kSegment, m - s);
    const int t = useful_threads(threads, (double)rows * n * k / 4);
    const bool lies = is_panel<T>(ldx, k);
    const T* const b = lies ? x + s * ldx : right;
    parallel(t, left_panels + (lies ? 0 : panels), [&](int64_t task) {
      if (task < left_panels) {
        const int64_t j = task * kPanelRows, width = smaller(kPanelRows, n - j);
        T sums[kPanelRows + 2 * Vec<T>::N];
        pack_rows(d + s * ldd + j, ldd, width, rows, left + task * stride, sums);
        if (on_the_way)
          for (int64_t i = 0; i < width; ++i) db[j + i] = s || add_bias ? db[j + i] + sums[i] : sums[i];
      } else {
        const int64_t panel = task - left_panels, j = panel * W;
        pack_straight(x + s * ldx + j, ldx, smaller(W, k - j), rows, panel_vectors<T>(k, panel),
                      right + panel * W * rows);
      }
    });
    // A task is a run of row panels under as many column panels as stay in L2, a row panel under all of them in turn:
    // rows of dw are long, and crossing them panel by panel would cost a page each. `use` takes the whole band that a
    // row panel makes: the states that it touches then lie in runs that the processor fetches by itself.
    // `all` spares a small network's gradients the divisions
    const bool all = t == 1 && panels * W <= kBandColumns<T> && panels * W * rows * (int64_t)sizeof(T) <= kRightBytes;
    const int64_t most = smaller(kBandColumns<T> / W, kRightBytes / (int64_t)sizeof(T) / (W * rows));
    const int64_t wide = all ? panels : larger(1, most), blocks = all ? 1 : ceil_div(panels, wide);
    const int64_t run = t > 1 ? larger(1, row_panels * blocks / (8 * t) / larger(blocks, 1)) : larger(row_panels, 1);
    const int64_t runs = t > 1 ? ceil_div(row_panels, run) : 1;
    const bool begun = add || s, taken = use && s + rows >= m;
    parallel(t, blocks * runs, [&](int64_t task) {
      const int64_t first = all ? 0 : task / runs * wide, from = all ? 0 : task % runs * run;
      const int64_t last = smaller(panels, first + wide), column = first * W, columns = smaller(last * W, k) - column;
      alignas(64) T band[kPanelRows * kBandColumns<T>];
      for (int64_t q = from; q < smaller(row_panels, from + run); ++q) {
        const int64_t top = q * kPanelRows, height = smaller(kPanelRows, n - top), ld = taken ? columns : k;
        T* const to = taken ? band : dw + top * k + column;
        for (int64_t panel = first; panel < last; ++panel) {
          const int nv = panel_vectors<T>(k, panel);
          const int64_t j = panel * W - column;
          for (int64_t i = 0; i < height;) {
            TileArgs<T> args = {rows,
                                upright ? d + s * ldd + top + i : left + q * stride + i,
                                upright ? ldd : kPanelRows,
                                b + panel * W * rows,
                                to + i * ld + j,
                                ld,
                                smaller(W, columns - j),
                                begun ? kAddAfter : kSet};
            if (taken) args.before = dw + (top + i) * k + column + j, args.ldb = k;
            i += run_tile<T, true>(nv, height - i, args);
          }
        }
        if (taken) use->take(use->context, band, ld, top, height, column, columns);
      }
    });
  }
}

}  // namespace
}  // namespace fastae
