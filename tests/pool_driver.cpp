// Exercises csrc/threads.cpp without Python; test_threads.py compiles and runs it, also under ThreadSanitizer.
//
//   pool_driver NAME      runs one check; exits with 0, or prints what went wrong and exits with 1

#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "threads.h"

namespace {

void fail(const char* what, long got, long wanted) {
  std::printf("%s: got %ld, wanted %ld\n", what, got, wanted);
  std::fflush(stdout);
  _exit(1);
}

struct Count {
  explicit Count(int n_threads, int64_t n_tasks, long work = 0)
      : n_threads(n_threads), work(work), runs(size_t(n_tasks)), busy(size_t(n_threads > 1 ? n_threads : 1)) {}
  int n_threads;
  long work;
  std::vector<int> runs;  // not atomic: a task that ran twice is also a data race
  std::vector<std::atomic<int>> busy;
};

void count(void* context, int64_t task, int thread) noexcept {
  Count& c = *static_cast<Count*>(context);
  if (thread < 0 || thread >= int(c.busy.size())) fail("thread", thread, c.n_threads - 1);
  if (c.busy[size_t(thread)].exchange(1)) fail("tasks at once under one thread index", 2, 1);
  ++c.runs[size_t(task)];
  for (volatile long i = 0; i < c.work; i = i + 1) {}
  c.busy[size_t(thread)].store(0);
}

void check(int n_threads, int64_t n_tasks, long work = 0) {
  Count c(n_threads, n_tasks, work);
  fastae::parallel_for(n_threads, n_tasks, count, &c);
  for (const int runs : c.runs)
    if (runs != 1) fail("runs of a task", runs, 1);
}

void every_task_once() {
  for (int round = 0; round < 300; ++round)
    for (const int n_threads : {-1, 0, 1, 2, 3, 8}) check(n_threads, 1 + round * 7 % 41, round % 3 * 100);
  check(4, 0);
  check(1000, 2000, 1000);
}

void rendezvous(void* context, int64_t, int) noexcept {
  auto& waiting = *static_cast<std::atomic<int>*>(context);
  --waiting;
  while (waiting.load() > 0) std::this_thread::yield();
}

// Returns only when all four threads are inside a task at the same time.
void threads_run_together() {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> waiting{4};
    fastae::parallel_for(4, 4, rendezvous, &waiting);
  }
}

void nested_task(void* context, int64_t, int thread) noexcept {
  struct Same {
    static void run(void* expected, int64_t, int inner) noexcept {
      if (inner != *static_cast<int*>(expected)) fail("thread of a nested task", inner, *static_cast<int*>(expected));
    }
  };
  fastae::parallel_for(4, 5, Same::run, &thread);
  check(3, 5);
  ++*static_cast<std::atomic<int>*>(context);
}

void nested() {
  std::atomic<int> done{0};
  fastae::parallel_for(4, 64, nested_task, &done);
  if (done != 64) fail("outer tasks", done, 64);
}

void concurrent_callers() {
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i)
    callers.emplace_back([] {
      for (int round = 0; round < 200; ++round) check(3, 17, 50);
    });
  for (std::thread& caller : callers) caller.join();
}

void sleep_and_wake() {
  for (int round = 0; round < 300; ++round) {
    usleep(useconds_t(30 + round % 60));
    check(3, 6, 10);
  }
}

void fork_after_threads() {
  check(4, 40, 100);
  std::atomic<bool> stop{false};
  // Some forks happen while another thread is in the middle of a parallel_for.
  std::thread other([&stop] {
    while (!stop) check(3, 30, 100);
  });
  for (int i = 0; i < 40; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);
      for (int round = 0; round < 20; ++round) check(4, 30, 100);
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    if (status != 0) fail("status of a forked child", status, 0);
    check(4, 30, 100);
  }
  stop = true;
  other.join();
}

struct Highest {
  std::atomic<int> thread{0};
  int wanted;
};

// Lasts until the wanted thread has come, which a busy machine may start late; others have a while to show up.
void highest_thread(void* context, int64_t, int thread) noexcept {
  auto& highest = *static_cast<Highest*>(context);
  for (int seen = highest.thread.load(); thread > seen && !highest.thread.compare_exchange_weak(seen, thread);) {}
  for (int waited = 0; highest.thread.load() < highest.wanted && waited < 50'000; ++waited) usleep(100);
  usleep(100);
}

void check_highest(const char* what, int n_threads, int wanted) {
  Highest highest{{0}, wanted};
  fastae::parallel_for(n_threads, 64, highest_thread, &highest);
  if (highest.thread != wanted) fail(what, highest.thread, wanted);
}

void limit() {
  fastae_set_num_threads(1);
  check_highest("highest thread under limit 1", 8, 0);
  fastae_set_num_threads(2);
  check_highest("highest thread under limit 2", 8, 1);
  if (fastae_get_num_threads() != 2) fail("limit", fastae_get_num_threads(), 2);
  fastae_set_num_threads(0);
  check_highest("highest thread without limit", 6, 5);
}

// The system refuses threads: address space for a few stacks only.
void threads_refused() {
  const rlimit space = {60u << 20, 60u << 20};
  setrlimit(RLIMIT_AS, &space);
  for (int round = 0; round < 100; ++round) check(100, 500, 100);
}

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

void idle_workers_sleep() {
  check(4, 40, 1000);
  usleep(20000);
  const double before = cpu_seconds();
  usleep(500000);
  const double used = cpu_seconds() - before;
  if (used > 0.05) fail("microseconds of CPU time in half an idle second", long(1e6 * used), 0);
}

// Not a check: prints the time from a call until two threads are both at work, idle machine assumed.
void latency() {
  std::vector<double> seconds;
  for (int round = 0; round < 20000; ++round) {
    std::atomic<int> waiting{2};
    const auto start = std::chrono::steady_clock::now();
    fastae::parallel_for(2, 2, rendezvous, &waiting);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  std::printf("dispatch: median %.2f us\n", 1e6 * seconds[seconds.size() / 2]);
}

struct Check {
  const char* name;
  void (*run)();
};
const Check checks[] = {
    {"every_task_once", every_task_once},
    {"threads_run_together", threads_run_together},
    {"nested", nested},
    {"concurrent_callers", concurrent_callers},
    {"sleep_and_wake", sleep_and_wake},
    {"fork_after_threads", fork_after_threads},
    {"limit", limit},
    {"threads_refused", threads_refused},
    {"idle_workers_sleep", idle_workers_sleep},
    {"latency", latency},
};

}  // namespace

int main(int argc, char** argv) {
  for (const Check& check : checks)
    if (argc == 2 && !std::strcmp(argv[1], check.name)) return check.run(), 0;
  std::printf("usage: pool_driver NAME\n");
  return 2;
}
