// Codes by latents: entries in the order of their latents, and sums over each latent's entries. No atomics: a latent's
// entries are listed in ascending order, and its sum is one chain over them, or with more than kChunk of them chains over
// segments of so many rows, added in order.
#pragma once
#include "sparse.h"
#include "update.h"

namespace fastae {
namespace {

// Latents a task takes; their parts of a sum over latents are one chain, and those are added in order.
constexpr int64_t kLatentBlock = 64;

// Entries of latent j: start[j + 1] - start[j]
FASTAE_INLINE void count_by_latent(View<const int32_t> idx, const Entries& entries, int64_t m, int64_t n,
                                   int64_t* start) {
  for (int64_t j = 0; j <= n; ++j) start[j] = 0;
  for (int64_t r = 0; r < m; ++r)
    entries.each(r, [&](int64_t position, int64_t count) {
      const int32_t* const at = idx.at(r, position);
      for (int64_t i = 0; i < count; ++i) ++start[at[i]];
    });
  for (int64_t j = 0, sum = 0; j <= n; ++j) {
    const int64_t count = start[j];
    start[j] = sum;
    sum += count;
  }
}

// start[j] .. start[j + 1] into entry (m width): positions r width + i of the entries of latent j, ascending
FASTAE_INLINE void list_by_latent(View<const int32_t> idx, const Entries& entries, int64_t m, int64_t n, int64_t* start,
                                  int64_t* entry) {
  const int64_t width = entries.segments * entries.capacity;
  count_by_latent(idx, entries, m, n, start);
  for (int64_t r = 0; r < m; ++r)
    entries.each(r, [&](int64_t position, int64_t count) {
      const int32_t* const at = idx.at(r, position);
      for (int64_t i = 0; i < count; ++i) entry[start[at[i]]++] = r * width + position + i;
    });
  memmove(start + 1, start, (size_t)n * sizeof(int64_t));  // each has moved to its end: the next one's start
  start[0] = 0;
}

template <class T> struct Listed {
  View<const T> coef;
  int64_t width;
  const int64_t *start, *entry;

  // sum over latent j's entries of f(coefficient)
  template <class F> FASTAE_INLINE double sum(int64_t j, const F& f) const {
    double sum = 0;
    for (int64_t e = start[j]; e < start[j + 1]; ++e) sum += f((double)*coef.at(entry[e] / width, entry[e] % width));
    return sum;
  }
  FASTAE_INLINE double sum(int64_t j) const {
    return sum(j, [](double c) { return c; });
  }
};

// Gradients of the rows of w (n,p): sum of coef u[r, block], then along w itself.
template <class T> struct LatentGrad {
  Listed<T> code;
  int64_t n, p;
  View<const T> u;
  int64_t capacity, segments, blocks;  // of u's columns
  Groups groups;
  View<T> w;
  const double* factor;  // (spaces, n): of equal blocks of w's columns
  int64_t spaces;
  bool unit;

  FASTAE_INLINE const T* row_of(int64_t e, int64_t latent) const {
    const int64_t r = e / code.width;
    if (blocks == 1) return u.at(r, 0);
    const int64_t q = (e - r * code.width) / capacity;
    return u.at(r, p * (q ? blocks - segments + q : smaller(groups.of(latent), blocks - segments)));
  }

  // Rows of the batch whose entries are one chain of a latent that has more than kChunk.
  int64_t segment_rows() const { return larger(1, kChunk / larger(1, segments)); }

  // g = the gradient of w's row j
  void row(int64_t j, T* g) const noexcept {
    const int64_t first = code.start[j], last = code.start[j + 1], rows = segment_rows();
    const bool many = last - first > kChunk;
    Chunk<T> chunk;
    for (int64_t e = first; e < last || e == first;) {
      const bool begin = e == first;
      const int64_t end = many ? (code.entry[e] / code.width / rows + 1) * rows * code.width : 0;
      chunk.n = 0;
      for (int64_t i = 0; e < last && i < kChunk && (!many || code.entry[e] < end); ++i, ++e) {
        const int64_t at = code.entry[e], r = at / code.width;
        chunk.add(*code.coef.at(r, at - r * code.width), row_of(at, j));
      }
      if (begin) sum_rows(chunk, (const Chunk<T>*)nullptr, (const T*)nullptr, g, p);
      else sum_rows<T, true>(chunk, nullptr, nullptr, g, p);
      if (first == last) break;
    }
    finish(j, g);
  }

  // g is the sum over the entries: what else the gradient has
  void finish(int64_t j, T* g) const noexcept {
    const bool any = code.start[j] < code.start[j + 1];
    const T* const x = w.at(j, 0);
    for (int64_t s = 0; factor && s < spaces; ++s)
      if (factor[s * n + j] != 0) add_row(x, (T)factor[s * n + j], g, p / spaces * s, p / spaces);
    if (unit && (any || factor)) {
      const T* const both[2] = {g, x};
      T products[2];
      dots<T, 2>(x, both, p, products);
      const double square = safe_square(x, p, (double)products[1]);
      if (square > 0) add_row(x, (T)(-(double)products[0] / square), g, 0, p);
    }
  }

  FASTAE_INLINE void add_row(const T* x, T c, T* g, int64_t column, int64_t columns) const {
    over_row<T>(columns, [&](int64_t i, int lanes) {
      const int64_t j = column + i;
      fma(Vec<T>(c), Vec<T>::load(x + j, lanes), Vec<T>::load(g + j, lanes)).store(g + j, lanes);
    });
  }
};

// out (p) = sum over the latents of a block of c_j w_j, those with c_j = 0 left out
template <class T>
void weighted_rows(const T* c, View<const T> w, int64_t first, int64_t count, int64_t p, T* out) noexcept {
  Chunk<T> chunk;
  for (int64_t j = first; j < first + count; ++j) chunk.add(c[j], w.at(j, 0));
  sum_rows(chunk, (const Chunk<T>*)nullptr, (const T*)nullptr, out, p);
}

// A pool task that knows its thread, for memory of its own.
template <class F> FASTAE_INLINE void parallel_on(int threads, int64_t tasks, const F& f) noexcept {
  struct Call {
    static void run(void* context, int64_t task, int thread) noexcept {
      (*static_cast<const F*>(context))(task, thread);
    }
  };
  if (threads <= 1 || tasks <= 1)
    for (int64_t i = 0; i < tasks; ++i) f(i, 0);
  else parallel_for(threads, tasks, &Call::run, const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace
}  // namespace fastae
