// Plans for Python: checks, pointers, the GIL. Encoders are in encoder_binding.cpp.
#include <pybind11/stl.h>

#include <cstring>
#include <optional>

#include "binding.h"
#include "cpu.h"
#include "threads.h"

namespace py = pybind11;
using fastae::Block;
using fastae::Kernels;
using fastae::Poll;
using fastae::refuse;

#ifdef FASTAE_HAVE_BASELINE
extern "C" const Kernels* fastae_kernels_baseline();
#endif
#ifdef FASTAE_HAVE_AVX2
extern "C" const Kernels* fastae_kernels_avx2();
#endif
#ifdef FASTAE_HAVE_AVX512
extern "C" const Kernels* fastae_kernels_avx512();
extern "C" const Kernels* fastae_kernels_avx512_bf16();
extern "C" const Kernels* fastae_kernels_avx512_amx();
#endif
#ifdef FASTAE_HAVE_NEON
extern "C" const Kernels* fastae_kernels_neon();
#endif

namespace {

template <class T> using dense_array = py::array_t<T, py::array::c_style>;

// Sets built into this module and present on this machine, best last.
std::vector<const Kernels*> present_kernels() {
  std::vector<const Kernels*> sets;
  const auto add = [&](const char* name, const Kernels* (*table)()) {
    if (const Kernels* k = fastae::cpu_has(name) ? table() : nullptr) sets.push_back(k);
  };
  (void)add;
#ifdef FASTAE_HAVE_BASELINE
  add("baseline", fastae_kernels_baseline);
#endif
#ifdef FASTAE_HAVE_NEON
  add("neon", fastae_kernels_neon);
#endif
#ifdef FASTAE_HAVE_AVX2
  add("avx2", fastae_kernels_avx2);
#endif
#ifdef FASTAE_HAVE_AVX512
  // Intel's dot products of bfloat16 take four times as long as its float32 multiply-adds
  const bool slow_dots = std::strstr(fastae::cpu_brand(), "Intel") != nullptr;
  if (slow_dots) add("avx512_bf16", fastae_kernels_avx512_bf16);
  add("avx512", fastae_kernels_avx512);
  if (!slow_dots) add("avx512_bf16", fastae_kernels_avx512_bf16);
  add("avx512_amx", fastae_kernels_avx512_amx);
#endif
  return sets;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : present_kernels()) names.push_back(k->name);
  return names;
}

const Kernels& kernels_of(const std::string& isa) {
  std::string known;
  for (const Kernels* k : present_kernels()) {
    if (isa == k->name) return *k;
    known += (known.empty() ? "" : ", ") + std::string(k->name);
  }
  throw py::value_error("instruction set '" + isa + "' is not available here; this machine and build have: " + known);
}

// Asks the operating system, once a process, for what the kernels of bfloat16 need.
bool tiles_allowed(const Kernels& kernels) {
  if (std::strcmp(kernels.name, "avx512_amx") != 0) return true;
  static const bool allowed = fastae::cpu_allow_tiles();
  return allowed;
}

void allow_tiles(const Kernels& kernels) {
  if (!tiles_allowed(kernels))
    throw std::runtime_error("the operating system refuses the use of AMX to this process; set FASTAE_ISA=avx512_bf16");
}

// The set's kernels; where they would use tiles on the way to float32 results and may not, those without: same bits.
const Kernels& kernels_for(const std::string& isa, bool is_double, const dense_array<int64_t>& ops) {
  const Kernels& kernels = kernels_of(isa);
  if (is_double || ops.ndim() != 2) return kernels;
  for (int64_t i = 0; i < ops.shape(0); ++i)
    if (fastae::may_use_bf16(*reinterpret_cast<const fastae::OpRecord*>(ops.data(i, 0))) && !tiles_allowed(kernels))
      return kernels_of("avx512");
  return kernels;
}

int64_t item_size(const fastae::BufferRecord& b, bool is_double) {
  switch (b.dtype) {
    case fastae::buffer_dtype::real: return is_double ? 8 : 4;
    case fastae::buffer_dtype::float16: return 2;
    case fastae::buffer_dtype::int8: return 1;
    case fastae::buffer_dtype::int32: return 4;
    default: return 8;
  }
}

struct Source {
  fastae::SourceRecord record{};
  std::vector<py::array> keep;
  int64_t rows = 0;
};

// (data, dtype code, columns, indptr | None, indices | None, weight | None)
Source make_source(const py::tuple& t) {
  Source s;
  const py::array data = t[0];
  s.keep.push_back(data);
  s.record.data = data.data();
  s.record.dtype = t[1].cast<int64_t>();
  s.record.columns = t[2].cast<int64_t>();
  if (!t[3].is_none()) {
    const py::array indptr = t[3], indices = t[4];
    s.keep.push_back(indptr);
    s.keep.push_back(indices);
    s.record.indptr = indptr.data();
    s.record.indices = indices.data();
    s.record.indptr64 = indptr.itemsize() == 8;
    s.record.indices64 = indices.itemsize() == 8;
    s.rows = indptr.shape(0) - 1;
  } else {
    if (data.ndim() != 2 || data.shape(1) != s.record.columns) refuse("source must be 2-D with the plan's columns");
    if (data.shape(1) > 1 && data.strides(1) != data.itemsize()) refuse("source must have contiguous columns");
    if (data.shape(0) > 1 && (data.strides(0) < 0 || data.strides(0) % data.itemsize() != 0))
      refuse("source must have a non-negative row stride");
    s.record.row_stride = data.shape(0) > 1 ? data.strides(0) / data.itemsize() : s.record.columns;
    s.rows = data.shape(0);
  }
  if (!t[5].is_none()) {
    const auto weight = t[5].cast<dense_array<double>>();
    if (weight.size() != s.rows) refuse("weight must have one element per row of the source");
    s.keep.push_back(weight);
    s.record.weight = weight.data();
  }
  return s;
}

// Formulas registered at run time that a plan uses: (id, from_x, functions), a function being None, the address of a
// C function, or (code int32 (n, 6), constants float64, temporaries). The caller keeps C functions alive.
class Formulas {
 public:
  explicit Formulas(const std::vector<py::tuple>& given) {
    for (const py::tuple& t : given) {
      fastae::FormulaRecord f{};
      f.id = t[0].cast<int64_t>();
      f.from_x = t[1].cast<bool>();
      const auto functions = t[2].cast<py::list>();
      if (functions.size() > fastae::kFormulaFunctions) refuse("a formula has too many functions");
      for (size_t i = 0; i < functions.size(); ++i)
        if (!functions[i].is_none()) f.part[i] = make(functions[i]);
      records_.push_back(f);
    }
  }
  const fastae::FormulaRecord* data() const { return records_.data(); }
  int64_t size() const { return static_cast<int64_t>(records_.size()); }
  bool has(int64_t id) const {
    for (const fastae::FormulaRecord& f : records_)
      if (f.id == id) return true;
    return false;
  }

 private:
  fastae::FormulaPart make(const py::handle& given) {
    fastae::FormulaPart part{};
    if (py::isinstance<py::int_>(given)) {
      part.function = reinterpret_cast<void*>(given.cast<uintptr_t>());
      return part;
    }
    const auto t = given.cast<py::tuple>();
    const auto code = t[0].cast<dense_array<int32_t>>();
    const auto constants = t[1].cast<dense_array<double>>();
    part.n_constants = constants.size();
    part.n_temporaries = t[2].cast<int64_t>();
    const int64_t operands =
        fastae::kFormulaArguments + fastae::kFormulaParameters + part.n_constants + part.n_temporaries;
    if (code.ndim() != 2 || code.shape(1) != fastae::kFormulaStep || code.shape(0) < 1 ||
        part.n_constants > fastae::kMaxFormulaConstants || part.n_temporaries > fastae::kMaxFormulaTemporaries)
      refuse("a formula's program does not have the layout of this build");
    for (int64_t i = 0; i < code.shape(0); ++i)
      for (int64_t j = 1; j < fastae::kFormulaStep; ++j)
        if (*code.data(i, j) < 0 || *code.data(i, j) >= (j == 1 ? part.n_temporaries : operands))
          refuse("a formula's program names an operand that does not exist");
    part.length = code.shape(0);
    codes_.emplace_back(code.data(), code.data() + code.size());
    constants_.emplace_back(constants.data(), constants.data() + constants.size());
    part.code = codes_.back().data();
    part.constants = constants_.back().data();
    return part;
  }

  std::vector<fastae::FormulaRecord> records_;
  std::vector<std::vector<int32_t>> codes_;  // what the records point to
  std::vector<std::vector<double>> constants_;
};

class Plan : public fastae::CompiledPlan {
 public:
  Plan(const std::string& isa, bool is_double, int64_t batch, const dense_array<int64_t>& buffers,
       const dense_array<int64_t>& ops, const dense_array<double>& floats, const std::vector<int64_t>& sizes,
       int64_t n_values, int64_t n_scalars, bool row_local, const std::vector<py::tuple>& formulas, bool vnni)
      : CompiledPlan(kernels_for(isa, is_double, ops), sizes), formulas_(formulas) {
    constexpr int64_t kOp = 2 + fastae::kMaxSlots + fastae::kMaxInts;
    static_assert(sizeof(fastae::OpRecord) == kOp * sizeof(int64_t), "records are read from NumPy as they are");
    if (buffers.ndim() != 2 || buffers.shape(1) != 7 || ops.ndim() != 2 || ops.shape(1) != kOp || floats.ndim() != 2 ||
        floats.shape(0) != ops.shape(0) || floats.shape(1) != fastae::kMaxFloats || sizes.size() != 4 || batch < 1)
      refuse("plan records do not have the layout of this build; run `python -m fastae.codegen` and rebuild");
    for (int64_t i = 0; i < buffers.shape(0); ++i) {
      const int64_t* b = buffers.data(i, 0);
      if (b[5] >= i || (b[5] >= 0 && (b[6] < 0 || buffers_[static_cast<size_t>(b[5])].parent >= 0 ||
                                      b[6] + b[3] > buffers_[static_cast<size_t>(b[5])].columns)))
        refuse("plan has a part of a buffer that does not have its columns");
      buffers_.push_back({b[0], b[1], b[2], b[3], b[4], b[5], b[6], 0});
    }
    ops_.resize(static_cast<size_t>(ops.shape(0)));
    if (!ops_.empty()) std::memcpy(ops_.data(), ops.data(), ops_.size() * sizeof(fastae::OpRecord));
    floats_.assign(floats.data(), floats.data() + floats.size());
    for (const fastae::OpRecord& o : ops_) {
      if (o.kind < 0 || o.kind >= fastae::op::count) refuse("plan has an op of unknown kind");
      if (fastae::in_bf16(o)) {
        if (is_double) refuse("a float64 plan cannot have products in bfloat16");
        allow_tiles(kernels_of(isa));
      }
      check_room(o);
      if (fastae::formula_id(o) >= fastae::kFirstRegistered && !formulas_.has(fastae::formula_id(o)))
        refuse("plan uses a registered formula that was not given with it");
      for (const int64_t s : o.slot) {
        if (s >= static_cast<int64_t>(buffers_.size())) refuse("plan names a buffer that does not exist");
        if (s >= 0 && o.phase == fastae::phase::prepare) buffers_[static_cast<size_t>(s)].prepared = 1;
      }
    }
    record_ = {buffers_.data(),
               static_cast<int64_t>(buffers_.size()),
               ops_.data(),
               floats_.data(),
               static_cast<int64_t>(ops_.size()),
               batch,
               sizes[0],
               n_values,
               n_scalars,
               is_double,
               row_local,
               formulas_.data(),
               formulas_.size(),
               fastae::bf16_product::rounded,
               vnni && fastae::cpu_has("avx512_vnni")};
    for (const fastae::BufferRecord& b : buffers_)
      if (b.parent < 0 && b.space < fastae::space::external &&
          b.offset + bytes_of(b, batch) > sizes_[static_cast<size_t>(b.space)])
        refuse("plan has a buffer outside its space");
  }

  int64_t run(const std::vector<py::array>& spaces, const std::vector<py::tuple>& sources, int64_t n_rows,
              const std::optional<dense_array<int64_t>>& order, int64_t first_batch, int64_t n_steps, int64_t phases,
              const std::optional<dense_array<double>>& scalars, std::optional<dense_array<double>>& values,
              uint64_t seed, uint32_t epoch, int threads, const py::object& progress, int64_t first_row) {
    if (threads < 1 || threads > fastae::kMaxThreads)
      refuse("n_threads=" + std::to_string(threads) + " must be in 1.." + std::to_string(fastae::kMaxThreads));
    if (n_steps < 0 || first_batch < 0 || (n_steps > 0 && (first_batch + n_steps - 1) * record_.batch >= n_rows))
      refuse("steps reach beyond the rows of the run");
    std::vector<void*> pointers;
    std::vector<int64_t> strides;
    check_spaces(spaces, n_rows, pointers, strides);
    std::vector<Source> held;
    std::vector<fastae::SourceRecord> records;
    for (const py::tuple& t : sources) {
      held.push_back(make_source(t));
      records.push_back(held.back().record);
      check_order(order, n_rows, held.back().rows);
    }
    check_gathers(records, held.empty() ? 0 : held.front().rows);
    if (record_.n_scalars > 0 && (!scalars || scalars->size() < n_steps * record_.n_scalars))
      refuse("scalars must be float64 (n_steps, n_scalars)");
    if (record_.n_values > 0 && (!values || values->size() < n_steps * record_.n_values))
      refuse("values must be float64 (n_steps, n_values)");
    if (n_steps == 0) return 0;

    Block workspace = take(threads);
    Poll poll{progress};
    const fastae::JobRecord job = {pointers.data(),
                                   strides.data(),
                                   records.data(),
                                   n_rows,
                                   order ? order->data() : nullptr,
                                   first_batch,
                                   n_steps,
                                   phases,
                                   scalars ? scalars->data() : nullptr,
                                   values ? values->mutable_data() : nullptr,
                                   seed,
                                   epoch,
                                   threads,
                                   &Poll::run,
                                   &poll,
                                   workspace.get(),
                                   fastae::finite_check::none,
                                   first_row};
    int64_t done;
    {
      py::gil_scoped_release release;
      done = kernels_.run(record_, job);
    }
    give_back(threads, std::move(workspace));
    if (poll.failed) throw py::error_already_set();
    return done;
  }

 private:
  // A code of k latents a row must have room for them.
  void check_room(const fastae::OpRecord& o) const {
    int64_t k = 0, slot = -1;
    if (o.kind == fastae::op::encode && o.i[fastae::at_encode::i_kind] != fastae::code_kind::threshold)
      k = o.i[fastae::at_encode::i_k], slot = o.slot[fastae::at_encode::s_val];
    if (slot >= 0 && slot < static_cast<int64_t>(buffers_.size()) && k > buffers_[static_cast<size_t>(slot)].columns)
      refuse("plan has a code with room for fewer than its k latents");
  }

  int64_t bytes_of(const fastae::BufferRecord& b, int64_t batch) const {
    return (b.rows < 0 ? batch : b.rows) * b.columns * item_size(b, record_.is_double);
  }

  void check_spaces(const std::vector<py::array>& spaces, int64_t n_rows, std::vector<void*>& pointers,
                    std::vector<int64_t>& strides) const {
    for (size_t i = 0; i < spaces.size(); ++i) {
      const py::array& a = spaces[i];
      pointers.push_back(const_cast<void*>(a.data()));
      strides.push_back(a.ndim() == 2 && a.shape(0) > 1 ? a.strides(0) / a.itemsize() : 0);
      if (i < 4 && a.nbytes() < sizes_[i]) refuse("a memory space is smaller than the plan's");
    }
    for (const fastae::BufferRecord& b : buffers_) {
      if (b.space < fastae::space::external || b.parent >= 0) continue;
      if (b.space >= static_cast<int64_t>(spaces.size())) refuse("an external array is missing");
      const py::array& a = spaces[static_cast<size_t>(b.space)];
      const int64_t rows = b.rows < 0 ? n_rows : b.rows;
      if (a.ndim() != 2 || a.shape(0) < rows || a.shape(1) != b.columns ||
          a.itemsize() != item_size(b, record_.is_double))
        refuse("an external array does not have its buffer's shape and dtype");
      if ((b.columns > 1 && a.strides(1) != a.itemsize()) || (a.shape(0) > 1 && a.strides(0) < 0))
        refuse("an external array must have contiguous rows");
    }
  }

  void check_order(const std::optional<dense_array<int64_t>>& order, int64_t n_rows, int64_t rows) const {
    if (!order) {
      if (n_rows > rows) refuse("the run has more rows than its source");
      return;
    }
    if (order->size() < n_rows) refuse("order must have one row id per row of the run");
    const int64_t* p = order->data();
    uint64_t most = 0;  // a negative id becomes huge
    for (int64_t i = 0; i < n_rows; ++i) most = static_cast<uint64_t>(p[i]) > most ? static_cast<uint64_t>(p[i]) : most;
    if (n_rows > 0 && most >= static_cast<uint64_t>(rows)) refuse("order names a row that the source does not have");
  }

  void check_gathers(const std::vector<fastae::SourceRecord>& sources, int64_t rows_of_graph) const {
    for (const fastae::OpRecord& o : ops_) {
      if (o.kind != fastae::op::gather && o.kind != fastae::op::take && o.kind != fastae::op::neighbour) continue;
      const int64_t s = o.i[fastae::at_gather::i_source];  // the first integer of all three
      if (s < 0 || s >= static_cast<int64_t>(sources.size())) refuse("a source of rows is missing");
      if (o.kind == fastae::op::neighbour) {
        const fastae::SourceRecord& g = sources[static_cast<size_t>(s)];
        if (!g.indptr || g.dtype != fastae::source_dtype::f64 || g.columns != rows_of_graph)
          refuse("a graph must be a square CSR source of float64 weights with a row per row of source 0");
        continue;
      }
      if (sources[static_cast<size_t>(s)].columns != buffers_[static_cast<size_t>(o.slot[0])].columns)
        refuse("a source does not have the plan's columns");
    }
  }

  std::vector<fastae::BufferRecord> buffers_;
  std::vector<fastae::OpRecord> ops_;
  std::vector<double> floats_;
  Formulas formulas_;
};

py::array_t<int64_t> permutation(const std::string& isa, uint64_t seed, uint32_t epoch, int64_t n) {
  if (n < 0 || n >= (int64_t{1} << 32)) refuse("n=" + std::to_string(n) + " must be in 0..2^32-1");
  py::array_t<int64_t> order(n);
  const Kernels& k = kernels_of(isa);
  int64_t* p = order.mutable_data();
  py::gil_scoped_release release;
  k.permutation(seed, epoch, n, p);
  return order;
}

bool all_finite(const std::string& isa, const py::array& a, int64_t dtype, int threads) {
  if (a.ndim() != 2 || (a.shape(1) > 1 && a.strides(1) != a.itemsize()) || (a.shape(0) > 1 && a.strides(0) < 0))
    refuse("all_finite takes a 2-D array with contiguous rows");
  const int64_t rows = a.shape(0), columns = a.shape(1);
  const int64_t stride = rows > 1 ? a.strides(0) / a.itemsize() : columns;
  const Kernels& k = kernels_of(isa);
  const void* p = a.data();
  py::gil_scoped_release release;
  return rows == 0 || columns == 0 || k.all_finite(p, dtype, rows, columns, stride, threads);
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels of fastae.";
  m.def("instruction_sets", &instruction_sets, "Instruction sets of this build that the machine has, best last.");
  m.def("cpu_brand", [] { return std::string(fastae::cpu_brand()); });
  m.def("compiler", [] { return std::string(__VERSION__); });
  m.def("set_max_threads", &fastae::set_max_threads);
  m.def("max_threads", &fastae::max_threads);
  m.def("permutation", &permutation);
  m.def("all_finite", &all_finite);
  m.def(
      "fma_rate",
      [](const std::string& isa, bool is_double, double seconds) {
        const Kernels& k = kernels_of(isa);
        py::gil_scoped_release release;
        return k.fma_rate(is_double, seconds);
      },
      "Floating-point operations a second of one thread's fused multiply-adds from registers.");
  m.def(
      "bf16_rate",
      [](const std::string& isa, double seconds) {
        const Kernels& k = kernels_of(isa);
        allow_tiles(k);
        py::gil_scoped_release release;
        return k.bf16_rate(seconds);
      },
      "The same of what products in bfloat16 are made of.");
  m.def("cpu_has", [](const std::string& feature) { return fastae::cpu_has(feature.c_str()); });
  m.def(
      "int8_rate",
      [](const std::string& isa, bool vnni, double seconds) {
        const Kernels& k = kernels_of(isa);
        py::gil_scoped_release release;
        return k.int8_rate(vnni && fastae::cpu_has("avx512_vnni"), seconds);
      },
      "Operations a second of one thread's 8-bit multiply-adds from registers.");
  py::class_<fastae::CompiledPlan>(m, "CompiledPlan");
  py::class_<Plan, fastae::CompiledPlan>(m, "Plan")
      .def(py::init<const std::string&, bool, int64_t, const dense_array<int64_t>&, const dense_array<int64_t>&,
                    const dense_array<double>&, const std::vector<int64_t>&, int64_t, int64_t, bool,
                    const std::vector<py::tuple>&, bool>(),
           py::arg("isa"), py::arg("is_double"), py::arg("batch"), py::arg("buffers").noconvert(),
           py::arg("ops").noconvert(), py::arg("floats").noconvert(), py::arg("sizes"), py::arg("n_values"),
           py::arg("n_scalars"), py::arg("row_local"), py::arg("formulas"), py::arg("vnni"))
      .def("run", &Plan::run, py::arg("spaces"), py::arg("sources"), py::arg("n_rows"), py::arg("order").noconvert(),
           py::arg("first_batch"), py::arg("n_steps"), py::arg("phases"), py::arg("scalars").noconvert(),
           py::arg("values").noconvert(), py::arg("seed"), py::arg("epoch"), py::arg("threads"), py::arg("progress"),
           py::arg("first_row") = 0);
  fastae::bind_encoder(m);
}
