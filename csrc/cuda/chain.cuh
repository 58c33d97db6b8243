// Consecutive narrow layers in bfloat16 in one launch: sixteen rows a block from layer to layer in shared memory, weights
// read past it. Worth it while the weights of all of them are few: each block reads all.
//
// Products as in tensor.cuh, of a warp for 16 rows and 8 NT neighbouring columns: lane 4 g + t has the columns NT g to
// NT g + NT - 1 of the right operand, and of 32 places in depth those from 8 t on. Rows in shared memory lie so that the
// left operand's places are the same: place 8 c + 2 i + (0, 1) is word c % 4 of their eight 4 (c / 4) + i.
#pragma once
#include "cuda/tensor.cuh"

#if FASTAE_REAL_IS(FASTAE_REAL)

namespace fastae {

constexpr int kChainRows = 16, kChainWidth = 512;  // rows of a block; the widest layer

struct ChainRows {
  Eight at[kChainRows * kChainWidth / 8];
  FASTAE_INLINE Eight* eight(int row, int e) { return at + row * (kChainWidth / 8) + (e ^ row % 8); }
  // columns c, c + 1 for even c
  FASTAE_INLINE void put(int row, int c, uint32_t pair) { eight(row, c / 32 * 4 + c % 8 / 2)->w[c / 8 % 4] = pair; }
};

struct ChainProduct {
  Bf16Matrix w;
  int columns, depth;
};

// A lane's part of the right operand, (columns, depth) or, where it lies Across, (depth, columns), for 32 places in
// depth: its NT columns', as they lie in memory.
template <int NT, bool Across> struct ChainOperand {
  uint32_t w[4 * NT];
  // places 8 t + 4 s + 2 p + (0, 1) of column q
  FASTAE_INLINE uint32_t pair(int s, int q, int p) const {
    if constexpr (!Across) return w[4 * q + 2 * s + p];
    const int row = 4 * s + 2 * p;
    const uint32_t u = w[row * (NT / 2) + q / 2], v = w[(row + 1) * (NT / 2) + q / 2];
    return q % 2 ? u >> 16 | (v & 0xffff0000u) : (u & 0xffffu) | v << 16;
  }
};

// Fetches them, 32 places after the other.
template <int NT, bool Across> struct ChainWay {
  const uint16_t* at;
  int64_t ld;
  int left;  // how deep the operand still is from the lane's places on; 0 where the lane has no columns
  FASTAE_INLINE ChainWay(const ChainProduct& p, int column) : ld(p.w.ld) {
    const int deep = 8 * (threadIdx.x % 4);
    at = p.w.p + (Across ? deep * ld + column : column * ld + deep);
    left = column < p.columns ? p.depth - deep : 0;
  }
  FASTAE_INLINE void fetch(ChainOperand<NT, Across>& to) {
    struct alignas(Across ? 2 * NT : 16) Some {
      uint32_t w[Across ? NT / 2 : 4];
    };
    constexpr int kPieces = Across ? 8 : NT, kWords = sizeof(Some) / 4;
    const bool there = left > 0;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const Some x = there ? *(const Some*)(at + i * ld) : Some{};
#pragma unroll
      for (int e = 0; e < kWords; ++e) to.w[kWords * i + e] = x.w[e];
    }
    at += Across ? 32 * ld : 32;
    left -= 32;
  }
};

constexpr int kChainSums = 32;  // of a lane: of a row 2 NT neighbouring columns, then of the row eight further

// A lane's sums of a block's rows times the right operand. A call, as both kernels have it.
template <int NT, bool Across> __device__ __noinline__ void chain_sums(ChainProduct p, ChainRows& from, float* out) {
  constexpr int kAhead = NT == 8 ? 2 : 4;  // times 32 places on their way, as far as registers go
  const int matrix = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
  float sum[NT][4] = {};
  ChainWay<NT, Across> way(p, threadIdx.x / 4 * NT);
  ChainOperand<NT, Across> b[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) way.fetch(b[i]);
#pragma unroll 1
  for (int d0 = 0; d0 < p.depth; d0 += 32 * kAhead)
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (d0 + 32 * i >= p.depth) break;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t a[4];
        load_matrices<false>(a, from.eight(matrix % 2 * 8 + r, d0 / 8 + 4 * i + 2 * s + matrix / 2));
#pragma unroll
        for (int q = 0; q < NT; ++q) {
          const uint32_t own[2] = {b[i].pair(s, q, 0), b[i].pair(s, q, 1)};
          multiply_add_bf16(sum[q], a, own);
        }
      }
      way.fetch(b[i]);
    }
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int e = 0; e < 2 * NT; ++e) out[2 * NT * h + e] = sum[e % NT][2 * h + e / NT];
}

template <bool Across> FASTAE_INLINE void chain_sums_of(int nt, const ChainProduct& p, ChainRows& from, float* out) {
  if (nt == 8) chain_sums<8, Across>(p, from, out);
  else if (nt == 4) chain_sums<4, Across>(p, from, out);
  else chain_sums<2, Across>(p, from, out);
}

// to = End(o) of from's rows times the right operand; row: the block's first
template <class End>
FASTAE_INLINE void chain_layer(const Launch& o, const ChainProduct& p, bool across, ChainRows& from, ChainRows& to,
                               int64_t row) {
  const int nt = p.columns > 256 ? 8 : p.columns > 128 ? 4 : 2;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, first = threadIdx.x / 32 * 8 * nt;
  if (first >= p.columns) return;  // a whole warp
  alignas(16) float sum[kChainSums];
  if (across) chain_sums_of<true>(nt, p, from, sum);
  else chain_sums_of<false>(nt, p, from, sum);
  const End end(o);
#pragma unroll 1
  for (int q = 0; q < nt; ++q) {
    const int r = g + q / (nt / 2) * 8, j = first + 2 * nt * t + q % (nt / 2) * 4;
    if (row + r >= o.m || j >= p.columns) continue;
    const Four x = end(row + r, j, 4, *(const Four*)(sum + 4 * q));
#pragma unroll
    for (int i = 0; i < 4; i += 2) to.put(r, j + i, bf16_from(x.v[i]) | (uint32_t)bf16_from(x.v[i + 1]) << 16);
  }
}

// work: the layers' records, extra[0] of them; of a layer extra[0] the input's copy in bfloat16, extra[1] the weights',
// extra[2] the output's; Layer(record): its product, and whether the weights lie across
template <class End, class Layer>
FASTAE_INLINE void chain(const Launch& o, const Layer& product, ChainRows (&rows)[2]) {
  const Launch* const layer = (const Launch*)o.work;
  const int64_t row = (int64_t)blockIdx.x * kChainRows;
  const int n = (int)o.extra[0];
  bool across;
  int width = product(layer[0], across).depth;
  const int64_t ld = product.input(layer[0]).ld;
  for (int q = threadIdx.x; q < (width + 31) / 32 * 4 * kChainRows; q += kThreads) {
    const int r = q % kChainRows, c = q / kChainRows;
    const bool there = row + r < o.m && 8 * c < width;
    const Eight x = there ? *(const Eight*)((const uint16_t*)layer[0].extra[0] + (row + r) * ld + 8 * c) : Eight{};
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[0].put(r, 8 * c + 2 * i, x.w[i]);
  }
#pragma unroll 1
  for (int l = 0; l < n; ++l) {
    __syncthreads();
    const ChainProduct p = product(layer[l], across);
    ChainRows& to = rows[(l + 1) % 2];
    chain_layer<End>(layer[l], p, across, rows[l % 2], to, row);
    // the next layer's depth is a multiple of 32
    for (int q = threadIdx.x; q < (32 - p.columns % 32) % 32 / 2 * kChainRows; q += kThreads)
      to.put(q % kChainRows, p.columns + q / kChainRows * 2, 0);
  }
}

struct ForwardLayer {
  FASTAE_INLINE View<T> input(const Launch& o) const { return o.real(at_dense::s_x); }
  FASTAE_INLINE ChainProduct operator()(const Launch& o, bool& across) const {
    namespace at = at_dense;
    across = o.i[at::i_transposed] != 0;
    return {
        {(const uint16_t*)o.extra[1], o.slot[at::s_w].ld}, (int)o.slot[at::s_y].columns, (int)o.slot[at::s_x].columns};
  }
};
struct BackwardLayer {
  FASTAE_INLINE View<T> input(const Launch& o) const { return o.real(at_dense_grad::s_dz); }
  FASTAE_INLINE ChainProduct operator()(const Launch& o, bool& across) const {
    namespace at = at_dense_grad;
    across = o.i[at::i_transposed] == 0;
    return {{(const uint16_t*)o.extra[1], o.slot[at::s_w].ld},
            (int)o.slot[at::s_dx].columns,
            (int)o.slot[at::s_dz].columns};
  }
};
FASTAE_KERNEL(dense_bf16_chain, kThreads, 1) {
  __shared__ ChainRows rows[2];
  chain<DenseEnd>(o, ForwardLayer(), rows);
}
FASTAE_KERNEL(input_grad_bf16_chain, kThreads, 1) {
  __shared__ ChainRows rows[2];
  chain<GradEnd>(o, BackwardLayer(), rows);
}

}  // namespace fastae
#endif
