// Ops that make codes: what comes before an encoder, encoders with a selection, and numbers about codes.
#pragma once
#include "batch_topk.h"
#include "norm.h"

namespace fastae {
namespace {

template <class E> void run_centre(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_centre;
  const View<T> x = e.real(o.slot[at::s_x]), y = e.real(o.slot[at::s_y]);
  const T* b = e.real(o.slot[at::s_b]).p;
  const Vec<T> scale((T)f[at::f_scale]);
  const int64_t p = e.width(o.slot[at::s_y]);
  e.over_rows((double)p, [&](int64_t first, int64_t n) {
    for (int64_t r = first; r < first + n; ++r)
      over_row<T>(p, [&](int64_t j, int lanes) {
        Vec<T> v = scale * Vec<T>::load(x.at(r, j), lanes);
        if (b) v -= Vec<T>::load(b + j, lanes);
        v.store(y.at(r, j), lanes);
      });
  });
}

template <class E> void run_standardize(const E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_standardize;
  const View<T> x = e.real(o.slot[at::s_x]), y = e.real(o.slot[at::s_y]);
  const View<double> statistics = e.template view<double>(o.slot[at::s_statistics]);
  const int64_t p = e.width(o.slot[at::s_y]);
  e.over_rows((double)p * 16, [&](int64_t first, int64_t n) {
    for (int64_t r = first; r < first + n; ++r) {
      const T* row = x.at(r, 0);
      T* out = y.at(r, 0);
      const double mean = sum_of(p, [&](int64_t j) { return (double)row[j]; }) / (double)p;
      const double squares = sum_of(p, [&](int64_t j) {
        const double d = (double)row[j] - mean;
        return d * d;
      });
      const double spread = p > 1 ? __builtin_sqrt(squares / (double)(p - 1)) : 0;
      // a row whose squares overflow must not pass for zeros
      const double deviation = spread < 1e300 ? spread + f[0] : __builtin_nan("");
      if (statistics) {
        *statistics.at(r, 0) = mean;
        *statistics.at(r, 1) = deviation;
      }
      for (int64_t j = 0; j < p; ++j) out[j] = (T)(((double)row[j] - mean) / deviation);
    }
  });
}

template <class E> void run_exponential(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  const T* const x = e.real(o.slot[at_exponential::s_x]).p;
  T* const y = e.real(o.slot[at_exponential::s_y]).p;
  over_row<T>(e.width(o.slot[at_exponential::s_x]),
              [&](int64_t j, int lanes) { exp(Vec<T>::load(x + j, lanes)).store(y + j, lanes); });
}

template <class E> void run_restore(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_restore;
  const View<T> y = e.real(o.slot[at::s_y]), out = e.real(o.slot[at::s_out]);
  const View<double> statistics = e.template view<double>(o.slot[at::s_statistics]);
  const int64_t p = e.width(o.slot[at::s_out]);
  e.over_rows((double)p, [&](int64_t first, int64_t n) {
    for (int64_t r = first; r < first + n; ++r) {
      const double mean = *statistics.at(r, 0), deviation = *statistics.at(r, 1);
      for (int64_t j = 0; j < p; ++j) *out.at(r, j) = (T)((double)*y.at(r, j) * deviation + mean);
    }
  });
}

// packed: tiles of all latents, up to a multiple of 64, then their norms and errors (certify.h), then the same in 8-bit
// integers and in parts of these (byte_pack.h), each where this processor multiplies them.
template <class E> void run_pack_encoder(const E& e, const OpRecord& o) {
#ifdef FASTAE_BF16
  namespace at = at_pack_encoder;
  if constexpr (sizeof(typename E::Real) == 4) {
    const View<float> w = e.real(o.slot[at::s_w]);
    const BufferRecord& r = e.plan.buffers[o.slot[at::s_w]];
    const int64_t n = r.rows, p = r.columns, depth = whole_tiles(p), all = ceil_div(n, 64) * 64;
    uint16_t* tiles = e.template view<uint16_t>(o.slot[at::s_packed]).p;
    float* norm = (float*)(tiles + all * depth);
    if (e.plan.vnni && Bounds::possible(p)) {
      const BytePanels out(tiles, n, p);
      parallel(useful_threads(e.threads, (double)n * p), all / kByteLatents, [&](int64_t i) {
        const int64_t j = i * kByteLatents;
        quantize_latents(w.at(j, 0), w.ld, j, smaller(kByteLatents, n - j), p, o.i[at::i_bf16] == 1, out);
      });
    }
    if (e.plan.bf16_product == bf16_product::rounded) return;
    parallel(useful_threads(e.threads, (double)n * p), all / 16, [&](int64_t i) {
      const int64_t j = i * 16, some = larger(0, smaller(16, n - j));
      round_latents(some ? w.at(j, 0) : w.p, w.ld, nullptr, some, p, tiles + j * depth, norm + j, norm + all + j);
    });
  }
#endif
}

template <class E> int64_t present_k(const E& e, int64_t k, int64_t scalar) {
  if (scalar < 0) return k;
  return larger(0, smaller(k, (int64_t)e.job.scalars[e.step * e.plan.n_scalars + scalar]));
}

// What an op's record and the plan say; its memory needs no more.
template <class T> EncodeArgs<T> encode_sizes(const PlanRecord& plan, const OpRecord& o) {
  EncodeArgs<T> a = {};
  const bool batch = o.kind == op::batch_topk;
  const BufferRecord& w = plan.buffers[o.slot[1]];  // x and w come first in both
  a.how = plan.bf16_product;
  a.kind = batch ? (int)code_kind::threshold : (int)o.i[at_encode::i_kind];
  a.path = batch ? (int)encode_path::automatic : (int)o.i[at_encode::i_path];
  a.n = a.most_n = w.rows;
  a.p = w.columns;
  a.m = a.most_m = plan.batch;
  a.k = a.most_k = smaller(w.rows, batch ? o.i[at_batch_topk::i_k] : o.i[at_encode::i_k]);
  a.capacity = plan.buffers[o.slot[batch ? (int)at_batch_topk::s_val : (int)at_encode::s_val]].columns;
  a.bf16 = o.i[batch ? (int)at_batch_topk::i_bf16 : (int)at_encode::i_bf16] == 1;
  a.subsets = !batch && o.slot[at_encode::s_subset] >= 0;
#ifdef FASTAE_BF16
  a.eight = !batch && sizeof(T) == 4 && plan.vnni && !a.subsets && o.slot[at_encode::s_packed] >= 0 &&
            (a.path == encode_path::automatic || a.path == encode_path::int8);
#endif
  return a;
}

template <class T> int64_t rounded_bytes(const EncodeArgs<T>& a) {
  return a.bf16 ? ceil_div(a.most_m * a.p * (int64_t)sizeof(T), 64) * 64 : 0;
}

template <class T> int64_t encode_bytes(const PlanRecord& plan, const OpRecord& o) {
  const EncodeArgs<T> a = encode_sizes<T>(plan, o);
  return rounded_bytes(a) +
         (o.kind == op::batch_topk ? BatchTopK<T>(a, 0, 0, nullptr).bytes : Encoding<T>(a, nullptr).bytes);
}

// Rows of x as every way to make z takes them, rounded where it says so; returns the memory that is left.
template <class T> char* prepare_rows(EncodeArgs<T>& a, View<T> x, char* memory) {
  a.x = x;
  if constexpr (sizeof(T) == 4)
    if (a.bf16) {
      round_copy(x.p, x.ld, a.m, a.p, (T*)memory, a.threads);
      a.x = {(T*)memory, a.p};
    }
  return memory + rounded_bytes(a);
}

template <class E> void report_overflow(const E& e, int64_t column) {
  if (column >= 0) e.job.values[e.step * e.plan.n_values + column] = __builtin_inf();
}

// Names rows of the step's source that are not finite, where someone wants to know.
template <class E> void watch_rows(E& e, const View<int32_t>& count) {
  for (int64_t r = 0; e.watching && r < e.m; ++r)
    if (*count.at(r, 0) < 0) E::suspect(&e, r);
  e.watching = false;
}

template <class E> void run_encode(E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_encode;
  EncodeArgs<T> a = encode_sizes<T>(e.plan, o);
  a.w = e.real(o.slot[at::s_w]);
  a.b = e.real(o.slot[at::s_b]).p;
  a.threshold = e.real(o.slot[at::s_threshold]).p;
  a.single = a.threshold && e.width(o.slot[at::s_threshold]) == 1;
  a.margin = (T)f[at::f_margin];
  a.m = e.m;
  if (a.subsets) {
    a.subset = e.template view<int32_t>(o.slot[at::s_subset]).p;
    a.n = smaller(a.n, *e.template view<int32_t>(o.slot[at::s_n_subset]).p);
  }
  a.k = smaller(present_k(e, a.most_k, o.i[at::i_k_scalar]), a.n);
  a.packed = e.template view<uint16_t>(o.slot[at::s_packed]).p;
  a.val = e.real(o.slot[at::s_val]);
  a.pre = e.real(o.slot[at::s_pre]);
  a.idx = e.template view<int32_t>(o.slot[at::s_idx]);
  a.count = e.template view<int32_t>(o.slot[at::s_count]);
  a.threads = e.threads;
  char* const memory = prepare_rows(a, e.real(o.slot[at::s_x]), e.codes);
  if (!Encoding<T>(a, memory).run()) report_overflow(e, o.i[at::i_overflow]);
  watch_rows(e, a.count);
}

template <class E> void run_batch_topk(E& e, const OpRecord& o, const double* f) {
  typedef typename E::Real T;
  namespace at = at_batch_topk;
  EncodeArgs<T> a = encode_sizes<T>(e.plan, o);
  a.w = e.real(o.slot[at::s_w]);
  a.b = e.real(o.slot[at::s_b]).p;
  a.m = e.m;
  a.val = e.real(o.slot[at::s_val]);
  a.idx = e.template view<int32_t>(o.slot[at::s_idx]);
  a.count = e.template view<int32_t>(o.slot[at::s_count]);
  a.threads = e.threads;
  char* const memory = prepare_rows(a, e.real(o.slot[at::s_x]), e.codes);
  double k = (double)o.i[at::i_k];
  if (o.i[at::i_k_scalar] >= 0) {
    const double now = e.job.scalars[e.step * e.plan.n_scalars + o.i[at::i_k_scalar]];
    k = now < k ? now : k;
  }
  const double all = (double)a.m * (double)a.n, product = k * (double)a.m;
  BatchTopK<T> batch(a, (int64_t)(product < all ? product : all), k, memory);
  T* guess = e.real(o.slot[at::s_guess]).p;
  T* threshold = e.real(o.slot[at::s_threshold]).p;
  bool fits;
  const T least = batch.run(guess ? *guess : T(0), &fits);
  if (!fits) report_overflow(e, o.i[at::i_overflow]);
  if (!(least > 0)) return;
  if (guess) *guess = least;
  if (!threshold) return;
  double decay = f[at::f_decay];
  if (o.i[at::i_decay_scalar] >= 0) {
    const double now = e.job.scalars[e.step * e.plan.n_scalars + o.i[at::i_decay_scalar]];
    decay = now < decay ? now : decay;
  }
  const double old = (double)*threshold;
  *threshold = old < 0 ? least : (T)(decay * old + (1 - decay) * (double)least);
}

template <class E> void run_narrow(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_narrow;
  const View<T> val = e.real(o.slot[at::s_val]), out = e.real(o.slot[at::s_val_out]);
  const View<int32_t> idx = e.template view<int32_t>(o.slot[at::s_idx]),
                      to = e.template view<int32_t>(o.slot[at::s_idx_out]);
  const View<int32_t> count = e.template view<int32_t>(o.slot[at::s_count]);
  const View<int32_t> count_out = e.template view<int32_t>(o.slot[at::s_count_out]);
  const int64_t k = present_k(e, o.i[at::i_k], o.i[at::i_k_scalar]), width = e.width(o.slot[at::s_val]);
  const bool magnitude = o.i[at::i_magnitude] != 0;
  e.over_rows((double)width * 16, [&](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r) {
      const int64_t n = smaller(width, larger(0, *count.at(r, 0))), some = smaller(k, n);
      *count_out.at(r, 0) = *count.at(r, 0) < 0 ? *count.at(r, 0) : (int32_t)some;
      if (some == 0) continue;
      const T kth = kth_largest(val.at(r, 0), n, some, -kInfinity<T>, magnitude);
      int64_t at_out = 0;
      each_of_largest(val.at(r, 0), n, some, kth, magnitude, [&](int64_t i) {
        *out.at(r, at_out) = *val.at(r, i);
        *to.at(r, at_out++) = *idx.at(r, i);
      });
    }
  });
}

template <class E> void run_code_statistics(const E& e, const OpRecord& o) {
  typedef typename E::Real T;
  namespace at = at_code_statistics;
  const View<T> val = e.real(o.slot[at::s_val]);
  const View<int32_t> count = e.template view<int32_t>(o.slot[at::s_count]);
  const int64_t segments = e.width(o.slot[at::s_count]), width = e.width(o.slot[at::s_val]) / segments;
  int64_t active = 0;
  for (int64_t r = 0; r < e.m; ++r)
    for (int64_t q = 0; q < segments; ++q) {
      const int64_t n = smaller(width, *count.at(r, q));
      for (int64_t i = 0; i < n; ++i) active += *val.at(r, q * width + i) != 0;
    }
  e.add_value(o.i[at::i_value], (double)active / (double)e.m);
}

}  // namespace
}  // namespace fastae
