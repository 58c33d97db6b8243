// Codes by latents: entries in the order of their latents, and sums over each latent's entries, in the order of
// latent.h and run_latents.h. No atomics decide an order: blocks of rows count their entries apart, and place them one
// segment of a row after another.
#pragma once
#include "cuda/sparse.cuh"

namespace fastae {

constexpr int64_t kChunk = 256;       // most entries of a chain of a weight's gradient
constexpr int64_t kLatentBlock = 64;  // latents of a chain of a sum over latents

// The sum of the numbers of the threads before this one, and of all of them, in a block of up to 32 whole warps.
FASTAE_INLINE int64_t block_prefix(int64_t x, int64_t* total) {
  __shared__ int64_t part[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int64_t sum = x;
  for (int h = 1; h < 32; h *= 2) {
    const int64_t other = __shfl_up_sync(0xffffffffu, sum, h);
    if (lane >= h) sum += other;
  }
  __syncthreads();
  if (lane == 31) part[warp] = sum;
  __syncthreads();
  int64_t before = 0, all = 0;
  for (int i = 0; i < warps; ++i) {
    before += i < warp ? part[i] : 0;
    all += part[i];
  }
  *total = all;
  return before + sum - x;
}

// In place: each of n numbers becomes the sum of those before it. One block.
FASTAE_INLINE int64_t prefix_in_place(int64_t* v, int64_t n) {
  int64_t sum = 0;
  for (int64_t first = 0; first < n; first += blockDim.x) {
    const int64_t i = first + threadIdx.x;
    int64_t all;
    const int64_t before = block_prefix(i < n ? v[i] : 0, &all);
    if (i < n) v[i] = sum + before;
    sum += all;
  }
  return sum;
}

// ---- by_latent ---------------------------------------------------------------------------------------------------------
// extra[0]: blocks of rows. work: sums of runs of kThreads latents (int64), then each block's counts (blocks, n) int32.
struct LatentLists {
  View<const int32_t> idx;
  Entries entries;
  int64_t *start, *entry, n, blocks, runs;
  int64_t* run;
  int32_t* counts;
  FASTAE_INLINE explicit LatentLists(const Launch& o)
      : idx(o.view<const int32_t>(at_by_latent::s_idx)),
        entries(o, at_by_latent::s_count, idx.columns),
        start(o.view<int64_t>(at_by_latent::s_start).p),
        entry(o.view<int64_t>(at_by_latent::s_entry).p),
        n(o.slot[at_by_latent::s_start].columns - 1),
        blocks(o.extra[0]),
        runs(ceil_div(n, kThreads)),
        run((int64_t*)o.work),
        counts((int32_t*)(run + runs)) {}
  FASTAE_INLINE int64_t block_of(int64_t r, int64_t m) const { return r / ceil_div(m, blocks); }
};

FASTAE_KERNEL(by_latent_clear, kThreads) {
  const LatentLists l(o);
  each(l.blocks * l.n, [&](int64_t i) { l.counts[i] = 0; });
}

FASTAE_KERNEL(by_latent_count, kThreads) {
  const LatentLists l(o);
  each_entry(o.m, l.entries,
             [&](int64_t r, int64_t c) { atomicAdd(l.counts + l.block_of(r, o.m) * l.n + l.idx(r, c), 1); });
}

// A block's counts become those of the blocks before it; start a latent's own, run the sum of kThreads latents'.
FASTAE_KERNEL(by_latent_sum, kThreads) {
  constexpr int kAhead = 16;  // counts that are on their way at a time
  const LatentLists l(o);
  for (int64_t i = blockIdx.x; i < l.runs; i += gridDim.x) {
    const int64_t j = i * kThreads + threadIdx.x;
    int32_t sum = 0;
    for (int64_t b0 = 0; j < l.n && b0 < l.blocks; b0 += kAhead) {
      int32_t here[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) here[k] = b0 + k < l.blocks ? l.counts[(b0 + k) * l.n + j] : 0;
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (b0 + k < l.blocks) l.counts[(b0 + k) * l.n + j] = sum;
        sum += here[k];
      }
    }
    int64_t all;
    block_prefix(sum, &all);
    if (j < l.n) l.start[j] = sum;
    if (threadIdx.x == 0) l.run[i] = all;
  }
}

FASTAE_KERNEL(by_latent_runs, 1024) {
  const LatentLists l(o);
  const int64_t sum = prefix_in_place(l.run, l.runs);
  if (threadIdx.x == 0) l.start[l.n] = sum;
}

FASTAE_KERNEL(by_latent_start, kThreads) {
  const LatentLists l(o);
  for (int64_t i = blockIdx.x; i < l.runs; i += gridDim.x) {
    const int64_t j = i * kThreads + threadIdx.x;
    int64_t all;
    const int64_t before = block_prefix(j < l.n ? l.start[j] : 0, &all);
    if (j < l.n) l.start[j] = l.run[i] + before;
  }
}

// A block of threads takes a block of rows, segment by segment: within one, latents are different as a rule, and where
// a caller's are not, an entry looks for those before it.
FASTAE_KERNEL(by_latent_place, kThreads) {
  const LatentLists l(o);
  __shared__ int repeated;
  const int64_t rows = ceil_div(o.m, l.blocks), width = l.idx.columns;
  for (int64_t b = blockIdx.x; b < l.blocks; b += gridDim.x) {
    int32_t* const cursor = l.counts + b * l.n;
    for (int64_t r = b * rows; r < smaller(o.m, (b + 1) * rows); ++r)
      for (int64_t q = 0; q < l.entries.segments; ++q) {
        const int64_t n = l.entries.of(r, q), place = q * l.entries.capacity;
        const int32_t* const at = l.idx.at(r, place);
        if (threadIdx.x == 0) repeated = 0;
        __syncthreads();
        for (int64_t i = threadIdx.x + 1; i < n; i += blockDim.x)
          if (at[i] <= at[i - 1]) repeated = 1;
        __syncthreads();
        const bool look = repeated != 0;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
          int32_t before = 0;
          for (int64_t k = 0; look && k < i; ++k) before += at[k] == at[i];
          l.entry[l.start[at[i]] + cursor[at[i]] + before] = r * width + place + i;
        }
        __syncthreads();
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
          if (look) atomicAdd(cursor + at[i], 1);
          else ++cursor[at[i]];
        }
        __syncthreads();
      }
  }
}

// ---- dead: latents in ascending order --------------------------------------------------------------------------------

FASTAE_KERNEL(dead_count, kThreads) {
  const View<const int64_t> since = o.view<const int64_t>(at_dead::s_since);
  int64_t* const run = (int64_t*)o.work;
  for (int64_t i = blockIdx.x; i < ceil_div(since.columns, kThreads); i += gridDim.x) {
    const int64_t j = i * kThreads + threadIdx.x;
    int64_t all;
    block_prefix(j < since.columns && since.p[j] >= o.i[at_dead::i_limit], &all);
    if (threadIdx.x == 0) run[i] = all;
  }
}
FASTAE_KERNEL(dead_runs, 1024) {
  const int64_t sum = prefix_in_place((int64_t*)o.work, ceil_div(o.slot[at_dead::s_since].columns, kThreads));
  if (threadIdx.x == 0) *o.view<int32_t>(at_dead::s_n_dead).p = (int32_t)sum;
}
FASTAE_KERNEL(dead_list, kThreads) {
  const View<const int64_t> since = o.view<const int64_t>(at_dead::s_since);
  const int64_t* const run = (const int64_t*)o.work;
  for (int64_t i = blockIdx.x; i < ceil_div(since.columns, kThreads); i += gridDim.x) {
    const int64_t j = i * kThreads + threadIdx.x;
    const bool dead = j < since.columns && since.p[j] >= o.i[at_dead::i_limit];
    int64_t all;
    const int64_t before = block_prefix(dead, &all);
    if (dead) o.view<int32_t>(at_dead::s_list).p[run[i] + before] = (int32_t)j;
  }
}

// ---- sums over each latent's entries -----------------------------------------------------------------------------------

struct Listed {
  View<const T> coef;
  const int64_t *start, *entry;
  FASTAE_INLINE Listed(const Launch& o, int coef_slot, int start_slot, int entry_slot)
      : coef(o.view<const T>(coef_slot)),
        start(o.view<const int64_t>(start_slot).p),
        entry(o.view<const int64_t>(entry_slot).p) {}
  FASTAE_INLINE T at(int64_t e) const {
    const int64_t place = entry[e];
    return coef.ld == coef.columns ? coef.p[place] : coef(place / coef.columns, place % coef.columns);
  }

  // sum of f(coefficient) in the order of the entries, on a warp: numbers are fetched side by side
  template <class F> FASTAE_INLINE double sum(int64_t j, const F& f) const {
    const int lane = threadIdx.x % 32;
    const int64_t last = start[j + 1];
    double sum = 0;
    for (int64_t first = start[j]; first < last; first += 32) {
      const double mine = first + lane < last ? f((double)at(first + lane)) : 0;
      const int some = (int)smaller<int64_t>(32, last - first);
      for (int i = 0; i < some; ++i) sum += __shfl_sync(0xffffffffu, mine, i);
    }
    return sum;
  }
};

// f(latent) on a warp for each of n
template <class F> FASTAE_INLINE void each_latent(int64_t n, const F& f) {
  const int64_t warps = blockDim.x / 32;
  for (int64_t j = blockIdx.x * warps + threadIdx.x / 32; j < n; j += gridDim.x * warps) f(j);
}

FASTAE_KERNEL(latent_grad_bias, kThreads) {
  namespace at = at_latent_grad;
  const Listed code(o, at::s_coef, at::s_start, at::s_entry);
  const View<T> db = o.real(at::s_db);
  each_latent(db.columns, [&](int64_t j) {
    const double sum = code.sum(j, [](double c) { return c; });
    if (threadIdx.x % 32 == 0) db.p[j] = (T)sum;
  });
}

FASTAE_KERNEL(latent_sum, kThreads) {
  namespace at = at_latent_sum;
  const Listed code(o, at::s_coef, at::s_start, at::s_entry);
  const View<T> out = o.real(at::s_sum);
  each_latent(out.columns, [&](int64_t j) {
    const double sum = code.sum(j, [](double c) { return c; });
    if (threadIdx.x % 32 == 0) out.p[j] = (T)(o.i[at::i_add] ? (double)out.p[j] + sum : sum);
  });
}

// 1 - tanh(x)^2
FASTAE_INLINE double falling(double x) {
  const double h = tanh(Vec<double>(x)).v;
  return 1 - h * h;
}

FASTAE_KERNEL(norm_factor, kThreads, 1) {
  namespace at = at_norm_factor;
  const Listed code(o, at::s_val, at::s_start, at::s_entry);
  const View<T> w = o.real(at::s_w);
  double* const factor = o.view<double>(at::s_factor).p;
  const int64_t n = w.rows, spaces = larger<int64_t>(1, o.i[at::i_spaces]), p = w.columns / spaces;
  const double s = strength_of(o, o.f[at::f_strength], o.i[at::i_scalar]) / (double)o.m, p0 = o.f[at::f_p0];
  const auto norm_of = [&](int64_t j, int64_t q) { return ::sqrt(square_of(w.at(j, q * p), p, threadIdx.x % kLanes)); };
  each_latent(n, [&](int64_t j) {
    double slope = 0, total;  // slope: of tanh, in val
    if (p0 > 0) {
      for (int64_t q = 0; code.start[j] < code.start[j + 1] && q < spaces; ++q) slope += p0 * norm_of(j, q);
      total = code.sum(j, [&](double v) { return v <= 0 ? 0.0 : p0 * v * falling(slope * v); });
    } else {
      total = code.sum(j, [](double v) { return v > 0 ? v : 0.0; });
    }
    for (int64_t q = 0; q < spaces; ++q) {
      const double norm = total > 0 ? norm_of(j, q) : 0;
      if (threadIdx.x % 32 == 0) factor[q * n + j] = norm > 0 ? s * total / norm : 0;
    }
  });
}

}  // namespace fastae
