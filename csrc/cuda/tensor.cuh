// Products of layers in bfloat16 by tensor cores, in float32, with what follows of the layer in the same kernel: for
// batches whose products take no longer than a launch.
//
// A block of eight warps makes a tile of 64 x 64 outputs, each warp 32 x 16 of them. The depth goes by in slices of 64
// through shared memory, two slices ahead.
#pragma once
#include "cuda/ahead.cuh"
#include "cuda/layer_end.cuh"
#include "cuda/real.h"

#if FASTAE_REAL_IS(FASTAE_REAL)

#if defined(__CUDACC__) && __CUDA_ARCH__ < 800  // nothing of this is launched there (CupyDriver.tensor_cores)
__device__ __forceinline__ void multiply_add_bf16(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {}
template <bool Turned> __device__ __forceinline__ void load_matrices(uint32_t (&)[4], const void*) {}
#elif defined(__CUDACC__)
// sum (16, 8) += a (16, 16) b (16, 8) of a warp
__device__ __forceinline__ void multiply_add_bf16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8 x 8 matrices from shared memory, whose row i of matrix j the lane 8 j + i points to; the lane 4 g + t gets the
// places 2 t, 2 t + 1 of their rows g or, where they are Turned, of their columns g.
template <bool Turned> __device__ __forceinline__ void load_matrices(uint32_t (&m)[4], const void* row) {
  const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
  if constexpr (Turned)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(at)
                 : "memory");
}
#endif

namespace fastae {

struct alignas(16) Eight {  // numbers in bfloat16
  uint32_t w[4];
};

struct Bf16Matrix {
  const uint16_t* p;
  int64_t ld;
};

struct TensorTile {
  static constexpr int kSide = 64, kDeep = 64, kStages = 3;  // of the tile; of a slice; slices in shared memory
  static constexpr int kOperand = kSide * kDeep / 8;         // Eights of an operand's slice
  static constexpr int kSlice = 2 * kOperand;                // and of both operands'
  static constexpr int kCopies = kOperand / kThreads;        // of them that a thread brings
  static constexpr int MT = 2, NT = 2;                       // 16 x 8 products of a warp
  static constexpr int kOut = kSide + 4;                     // distance of the outputs' rows in shared memory
  static constexpr int kShared = kStages * kSlice;           // Eights
  static_assert(16 * kShared >= 4 * kSide * kOut, "outputs lie where slices did");

  // Where a slice has eight numbers of a row that lies along the depth, or of a place in depth that lies along columns:
  // eight rows of one place, which are read at once, lie in different banks.
  static FASTAE_INLINE int place(int row, int eight) { return row * 8 + (eight ^ row % 8); }

  // A thread's part in bringing an operand's slices to shared memory: every 32nd row, or every so many places in depth
  // where the operand is (depth, columns).
  struct Way {
    const uint16_t* from;                                // of the next slice
    int64_t apart, slice;                                // distance of its copies of a slice, and of slices
    int deep[kCopies], to[kCopies];                      // each copy's place in depth, and in shared memory
    bool in[kCopies];                                    // whether the operand has such a row or column
    FASTAE_INLINE void fetch(Eight* shared, int left) {  // left: how deep the operand still is
#pragma unroll
      for (int q = 0; q < kCopies; ++q) copy_ahead(shared + to[q], from + q * apart, in[q] && deep[q] < left);
      from += slice;
    }
  };
  static FASTAE_INLINE Way rows_of(const Bf16Matrix& m, int64_t first, int64_t rows) {
    const int r = threadIdx.x / 8, e = threadIdx.x % 8;
    Way way{m.p + (first + r) * m.ld + 8 * e, 32 * m.ld, kDeep, {}, {}, {}};
#pragma unroll
    for (int q = 0; q < kCopies; ++q) {
      way.deep[q] = 8 * e;
      way.to[q] = place(r + 32 * q, e);
      way.in[q] = first + r + 32 * q < rows;
    }
    return way;
  }
  static FASTAE_INLINE Way columns_of(const Bf16Matrix& m, int64_t first, int64_t columns) {
    constexpr int width = kSide / 8, apart = kThreads / width;
    const int d = threadIdx.x / width, f = threadIdx.x % width;
    Way way{m.p + d * m.ld + first + 8 * f, apart * m.ld, kDeep * m.ld, {}, {}, {}};
#pragma unroll
    for (int q = 0; q < kCopies; ++q) {
      way.deep[q] = d + apart * q;
      way.to[q] = place(d + apart * q, f);
      way.in[q] = first + 8 * f < columns;
    }
    return way;
  }

  // sum += a slice's products; Left, Right: whether an operand lies across
  template <bool Left, bool Right, class Row>
  static FASTAE_INLINE void work(const Eight* left, float (&sum)[MT][NT][4], const Row& each_left) {
    const int warp = threadIdx.x / 32, matrix = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
    const int row = warp / 4 * (kSide / 2) + matrix % 2 * 8, column = warp % 4 * (kSide / 4);
    const int left_at = Left ? place(matrix / 2 * 8 + r, row / 8) : place(row + r, matrix / 2);
    const int right_at =
        Right ? place(matrix % 2 * 8 + r, column / 8 + matrix / 2) : place(column + matrix / 2 * 8 + r, matrix % 2);
    const Eight* const right = left + kOperand;
#pragma unroll
    for (int step = 0; step < kDeep / 16; ++step) {
      uint32_t b[4];  // both halves of the step's depth for two products' columns
      load_matrices<Right>(b, right + (Right ? right_at + step * 16 * 8 : right_at ^ 2 * step));
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        uint32_t a[4];
        load_matrices<Left>(a, left + (Left ? (left_at + step * 16 * 8) ^ 2 * i : (left_at + 16 * 8 * i) ^ 2 * step));
        each_left(i, a);
#pragma unroll
        for (int q = 0; q < NT; ++q) {
          const uint32_t own[2] = {b[2 * q], b[2 * q + 1]};
          multiply_add_bf16(sum[i][q], a, own);
        }
      }
    }
  }

  // sum = a bT of the tile at (row, column); an operand that lies across is (depth, rows or columns). each_left(i, a)
  // sees the left operand's 16 x 16 matrices that a warp has.
  template <bool Left, bool Right, class Row>
  static FASTAE_INLINE void sums(Eight* shared, const Bf16Matrix& a, const Bf16Matrix& b, int64_t row, int64_t rows,
                                 int64_t column, int64_t columns, int depth, float (&sum)[MT][NT][4],
                                 const Row& each_left) {
    Way left = Left ? columns_of(a, row, rows) : rows_of(a, row, rows);
    Way right = Right ? columns_of(b, column, columns) : rows_of(b, column, columns);
    int ahead = 0;  // where the next slice to be fetched goes
    const auto start = [&](int from) {
      if (from < depth) {
        left.fetch(shared + ahead, depth - from);
        right.fetch(shared + ahead + kOperand, depth - from);
      }
      end_group();
      ahead = ahead == (kStages - 1) * kSlice ? 0 : ahead + kSlice;
    };
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) start(i * kDeep);
    int now = 0;
#pragma unroll 1
    for (int from = 0; from < depth; from += kDeep) {
      wait_for_groups<kStages - 2>();
      __syncthreads();
      start(from + (kStages - 1) * kDeep);
      work<Left, Right>(shared + now, sum, each_left);
      now = now == (kStages - 1) * kSlice ? 0 : now + kSlice;
    }
    __syncthreads();
  }

  // f(row, column, n, x) for every n of four sums of the tile, through shared memory: rows are written whole. turned: of
  // the tile's transpose
  template <class F>
  static FASTAE_INLINE void each_four_of(Eight* shared, const float (&sum)[MT][NT][4], int64_t row, int64_t rows,
                                         int64_t column, int64_t columns, bool turned, const F& f) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float* const out = (float*)shared;
    const int down = turned ? 1 : kOut, right = turned ? kOut : 1;
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int q = 0; q < NT; ++q)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          out[(warp / 4 * (kSide / 2) + 16 * i + e / 2 * 8 + g) * down +
              (warp % 4 * (kSide / 4) + 8 * q + 2 * t + e % 2) * right] = sum[i][q][e];
    __syncthreads();
    const int64_t top = turned ? column : row, bottom = turned ? columns : rows, first = turned ? row : column,
                  last = turned ? rows : columns;
#pragma unroll 1
    for (int q = threadIdx.x; q < kSide * kSide / 4; q += kThreads) {
      const int r = q / (kSide / 4), j = q % (kSide / 4) * 4;
      if (top + r < bottom && first + j < last)
        f(top + r, first + j, (int)smaller<int64_t>(4, last - first - j), *(const Four*)(out + r * kOut + j));
    }
  }

  // End(o)(row, column, n, x) for every n of four outputs. A block a tile: x over columns, y over rows.
  template <class End>
  static FASTAE_INLINE void multiply(Eight* shared, const Bf16Matrix& a, const Bf16Matrix& b, bool across, int64_t rows,
                                     int64_t columns, int64_t depth, const Launch& o) {
    const int64_t row = (int64_t)blockIdx.y * kSide, column = (int64_t)blockIdx.x * kSide;
    const auto nothing = [](int, const uint32_t (&)[4]) {};
    float sum[MT][NT][4] = {};
    if (across) sums<false, true>(shared, a, b, row, rows, column, columns, (int)depth, sum, nothing);
    else sums<false, false>(shared, a, b, row, rows, column, columns, (int)depth, sum, nothing);
    const End end(o);
    each_four_of(shared, sum, row, rows, column, columns, false, end);
  }
};

// extra[0], extra[1]: the operands in bfloat16, rows as far apart as in float32; all of them on 16 bytes
FASTAE_KERNEL(dense_bf16, kThreads, 1) {
  namespace at = at_dense;
  __shared__ Eight shared[TensorTile::kShared];
  const View<T> x = o.real(at::s_x), w = o.real(at::s_w), y = o.real(at::s_y);
  TensorTile::multiply<DenseEnd>(shared, {(const uint16_t*)o.extra[0], x.ld}, {(const uint16_t*)o.extra[1], w.ld},
                                 o.i[at::i_transposed] != 0, o.m, y.columns, x.columns, o);
}
FASTAE_KERNEL(input_grad_bf16, kThreads, 1) {
  namespace at = at_dense_grad;
  __shared__ Eight shared[TensorTile::kShared];
  const View<T> dz = o.real(at::s_dz), w = o.real(at::s_w), dx = o.real(at::s_dx);
  TensorTile::multiply<GradEnd>(shared, {(const uint16_t*)o.extra[0], dz.ld}, {(const uint16_t*)o.extra[1], w.ld},
                                o.i[at::i_transposed] == 0, o.m, dx.columns, dz.columns, o);
}

// Gradients of some layers' weights and biases, a tile a block: of layer q dz, x and dw are the slots 3 q, 3 q + 1, 3 q +
// 2 (dz and x in bfloat16), db extra[q], null for none; i[0] layers, i[1 + q] what `Onto` says.
enum Onto : int64_t { kOntoWeight = 1, kOntoBias = 2, kTurned = 4 };  // added to what is there; dw is (k, n)

FASTAE_KERNEL(weight_grad_bf16, kThreads, 1) {
  typedef TensorTile Tiles;
  constexpr int kSide = Tiles::kSide;
  __shared__ Eight shared[Tiles::kShared];
  int64_t tile = blockIdx.x, n = 0, k = 0, width = 0;
  int layer = 0;
  for (; layer < (int)o.i[0]; ++layer) {
    n = o.slot[3 * layer].columns, k = o.slot[3 * layer + 1].columns, width = ceil_div(k, kSide);
    const int64_t tiles = ceil_div(n, kSide) * width;
    if (tile < tiles) break;
    tile -= tiles;
  }
  const Slot &dz = o.slot[3 * layer], &x = o.slot[3 * layer + 1];
  const int64_t row = tile / width * kSide, column = tile % width * kSide, onto = o.i[1 + layer];
  float sum[Tiles::MT][Tiles::NT][4] = {}, of_rows[Tiles::MT][4] = {};
  float* const db = column == 0 ? (float*)o.extra[layer] : nullptr;
  const bool sums_rows = db && threadIdx.x / 32 % 4 == 0;  // a warp of those that have the same rows
  Tiles::sums<true, true>(shared, {(const uint16_t*)dz.p, dz.ld}, {(const uint16_t*)x.p, x.ld}, row, n, column, k,
                          (int)o.m, sum, [&](int i, const uint32_t (&a)[4]) {
                            constexpr uint32_t ones = 0x3f803f80u;
                            const uint32_t b[2] = {ones, ones};
                            if (sums_rows) multiply_add_bf16(of_rows[i], a, b);
                          });
  if (sums_rows && threadIdx.x % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Tiles::MT; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t j = row + threadIdx.x / 128 * (kSide / 2) + 16 * i + 8 * h + threadIdx.x % 32 / 4;
        if (j < n) db[j] = onto & kOntoBias ? db[j] + of_rows[i][2 * h] : of_rows[i][2 * h];
      }
  }
  const View<T> dw = o.real(3 * layer + 2);
  Tiles::each_four_of(shared, sum, row, n, column, k, (onto & kTurned) != 0, [&](int64_t r, int64_t j, int w, Four v) {
    const bool whole = w == 4 && aligned(dw.at(r, j));
    if (onto & kOntoWeight) {
      const Four old = load_four(dw.at(r, j), whole, w);
#pragma unroll
      for (int q = 0; q < 4; ++q) v.v[q] += old.v[q];
    }
    store_four(dw.at(r, j), v, whole, w);
  });
}

}  // namespace fastae
#endif
