// Searching a row's ascending indices. Host and device.
#pragma once
#include "vec.h"

namespace fastae {
namespace {

// First of n ascending indices that is not below a latent.
FASTAE_INLINE int64_t first_from(const int32_t* idx, int64_t n, int64_t latent) {
  int64_t low = 0;
  while (low < n) {
    const int64_t middle = (low + n) / 2;
    if (idx[middle] < latent) low = middle + 1;
    else n = middle;
  }
  return low;
}

}  // namespace
}  // namespace fastae
