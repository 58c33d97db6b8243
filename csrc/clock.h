// The clock, and rates of work measured with it.
#pragma once
#include <time.h>

#include "vec.h"

namespace fastae {
namespace {

inline double clock_seconds() {  // also called through a pointer
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// The best rate of f(), which does `work`, within some seconds.
template <class F> FASTAE_INLINE double best_rate(double seconds, double work, const F& f) {
  double best = 0;
  const double end = clock_seconds() + seconds;
  do {
    const double t = clock_seconds();
    f();
    const double rate = work / (clock_seconds() - t);
    best = rate > best ? rate : best;
  } while (clock_seconds() < end);
  return best;
}

}  // namespace
}  // namespace fastae
