// Ops that only encoders have: 8-bit products, and codes stored in fewer bits.
#pragma once
#include "gemm.h"
#include "int8.h"

namespace fastae {
namespace {

// Integers are made from float32 only.
template <class E> constexpr bool kHasInt8 = std::is_same<typename E::Real, float>::value;

template <class E> void run_pack_int8(E& e, const OpRecord& o) noexcept {
  namespace at = at_pack_int8;
  if constexpr (kHasInt8<E>) {
    const BufferRecord& w = e.plan.buffers[o.slot[at::s_w]];
    const int64_t n = w.rows, k = w.columns, width = kWordColumns;
    const View<float> x = e.real(o.slot[at::s_w]);
    int32_t* packed = (int32_t*)e.real(o.slot[at::s_packed]).p;
    float* scale = e.real(o.slot[at::s_scale]).p;
    visit_words(e.plan.vnni, [&](auto words) {
      typedef decltype(words) W;
      for (int64_t i = 0; i < word_panels(n); ++i) {
        const int64_t j = i * width;
        pack_words<W>(x.at(j, 0), x.ld, smaller(width, n - j), k, word_vectors(n, i) * Vec<float>::N,
                      packed + j * (1 + ceil_div(k, W::kParts)), scale + j);
      }
    });
  }
}

template <class E> void run_quantize(E& e, const OpRecord& o) noexcept {
  namespace at = at_quantize;
  if constexpr (kHasInt8<E>) {
    const View<float> x = e.real(o.slot[at::s_x]), q = e.real(o.slot[at::s_q]), scale = e.real(o.slot[at::s_scale]);
    const int64_t k = e.width(o.slot[at::s_x]);
    visit_words(e.plan.vnni, [&](auto words) {
      e.over_rows((double)k * 4, [&](int64_t first, int64_t n) {
        for (int64_t r = first; r < first + n; ++r) {
          const float s = quantize_words<decltype(words)>(x.at(r, 0), k, (int32_t*)q.at(r, 0));
          *scale.at(r, 0) = s;
          if (e.watching && s != s) E::suspect(&e, r);
        }
      });
    });
  }
  e.watching = false;
}

template <class E> void run_dense_int8(E& e, const OpRecord& o, const double* f) noexcept {
  namespace at = at_dense_int8;
  if constexpr (kHasInt8<E>) {
    const View<float> q = e.real(o.slot[at::s_q]), y = e.real(o.slot[at::s_y]);
    const float *row_scale = e.real(o.slot[at::s_x_scale]).p, *unit_scale = e.real(o.slot[at::s_w_scale]).p;
    const int32_t* packed = (const int32_t*)e.real(o.slot[at::s_packed]).p;
    const int64_t n = e.width(o.slot[at::s_y]), depth = o.i[at::i_depth];
    const DenseEpilogue<float> finish = {y,
                                         {nullptr, 0},
                                         y,
                                         e.real(o.slot[at::s_b]).p,
                                         (int)o.i[at::i_activation],
                                         {(float)f[at::f_p0], (float)f[at::f_p1]},
                                         nullptr,
                                         e.registered(o)};
    // a large result that nothing more is done to
    const bool stream = finish.activation == kIdentity && !finish.b &&
                        e.m * n * (int64_t)sizeof(float) >= kStreamBytes &&
                        e.plan.buffers[o.slot[at::s_y]].space >= space::external && (uintptr_t)y.p % 64 == 0 &&
                        y.ld % 16 == 0 && n % 16 == 0;
    visit_words(e.plan.vnni, [&](auto kind) {
      typedef decltype(kind) W;
      const int64_t words = ceil_div(depth, W::kParts), panels = word_panels(n);
      const int t = useful_threads(e.threads, (double)e.m * n * words);
      parallel(t, panels * ceil_div(e.m, kWordRows), [&](int64_t task) {
        const int64_t panel = task % panels, j = panel * kWordColumns, width = smaller(kWordColumns, n - j);
        const int64_t first = task / panels * kWordRows, rows = smaller(kWordRows, e.m - first);
        const int32_t* const b = packed + j * (1 + words);
        const char* const next = (const char*)(b + kWordColumns * (1 + words));
        // of the next panel, which comes little by little where there are rows enough
        const int64_t bytes =
            panel + 1 < panels && rows >= kWordRows / 4 ? word_vectors(n, panel + 1) * FASTAE_VBYTES * (1 + words) : 0;
        for (int64_t i = 0, fetched = 0; i < rows;) {
          const int64_t r = first + i;
          const WordTile tile = {
              words, (const int32_t*)q.at(r, 0), q.ld, b, row_scale + r, unit_scale + j, y.at(r, j), y.ld, width,
              stream};
          for (; fetched < bytes * (i + 12) / rows; fetched += 64) __builtin_prefetch(next + fetched, 0, 2);
          const int taken = run_words<W>(word_vectors(n, panel), rows - i, tile);
          finish(r, taken, j, width);
          i += taken;
        }
        if (stream) stream_fence();
      });
    });
  }
}

template <class E> void run_store_half(E& e, const OpRecord& o) noexcept {
  namespace at = at_store_half;
  if constexpr (kHasInt8<E>) {
    const View<float> x = e.real(o.slot[at::s_x]);
    const View<Half> out = e.template view<Half>(o.slot[at::s_out]);
    const int64_t n = e.width(o.slot[at::s_x]);
    for (int64_t r = 0; r < e.m; ++r)
      over_row<float>(n, [&](int64_t j, int lanes) {
        Half h[Vec<float>::N];
        store_halves(Vec<float>::load(x.at(r, j), lanes), h);
        memcpy(out.at(r, j), h, (size_t)lanes * sizeof h[0]);
      });
  }
}

template <class E> void run_store_int8(E& e, const OpRecord& o) noexcept {
  namespace at = at_store_int8;
  if constexpr (kHasInt8<E>) {
    const View<float> x = e.real(o.slot[at::s_x]), scale = e.real(o.slot[at::s_scale]);
    const View<int8_t> out = e.template view<int8_t>(o.slot[at::s_out]);
    const int64_t n = e.width(o.slot[at::s_x]);
    for (int64_t r = 0; r < e.m; ++r)
      *scale.at(r, 0) = quantize_row(
          x.at(r, 0), n, 0, [&](int64_t j, IntVec<float> q, int lanes) { store_parts(q, out.at(r, j), lanes); });
  }
}

}  // namespace
}  // namespace fastae
