// Executes a plan: as many steps as asked, one op after another, each op cut over the pool's threads; or, when the
// steps are independent of each other, whole steps side by side, so that a block's activations stay in one core's cache.
#pragma once
#include "executor.h"

namespace fastae {
namespace {

template <class T> int64_t run_in_order(const PlanRecord& plan, const JobRecord& job) noexcept {
  Executor<T> e(plan, job, job.threads, (char*)job.spaces[space::arena], (char*)job.workspace);
  for (int64_t i = 0; i < job.n_steps * plan.n_values; ++i) job.values[i] = 0;
  e.begin(0);
  e.run_phases(phase::prepare);
  double last = clock_seconds();
  for (int64_t i = 0; i < job.n_steps; ++i) {
    e.begin(i);
    if (!e.run_phases(phase::gradient)) return i;
    e.run_phases(~(int64_t)(phase::prepare | phase::gradient));
    if (!job.poll) continue;
    const double now = clock_seconds();
    if (now - last < 0.004) continue;
    last = now;
    if (!job.poll(job.poll_context, i + 1)) return i + 1;
  }
  return job.n_steps;
}

// Independent steps: one thread takes a whole step, with an arena and packing space of its own.
template <class T> int64_t run_side_by_side(const PlanRecord& plan, const JobRecord& job, int threads) noexcept {
  const int64_t arena = on_line(plan.arena_bytes), each = arena + Workspace<T>(plan, job.threads).bytes();
  char* work = (char*)job.workspace;
  if (job.phases & phase::prepare) {
    Executor<T> first(plan, job, job.threads, work, work + arena);
    first.begin(0);
    first.run_phases(phase::prepare);
  }
  struct Call {
    const PlanRecord& plan;
    const JobRecord& job;
    char* work;
    int64_t arena, each;
    bool alone;
    int64_t done, stop, bad;
    double last;
    static void run(void* context, int64_t i, int thread) noexcept {
      Call& c = *(Call*)context;
      if (__atomic_load_n(&c.stop, __ATOMIC_RELAXED)) return;
      char* own = c.work + thread * c.each;
      Executor<T> e(c.plan, c.job, c.alone ? c.job.threads : 1, own, own + c.arena);
      e.begin(i);
      e.run_phases(~(int64_t)phase::prepare);
      if (e.not_finite) {
        __atomic_store_n(&c.bad, 1, __ATOMIC_RELAXED);
        __atomic_store_n(&c.stop, 1, __ATOMIC_RELAXED);
        return;
      }
      __atomic_add_fetch(&c.done, 1, __ATOMIC_RELAXED);
      if (thread != 0 || !c.job.poll) return;  // thread 0 is the caller's
      const double now = clock_seconds();
      if (now - c.last < 0.004) return;
      c.last = now;
      if (!c.job.poll(c.job.poll_context, __atomic_load_n(&c.done, __ATOMIC_RELAXED)))
        __atomic_store_n(&c.stop, 1, __ATOMIC_RELAXED);
    }
  };
  Call call = {plan, job, work, arena, each, threads == 1, 0, 0, 0, clock_seconds()};
  if (threads == 1)
    for (int64_t i = 0; i < job.n_steps; ++i) Call::run(&call, i, 0);
  else parallel_for(threads, job.n_steps, &Call::run, &call);
  return call.bad ? kNotFinite : call.done;
}

FASTAE_INLINE bool side_by_side(const PlanRecord& plan) { return plan.row_local && plan.n_values == 0; }

template <class T> int64_t bytes_of(const PlanRecord& plan, int threads) noexcept {
  const int64_t own = Workspace<T>(plan, threads).bytes();
  return side_by_side(plan) ? (on_line(plan.arena_bytes) + own) * threads : own;
}

int64_t workspace_bytes(const PlanRecord& plan, int threads) noexcept {
  return plan.is_double ? bytes_of<double>(plan, threads) : bytes_of<float>(plan, threads);
}

template <class T> int64_t run_typed(const PlanRecord& plan, const JobRecord& job) noexcept {
  if (!side_by_side(plan)) return run_in_order<T>(plan, job);
  return run_side_by_side<T>(plan, job, (int)smaller(job.threads, job.n_steps));
}

int64_t run(const PlanRecord& plan, const JobRecord& job) noexcept {
  return plan.is_double ? run_typed<double>(plan, job) : run_typed<float>(plan, job);
}

// Rate of independent fused multiply-adds from registers: the ceiling that products are held against.
template <class T> double fma_rate_of(double seconds) noexcept {
  constexpr int A = 12, kLoops = 20000;
  Vec<T> acc[A];
  for (int i = 0; i < A; ++i) acc[i] = Vec<T>((T)i);
  Vec<T> a((T)0.999), b((T)0.001);
  __asm__ volatile("" : "+m"(a), "+m"(b));
  const double best = best_rate(seconds, 2.0 * A * Vec<T>::N * kLoops, [&] {
    for (int loop = 0; loop < kLoops; ++loop) {
#pragma GCC unroll 16
      for (int i = 0; i < A; ++i) acc[i] = fma(acc[i], a, b);
    }
  });
  for (int i = 0; i < A; ++i) __asm__ volatile("" : : "m"(acc[i]));
  return best;
}

double fma_rate(bool is_double, double seconds) noexcept {
  return is_double ? fma_rate_of<double>(seconds) : fma_rate_of<float>(seconds);
}

double rounded_rate(double seconds) noexcept { return fma_rate_of<float>(seconds); }
double int8_rate(bool vnni, double seconds) noexcept {
  double rate = 0;
  visit_words(vnni, [&](auto words) { rate = word_rate<decltype(words)>(seconds, &clock_seconds); });
  return rate;
}

}  // namespace
}  // namespace fastae
