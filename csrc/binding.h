// What the files that know Python share.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace fastae {

namespace py = pybind11;

[[noreturn]] inline void refuse(const std::string& message) { throw py::value_error(message); }

struct AlignedFree {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<void, AlignedFree>;

inline Block allocate(int64_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes > 0 ? static_cast<size_t>(bytes) : 64) != 0) throw std::bad_alloc();
  return Block(p);
}

// Called by kernels every few milliseconds: signals, and a function of the finished steps.
struct Poll {
  py::object progress;
  bool failed = false;

  static bool run(void* context, int64_t done) {
    Poll& self = *static_cast<Poll*>(context);
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) return !(self.failed = true);
    if (self.progress.is_none()) return true;
    PyObject* result = PyObject_CallFunction(self.progress.ptr(), "L", static_cast<long long>(done));
    if (result == nullptr) return !(self.failed = true);
    Py_DECREF(result);
    return true;
  }
};

// Checked records and the kernels that run them.
class CompiledPlan {
 public:
  CompiledPlan(const Kernels& kernels, const std::vector<int64_t>& sizes) : kernels_(kernels), sizes_(sizes) {}

  const Kernels& kernels() const { return kernels_; }
  const PlanRecord& record() const { return record_; }
  int64_t bytes(int64_t space) const { return sizes_[static_cast<size_t>(space)]; }

  // Workspaces are kept between runs; concurrent runs of one plan get one each.
  Block take(int threads) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 0; i < free_.size(); ++i)
        if (free_[i].first == threads) {
          Block b = std::move(free_[i].second);
          free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
          return b;
        }
    }
    return allocate(kernels_.workspace_bytes(record_, threads));
  }
  void give_back(int threads, Block b) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.size() < 8) free_.emplace_back(threads, std::move(b));
  }

 protected:
  const Kernels& kernels_;
  std::vector<int64_t> sizes_;
  PlanRecord record_{};

 private:
  std::mutex mutex_;
  std::vector<std::pair<int, Block>> free_;
};

void bind_encoder(py::module_& m);

}  // namespace fastae
