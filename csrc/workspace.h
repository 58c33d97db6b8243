// What an executor needs of memory beside the arena.
#pragma once
#include "bf16.h"
#include "random.h"
#include "run_encode.h"
#include "run_latents.h"
#include "update.h"

namespace fastae {
namespace {

FASTAE_INLINE int64_t on_line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Bytes that one executor needs beside the arena: packed panels or gradient operands, sums of blocks, and what ops of
// codes need.
template <class T> struct Workspace {
  int64_t packing = 0, sums = 0, codes = 0;

  Workspace(const PlanRecord& plan, int threads) {
    const auto columns = [&](int64_t b) { return plan.buffers[b].columns; };
    const auto rows = [&](int64_t b) { return plan.buffers[b].rows < 0 ? plan.batch : plan.buffers[b].rows; };
    const auto group = [](int64_t n, int64_t depth) {
      const int64_t panel = kPanelColumns<T> * larger(depth, 1);
      const int64_t panels = smaller(panel_count<T>(n), larger(1, kGroupBytes / (int64_t)sizeof(T) / panel));
      return panels * panel;
    };
    sums = plan.batch;
    for (int64_t i = 0; i < plan.n_ops; ++i) {
      const OpRecord& r = plan.ops[i];
      const auto product = [&](int64_t n, int64_t depth) { packing = larger(packing, group(n, depth)); };
      const auto gradient = [&](int64_t n, int64_t k) {
        packing = larger(packing, gradient_left_size<T>(n) + packed_size<T>(k, kSegment));
      };
      if (r.kind == op::dense) {
        const int64_t n = columns(r.slot[at_dense::s_y]), k = columns(r.slot[at_dense::s_x]), before = packing;
        product(n, k);
        if (r.i[at_dense::i_bf16])
          packing = larger(before, bf16_product_size(plan.bf16_product, plan.batch, n, k, threads) + group(n, k));
      } else if (r.kind == op::dense_grad) {
        const int64_t n = columns(r.slot[at_dense_grad::s_dz]), k = columns(r.slot[at_dense_grad::s_x]);
        const int64_t before = packing;
        packing = 0;
        product(k, n);
        if (r.i[at_dense_grad::i_transposed]) gradient(k, n);
        else gradient(n, k);
        if (r.i[at_dense_grad::i_bf16])
          packing += larger(bf16_product_size(plan.bf16_product, plan.batch, k, n, threads),
                            bf16_gradient_size(plan.bf16_product, plan.batch, n, k));
        packing = larger(before, packing);
      } else if (r.kind == op::decorrelation) {
        const int64_t n = columns(r.slot[at_decorrelation::s_h]);
        product(n, n);
        gradient(n, n);
        sums = larger(sums, n);
      } else if (r.kind == op::orthogonality) {
        const int64_t n = rows(r.slot[at_orthogonality::s_w]), k = columns(r.slot[at_orthogonality::s_w]);
        product(n, k);
        product(k, n);
        if (r.i[at_orthogonality::i_columns]) {
          product(k, k);
          gradient(k, k);
        }
        sums = larger(sums, larger(n, k));
      } else if (r.kind == op::projector) {
        const int64_t q = rows(r.slot[at_projector::s_v]), k = columns(r.slot[at_projector::s_w]);
        product(q, k);
        product(k, q);
        sums = larger(sums, rows(r.slot[at_projector::s_w]));
      } else if (r.kind == op::encode || r.kind == op::batch_topk) {
        codes = larger(codes, encode_bytes<T>(plan, r));
      } else if (r.kind == op::weight_penalty || r.kind == op::clip_gradient) {
        sums = larger(sums, ceil_div(rows(r.slot[0]) * columns(r.slot[0]), kFlatBlock));
      } else if (r.kind == op::squared_error) {
        sums = larger(sums, columns(r.slot[at_squared_error::s_y]));
      }
      codes = larger(codes, code_scratch<T>(plan, r, threads));
    }
  }
  int64_t bytes() const { return on_line(packing * (int64_t)sizeof(T)) + on_line(sums * 8) + on_line(codes); }
};

}  // namespace
}  // namespace fastae
