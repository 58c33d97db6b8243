// Products with the CPU's order of operations: one chain of fused multiply-adds over the depth per output, so the bits
// are those of csrc/gemm.h. Gradients of weights are chains over segments of 256 rows, added in order.
//
// A block makes BM x BN outputs, a thread TM x TN of them; the depth goes by in slices of BK through shared memory,
// the next slice being fetched into registers while one is worked on.
#pragma once
#include "cuda/dense.cuh"

namespace fastae {

constexpr int kSlice = 16;     // BK
constexpr int kSegment = 256;  // rows of a chain of a weight's gradient

// Element (i, d) of the left operand at p[i row + d deep], (d, j) of the right at p[d deep + j column]; rounded: to
// bfloat16 on the way.
template <class E> struct OperandOf {
  const E* p;
  int64_t side, deep;
  bool rounded = false;
};
typedef OperandOf<T> Operand;

// To the nearest bfloat16, ties to even; a NaN stays as it is.
FASTAE_INLINE float round_bf16(float x) {
  uint32_t u = same_bits<uint32_t>(x);
  u = (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
  return x != x ? x : same_bits<float>(u);
}

// What products are made of.
struct Reals {
  typedef T Element;
  static FASTAE_INLINE T multiply_add(T a, T b, T sum) { return mul_add(a, b, sum); }
  template <int N> static FASTAE_INLINE void round(T (&r)[N]) {
    if constexpr (sizeof(T) == 4) {  // there is no such product in float64
#pragma unroll
      for (int q = 0; q < N; ++q) r[q] = (T)round_bf16((float)r[q]);
    }
  }
};

// c(i, j) <- for each chain in turn: set or add; then finish(value, i, j) is stored.
template <int BM, int BN, int TM, int TN, class Kind = Reals> struct Tile {
  typedef typename Kind::Element E;
  typedef OperandOf<E> Side;
  static constexpr int X = BN / TN, Y = BM / TM, threads = X * Y;
  static constexpr int A = BM * kSlice / threads, B = BN * kSlice / threads;
  typedef E Panel[kSlice][(BM > BN ? BM : BN) + 1];

  // Slice [d0, d0 + kSlice) of an operand to registers, consecutive threads along what is contiguous.
  template <int W, int N>
  static FASTAE_INLINE void fetch(const Side& a, int64_t first, int64_t sides, int64_t d0, int64_t depth, E (&r)[N]) {
    const int id = threadIdx.x;
#pragma unroll
    for (int q = 0; q < N; ++q) {
      const int e = q * threads + id;
      const int i = a.deep == 1 ? e / kSlice : e % W, d = a.deep == 1 ? e % kSlice : e / W;
      r[q] = first + i < sides && d0 + d < depth ? a.p[(first + i) * a.side + (d0 + d) * a.deep] : E(0);
    }
    if (a.rounded) Kind::round(r);
  }
  template <int W, int N> static FASTAE_INLINE void keep(const Side& a, const E (&r)[N], Panel& to) {
    const int id = threadIdx.x;
#pragma unroll
    for (int q = 0; q < N; ++q) {
      const int e = q * threads + id;
      const int i = a.deep == 1 ? e / kSlice : e % W, d = a.deep == 1 ? e % kSlice : e / W;
      to[d][i] = r[q];
    }
  }

  // Chain over [from, to) of the depth for the outputs at (row, column).
  static FASTAE_INLINE void chain(const Side& a, const Side& b, int64_t row, int64_t rows, int64_t column,
                                  int64_t columns, int64_t from, int64_t to, Panel& left, Panel& right,
                                  E (&sum)[TM][TN]) {
    E ra[A], rb[B];
    const int x = threadIdx.x % X, y = threadIdx.x / X;
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) sum[i][j] = E(0);
    fetch<BM>(a, row, rows, from, to, ra);
    fetch<BN>(b, column, columns, from, to, rb);
    for (int64_t d0 = from; d0 < to; d0 += kSlice) {
      __syncthreads();
      keep<BM>(a, ra, left);
      keep<BN>(b, rb, right);
      __syncthreads();
      if (d0 + kSlice < to) {
        fetch<BM>(a, row, rows, d0 + kSlice, to, ra);
        fetch<BN>(b, column, columns, d0 + kSlice, to, rb);
      }
      const int deep = (int)smaller<int64_t>(kSlice, to - d0);
      const auto step = [&](int d) {
        E u[TM], v[TN];
#pragma unroll
        for (int i = 0; i < TM; ++i) u[i] = left[d][y + i * Y];
#pragma unroll
        for (int j = 0; j < TN; ++j) v[j] = right[d][x + j * X];
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
          for (int j = 0; j < TN; ++j) sum[i][j] = Kind::multiply_add(u[i], v[j], sum[i][j]);
      };
      if (deep == kSlice) {
#pragma unroll
        for (int d = 0; d < kSlice; ++d) step(d);
      } else {
        for (int d = 0; d < deep; ++d) step(d);
      }
    }
  }

  // f(i, j) for the thread's outputs that exist, in a loop that is not unrolled: formulas are long.
  template <class F>
  static FASTAE_INLINE void each_own(int64_t row, int64_t rows, int64_t column, int64_t columns, const F& f) {
    const int x = threadIdx.x % X, y = threadIdx.x / X;
#pragma unroll 1
    for (int e = 0; e < TM * TN; ++e) {
      const int64_t r = row + y + e / TN * Y, c = column + x + e % TN * X;
      if (r < rows && c < columns) f(r, c);
    }
  }

  // f(value, i, j) for the same outputs
  template <class F>
  static FASTAE_INLINE void each_output(const E (&sum)[TM][TN], int64_t row, int64_t rows, int64_t column,
                                        int64_t columns, const F& f) {
    const int x = threadIdx.x % X, y = threadIdx.x / X;
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
      for (int j = 0; j < TN; ++j) {
        const int64_t r = row + y + i * Y, c = column + x + j * X;
        if (r < rows && c < columns) f(sum[i][j], r, c);
      }
  }

  // c = a b in one chain, then, unless all is left to another kernel, finish(row, column) for each output. Blocks: x
  // over columns, y over rows.
  template <class F>
  static FASTAE_INLINE void multiply(const Side& a, const Side& b, const View<T>& out, int64_t rows, int64_t columns,
                                     int64_t depth, const F& finish, bool left_over = false) {
    __shared__ Panel left, right;
    T sum[TM][TN];
    const int64_t column = (int64_t)blockIdx.x * BN;
    for (int64_t row = (int64_t)blockIdx.y * BM; row < rows; row += (int64_t)gridDim.y * BM) {
      chain(a, b, row, rows, column, columns, 0, depth, left, right, sum);
      each_output(sum, row, rows, column, columns, [&](T v, int64_t r, int64_t c) { out(r, c) = v; });
      if (!left_over) each_own(row, rows, column, columns, finish);
    }
  }

  // The same in chains over the segments [first, last) of the depth: block z makes every gridDim.z-th of them from
  // first + z on, f(segment)(value, row, column) takes each.
  template <class F>
  static FASTAE_INLINE void segments(const Side& a, const Side& b, int64_t rows, int64_t columns, int64_t depth,
                                     int64_t first, int64_t last, const F& f) {
    __shared__ Panel left, right;
    T sum[TM][TN];
    const int64_t column = (int64_t)blockIdx.x * BN;
    for (int64_t row = (int64_t)blockIdx.y * BM; row < rows; row += (int64_t)gridDim.y * BM)
      for (int64_t s = first + blockIdx.z; s < last; s += gridDim.z) {
        chain(a, b, row, rows, column, columns, s * kSegment, smaller(depth, (s + 1) * kSegment), left, right, sum);
        each_output(sum, row, rows, column, columns, f(s));
      }
  }
};

typedef Tile<32, 32, 2, 2> SmallTile;
typedef Tile<64, 64, 4, 4> MiddleTile;
typedef Tile<128, sizeof(T) == 4 ? 128 : 64, 8, sizeof(T) == 4 ? 8 : 4> LargeTile;  // registers for 64 outputs, or 32

// w (n,k), or (k,n) where it is shared with another layer, as the right operand of x wT
FASTAE_INLINE Operand weight_side(const View<T>& w, bool transposed, bool rounded) {
  return transposed ? Operand{w.p, 1, w.ld, rounded} : Operand{w.p, w.ld, 1, rounded};
}

// extra[0]: 1 where dense_finish, or dense_grad_finish, follows: formulas registered at run time are there.
template <class Tiles> FASTAE_INLINE void dense_product(const Launch& o) {
  namespace at = at_dense;
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  const Dropout* const dropped = o.f[at::f_rate] > 0 ? &drop : nullptr;
  const bool rounded = o.i[at::i_bf16] == 1;
  const Operand right = weight_side(o.real(at::s_w), o.i[at::i_transposed] != 0, rounded);
  Tiles::multiply(
      {x.p, x.ld, 1, rounded}, right, y, o.m, y.columns, x.columns,
      [&](int64_t r, int64_t j) { finish_dense(o, dropped, y(r, j), r, j); }, o.extra[0] != 0);
}
FASTAE_KERNEL(dense_small, 256) { dense_product<SmallTile>(o); }
FASTAE_KERNEL(dense_middle, 256) { dense_product<MiddleTile>(o); }
FASTAE_KERNEL(dense_large, 256) { dense_product<LargeTile>(o); }

// dx (m,k) = dz w, then what follows of the layer before
template <class Tiles> FASTAE_INLINE void input_product(const Launch& o) {
  namespace at = at_dense_grad;
  const Dropout drop(o, at::s_rows, o.i[at::i_stream], o.f[at::f_rate]);
  const View<T> dz = o.real(at::s_dz), dx = o.real(at::s_dx), w = o.real(at::s_w);
  const bool rounded = o.i[at::i_bf16] == 1;
  const Operand right = weight_side(w, o.i[at::i_transposed] == 0, rounded);
  const Dropout* const dropped = o.f[at::f_rate] > 0 ? &drop : nullptr;
  Tiles::multiply(
      {dz.p, dz.ld, 1, rounded}, right, dx, o.m, dx.columns, dz.columns,
      [&](int64_t r, int64_t j) { dx(r, j) = finish_grad(o, dropped, dx(r, j), r, j); }, o.extra[0] != 0);
}
FASTAE_KERNEL(input_grad_small, 256) { input_product<SmallTile>(o); }
FASTAE_KERNEL(input_grad_middle, 256) { input_product<MiddleTile>(o); }
FASTAE_KERNEL(input_grad_large, 256) { input_product<LargeTile>(o); }

// dw (n,k) = dzT x by segments: those from extra[1] on, extra[2] of them, each to `work`, to be added later, where
// extra[0] is 1; else all.
template <class Tiles> FASTAE_INLINE void weight_product(const Launch& o) {
  namespace at = at_dense_grad;
  const View<T> dz = o.real(at::s_dz), x = o.real(at::s_x), dw = o.real(at::s_dw);
  const bool transposed = o.i[at::i_transposed] != 0, add = o.i[at::i_add] != 0, rounded = o.i[at::i_bf16] == 1;
  const int64_t n = dz.columns, k = x.columns, first = o.extra[1];
  T* const parts = o.extra[0] ? (T*)o.work : nullptr;
  const int64_t last = parts ? first + o.extra[2] : ceil_div(o.m, kSegment);
  Tiles::segments({dz.p, 1, dz.ld, rounded}, {x.p, 1, x.ld, rounded}, n, k, o.m, first, last, [&](int64_t s) {
    const bool onto = !parts && (s || add);
    const View<T> to = parts ? View<T>{parts + (s - first) * n * k, k, n, k} : dw;
    const bool turned = transposed && !parts;
    return [=](T v, int64_t j, int64_t c) {
      T& g = turned ? to(c, j) : to(j, c);
      g = onto ? g + v : v;
    };
  });
}
FASTAE_KERNEL(weight_grad_small, 256) { weight_product<SmallTile>(o); }
FASTAE_KERNEL(weight_grad_middle, 256, sizeof(T) == 4 ? 2 : 1) { weight_product<MiddleTile>(o); }
FASTAE_KERNEL(weight_grad_large, 256) { weight_product<LargeTile>(o); }

// The segments of weight_grad in their order, after those before them.
FASTAE_KERNEL(weight_grad_sum, kThreads) {
  namespace at = at_dense_grad;
  const View<T> dw = o.real(at::s_dw);
  const int64_t n = o.slot[at::s_dz].columns, k = o.slot[at::s_x].columns, segments = o.extra[2];
  const bool transposed = o.i[at::i_transposed] != 0, add = o.extra[1] || o.i[at::i_add] != 0;
  const T* const part = (const T*)o.work;
  each_cell(n, k, [&](int64_t j, int64_t c) {
    T& g = transposed ? dw(c, j) : dw(j, c);
    const T first = add ? g + part[j * k + c] : part[j * k + c];
    g = add_in_order(first, 1, segments, 1, [&](int64_t s) { return part[(s * n + j) * k + c]; });
  });
}

// Sums over the rows of each column, as chains over segments of rows. A block has `kChains` of them in shared memory:
// those of as many columns and a segment, or of a quarter of the columns and four segments, by its width.
constexpr int kChains = 128 / sizeof(T);

// work (segments, n) <- the chains; out (n), where not null, their sums at once: blocks then have all segments.
FASTAE_INLINE void column_segments(const View<T>& d, int64_t m, T* work, T* out, bool add) {
  __shared__ T panel[kChains][kSegment + 1], part[kChains];
  constexpr int kAhead = kChains * kSegment / kThreads;  // elements of a thread
  const int width = blockDim.x, height = blockDim.y, x = threadIdx.x, id = threadIdx.y * width + x;
  const int64_t s0 = (int64_t)blockIdx.x * (kChains / width), j0 = (int64_t)blockIdx.y * width, first = s0 * kSegment;
  T value[kAhead];
#pragma unroll
  for (int q = 0; q < kAhead; ++q) {
    const int64_t r = first + threadIdx.y + q * height;
    value[q] = r < m && j0 + x < d.columns ? d(r, j0 + x) : T(0);
  }
#pragma unroll
  for (int q = 0; q < kAhead; ++q) {
    const int r = threadIdx.y + q * height;
    panel[r / kSegment * width + x][r % kSegment] = value[q];
  }
  __syncthreads();
  const int64_t s = s0 + id / width, j = j0 + x;
  const int rows = (int)smaller<int64_t>(kSegment, m - s * kSegment);
  if (id < kChains && rows > 0 && j < d.columns) {
    const T sum = add_in_order(T(0), 0, rows, 1, [&](int64_t r) { return panel[id][r]; });
    part[id] = sum;
    if (!out) work[s * d.columns + j] = sum;
  }
  __syncthreads();
  if (!out || id >= width || j >= d.columns) return;
  const int segments = (int)ceil_div(m, kSegment);
  T sum = add ? out[j] + part[x] : part[x];
  for (int q = 1; q < segments; ++q) sum += part[q * width + x];
  out[j] = sum;
}
FASTAE_INLINE void add_segments(const T* work, int64_t m, int64_t n, T* out, bool add) {
  each(n, [&](int64_t j) {
    const T first = add ? out[j] + work[j] : work[j];
    out[j] = add_in_order(first, 1, ceil_div(m, kSegment), 1, [&](int64_t s) { return work[s * n + j]; });
  });
}
FASTAE_KERNEL(dense_bias_segments, kThreads) {
  namespace at = at_dense_grad;
  column_segments(o.real(at::s_dz), o.m, (T*)o.work, o.extra[0] ? o.real(at::s_db).p : nullptr,
                  o.i[at::i_add_bias] != 0);
}
FASTAE_KERNEL(dense_bias_sum, kThreads) {
  namespace at = at_dense_grad;
  add_segments((const T*)o.work, o.m, o.slot[at::s_dz].columns, o.real(at::s_db).p, o.i[at::i_add_bias] != 0);
}

}  // namespace fastae
