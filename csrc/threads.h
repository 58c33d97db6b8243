// Thread pool: parallel_for over numbered tasks, safe across fork, no OpenMP.
//
// A kernel's result must not depend on which thread runs which task: `thread` is only for
// choosing scratch memory that the caller owns.
#pragma once

#include <cstdint>

namespace fastae {

// One task. `task` is in [0, n_tasks); `thread` is in [0, n_threads) and no two tasks of the
// same parallel_for run at the same time under the same `thread`.
typedef void (*task_fn)(void* context, int64_t task, int thread) noexcept;

// Highest number of threads, the caller included, that one parallel_for uses.
constexpr int kMaxThreads = 256;

// Runs fn(context, 0 .. n_tasks - 1, thread) and returns when all tasks are done.
//
// The caller takes part as thread 0; tasks are handed out one at a time, in order. Everything
// runs serially in the caller when n_threads <= 1, when n_tasks <= 1, inside a task, and while
// another caller holds the pool. An n_threads above the number of cores is obeyed (up to
// kMaxThreads); a limit set with set_max_threads is obeyed too. Where the system refuses more
// threads, those that exist do the work.
void parallel_for(int n_threads, int64_t n_tasks, task_fn fn, void* context) noexcept;

// Limit on n_threads of every parallel_for in the process; 0 means no limit.
void set_max_threads(int n_threads);
int max_threads();

}  // namespace fastae

// The same limit with C names, which threadpoolctl finds through ctypes.
extern "C" {
__attribute__((visibility("default"))) int fastae_get_num_threads();
__attribute__((visibility("default"))) void fastae_set_num_threads(int n_threads);
}
