// Corruption of the input, and the permutation of an epoch.
#pragma once
#include "elementwise.h"
#include "kernels.h"

namespace fastae {
namespace {

template <class T> struct Noise {
  int kind;
  Key key;
  uint32_t stream;
  double amount;
  T low, high;
  const int64_t* rows;
  int64_t m;

  // y (row r) from x; columns of a group of four share a Philox block
  void operator()(View<const T> x, View<T> y, int64_t r, int64_t p) const noexcept {
    uint32_t words[kColumnBlock], partner[kColumnBlock];
    const uint32_t threshold = rate_threshold(amount);
    for (int64_t c = 0; c < p; c += kColumnBlock) {
      const int n = (int)smaller(kColumnBlock, p - c);
      const T* in = x.at(r, c);
      T* out = y.at(r, c);
      philox_row(key.seed, key.epoch, stream, (uint64_t)rows[r], (uint32_t)c, n, words);
      if (kind == noise_kind::gaussian) {
        gaussian(words, in, out, n);
      } else if (kind == noise_kind::masking) {
        for (int j = 0; j < n; ++j) out[j] = words[j] < threshold ? T(0) : in[j];
      } else if (kind == noise_kind::salt_and_pepper) {
        for (int j = 0; j < n; ++j) out[j] = words[j] < threshold / 2 ? low : words[j] < threshold ? high : in[j];
      } else {
        philox_row(key.seed, key.epoch, stream + 1, (uint64_t)rows[r], (uint32_t)c, n, partner);
        for (int j = 0; j < n; ++j)
          out[j] = words[j] < threshold ? *x.at((int64_t)(((uint64_t)partner[j] * (uint64_t)m) >> 32), c + j) : in[j];
      }
    }
  }

  // Box-Muller: words 2i, 2i+1 give the deviates of columns 2i, 2i+1
  void gaussian(const uint32_t* words, const T* in, T* out, int n) const noexcept {
    constexpr int H = kColumnBlock / 2, N = Vec<T>::N;
    alignas(64) T u1[H], u2[H], a[H], b[H];
    for (int i = 0; i < H; ++i) {
      const bool there = 2 * i < n;
      u1[i] = there ? (T)(((double)(words[2 * i] >> 8) + 0.5) * 0x1p-24) : T(1);
      u2[i] = there ? (T)((double)(words[2 * i + 1] >> 8) * 0x1p-24) : T(0);
    }
    for (int i = 0; i < H; i += N) {
      const Vec<T> radius = sqrt(Vec<T>(T(-2)) * log(Vec<T>::load(u1 + i))) * Vec<T>((T)amount);
      (radius * cos2pi(Vec<T>::load(u2 + i))).store(a + i);
      (radius * sin2pi(Vec<T>::load(u2 + i))).store(b + i);
    }
    for (int j = 0; j < n; ++j) {
      const T* deviates = j & 1 ? b : a;  // indexing the conditional itself upsets GCC's bounds sanitizer
      out[j] = in[j] + deviates[j / 2];
    }
  }
};

// Fisher-Yates; index i draws 64 bits (hi, lo) from columns 2i, 2i + 1 of the shuffle stream, 2^19 indices a row.
void permutation(uint64_t seed, uint32_t epoch, int64_t n, int64_t* order) noexcept {
  constexpr int64_t kRow = 1 << 19, kBlock = 512;
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  uint32_t words[2 * kBlock];
  for (int64_t block = (n - 1) / kBlock; block >= 0 && n > 1; --block) {
    const int64_t first = block * kBlock;
    philox_row(seed, epoch, kShuffleStream, (uint64_t)(first / kRow), (uint32_t)(2 * (first % kRow)), 2 * kBlock,
               words);
    for (int64_t i = smaller(n - 1, first + kBlock - 1); i >= larger(first, 1); --i) {
      const uint64_t hi = words[2 * (i - first)], lo = words[2 * (i - first) + 1], bound = (uint64_t)i + 1;
      const int64_t j = (int64_t)((hi * bound + ((lo * bound) >> 32)) >> 32);
      const int64_t t = order[i];
      order[i] = order[j];
      order[j] = t;
    }
  }
}

}  // namespace
}  // namespace fastae
