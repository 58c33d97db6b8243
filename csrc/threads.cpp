// How a job runs: the caller writes it into the pool, then opens the `gate`. A worker that sees
// the gate open joins (count + 1), takes tasks from a shared counter and leaves (count - 1). The
// caller takes tasks too, closes the gate when none is left, and waits only for the workers that
// joined: one that is still waking up finds the gate closed and costs nothing.
//
// gate bits:   0-15 workers inside | 16 closed | 17 caller sleeps | 18-27 helpers wanted
//             28-63 number of the job
//
// Idle workers watch the gate for kSpin, so that ops in a row cost about a microsecond each to
// dispatch, then sleep on a condition variable of their own.

#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

namespace fastae {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr uint64_t kInside = (uint64_t(1) << 16) - 1;
constexpr uint64_t kClosed = uint64_t(1) << 16;
constexpr uint64_t kCallerSleeps = uint64_t(1) << 17;
constexpr int kWantedShift = 18;
constexpr uint64_t kWantedMask = 1023;
constexpr int kJobShift = 28;

uint64_t job_number(uint64_t gate) { return gate >> kJobShift; }
int helpers_wanted(uint64_t gate) { return int((gate >> kWantedShift) & kWantedMask); }

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Polls until done() or the deadline. Between rounds of 16 polls the core is offered to others: where
// cores are scarce, the thread that this one waits for may need it.
template <class Done> bool spin_until(Clock::time_point deadline, Done done) {
  for (;;) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      relax();
    }
    if (Clock::now() >= deadline) return done();
    sched_yield();
  }
}

// Index of this thread in the parallel_for whose task it is running; -1 outside of tasks.
thread_local int current_thread = -1;

std::atomic<int> thread_limit{0};

struct alignas(64) Worker {
  std::atomic<bool> asleep{false};
  std::mutex mutex;
  std::condition_variable wake;
};

struct Job {
  task_fn fn = nullptr;
  void* context = nullptr;
  int64_t n_tasks = 0;
};

class Pool {
 public:
  // False when another caller holds the pool.
  bool run(int n_threads, int64_t n_tasks, task_fn fn, void* context) noexcept;

 private:
  void grow(int n_workers) noexcept;
  void work(int id, uint64_t seen) noexcept;
  bool join(int id, uint64_t gate) noexcept;
  void leave() noexcept;
  void wait_for_helpers(bool may_spin) noexcept;
  void take_tasks(int thread) noexcept;

  alignas(64) std::atomic<uint64_t> gate_{kClosed};
  alignas(64) std::atomic<int64_t> next_task_{0};
  alignas(64) Job job_;
  // More threads than cores: a spinning thread would keep a working one from its core.
  std::atomic<bool> oversubscribed_{false};
  std::mutex done_mutex_;
  std::condition_variable done_;

  // Below: only touched by the caller that holds caller_mutex_.
  std::mutex caller_mutex_;
  int n_workers_ = 0;
  const int n_cores_ = int(std::thread::hardware_concurrency());
  Worker* workers_[kMaxThreads] = {};
};

void Pool::take_tasks(int thread) noexcept {
  const Job job = job_;
  for (;;) {
    const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= job.n_tasks) return;
    job.fn(job.context, task, thread);
  }
}

bool Pool::join(int id, uint64_t gate) noexcept {
  while (!(gate & kClosed) && id <= helpers_wanted(gate)) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed)) return true;
  }
  return false;
}

void Pool::leave() noexcept {
  const uint64_t before = gate_.fetch_sub(1, std::memory_order_acq_rel);
  if ((before & kInside) == 1 && (before & kCallerSleeps)) {
    std::lock_guard<std::mutex> lock(done_mutex_);
    done_.notify_one();
  }
}

void Pool::work(int id, uint64_t seen) noexcept {
  current_thread = id;
  Worker& self = *workers_[id];
  for (;;) {
    const auto spin = oversubscribed_.load(std::memory_order_relaxed) ? Clock::duration::zero() : kSpin;
    const auto deadline = Clock::now() + spin;
    bool worked = false;
    const auto news = [&] { return job_number(gate_.load(std::memory_order_relaxed)) != seen; };
    while (!worked && Clock::now() < deadline && spin_until(deadline, news)) {
      const uint64_t gate = gate_.load(std::memory_order_acquire);
      seen = job_number(gate);
      worked = join(id, gate);
    }
    if (!worked) {
      // Either the caller sees `asleep` and notifies, or this thread sees the new job: both
      // sides write first and read second, in one sequentially consistent order.
      std::unique_lock<std::mutex> lock(self.mutex);
      self.asleep.store(true, std::memory_order_seq_cst);
      self.wake.wait(lock, [&] {
        const uint64_t gate = gate_.load(std::memory_order_seq_cst);
        if (job_number(gate) == seen) return false;
        seen = job_number(gate);
        return worked = join(id, gate);
      });
      self.asleep.store(false, std::memory_order_relaxed);
    }
    take_tasks(id);
    leave();
  }
}

void Pool::grow(int n_workers) noexcept {
  if (n_workers_ >= n_workers) return;
  // Signals belong to Python's threads: workers start with them blocked, save for those that
  // report a worker's own fault.
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  const uint64_t seen = job_number(gate_.load(std::memory_order_relaxed));
  while (n_workers_ < n_workers) {
    const int id = n_workers_ + 1;
    if (!workers_[id]) workers_[id] = new (std::nothrow) Worker;
    if (!workers_[id]) break;
    try {
      // Detached, and the pool is never freed: nothing to join at exit, nothing to hang on.
      std::thread([this, id, seen] { work(id, seen); }).detach();
    } catch (const std::exception&) {  // std::system_error: no more threads; bad_alloc: no more memory
      break;
    }
    n_workers_ = id;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Pool::wait_for_helpers(bool may_spin) noexcept {
  uint64_t gate = gate_.fetch_or(kClosed, std::memory_order_acq_rel);
  if ((gate & kInside) == 0) return;
  const auto empty = [&] { return (gate_.load(std::memory_order_acquire) & kInside) == 0; };
  if (may_spin && spin_until(Clock::now() + kSpin, empty)) return;
  gate = gate_.fetch_or(kCallerSleeps, std::memory_order_acq_rel);
  if ((gate & kInside) == 0) return;
  std::unique_lock<std::mutex> lock(done_mutex_);
  done_.wait(lock, empty);
}

bool Pool::run(int n_threads, int64_t n_tasks, task_fn fn, void* context) noexcept {
  std::unique_lock<std::mutex> held(caller_mutex_, std::try_to_lock);
  if (!held) return false;
  grow(n_threads - 1);
  const int n_helpers = n_threads - 1 < n_workers_ ? n_threads - 1 : n_workers_;
  const bool oversubscribed = n_helpers >= n_cores_;
  oversubscribed_.store(oversubscribed, std::memory_order_relaxed);
  job_ = {fn, context, n_tasks};
  next_task_.store(0, std::memory_order_relaxed);
  const uint64_t number = job_number(gate_.load(std::memory_order_relaxed)) + 1;
  gate_.store(number << kJobShift | uint64_t(n_helpers) << kWantedShift, std::memory_order_seq_cst);
  for (int id = 1; id <= n_helpers; ++id) {
    Worker& worker = *workers_[id];
    if (!worker.asleep.load(std::memory_order_seq_cst)) continue;
    // Passing through the mutex orders this after the worker's look at the gate.
    worker.mutex.lock();
    worker.mutex.unlock();
    worker.wake.notify_one();
  }
  current_thread = 0;
  take_tasks(0);
  current_thread = -1;
  wait_for_helpers(!oversubscribed);
  return true;
}

std::atomic<Pool*> the_pool{nullptr};

// In a forked child the workers do not exist and any mutex may be held for ever: start afresh,
// leave the old pool where it is.
void forget_pool() { the_pool.store(nullptr, std::memory_order_relaxed); }

const bool fork_is_safe = pthread_atfork(nullptr, nullptr, forget_pool) == 0;

Pool* get_pool() noexcept {
  Pool* pool = the_pool.load(std::memory_order_acquire);
  if (pool) return pool;
  if (!fork_is_safe) return nullptr;
  Pool* fresh = new (std::nothrow) Pool;
  if (!fresh) return nullptr;
  if (the_pool.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;
  return pool;
}

}  // namespace

void parallel_for(int n_threads, int64_t n_tasks, task_fn fn, void* context) noexcept {
  const int limit = thread_limit.load(std::memory_order_relaxed);
  if (limit > 0 && n_threads > limit) n_threads = limit;
  if (n_threads > kMaxThreads) n_threads = kMaxThreads;
  int thread = current_thread;
  if (n_threads > 1 && n_tasks > 1 && thread < 0) {
    const int64_t wanted = n_threads < n_tasks ? n_threads : n_tasks;
    Pool* pool = get_pool();
    if (pool && pool->run(int(wanted), n_tasks, fn, context)) return;
  }
  // Inside a task the enclosing index is kept where the caller's scratch has room for it.
  if (thread < 0 || thread >= n_threads) thread = 0;
  for (int64_t task = 0; task < n_tasks; ++task) fn(context, task, thread);
}

void set_max_threads(int n_threads) { thread_limit.store(n_threads > 0 ? n_threads : 0, std::memory_order_relaxed); }

int max_threads() { return thread_limit.load(std::memory_order_relaxed); }

}  // namespace fastae

extern "C" {
int fastae_get_num_threads() { return fastae::max_threads(); }
void fastae_set_num_threads(int n_threads) { fastae::set_max_threads(n_threads); }
}
