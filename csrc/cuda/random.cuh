// Corruption of the input, and neighbours in a graph.
#pragma once
#include "cuda/device.cuh"

namespace fastae {

// Box-Muller: words 2i, 2i + 1 give the deviates of columns 2i, 2i + 1. A word's upper 24 bits and a half are rounded
// once, as on the CPU, where the sum is made in float64.
FASTAE_INLINE T gaussian(const uint32_t w[4], int64_t column, T deviation) {
  const int pair = (int)(column & 2);
  const Vec<T> u1 = ((T)(w[pair] >> 8) + T(0.5)) * T(0x1p-24), u2 = (T)(w[pair + 1] >> 8) * T(0x1p-24);
  const Vec<T> radius = sqrt(Vec<T>(T(-2)) * log(u1)) * Vec<T>(deviation);
  return (radius * (column & 1 ? sin2pi(u2) : cos2pi(u2))).v;
}

FASTAE_KERNEL(noise, kThreads) {
  namespace at = at_noise;
  const View<T> x = o.real(at::s_x), y = o.real(at::s_y);
  const int64_t* rows = (const int64_t*)o.slot[at::s_rows].p;
  const uint32_t stream = (uint32_t)o.i[at::i_stream], threshold = rate_threshold(o.f[at::f_amount]);
  const int kind = (int)o.i[at::i_kind];
  const T low = (T)o.f[at::f_low], high = (T)o.f[at::f_high], deviation = (T)o.f[at::f_amount];
  each_four(o.m, x.columns, [&](int64_t r, int64_t j, int n) {
    const bool whole = n == 4 && aligned(x.at(r, j)) && aligned(y.at(r, j));
    Four v = load_four(x.at(r, j), whole, n);
    uint32_t w[4], other[4];
    random_words(o.step, stream, rows[r], j, w);
    const bool swaps = kind == noise_kind::swap;
    if (swaps) random_words(o.step, stream + 1, rows[r], j, other);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const bool hit = w[q] < threshold;
      if (kind == noise_kind::gaussian) v.v[q] = v.v[q] + gaussian(w, q, deviation);
      else if (kind == noise_kind::masking) v.v[q] = hit ? T(0) : v.v[q];
      else if (kind == noise_kind::salt_and_pepper) v.v[q] = w[q] < threshold / 2 ? low : hit ? high : v.v[q];
      else if (hit && q < n) v.v[q] = x((int64_t)(((uint64_t)other[q] * (uint64_t)o.m) >> 32), j + q);
    }
    store_four(y.at(r, j), v, whole, n);
  });
}

// A row's neighbour, drawn by weight: rows of a graph are short, and sums over them go in their order.
FASTAE_KERNEL(neighbour, kThreads) {
  namespace at = at_neighbour;
  const DeviceSource& s = o.step->source[o.i[at::i_source]];
  const double* weight = (const double*)s.data;
  const int64_t* rows = (const int64_t*)o.slot[at::s_rows].p;
  const View<int64_t> out = o.view<int64_t>(at::s_out);
  const View<T> coefficient = o.real(at::s_coefficient);
  each(o.m, [&](int64_t r) {
    const int64_t first = s.indptr[rows[r]], last = s.indptr[rows[r] + 1];
    double total = 0, reached = 0;
    for (int64_t q = first; q < last; ++q) total += weight[q];
    coefficient(r, 0) = (T)(0.5 * total);
    int64_t chosen = rows[r];
    if (total > 0) {
      uint32_t w[4];
      random_words(o.step, (uint32_t)o.i[at::i_stream], rows[r], 0, w);
      const double target = ((double)w[0] + 0.5) * 0x1p-32 * total;
      for (int64_t q = first; q < last && reached <= target; ++q) {
        reached += weight[q];
        chosen = s.indices[q];
      }
    }
    out(r, 0) = chosen;
  });
}

}  // namespace fastae
