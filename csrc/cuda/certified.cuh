// Kernels of encoders whose candidates come from products in float16 (certify.cuh), and the float32 way of the rows that
// these cannot serve.
#pragma once
#include "cuda/certify.cuh"

#if FASTAE_REAL_IS(FASTAE_REAL)
namespace fastae {

FASTAE_KERNEL(certify_begin, kThreads) {
  const Certify e(o);
  const Bounds bounds(e.p);
  each_warp(o.m, [&](int64_t r) {
    const RoundedRow row = round_row(e.x.at(r, 0), e.p, e.depth, e.halves + r * e.depth);
    if (threadIdx.x % 32) return;
    const float size = bounds.norm(row.squares, e.p), rest = bounds.norm(row.residual, e.p);
    e.row_a[r] = (rest + bounds.g1 * size) * bounds.more;
    e.row_size[r] = (size + rest) * bounds.more;
    e.row_back[r] = row.back;
    e.held[r] = row.finite ? 0 : -1;
    if (!e.ragged()) e.limit[r] = 0;
  });
}

FASTAE_KERNEL(certify_pack, kThreads) {
  const Certify e(o);
  e.packed.make(e.w, e.first, e.columns());
}

// What cuBLASLt does where there is none: z (m, chunk) of the rounded operands.
FASTAE_KERNEL(certify_product, kThreads) {
  const Certify e(o);
  const uint16_t* const w = e.packed.rows + (o.extra[3] ? e.first * e.depth : 0);
  each_cell(o.m, e.columns(), [&](int64_t r, int64_t c) {
    float sum = 0;
    for (int64_t j = 0; j < e.p; ++j) sum = fmaf(widened(e.halves[r * e.depth + j]), widened(w[c * e.depth + j]), sum);
    e.z[r * e.chunk + c] = sum;
  });
}

FASTAE_KERNEL(certify_filter, kSelectThreads, 3) {
  const Certify e(o);
  if (e.k < 1) return;
  e.filter((int64_t)blockIdx.x * (blockDim.x / 32));
}

FASTAE_KERNEL(certify_ragged, kSelectThreads) {
  const Certify e(o);
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) e.emit_chunk(r);
}

FASTAE_KERNEL(certify_finish, kFinishThreads) {
  const Certify e(o);
  for (int64_t r = blockIdx.x; r < o.m; r += gridDim.x) e.finish_row(r);
}

// ---- rows that go the float32 way --------------------------------------------------------------------------------------
// extra[0]: number of the chunk. Chunks are as wide as the memory for z allows with so few rows.
struct Fallback : Certify {
  int64_t some;
  FASTAE_INLINE explicit Fallback(const Launch& launch) : Certify(launch), some(*n_rows) {
    const int64_t wide = some ? o.m * chunk / some / 64 * 64 : chunk;
    chunk = larger(chunk, smaller(n, wide));
    first = o.extra[0] * chunk;
  }
};

FASTAE_KERNEL(fallback_rows, kSelectThreads) {
  const Certify e(o);
  int taken = 0;
  for (int64_t first = 0; first < o.m; first += blockDim.x) {
    const int64_t r = first + threadIdx.x;
    const bool here = r < o.m && e.held[r] == kFallback;
    if (here) e.held[r] = 0, e.limit[r] = 0;
    taken += each_marked(here, 1, [&](int, int rank) { e.rows[taken + rank] = (int32_t)r; });
  }
  if (threadIdx.x == 0) *e.n_rows = taken;
}
FASTAE_KERNEL(fallback_gather, kThreads) {
  const Certify e(o);
  each_cell(*e.n_rows, e.p, [&](int64_t f, int64_t c) { e.gathered[f * e.p + c] = e.x(e.rows[f], c); });
}
FASTAE_KERNEL(fallback_product, 256) {
  const Fallback e(o);
  typedef MiddleTile M;
  __shared__ M::Panel left, right;
  T sum[4][4];
  const int64_t columns = e.columns(), across = ceil_div(columns, 64), all = across * ceil_div(e.some, 64);
  for (int64_t t = blockIdx.x; t < all; t += gridDim.x) {
    const int64_t row = t / across * 64, column = t % across * 64;
    M::chain({e.gathered, e.p, 1}, {e.w.at(e.first, 0), e.w.ld, 1}, row, e.some, column, columns, 0, e.p, left, right,
             sum);
    M::each_output(sum, row, e.some, column, columns, [&](T v, int64_t r, int64_t c) { e.z[r * e.chunk + c] = v; });
  }
}
FASTAE_KERNEL(fallback_filter, kSelectThreads, 1) {
  const Fallback e(o);
  if (e.columns() < 1) return;
  for (int64_t f = blockIdx.x; f < e.some; f += gridDim.x) e.Encode::filter(e.rows[f], e.z + f * e.chunk);
}
FASTAE_KERNEL(fallback_finish, kSelectThreads) {
  const Certify e(o);
  for (int64_t f = blockIdx.x; f < *e.n_rows; f += gridDim.x) e.finish(e.rows[f]);
}

}  // namespace fastae
#endif
