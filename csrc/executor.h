// One step of a plan: its ops one after another, each cut over the pool's threads.
#pragma once
#include <optional>

#include "run_encoding.h"
#include "run_losses.h"
#include "run_regularisers.h"
#include "run_structure.h"
#include "workspace.h"

namespace fastae {
namespace {

template <class T> struct Executor {
  typedef T Real;
  const PlanRecord& plan;
  const JobRecord& job;
  int threads;
  char* arena;  // for buffers that are not prepared once
  T* packing;
  double* sums;
  char* codes;
  int64_t step = 0, start = 0, m = 0;
  const OpRecord* fused_update = nullptr;  // the rule that gradients marked as fused are given to at once
  bool near = false;  // all parameters, states and gradients stay in cache: one pass at the end beats many
  // a gathered buffer that is read where it lies
  int64_t alias = -1;
  View<T> alias_view = {nullptr, 0};
  // whether the step's first product is still to come, and a row of the source was found that is not finite
  bool watching = false;
  int not_finite = 0;

  Executor(const PlanRecord& p, const JobRecord& j, int n_threads, char* own_arena, char* work)
      : plan(p), job(j), threads(n_threads), arena(own_arena) {
    const Workspace<T> size(p, j.threads);
    packing = (T*)work;
    sums = (double*)(work + on_line(size.packing * (int64_t)sizeof(T)));
    codes = (char*)sums + on_line(size.sums * 8);
    constexpr int64_t both = phase::gradient | phase::update;
    for (int64_t i = 0; i < plan.n_ops && (job.phases & both) == both; ++i)
      if (plan.ops[i].kind == op::update) fused_update = plan.ops + i;
    near = fused_update && count(fused_update->slot[at_update::s_w]) < kNear;
  }

  bool fused(const OpRecord& o) const {
    return fused_update && ((o.kind == op::dense_grad && o.i[at_dense_grad::i_fused] && !near) ||
                            (o.kind == op::latent_grad && o.i[at_latent_grad::i_fused]));
  }
  static int64_t fused_weights(const OpRecord& o) {
    return o.kind == op::dense_grad ? o.slot[at_dense_grad::s_w] : o.slot[at_latent_grad::s_w];
  }

  // The projection of a latent_grad's fused weights to unit rows, which goes with the update; null without one.
  const OpRecord* unit_projection(int64_t w) const {
    const OpRecord* const end = plan.ops + plan.n_ops;
    const auto of_w = [&](const OpRecord& o) { return o.kind == op::latent_grad && fused(o) && fused_weights(o) == w; };
    const OpRecord* o = plan.ops;
    while (o < end && !of_w(*o)) ++o;
    if (o == end) return nullptr;
    while (o < end && !(o->kind == op::project && o->slot[at_project::s_w] == w)) ++o;
    return o < end && o->i[at_project::i_kind] == project_kind::unit ? o : nullptr;
  }

  // Whether ops i, i + 1, i + 2 are done by rows.
  bool by_rows(int64_t i) const { return i >= 0 && i + 2 < plan.n_ops && row_by_row(plan.ops + i); }

  // Whether op i is done on the way by the latent_grad behind it, which reads the same weights.
  bool joined(int64_t i) const {
    if (i < 0 || i + 1 >= plan.n_ops || plan.ops[i].kind != op::pre_bias_grad) return false;
    const OpRecord &o = plan.ops[i], &next = plan.ops[i + 1];
    return next.kind == op::latent_grad && fused(next) && o.phase == next.phase &&
           o.slot[at_pre_bias_grad::s_w] == next.slot[at_latent_grad::s_w] &&
           o.slot[at_pre_bias_grad::s_db] != next.slot[at_latent_grad::s_db];
  }

  int64_t width(int64_t b) const { return plan.buffers[b].columns; }

  template <class U> View<U> view(int64_t b) const {
    if (b < 0) return {nullptr, 0};
    if (b == alias) return {(U*)alias_view.p, alias_view.ld};
    const BufferRecord& r = plan.buffers[b];
    if (r.parent >= 0) {
      const View<U> whole = view<U>(r.parent);
      return {whole.p + r.first, whole.ld};
    }
    if (r.space >= space::external) {
      const int64_t ld = job.strides[r.space] ? job.strides[r.space] : r.columns;
      return {(U*)job.spaces[r.space] + (r.rows < 0 ? start * ld : 0), ld};
    }
    char* base = r.space == space::arena && !r.prepared ? arena : (char*)job.spaces[r.space];
    return {(U*)(base + r.offset), r.columns};
  }
  View<T> real(int64_t b) const { return view<T>(b); }
  const int64_t* ids(int64_t b) const { return view<int64_t>(b).p; }

  // The record's formula where it was registered at run time; the binding made sure that it is there.
  const FormulaRecord* registered(const OpRecord& o) const {
    const int64_t id = formula_id(o);
    if (id < kFirstRegistered) return nullptr;
    const FormulaRecord* f = plan.formulas;
    while (f->id != id) ++f;
    return f;
  }

  // f(first, count) over blocks of the batch's rows; cost: elements' worth of work a row
  template <class F> void over_rows(double cost, const F& f) const {
    const int t = useful_threads(threads, (double)m * cost);
    const int64_t run = t > 1 ? larger(1, ceil_div(m, 4 * t)) : larger(m, 1);
    parallel(t, ceil_div(m, run), [&](int64_t i) { f(i * run, smaller(run, m - i * run)); });
  }

  void gather(const OpRecord& o) {
    namespace at = at_gather;
    const SourceRecord& s = job.sources[o.i[at::i_source]];
    const int64_t b = o.slot[at::s_x];
    if (o.slot[at::s_rows] >= 0) {
      int64_t* id = view<int64_t>(o.slot[at::s_rows]).p;
      for (int64_t r = 0; r < m; ++r) id[r] = job.first_row + (job.order ? job.order[start + r] : start + r);
    }
    if (o.slot[at::s_weight] >= 0) {
      T* weight = real(o.slot[at::s_weight]).p;
      for (int64_t r = 0; r < m; ++r)
        weight[r] = s.weight ? (T)s.weight[job.order ? job.order[start + r] : start + r] : T(1);
    }
    // one buffer at most: a second gather is copied
    if (alias < 0 && !job.order && !s.indptr && s.dtype == (sizeof(T) == 8 ? source_dtype::f64 : source_dtype::f32) &&
        plan.buffers[b].space == space::arena) {
      alias = b;
      alias_view = {(T*)s.data + start * s.row_stride, s.row_stride};
      return;
    }
    const View<T> x = real(b);
    // rows of a permutation lie far apart: those to come are fetched, the next batch's too
    const int64_t ahead = larger(2, smaller(16, 2048 / larger(s.columns, 1)));
    over_rows((double)s.columns * 2, [&](int64_t first, int64_t n) {
      for (int64_t r = first; r < first + n; ++r) {
        if (job.order && !s.indptr && start + r + ahead < job.n_rows) fetch_row(s, job.order[start + r + ahead]);
        read_row(s, job.order ? job.order[start + r] : start + r, x.at(r, 0));
      }
    });
  }

  void noise(const OpRecord& o, const double* f) {
    namespace at = at_noise;
    const Noise<T> noise = {(int)o.i[at::i_kind], {job.seed, job.epoch}, (uint32_t)o.i[at::i_stream], f[at::f_amount],
                            (T)f[at::f_low],      (T)f[at::f_high],      ids(o.slot[at::s_rows]),     m};
    const View<T> in = real(o.slot[at::s_x]), y = real(o.slot[at::s_y]);
    const View<const T> x = {in.p, in.ld};
    over_rows((double)width(o.slot[at::s_x]) * 16, [&](int64_t first, int64_t n) {
      for (int64_t r = first; r < first + n; ++r) noise(x, y, r, width(o.slot[at::s_x]));
    });
  }

  std::optional<Dropout<T>> dropped(int64_t stream, double rate, int64_t rows) const {
    if (rate > 0) return Dropout<T>({job.seed, job.epoch}, stream, rate, ids(rows));
    return std::nullopt;
  }

  void dropout(const OpRecord& o, const double* f) {
    namespace at = at_dropout;
    const View<T> x = real(o.slot[at::s_x]), y = real(o.slot[at::s_y]);
    const Dropout<T> drop({job.seed, job.epoch}, o.i[at::i_stream], f[at::f_rate], ids(o.slot[at::s_rows]));
    const DenseEpilogue<T> finish = {x, {nullptr, 0}, y, nullptr, 0, {0, 0}, &drop};
    finish_rows(finish, o.slot[at::s_y]);
  }

  // c (m,columns) = a (m,depth) * w, or wT
  template <class F>
  void product(int64_t bf16, View<T> a, View<T> w, bool transposed, const T* packed, int64_t columns, int64_t depth,
               View<T> c, const F& finish) const {
    if constexpr (sizeof(T) == 4) {
      if (bf16)
        return multiply_bf16(plan.bf16_product, a.p, a.ld, w.p, w.ld, transposed, packed, m, columns, depth, c.p, c.ld,
                             threads, packing, finish);
    }
    multiply(a.p, a.ld, w.p, w.ld, transposed, packed, m, columns, depth, c.p, c.ld, threads, packing, finish);
  }

  void pack(const OpRecord& o) {
    namespace at = at_pack;
    const View<T> w = real(o.slot[at::s_w]);
    const BufferRecord& r = plan.buffers[o.slot[at::s_w]];
    const bool shared = o.i[at::i_transposed] != 0;
    const int64_t n = shared ? r.columns : r.rows, k = shared ? r.rows : r.columns;
    T* packed = real(o.slot[at::s_packed]).p;
    if constexpr (sizeof(T) == 4) {
      if (o.i[at::i_bf16]) return pack_bf16(plan.bf16_product, w.p, w.ld, n, k, !shared, threads, packed);
    }
    pack_panels(w.p, w.ld, n, k, !shared, 0, panel_count<T>(n), threads, packed);
  }

  void dense(const OpRecord& o, const double* f) {
    namespace at = at_dense;
    const View<T> x = real(o.slot[at::s_x]), w = real(o.slot[at::s_w]), y = real(o.slot[at::s_y]);
    const int64_t n = width(o.slot[at::s_y]), k = width(o.slot[at::s_x]);
    const auto drop = dropped(o.i[at::i_stream], f[at::f_rate], o.slot[at::s_rows]);
    const Watch watch = {&Executor::suspect, this};
    const DenseEpilogue<T> finish = {y,
                                     real(o.slot[at::s_z]),
                                     y,
                                     real(o.slot[at::s_b]).p,
                                     (int)o.i[at::i_activation],
                                     {(T)f[at::f_p0], (T)f[at::f_p1]},
                                     drop ? &*drop : nullptr,
                                     registered(o),
                                     watching ? &watch : nullptr};
    watching = false;
    product(o.i[at::i_bf16], x, w, !o.i[at::i_transposed], real(o.slot[at::s_packed]).p, n, k, y, finish);
  }

  void activation(const OpRecord& o, const double* f) {
    namespace at = at_activation;
    const View<T> x = real(o.slot[at::s_x]), y = real(o.slot[at::s_y]);
    const T p[2] = {(T)f[at::f_p0], (T)f[at::f_p1]};
    finish_rows(
        DenseEpilogue<T>{x, {nullptr, 0}, y, nullptr, (int)o.i[at::i_activation], {p[0], p[1]}, nullptr, registered(o)},
        o.slot[at::s_y]);
  }

  // An epilogue, whose result is the buffer y, on rows that no product made. What a caller gets and no cache keeps is
  // written past the caches; the next op of a plan would read it at once.
  void finish_rows(const DenseEpilogue<T>& finish, int64_t y) const {
    const int64_t n = width(y);
    const bool stream = plan.buffers[y].space >= space::external && finish.c.p != finish.y.p && !finish.formula &&
                        m * n * (int64_t)sizeof(T) >= kStreamBytes &&
                        (uintptr_t)finish.y.p % sizeof(T) == 0;  // a caller's array may lie anywhere
    over_rows((double)n * 8, [&](int64_t first, int64_t count) {
      if (stream) finish.stream(first, count, n);
      else finish(first, count, 0, n);
    });
  }

  void activation_grad(const OpRecord& o, const double* f) {
    namespace at = at_activation_grad;
    const auto drop = dropped(o.i[at::i_stream], f[at::f_rate], o.slot[at::s_rows]);
    const GradEpilogue<T> finish = {
        real(o.slot[at::s_dy]),           real(o.slot[at::s_saved]), real(o.slot[at::s_dz]), (int)o.i[at::i_activation],
        {(T)f[at::f_p0], (T)f[at::f_p1]}, drop ? &*drop : nullptr,   registered(o)};
    over_rows((double)width(o.slot[at::s_dy]) * 8,
              [&](int64_t first, int64_t n) { finish(first, n, 0, width(o.slot[at::s_dy])); });
  }

  void softmax(const OpRecord& o) {
    namespace at = at_softmax;
    const View<T> z = real(o.slot[at::s_z]), y = real(o.slot[at::s_y]);
    over_rows((double)width(o.slot[at::s_z]) * 16, [&](int64_t first, int64_t n) {
      for (int64_t r = first; r < first + n; ++r) softmax_row(z.at(r, 0), y.at(r, 0), width(o.slot[at::s_z]));
    });
  }

  void softmax_grad(const OpRecord& o) {
    namespace at = at_softmax_grad;
    const View<T> dy = real(o.slot[at::s_dy]), y = real(o.slot[at::s_y]), dz = real(o.slot[at::s_dz]);
    over_rows((double)width(o.slot[at::s_dy]) * 4, [&](int64_t first, int64_t n) {
      for (int64_t r = first; r < first + n; ++r)
        softmax_grad_row(dy.at(r, 0), y.at(r, 0), dz.at(r, 0), width(o.slot[at::s_dy]));
    });
  }

  void add_value(int64_t column, double value) const {
    if (column >= 0) job.values[step * plan.n_values + column] += value;
  }

  void dense_grad(const OpRecord& o, const double* f) {
    namespace at = at_dense_grad;
    const View<T> dz = real(o.slot[at::s_dz]), x = real(o.slot[at::s_x]), dx = real(o.slot[at::s_dx]);
    const int64_t n = width(o.slot[at::s_dz]), k = width(o.slot[at::s_x]);
    T* dw = real(o.slot[at::s_dw]).p;
    T* db = real(o.slot[at::s_db]).p;
    const bool shared = o.i[at::i_transposed] != 0, add = o.i[at::i_add] != 0, add_bias = o.i[at::i_add_bias] != 0;
    if (dx) {  // first: a fused update changes w
      const View<T> w = real(o.slot[at::s_w]);
      const auto drop = dropped(o.i[at::i_stream], f[at::f_rate], o.slot[at::s_rows]);
      const GradEpilogue<T> finish = {dx,
                                      real(o.slot[at::s_saved]),
                                      dx,
                                      (int)o.i[at::i_activation],
                                      {(T)f[at::f_p0], (T)f[at::f_p1]},
                                      drop ? &*drop : nullptr,
                                      registered(o)};
      product(o.i[at::i_bf16], dz, w, shared, nullptr, k, n, dx, finish);
    }
    Update<T> rule;
    const bool at_once = fused(o);
    if (at_once) rule = update_of(*fused_update, plan.buffers[o.slot[at::s_w]]);
    const GradientUse<T> take = {&rule, &Update<T>::expect, &Update<T>::take}, *use = at_once ? &take : nullptr;
    if (o.i[at::i_bf16]) {
      const View<T> a = shared ? x : dz, b = shared ? dz : x;
      const bool together = dw && !shared;  // dz is the operand that sums are made of on the way
      if constexpr (sizeof(T) == 4) {
        if (dw)
          weight_gradient_bf16(plan.bf16_product, a.p, a.ld, b.p, b.ld, m, shared ? k : n, shared ? n : k, dw,
                               together ? db : nullptr, threads, packing, add, add_bias, use);
      }
      if (db && !together) bias_gradient(dz.p, dz.ld, m, n, db, threads, add_bias);
    } else if (shared) {
      if (dw) weight_gradient(x.p, x.ld, dz.p, dz.ld, m, k, n, dw, (T*)nullptr, threads, packing, add);
      if (db) bias_gradient(dz.p, dz.ld, m, n, db, threads, add_bias);
    } else if (dw || db) {
      weight_gradient(dz.p, dz.ld, x.p, x.ld, m, n, k, dw, db, threads, packing, add, add_bias, use);
    }
  }

  void activity(const OpRecord& o, const double* f) {
    namespace at = at_activity;
    const View<T> h = real(o.slot[at::s_h]), dh = real(o.slot[at::s_dh]);
    const View<double> out = view<double>(o.slot[at::s_row_value]);
    double* value = out ? out.p : sums;
    const T p[2] = {(T)f[at::f_p0], (T)f[at::f_p1]};
    const FormulaRecord* formula = registered(o);
    const int64_t n = width(o.slot[at::s_h]);
    over_rows((double)n * 8, [&](int64_t first, int64_t count) {
      for (int64_t r = first; r < first + count; ++r)
        value[r] = activity_row((int)o.i[at::i_penalty], formula, p, h.at(r, 0), dh.at(r, 0), (T)(1.0 / (double)m), n);
    });
    if (o.i[at::i_value] >= 0) add_value(o.i[at::i_value], sum_in_order(value, m) / (double)m);
  }

  void kl_sparsity(const OpRecord& o, const double* f) {
    namespace at = at_kl_sparsity;
    const View<T> h = real(o.slot[at::s_h]), dh = real(o.slot[at::s_dh]);
    double* mean = view<double>(o.slot[at::s_mean]).p;
    const int64_t n = width(o.slot[at::s_h]);
    const int t = useful_threads(threads, (double)m * n * 8);
    parallel(t, ceil_div(n, kColumnBlock), [&](int64_t block) {
      const int64_t c = block * kColumnBlock, count = smaller(kColumnBlock, n - c);
      column_means(View<const T>{h.p, h.ld}, m, c, count, mean + c);
      for (int64_t j = c; j < c + count; ++j) {
        double slope;
        kl_bernoulli(f[at::f_rho], mean[j], &slope);
        const T g = (T)(f[at::f_weight] * slope / (double)m);
        for (int64_t r = 0; r < m; ++r) *dh.at(r, j) += g;
      }
    });
    double value = 0, slope;
    for (int64_t j = 0; j < n; ++j) value += kl_bernoulli(f[at::f_rho], mean[j], &slope);
    add_value(o.i[at::i_value], f[at::f_weight] * value);
  }

  int64_t count(int64_t b) const { return plan.buffers[b].rows * plan.buffers[b].columns; }

  // The rule of an update op, for the parameters in one of theta's buffers.
  Update<T> update_of(const OpRecord& o, const BufferRecord& w) const {
    namespace at = at_update;
    const double* scalars = job.scalars + step * plan.n_scalars + o.i[at::i_scalar];
    const double* f = plan.floats + (&o - plan.ops) * kMaxFloats;
    const int64_t first = w.offset / (int64_t)sizeof(T);
    const int64_t states[3] = {o.slot[at::s_s0], o.slot[at::s_s1], o.slot[at::s_s2]};
    Update<T> u = {};
    u.rule = (int)o.i[at::i_rule];
    u.w = real(o.slot[at::s_w]).p + first;
    u.k = w.columns;
    for (int i = 0; i < 3; ++i) u.state[i] = states[i] < 0 ? nullptr : real(states[i]).p + first;
    for (int i = 0; i < 8; ++i) u.c[i] = o.i[at::i_scalar] + i < plan.n_scalars ? (T)scalars[i] : T(0);
    for (int i = 0; i < kMaxFloats; ++i) u.p[i] = (T)f[i];
    return u;
  }

  // The rule on all parameters that no fused gradient has taken care of.
  void apply_update(const OpRecord& o) {
    namespace at = at_update;
    Update<T> u = update_of(o, plan.buffers[o.slot[at::s_w]]);
    const T* g = real(o.slot[at::s_g]).p;
    const int64_t n = count(o.slot[at::s_w]);
    u.ahead = n < kFetchedFrom ? 0 : 512;
    int64_t first = 0;
    for (int64_t i = plan.n_ops - 1; i >= 0; --i) {  // the backward pass goes from the last layer to the first
      if (!fused(plan.ops[i])) continue;
      const int64_t b = fused_weights(plan.ops[i]), start = plan.buffers[b].offset / (int64_t)sizeof(T);
      u.flat(g, first, start - first, threads);
      first = start + count(b);
    }
    u.flat(g, first, n - first, threads);
  }

  void apply_project(const OpRecord& o, const double* f) {
    namespace at = at_project;
    if (unit_projection(o.slot[at::s_w]) == &o) return;
    const BufferRecord& r = plan.buffers[o.slot[at::s_w]];
    const T p[2] = {(T)f[at::f_p0], (T)f[at::f_p1]};
    const bool prox = o.i[at::i_kind] == project_kind::prox;
    const T size = prox ? (T)job.scalars[step * plan.n_scalars + o.i[at::i_scalar]] : T(0);
    project((int)o.i[at::i_kind], (int)o.i[at::i_penalty], registered(o), real(o.slot[at::s_w]).p, r.rows, r.columns, p,
            size, threads);
  }

  void run_op(int64_t index) {
    const OpRecord& o = plan.ops[index];
    const double* f = plan.floats + index * kMaxFloats;
    const T p[2] = {(T)f[0], (T)f[1]};
    switch (o.kind) {
      case op::gather: gather(o); break;
      case op::transform_input: run_transform_input(*this, o, f); break;
      case op::noise: noise(o, f); break;
      case op::dropout: dropout(o, f); break;
      case op::pack: pack(o); break;
      case op::dense: dense(o, f); break;
      case op::pack_int8: run_pack_int8(*this, o); break;
      case op::quantize: run_quantize(*this, o); break;
      case op::dense_int8: run_dense_int8(*this, o, f); break;
      case op::store_half: run_store_half(*this, o); break;
      case op::store_int8: run_store_int8(*this, o); break;
      case op::activation: activation(o, f); break;
      case op::activation_grad: activation_grad(o, f); break;
      case op::softmax: softmax(o); break;
      case op::softmax_grad: softmax_grad(o); break;
      case op::loss: run_loss(*this, o, f); break;
      case op::size_factor: run_size_factor(*this, o); break;
      case op::likelihood: run_likelihood(*this, o, f); break;
      case op::distribution: run_distribution(*this, o); break;
      case op::dense_grad: dense_grad(o, f); break;
      case op::take: run_take(*this, o); break;
      case op::neighbour: run_neighbour(*this, o); break;
      case op::fold_norm: run_fold_norm(*this, o, f); break;
      case op::add: run_add(*this, o); break;
      case op::maxout: run_maxout(*this, o); break;
      case op::maxout_grad: run_maxout_grad(*this, o); break;
      case op::batch_norm: run_batch_norm(*this, o, f); break;
      case op::batch_norm_grad: run_batch_norm_grad(*this, o); break;
      case op::layer_norm: run_layer_norm(*this, o, f); break;
      case op::layer_norm_grad: run_layer_norm_grad(*this, o); break;
      case op::pair: run_pair(*this, o, f); break;
      case op::contractive: run_contractive(*this, o, f); break;
      case op::scale_rows: run_scale_rows(*this, o); break;
      case op::decorrelation: run_decorrelation(*this, o, f); break;
      case op::orthogonality: run_orthogonality(*this, o, f); break;
      case op::projector: run_projector(*this, o, f); break;
      case op::activity: activity(o, f); break;
      case op::kl_sparsity: kl_sparsity(o, f); break;
      case op::weight_penalty:
        add_value(o.i[at_weight_penalty::i_value],
                  weight_penalty((int)o.i[at_weight_penalty::i_penalty], registered(o), p, (const T*)real(o.slot[0]).p,
                                 real(o.slot[1]).p, count(o.slot[0]), sums, threads));
        break;
      case op::clip_gradient:
        clip_gradient((int)o.i[at_clip_gradient::i_mode], real(o.slot[0]).p, count(o.slot[0]), f[0], sums, threads);
        break;
      case op::gated_code: run_gated_code(*this, o); break;
      case op::decode:
        if (by_rows(index)) run_row_by_row(*this, &o, f + kMaxFloats);
        else run_decode(*this, o);
        break;
      case op::squared_error:
        if (!by_rows(index - 1)) run_squared_error(*this, o, f);
        break;
      case op::suffix_sum: run_suffix_sum(*this, o); break;
      case op::code_grad:
        if (!by_rows(index - 2)) run_code_grad(*this, o);
        break;
      case op::code_penalty: run_code_penalty(*this, o, f); break;
      case op::relu_grad: run_relu_grad(*this, o); break;
      case op::jumprelu_grad: run_jumprelu_grad(*this, o, f); break;
      case op::gated_grad: run_gated_grad(*this, o, f); break;
      case op::by_latent: run_by_latent(*this, o); break;
      case op::latent_grad:
        if (joined(index - 1)) run_latent_grad(*this, o, plan.ops + index - 1, f - kMaxFloats);
        else run_latent_grad(*this, o, nullptr, nullptr);
        break;
      case op::latent_sum: run_latent_sum(*this, o); break;
      case op::norm_factor: run_norm_factor(*this, o, f); break;
      case op::bias_grad: run_bias_grad(*this, o); break;
      case op::pre_bias_grad:
        if (!joined(index)) run_pre_bias_grad(*this, o, f);
        break;
      case op::fired: run_fired(*this, o); break;
      case op::dead: run_dead(*this, o); break;
      case op::average: run_average(*this, o, f); break;
      case op::update: apply_update(o); break;
      case op::project: apply_project(o, f); break;
      case op::centre: run_centre(*this, o, f); break;
      case op::standardize: run_standardize(*this, o, f); break;
      case op::exponential: run_exponential(*this, o); break;
      case op::restore: run_restore(*this, o); break;
      case op::pack_encoder: run_pack_encoder(*this, o); break;
      case op::encode: run_encode(*this, o, f); break;
      case op::batch_topk: run_batch_topk(*this, o, f); break;
      case op::narrow: run_narrow(*this, o); break;
      case op::code_statistics: run_code_statistics(*this, o); break;
      default: break;
    }
  }

  // Returns false, before a weight is changed, where the step's values are not finite.
  bool run_phases(int64_t phases) {
    for (int64_t i = 0; i < plan.n_ops; ++i) {
      if (!(plan.ops[i].phase & phases & job.phases)) continue;
      if (fused(plan.ops[i]) && !values_finite()) return false;
      run_op(i);
    }
    return !(phases & phase::gradient) || values_finite();
  }

  void begin(int64_t i) {
    step = i;
    start = (job.first_batch + i) * plan.batch;
    m = smaller(plan.batch, job.n_rows - start);
    alias = -1;
    watching = job.check != finite_check::none;
  }

  // A row whose numbers look as if something was not finite: NaN or infinity in the source, or an overflow.
  static void suspect(void* context, int64_t row) noexcept {
    Executor& e = *(Executor*)context;
    if (!source_finite(e.job.sources[0], e.start + row, 1, e.job.check == finite_check::not_infinite))
      __atomic_store_n(&e.not_finite, 1, __ATOMIC_RELAXED);
  }

  bool values_finite() const {
    for (int64_t v = 0; v < plan.n_values; ++v) {
      const double x = job.values[step * plan.n_values + v];
      if (x - x != 0) return false;
    }
    return true;
  }
};

}  // namespace
}  // namespace fastae
