// The largest positive pre-activations of a whole batch: candidates beyond a limit, then their exact selection.
//
// Too few candidates: the limit falls, to 0 at last. More in a row than there is memory for: the limit rises, until it
// is the number just below the smallest one selected; then that number's ties are counted out row by row.
#pragma once
#include "encode.h"

namespace fastae {
namespace {

template <class T> struct BatchTopK {
  EncodeArgs<T> a;  // val, idx, count: the op's outputs
  int64_t wanted;   // entries
  double k;         // of them a row
  T tau = 0;
  View<T> val;  // candidates
  View<int32_t> idx, count;
  char* work;
  int64_t room, total = 0, bytes = 0;
  bool crowded = false;

  BatchTopK(const EncodeArgs<T>& args, int64_t n_wanted, double per_row, char* memory)
      : a(args), wanted(n_wanted), k(per_row) {
    Carve c = {memory};
    room = smaller(a.most_n, 2 * a.capacity + 64);
    val = {c.take<T>(a.most_m * room), room};
    idx = {c.take<int32_t>(a.most_m * room), room};
    count = {c.take<int32_t>(a.most_m), 1};
    work = memory ? memory + c.used : nullptr;
    bytes = c.used + larger(Encoding<T>(limited(val, idx, count, room), nullptr).bytes,
                            Encoding<T>(sample(smaller(a.most_m, 32)), nullptr).bytes);
  }

  EncodeArgs<T> limited(View<T> v, View<int32_t> i, View<int32_t> n, int64_t capacity) const {
    EncodeArgs<T> e = a;
    e.kind = code_kind::threshold;
    e.threshold = &tau;
    e.single = true;
    e.margin = 0;
    e.val = v, e.idx = i, e.count = n, e.capacity = capacity;
    return e;
  }
  EncodeArgs<T> sample(int64_t rows) const {
    EncodeArgs<T> e = limited(val, idx, count, room);
    e.kind = code_kind::topk;
    e.threshold = nullptr;
    e.m = e.most_m = rows;
    e.most_k = smaller(room, smaller(a.most_n, a.most_k + 1));
    e.k = smaller(e.most_k, (int64_t)k + 1);
    return e;
  }

  // Entries beyond the limit, in all; rows that are not finite have none.
  void pass(T limit, View<T> v, View<int32_t> i, View<int32_t> n, int64_t capacity) {
    tau = limit;
    const EncodeArgs<T> e = limited(v, i, n, capacity);
    Encoding<T>(e, work).run();
    total = 0;
    crowded = false;
    for (int64_t r = 0; r < a.m; ++r) {
      int32_t& c = *n.at(r, 0);
      if (c < 0) c = 0;
      total += c;
      crowded = crowded || c > capacity;
    }
  }

  // A limit that a little more than k entries a row should pass.
  T estimate() {
    const int64_t rows = smaller(a.m, 32);
    const EncodeArgs<T> e = sample(rows);
    if (e.k < 1) return 0;
    Encoding<T>(e, work).run();
    double sum = 0;
    int64_t n = 0;
    for (int64_t r = 0; r < rows; ++r) {
      if (*count.at(r, 0) < 1) continue;
      const double least = (double)smallest_above(val.at(r, 0), *count.at(r, 0), -kInfinity<T>, false);
      if (least - least == 0) sum += least, ++n;
    }
    return n ? (T)(0.9 * sum / (double)n) : T(0);
  }

  static T between(T low, T high) {
    const auto i = order_of(low), j = order_of(high);
    return number_at<T>(i + (j - i) / 2);
  }

  // Returns the smallest entry, 0 without any; fits: whether all rows did.
  T run(T guess, bool* fits) {
    *fits = true;
    for (int64_t r = 0; r < a.m; ++r) *a.count.at(r, 0) = 0;
    if (wanted < 1) return 0;
    T low = -1, high = kInfinity<T>;  // limits known to leave enough, in rows too crowded, and to leave too few
    T limit = guess > 0 && guess < kInfinity<T> ? guess * T(0.9) : estimate();
    for (int tries = 0;; ++tries) {
      pass(limit > 0 ? limit : T(0), val, idx, count, room);
      const bool enough = total >= wanted || tau == 0;
      if (enough && !crowded) return select(fits);
      if (enough) low = tau;
      else high = tau;
      if (low < 0) limit = tries < 4 ? tau * T(0.6) : T(0);
      else if (order_of(high) - order_of(low) <= 1) return count_out(low, high, fits);
      else limit = between(low, high);
    }
  }

  T select(bool* fits) {
    T kth = tau;
    if (total > wanted) {
      T most = 0;
      for (int64_t r = 0; r < a.m; ++r) {
        const T here = largest_of(val.at(r, 0), *count.at(r, 0), false);
        most = here > most ? here : most;
      }
      kth = kth_of<T>(
          wanted, tau, most, [&](T limit) { return above(limit); },
          [&](T limit) {
            T least = kInfinity<T>;
            for (int64_t r = 0; r < a.m; ++r) {
              const T here = smallest_above(val.at(r, 0), *count.at(r, 0), limit, false);
              least = here < least ? here : least;
            }
            return least;
          });
    }
    int64_t ties = wanted - above(kth);
    T least = kInfinity<T>;
    for (int64_t r = 0; r < a.m; ++r) {
      int32_t n = 0;
      for (int64_t i = 0; i < *count.at(r, 0); ++i) {
        const T v = *val.at(r, i);
        if (v < kth || (v == kth && ties-- <= 0)) continue;
        least = v < least ? v : least;
        if (n < a.capacity) *a.idx.at(r, n) = *idx.at(r, i), *a.val.at(r, n) = v;
        ++n;
      }
      *a.count.at(r, 0) = n;
      *fits = *fits && n <= a.capacity;
    }
    return least < kInfinity<T> ? least : T(0);
  }

  int64_t above(T limit) const {
    int64_t n = 0;
    for (int64_t r = 0; r < a.m; ++r) n += count_above(val.at(r, 0), *count.at(r, 0), limit, false);
    return n;
  }

  // The selection's smallest entry is `high`, the number after low: what is larger, then its ties row by row.
  T count_out(T low, T high, bool* fits) {
    pass(high, a.val, a.idx, a.count, a.capacity);
    int64_t left = wanted - total;
    pass(low, val, idx, count, room);
    for (int64_t r = 0; r < a.m; ++r) {
      const int64_t larger_ones = *a.count.at(r, 0), ties = smaller(left, *count.at(r, 0) - larger_ones);
      const int64_t stored = smaller(*count.at(r, 0), room);
      left -= ties;
      int64_t n = 0;
      for (int64_t i = 0; i < stored && n < ties; ++i)
        if (*val.at(r, i) <= high) *idx.at(r, n++) = *idx.at(r, i);
      int64_t from = larger_ones;
      *a.count.at(r, 0) = (int32_t)(larger_ones + ties);
      if (larger_ones + ties > a.capacity) {
        *fits = false;
        continue;
      }
      for (int64_t to = from + n; n > 0;) {  // merged from the end
        --to;
        const bool tie = from == 0 || *a.idx.at(r, from - 1) < *idx.at(r, n - 1);
        *a.val.at(r, to) = tie ? high : *a.val.at(r, from - 1);
        *a.idx.at(r, to) = tie ? *idx.at(r, n - 1) : *a.idx.at(r, from - 1);
        tie ? --n : --from;
      }
    }
    return high;
  }
};

}  // namespace
}  // namespace fastae
