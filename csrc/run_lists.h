// Lists of a code's entries by latent, and sums over them.
#pragma once
#include "full_latent.h"
#include "run_codes.h"

namespace fastae {
namespace {

// Of a full code only the starts are made, as what follows goes by rows; entry[0] says so.
constexpr int64_t kUnlisted = -1;

template <class E> FullCode code_of(const E& e, const OpRecord& o) {
  namespace at = at_by_latent;
  return {e.template view<const int32_t>(o.slot[at::s_idx]),
          entries_of(e, o.slot[at::s_count], e.width(o.slot[at::s_idx])), e.m};
}

template <class E> void make_list(const E& e, const OpRecord& o) {
  namespace at = at_by_latent;
  const FullCode code = code_of(e, o);
  list_by_latent(code.idx, code.entries, e.m, e.width(o.slot[at::s_start]) - 1,
                 e.template view<int64_t>(o.slot[at::s_start]).p, e.template view<int64_t>(o.slot[at::s_entry]).p);
}

// Features of the weights whose gradients go by a list, where the list is this plan's own and starts are enough; else 0.
FASTAE_INLINE int64_t full_width(const PlanRecord& plan, int64_t entry) {
  if (plan.buffers[entry].space != space::arena) return 0;
  int64_t p = 0;
  for (int64_t i = 0; i < plan.n_ops; ++i) {
    const OpRecord& o = plan.ops[i];
    if (o.kind != op::latent_grad || o.slot[at_latent_grad::s_entry] != entry) continue;
    if (o.slot[at_latent_grad::s_groups] >= 0 || o.slot[at_latent_grad::s_db] >= 0) return 0;
    p = larger(p, plan.buffers[o.slot[at_latent_grad::s_w]].columns);
  }
  return p;
}

template <class E> void run_by_latent(const E& e, const OpRecord& o) {
  namespace at = at_by_latent;
  const int64_t n = e.width(o.slot[at::s_start]) - 1, entry = o.slot[at::s_entry], p = full_width(e.plan, entry);
  const FullCode code = code_of(e, o);
  int64_t* const first = e.template view<int64_t>(entry).p;
  const bool full = p && full_code(code.idx, code.entries, e.m, n, p);
  if (p) *first = full ? kUnlisted : 0;
  if (full) count_by_latent(code.idx, code.entries, e.m, n, e.template view<int64_t>(o.slot[at::s_start]).p);
  else make_list(e, o);
}

FASTAE_INLINE const OpRecord* maker_of(const PlanRecord& plan, int64_t entry) {
  for (int64_t i = 0; i < plan.n_ops; ++i)
    if (plan.ops[i].kind == op::by_latent && plan.ops[i].slot[at_by_latent::s_entry] == entry) return plan.ops + i;
  return nullptr;
}

// The record that made a list, where it made only the starts; null where the list is whole.
template <class E> const OpRecord* unlisted(const E& e, int64_t entry) {
  if (!full_width(e.plan, entry) || *e.template view<int64_t>(entry).p != kUnlisted) return nullptr;
  return maker_of(e.plan, entry);
}

template <class E, class T = typename E::Real>
Listed<T> listed(const E& e, int64_t coef, int64_t start, int64_t entry) {
  return {e.template view<const T>(coef), e.width(coef), e.template view<const int64_t>(start).p,
          e.template view<const int64_t>(entry).p};
}

// f(first, count, thread) over blocks of the latents; work: multiply-adds
template <class E, class F> void over_latents(const E& e, int64_t n, double work, bool fixed, const F& f) {
  const int t = useful_threads(e.threads, work);
  const int64_t run = fixed ? kLatentBlock : larger(1, smaller(kLatentBlock, n / (4 * t)));
  parallel_on(t, ceil_div(n, run),
              [&](int64_t task, int thread) { f(task * run, smaller(run, n - task * run), thread); });
}

// each(j, sum over latent j's entries of f(coefficient))
template <class E, class T, class F, class G>
void sums_by_latent(const E& e, const Listed<T>& code, int64_t entry, int64_t n, const F& f, const G& each) {
  if (const OpRecord* const maker = unlisted(e, entry)) {
    const FullCode full = code_of(e, *maker);
    const int t = useful_threads(e.threads, (double)code.start[n] * 8);
    const int64_t run = ceil_div(n, t);
    double* const sum = (double*)e.codes;
    parallel(t, ceil_div(n, run), [&](int64_t task) {
      sums_by_row(code, full, task * run, smaller(n, (task + 1) * run), sum, f);
      for (int64_t j = task * run; j < smaller(n, (task + 1) * run); ++j) each(j, sum[j]);
    });
    return;
  }
  over_latents(e, n, (double)code.start[n] * 8, false, [&](int64_t first, int64_t count, int) {
    for (int64_t j = first; j < first + count; ++j) each(j, code.sum(j, f));
  });
}

}  // namespace
}  // namespace fastae
