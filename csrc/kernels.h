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
};

namespace source_dtype {
enum { f32, f64, f16, bf16, u8, i8, u16, i16, u32, i32, u64, i64 };
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
  void* workspace;  // workspace_bytes(plan, threads), on a cache line
};

struct Kernels {
  const char* name;
  int64_t (*workspace_bytes)(const PlanRecord&, int threads) noexcept;
  int64_t (*run)(const PlanRecord&, const JobRecord&) noexcept;  // finished steps
  void (*permutation)(uint64_t seed, uint32_t epoch, int64_t n, int64_t* order) noexcept;
  bool (*all_finite)(const void* data, int64_t dtype, int64_t rows, int64_t columns, int64_t row_stride,
                     int threads) noexcept;
  double (*fma_rate)(bool is_double, double seconds) noexcept;  // floating-point operations a second, one thread
};

}  // namespace fastae
