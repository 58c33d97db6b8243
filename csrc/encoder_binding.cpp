// Encoders for Python: what lies between a call and the kernels, which at one row is most of the time.
#include "binding.h"
#include "threads.h"

namespace fastae {
namespace {

constexpr double kWorthReleasing = 1 << 20;  // multiply-adds (some 10 us) from which on other threads may have the GIL
constexpr int kContiguous = 0x0001, kAligned = 0x0100, kWriteable = 0x0400;  // NumPy's flags of arrays
constexpr int kFloat32 = 11, kFloat64 = 12, kFloat16 = 23, kInt8 = 1;        // and its numbers of types

int64_t code_of(int number) {
  switch (number) {
    case 0: return source_dtype::u8;  // bool
    case kInt8: return source_dtype::i8;
    case 2: return source_dtype::u8;
    case 3: return source_dtype::i16;
    case 4: return source_dtype::u16;
    case 5: return source_dtype::i32;
    case 6: return source_dtype::u32;
    case 7: return sizeof(long) == 8 ? source_dtype::i64 : source_dtype::i32;
    case 8: return sizeof(long) == 8 ? source_dtype::u64 : source_dtype::u32;
    case 9: return source_dtype::i64;
    case 10: return source_dtype::u64;
    case kFloat32: return source_dtype::f32;
    case kFloat64: return source_dtype::f64;
    case kFloat16: return source_dtype::f16;
    default: return -1;
  }
}

int64_t bytes_of(int64_t code) {
  switch (code) {
    case source_dtype::u8:
    case source_dtype::i8: return 1;
    case source_dtype::f16:
    case source_dtype::bf16:
    case source_dtype::u16:
    case source_dtype::i16: return 2;
    case source_dtype::f32:
    case source_dtype::u32:
    case source_dtype::i32: return 4;
    default: return 8;
  }
}

bool is_array(py::handle a) {
  return reinterpret_cast<PyObject*>(Py_TYPE(a.ptr())) ==
         reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_);
}

// One external buffer of the plan, a row per row of the run.
struct Result {
  int number = kFloat32;  // NumPy's, of the type
  int64_t columns = 0, item = 4;
  bool flat = false;  // an array (rows,)
  py::object descr;

  Result() = default;
  Result(const BufferRecord& b, bool is_double, bool is_flat) : columns(b.columns), flat(is_flat) {
    const bool half = b.dtype == buffer_dtype::float16, byte = b.dtype == buffer_dtype::int8;
    if (b.rows >= 0 || (b.dtype != buffer_dtype::real && !half && !byte)) refuse("plan's result has no row per row");
    number = half ? kFloat16 : byte ? kInt8 : is_double ? kFloat64 : kFloat32;
    item = half ? 2 : byte ? 1 : is_double ? 8 : 4;
    descr = py::dtype(number);
  }

  py::object make(Py_intptr_t rows) const {
    const auto& numpy = py::detail::npy_api::get();
    const Py_intptr_t shape[2] = {rows, static_cast<Py_intptr_t>(columns)};
    PyObject* a = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, descr.inc_ref().ptr(), flat ? 1 : 2, shape, nullptr,
                                              nullptr, 0, nullptr);
    if (a == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(a);
  }

  // Whether a caller's array can be written to, and lies apart from the bytes [low, high).
  bool takes(py::handle given, Py_intptr_t rows, const char* low, const char* high) const {
    if (!is_array(given)) return false;
    const auto* a = py::detail::array_proxy(given.ptr());
    const auto* d = py::detail::array_descriptor_proxy(a->descr);
    constexpr int wanted = kContiguous | kAligned | kWriteable;
    if (d->type_num != number || d->byteorder == '>' || (a->flags & wanted) != wanted || a->nd != (flat ? 1 : 2) ||
        a->dimensions[0] != rows || (!flat && a->dimensions[1] != columns))
      return false;
    return a->data >= high || a->data + rows * columns * item <= low;
  }

  static void* data(py::handle a) { return py::detail::array_proxy(a.ptr())->data; }
};

class Encoder {
 public:
  Encoder(py::object plan, const py::array& arena, const py::array& theta, int64_t check)
      : owner_(std::move(plan)), plan_(owner_.cast<CompiledPlan*>()), arena_(arena), theta_(theta), check_(check) {
    const PlanRecord& record = plan_->record();
    if (!record.row_local || record.n_values || record.n_scalars || check < finite_check::none ||
        check > finite_check::not_infinite || arena.nbytes() < plan_->bytes(space::arena) ||
        theta.nbytes() < plan_->bytes(space::theta))
      refuse("an encoder takes a plan of inference and its memory");
    for (int64_t i = 0; i < record.n_buffers; ++i) {
      const BufferRecord& b = record.buffers[i];
      if (b.parent >= 0 || b.space < space::external) continue;
      const int64_t index = b.space - space::external;
      if (index != n_results_ || index >= 2) refuse("an encoder's plan has a result and at most its scale");
      results_[n_results_++] = Result(b, record.is_double, index == 1);
    }
    if (n_results_ == 0 || (n_results_ == 2 && results_[1].columns != 1)) refuse("an encoder's plan has no result");
    for (int64_t i = 0; i < record.n_ops; ++i) {
      const OpRecord& o = record.ops[i];
      const auto width = [&](int64_t slot) { return static_cast<double>(record.buffers[o.slot[slot]].columns); };
      if (o.kind == op::gather) {
        if (o.i[at_gather::i_source] != 0 || n_in_) refuse("an encoder's plan reads one source");
        n_in_ = record.buffers[o.slot[at_gather::s_x]].columns;
      } else if (o.kind == op::dense) {
        cost_ += width(at_dense::s_x) * width(at_dense::s_y);
      } else if (o.kind == op::dense_int8) {
        cost_ += static_cast<double>(o.i[at_dense_int8::i_depth]) * width(at_dense_int8::s_y) / 4;
      }
    }
    if (n_in_ == 0) refuse("an encoder's plan reads no rows");
  }

  // The codes; None where X or out do not lie as kernels need them, or X has NaN or infinity: whoever called goes the
  // ordinary way then, which converts or words the error. code: of the stored type; -1: as NumPy's type says.
  py::object operator()(py::handle X, py::handle out, int threads, int64_t code) const {
    if (threads < 1 || threads > kMaxThreads)
      refuse("n_threads=" + std::to_string(threads) + " must be in 1.." + std::to_string(kMaxThreads));
    if (!is_array(X)) return py::none();
    const auto* x = py::detail::array_proxy(X.ptr());
    const auto* d = py::detail::array_descriptor_proxy(x->descr);
    if (code < 0) code = code_of(d->type_num);
    if (code < 0 || code > source_dtype::i64 || d->byteorder == '>' || x->nd != 2 || x->dimensions[1] != n_in_ ||
        !(x->flags & kAligned))
      return py::none();
    const int64_t item = bytes_of(code), rows = x->dimensions[0], stride = rows > 1 ? x->strides[0] : n_in_ * item;
    if (rows < 1 || (n_in_ > 1 && x->strides[1] != item) || stride < 0 || stride % item) return py::none();

    py::object made[2];
    if (out.is_none()) {
      for (int i = 0; i < n_results_; ++i) made[i] = results_[i].make(rows);
    } else {
      const char *low = x->data, *high = low + (rows - 1) * stride + n_in_ * item;
      if (n_results_ == 2) {
        if (!PyTuple_Check(out.ptr()) || PyTuple_GET_SIZE(out.ptr()) != 2) return py::none();
        for (int i = 0; i < 2; ++i) made[i] = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(out.ptr(), i));
      } else {
        made[0] = py::reinterpret_borrow<py::object>(out);
      }
      for (int i = 0; i < n_results_; ++i)
        if (!results_[i].takes(made[i], rows, low, high)) return py::none();
      const char* first = static_cast<char*>(Result::data(made[0]));
      if (n_results_ == 2 && !results_[1].takes(made[1], rows, first, first + rows * results_[0].columns))
        return py::none();
    }
    if (!run(x->data, code, stride / item, rows, made, threads)) return py::none();
    return n_results_ == 2 ? py::make_tuple(made[0], made[1]) : std::move(made[0]);
  }

 private:
  // False where a row is not finite.
  bool run(const void* data, int64_t code, int64_t stride, int64_t rows, const py::object* made, int threads) const {
    const PlanRecord& record = plan_->record();
    const SourceRecord source = {data, code, stride, nullptr, nullptr, false, false, nullptr, n_in_};
    void* const spaces[6] = {const_cast<void*>(arena_.data()),
                             const_cast<void*>(theta_.data()),
                             nullptr,
                             nullptr,
                             Result::data(made[0]),
                             n_results_ == 2 ? Result::data(made[1]) : nullptr};
    static constexpr int64_t strides[6] = {0, 0, 0, 0, 0, 0};
    const int64_t steps = (rows + record.batch - 1) / record.batch;
    const int held = static_cast<int>(steps < threads ? steps : threads);
    Block workspace = plan_->take(held);
    const bool release = static_cast<double>(rows) * cost_ >= kWorthReleasing;
    Poll poll{py::none()};
    const JobRecord job = {
        spaces,          strides,         &source, rows, nullptr, 0,       steps,
        phase::gradient, nullptr,         nullptr, 0,    0,       threads, release ? &Poll::run : nullptr,
        &poll,           workspace.get(), check_,  0};
    int64_t done;
    if (release) {
      const py::gil_scoped_release released;
      done = plan_->kernels().run(record, job);
    } else {
      done = plan_->kernels().run(record, job);
    }
    plan_->give_back(held, std::move(workspace));
    if (poll.failed) throw py::error_already_set();
    return done != kNotFinite;
  }

  py::object owner_;
  CompiledPlan* plan_;
  py::array arena_, theta_;
  int64_t check_, n_in_ = 0;
  double cost_ = 0;  // multiply-adds of a row
  Result results_[2];
  int n_results_ = 0;
};

}  // namespace

void bind_encoder(py::module_& m) {
  py::class_<Encoder>(m, "Encoder")
      .def(py::init<py::object, const py::array&, const py::array&, int64_t>(), py::arg("plan"), py::arg("arena"),
           py::arg("theta"), py::arg("check"))
      .def("__call__", &Encoder::operator(), py::arg("X"), py::arg("out"), py::arg("threads"), py::arg("code"));
}

}  // namespace fastae
