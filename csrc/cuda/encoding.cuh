// Ops that only encoders have: 8-bit products, and codes stored in fewer bits.
//
//   s = max |x| / 127,  q = round(x 127 / max |x|) in -127..127        per row of x, and per unit (row of w)
//   y[r,j] = a((sum_p q[r,p] qw[j,p]) s_r s_j + b_j)                   the sums are exact integers
//
// Four integers make a word along the depth, for the instruction that multiplies and adds four bytes. All of this is
// in float32 only.
#pragma once
#include "cuda/product.cuh"

namespace fastae {

constexpr float kQuantizeMost = 127;
constexpr float kQuantizeLeast = 0x1p-100f;  // rows without anything larger are stored as 0: 127 / max stays finite
constexpr int kWordParts = 4;

struct Words {
  typedef int32_t Element;
  static FASTAE_INLINE int32_t multiply_add(int32_t a, int32_t b, int32_t sum) { return __dp4a(a, b, sum); }
  template <int N> static FASTAE_INLINE void round(int32_t (&)[N]) {}
};

// A row as integers, by sixteen threads: q(j), and the scale. A row with NaN or infinity becomes 0 with scale NaN.
struct Quantized {
  const T* x;
  float inverse, scale;  // inverse 0: all is 0
  FASTAE_INLINE Quantized(const T* row, int64_t n, int lane) : x(row), inverse(0) {
    int32_t size = 0;  // as integers, magnitudes are ordered like the numbers, with infinity and NaN on top
    for (int64_t j = lane; j < n; j += kLanes) size = larger(size, same_bits<int32_t>((float)x[j]) & 0x7fffffff);
    for (int h = kLanes / 2; h; h /= 2) size = larger(size, __shfl_xor_sync(0xffffffffu, size, h, kLanes));
    const float most = same_bits<float>(size);
    if (!(most - most == 0) || most < kQuantizeLeast) {
      scale = (most - most) * 0;
    } else {
      inverse = kQuantizeMost / most;
      scale = most / kQuantizeMost;
    }
  }
  FASTAE_INLINE int32_t operator()(int64_t j) const {
    if (inverse == 0) return 0;
    constexpr float magic = Lane<float>::magic;  // adding it rounds to even, in the lower bits
    return same_bits<int32_t>((float)x[j] * inverse + magic) - same_bits<int32_t>(magic);
  }
};

// Rows of x as words, and their scales at scale[row distance].
FASTAE_INLINE void quantize_rows(const View<T>& x, int64_t rows, const View<T>& words, T* scale, int64_t distance) {
  each_row(rows, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : x.columns;
    const Quantized q(r < 0 ? x.p : x.at(r, 0), n, lane);
    for (int64_t i = lane; i < ceil_div(n, kWordParts); i += kLanes) {
      uint32_t word = 0;
      for (int part = 0; part < kWordParts; ++part) {
        const int64_t j = i * kWordParts + part;
        if (j < n) word |= ((uint32_t)q(j) & 0xffu) << 8 * part;
      }
      ((uint32_t*)words.at(r, 0))[i] = word;
    }
    if (n && lane == 0) scale[r * distance] = (T)q.scale;
  });
}

FASTAE_KERNEL(pack_int8, kThreads) {
  namespace at = at_pack_int8;
  const View<T> w = o.real(at::s_w);
  quantize_rows(w, w.rows, o.real(at::s_packed), o.real(at::s_scale).p, 1);
}

FASTAE_KERNEL(quantize, kThreads) {
  namespace at = at_quantize;
  const View<T> scale = o.real(at::s_scale);
  quantize_rows(o.real(at::s_x), o.m, o.real(at::s_q), scale.p, scale.ld);
}

template <class Tiles, int BM, int BN> FASTAE_INLINE void int8_product(const Launch& o) {
  namespace at = at_dense_int8;
  __shared__ typename Tiles::Panel left, right;
  int32_t sum[BM / Tiles::Y][BN / Tiles::X];
  const View<T> q = o.real(at::s_q), packed = o.real(at::s_packed), y = o.real(at::s_y);
  const View<T> row_scale = o.real(at::s_x_scale);
  const T *unit_scale = o.real(at::s_w_scale).p, *b = o.real(at::s_b).p;
  const Activation a(o, o.i[at::i_activation], o.f + at::f_p0);
  const OperandOf<int32_t> x = {(const int32_t*)q.p, q.ld, 1}, w = {(const int32_t*)packed.p, packed.ld, 1};
  const int64_t words = ceil_div(o.i[at::i_depth], kWordParts), column = (int64_t)blockIdx.x * BN;
  for (int64_t row = (int64_t)blockIdx.y * BM; row < o.m; row += (int64_t)gridDim.y * BM) {
    Tiles::chain(x, w, row, o.m, column, y.columns, 0, words, left, right, sum);
    Tiles::each_output(sum, row, o.m, column, y.columns, [&](int32_t v, int64_t r, int64_t j) {
      y(r, j) = (T)((float)v * ((float)unit_scale[j] * (float)row_scale(r, 0)));
    });
    if (o.extra[0]) continue;  // dense_finish follows
    Tiles::each_own(row, o.m, column, y.columns,
                    [&](int64_t r, int64_t j) { y(r, j) = a.y(b ? y(r, j) + b[j] : y(r, j)); });
  }
}
FASTAE_KERNEL(dense_int8_small, 256) { int8_product<Tile<32, 32, 2, 2, Words>, 32, 32>(o); }
FASTAE_KERNEL(dense_int8_middle, 256) { int8_product<Tile<64, 64, 4, 4, Words>, 64, 64>(o); }
FASTAE_KERNEL(dense_int8_large, 256) { int8_product<Tile<128, 128, 8, 8, Words>, 128, 128>(o); }

FASTAE_KERNEL(store_half, kThreads) {
  namespace at = at_store_half;
  const View<T> x = o.real(at::s_x);
  const View<Half> out = o.view<Half>(at::s_out);
  each_cell(o.m, x.columns, [&](int64_t r, int64_t j) { out(r, j).bits = half_from_float((float)x(r, j)); });
}

FASTAE_KERNEL(store_int8, kThreads) {
  namespace at = at_store_int8;
  const View<T> x = o.real(at::s_x), scale = o.real(at::s_scale);
  const View<int8_t> out = o.view<int8_t>(at::s_out);
  each_row(o.m, [&](int64_t r, int lane) {
    const int64_t n = r < 0 ? 0 : x.columns;
    const Quantized q(r < 0 ? x.p : x.at(r, 0), n, lane);
    for (int64_t j = lane; j < n; j += kLanes) out(r, j) = (int8_t)q(j);
    if (n && lane == 0) scale(r, 0) = (T)q.scale;
  });
}

}  // namespace fastae
