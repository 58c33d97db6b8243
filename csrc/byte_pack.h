// Weights in 8-bit integers, their upper six bits and the lower two, and rows of x in two bytes: see quantized.h.
#pragma once
#include "candidates.h"
#include "int8.h"

#ifdef FASTAE_BF16
namespace fastae {
namespace {

constexpr int64_t kByteLatents = 64;    // of a panel [p / 4][64][4] of q + 128
constexpr float kRowSteps = 127 * 128;  // of a row's largest magnitude
constexpr float kByteError = 0x1p-19f;  // g3

// Bytes of a row of lower two bits.
FASTAE_INLINE int64_t rest_bytes(int64_t p) { return ceil_div(p, 256) * 64; }

// Where they lie in `packed`: beyond what there is for products in bfloat16. The upper six bits once more, as panels of
// their own, and the lower two as rows: coarse.h.
struct BytePanels {
  uint8_t* panels;
  float *scale, *norm, *error, *coarse;
  uint8_t *sixes, *rests;
  BytePanels(const void* packed, int64_t n, int64_t p) {
    const int64_t all = ceil_div(n, kByteLatents) * kByteLatents, depth = whole_lines(p);
    panels = (uint8_t*)packed + all * (2 * depth + 8);
    scale = (float*)(panels + all * depth);
    norm = scale + all;
    error = norm + all;
    coarse = error + all;
    sixes = (uint8_t*)(coarse + all);
    rests = sixes + all * depth / 4 * 3;
  }
};

// Four bytes of latent i, in a line [3][64] of a panel's upper six bits: see six_panel.
FASTAE_INLINE void put_six(uint32_t bytes, int64_t i, uint8_t* line) {
  const uint32_t six = bytes >> 2 & 0x3f3f3f3f;
  uint8_t* const at = line + i % 16 * 4;
  const auto join = [](uint8_t* to, uint32_t bits) {
    uint32_t t;
    memcpy(&t, to, 4);
    t |= bits;
    memcpy(to, &t, 4);
  };
  switch (i / 16) {
    case 0: join(at, (six & 0x3c3c3c3c) << 2), join(at + 128, (six & 0x03030303) << 2); break;
    case 1: join(at, six & 0x0f0f0f0f), join(at + 128, six & 0x30303030); break;
    case 2: join(at + 64, (six & 0x3c3c3c3c) << 2), join(at + 128, six & 0x03030303); break;
    default: join(at + 64, six & 0x0f0f0f0f), join(at + 128, (six & 0x30303030) << 2);
  }
}

// The panel of 64 latents from j on; those beyond count are 0. rounded: they stand for weights rounded to bfloat16.
__attribute__((noinline)) void quantize_latents(const float* w, int64_t ldw, int64_t j, int64_t count, int64_t p,
                                                bool rounded, const BytePanels& out) noexcept {
  const Bounds bounds(p);
  const int64_t depth = whole_lines(p);
  uint8_t *const panel = out.panels + j * depth, *const sixes = out.sixes + j * depth / 4 * 3;
  memset(panel, 0, (size_t)(depth * kByteLatents));
  memset(sixes, 0, (size_t)(depth * kByteLatents / 4 * 3));
  memset(out.rests + j * rest_bytes(p), 0, (size_t)(rest_bytes(p) * kByteLatents));
  for (int64_t i = 0; i < kByteLatents; ++i) {
    out.scale[j + i] = out.norm[j + i] = out.error[j + i] = out.coarse[j + i] = 0;
    if (i >= count) continue;
    const float* const row = w + i * ldw;
    uint8_t* const rests = out.rests + (j + i) * rest_bytes(p);
    const float step = quantize_row(row, p, 0, [](int64_t, IntVec<float>, int) {});
    Vec<float> all(0), rest(0), more(0);
    quantize_row(row, p, 0, [&](int64_t at, IntVec<float> q, int lanes) {
      const Vec<float> given = Vec<float>::load(row + at, lanes), v = rounded ? round_bf16(given) : given;
      const Vec<float> d = fma(to_float(q), Vec<float>(-step), v);
      const Vec<float> six = to_float((q + 128) & ~3) - Vec<float>(126.5f), e = fma(six, Vec<float>(-step), v);
      all = fma(v, v, all);
      rest = fma(d, d, rest);
      more = fma(e, e, more);
      alignas(16) uint8_t bytes[16];
      store_parts(q + 128, bytes, 16);
      for (int64_t word = 0; word < ceil_div(lanes, 4); ++word) {
        uint32_t four;
        memcpy(&four, bytes + word * 4, 4);
        memcpy(panel + (at / 4 + word) * 4 * kByteLatents + i * 4, &four, 4);
        put_six(four, i, sixes + (at / 4 + word) * 3 * kByteLatents);
      }
      uint64_t low[2], old[2];
      memcpy(low, bytes, sizeof low);
      memcpy(old, rests + at / 256 * 64 + at % 64, sizeof old);
      for (int half = 0; half < 2; ++half) old[half] |= (low[half] & 0x0303030303030303) << at % 256 / 64 * 2;
      memcpy(rests + at / 256 * 64 + at % 64, old, sizeof old);
    });
    // lanes beyond p are as good as 0 - 1.5 steps: they only widen the bound
    const float residual = bounds.norm(sum_of_lanes(rest), p), wider = bounds.norm(sum_of_lanes(more), p);
    const float size = bounds.norm(sum_of_lanes(all), p);
    out.scale[j + i] = step;
    out.norm[j + i] = size;
    out.error[j + i] = (residual + kByteError * (size + residual + wider)) * bounds.more;
    out.coarse[j + i] = (wider + kByteError * (size + wider)) * bounds.more;
  }
}

// A row's h and l, each filled up with zeros.
__attribute__((noinline)) void quantize_halves(const float* x, int64_t p, int8_t* high, int8_t* low,
                                               QuantizedRow* row) noexcept {
  for (int64_t i = p; i < whole_lines(p); ++i) high[i] = low[i] = 0;
  const float step = quantize_row(x, p, 0, [](int64_t, IntVec<float>, int) {}, kRowSteps);
  Vec<float> all(0), rest(0);
  IntVec<float> sum_high(0), sum_low(0);
  quantize_row(
      x, p, 0,
      [&](int64_t at, IntVec<float> q, int lanes) {
        const Vec<float> v = Vec<float>::load(x + at, lanes), d = fma(to_float(q), Vec<float>(-step), v);
        all = fma(v, v, all);
        rest = fma(d, d, rest);
        const IntVec<float> h = (q + 64) >> 7, l = q - (h << 7);
        sum_high = sum_high + h;
        sum_low = sum_low + l;
        store_parts(h, high + at, lanes);
        store_parts(l, low + at, lanes);
      },
      kRowSteps);
  int32_t each[2][16];
  sum_high.store(each[0]);
  sum_low.store(each[1]);
  for (int part = 0; part < 2; ++part) {
    row->start[part] = 0;
    for (int i = 0; i < 16; ++i) row->start[part] -= 128 * each[part][i];
  }
  row->scale = step;
  row->squares = sum_of_lanes(all);
  row->residual = sum_of_lanes(rest);
}

}  // namespace
}  // namespace fastae
#endif
