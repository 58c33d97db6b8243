// What an instruction set's library gives the module: plain structs in, one table of functions out.
#pragma once
#include <cstdint>

#include "schema.h"

namespace fastae {

struct BufferRecord {
  int64_t space, offset, rows, columns, dtype;  // rows < 0: one per row of the batch
  int64_t parent, first;                        // parent >= 0: columns of that buffer from first on
  int64_t prepared;                             // written in the prepare phase: shared by steps run side by side
};

struct OpRecord {
  int64_t kind, phase;
  int64_t slot[kMaxSlots];  // buffer, -1 for none
  int64_t i[kMaxInts];
};

// A formula registered at run time (formula.h): its id in records, and each function as a program or a C function.
constexpr int kFormulaArguments = 2, kFormulaParameters = 2, kFormulaFunctions = 4;
constexpr int kMaxFormulaConstants = 64, kMaxFormulaTemporaries = 24;
constexpr int kFormulaStep = 6;  // int32 of a program's step: operation, temporary of the result, four operands

struct FormulaPart {
  const int32_t* code;
  int64_t length;  // steps
  const double* constants;
  int64_t n_constants, n_temporaries;
  void* function;  // int64_t (const T* a, const T* b, const T* p, T* out, int64_t n) where not null
};

struct FormulaRecord {
  int64_t id;
  bool from_x;                          // an activation's derivative is taken from the pre-activation
  FormulaPart part[kFormulaFunctions];  // y, dy, d2y; value, dy; or value, dw, smooth, prox
};

// How products of records with `bf16` are made: float32 products of rounded operands, AVX512_BF16, AMX.
namespace bf16_product {
enum { rounded, dots, tiles };
}

struct PlanRecord {
  const BufferRecord* buffers;
  int64_t n_buffers;
  const OpRecord* ops;
  const double* floats;  // (n_ops, kMaxFloats)
  int64_t n_ops;
  int64_t batch;
  int64_t arena_bytes;
  int64_t n_values, n_scalars;
  bool is_double;
  bool row_local;  // steps are independent: they may run side by side
  const FormulaRecord* formulas;
  int64_t n_formulas;
  int bf16_product;  // set by the kernels that run it
  bool vnni;         // the processor multiplies 8-bit integers (AVX512_VNNI)
};

// Id of the formula in a record, -1 where its kind has none.
static inline int64_t formula_id(const OpRecord& o) noexcept {
  switch (o.kind) {
    case op::dense: return o.i[at_dense::i_activation];
    case op::dense_int8: return o.i[at_dense_int8::i_activation];
    case op::activation: return o.i[at_activation::i_activation];
    case op::activation_grad: return o.i[at_activation_grad::i_activation];
    case op::dense_grad: return o.i[at_dense_grad::i_activation];
    case op::loss: return o.i[at_loss::i_loss];
    case op::contractive: return o.i[at_contractive::i_activation];
    case op::activity: return o.i[at_activity::i_penalty];
    case op::weight_penalty: return o.i[at_weight_penalty::i_penalty];
    case op::project: return o.i[at_project::i_penalty];
    default: return -1;
  }
}

// Whether the record's products are in bfloat16.
static inline bool in_bf16(const OpRecord& o) noexcept {
  switch (o.kind) {
    case op::pack: return o.i[at_pack::i_bf16] == 1;
    case op::dense: return o.i[at_dense::i_bf16] == 1;
    case op::dense_grad: return o.i[at_dense_grad::i_bf16] == 1;
    case op::pack_encoder: return o.i[at_pack_encoder::i_bf16] == 1;
    case op::encode: return o.i[at_encode::i_bf16] == 1;
    case op::batch_topk: return o.i[at_batch_topk::i_bf16] == 1;
    default: return false;
  }
}

// Whether the record may use products in bfloat16 on the way to results in float32.
static inline bool may_use_bf16(const OpRecord& o) noexcept {
  return o.kind == op::pack_encoder || o.kind == op::batch_topk ||
         (o.kind == op::encode && o.i[at_encode::i_path] != encode_path::float32);
}

struct SourceRecord {
  const void* data;
  int64_t dtype, row_stride;  // elements; dense
  const void* indptr;         // CSR when not null
  const void* indices;
  bool indptr64, indices64;
  const double* weight;
  int64_t columns;
};

// What no row of source 0 may have that a step reads: seen in the first product, at no cost.
namespace finite_check {
enum { none, finite, not_infinite };
}
constexpr int64_t kNotFinite = -1;  // what a run returns that found such a row

struct JobRecord {
  void* const* spaces;
  const int64_t* strides;  // elements between rows of an external space; 0: contiguous
  const SourceRecord* sources;
  int64_t n_rows;
  const int64_t* order;
  int64_t first_batch, n_steps, phases;
  const double* scalars;
  double* values;
  uint64_t seed;
  uint32_t epoch;
  int threads;
  bool (*poll)(void* context, int64_t done);  // every few milliseconds between steps; false stops the run
  void* poll_context;
  void* workspace;    // workspace_bytes(plan, threads), on a cache line
  int64_t check;      // finite_check; of steps that run side by side
  int64_t first_row;  // added to the rows' places to make their ids
};

struct Kernels {
  const char* name;
  int64_t (*workspace_bytes)(const PlanRecord&, int threads) noexcept;
  int64_t (*run)(const PlanRecord&, const JobRecord&) noexcept;  // finished steps
  void (*permutation)(uint64_t seed, uint32_t epoch, int64_t n, int64_t* order) noexcept;
  bool (*all_finite)(const void* data, int64_t dtype, int64_t rows, int64_t columns, int64_t row_stride,
                     int threads) noexcept;
  double (*fma_rate)(bool is_double, double seconds) noexcept;  // floating-point operations a second, one thread
  double (*bf16_rate)(double seconds) noexcept;                 // the same of what bfloat16 products are made of
  double (*int8_rate)(bool vnni, double seconds) noexcept;      // operations of 8-bit products a second, one thread
};

}  // namespace fastae
