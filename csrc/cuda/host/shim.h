// The device's language on a CPU, to test kernels where no GPU is: threads of a block are fibers of one processor
// thread, run in a random order that is drawn anew at every barrier, so that a missing barrier shows.
//
// Warps exchange values as on a device: an operation ends when every thread that its mask names has arrived. Threads
// that wait for one that never comes end the launch with an error. Shared memory is filled with a pattern before each
// block. Blocks run one after another in random order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct shim_dim {
  unsigned x, y, z;
};

namespace shim {
extern shim_dim thread, block, block_size, grid_size;
void block_barrier();
// Gives a value to the warp and returns that of the lane `from` after all lanes of the mask have given theirs.
uint64_t exchange(unsigned mask, uint64_t value, int from);
unsigned ballot(unsigned mask, bool value);
int lane();
unsigned char* dynamic_shared();
[[noreturn]] void fail(const char* why);
}  // namespace shim

#define threadIdx shim::thread
#define blockIdx shim::block
#define blockDim shim::block_size
#define gridDim shim::grid_size
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static __attribute__((section("fastae_shared")))
#define FASTAE_DYNAMIC_SHARED(name) unsigned char* const name = shim::dynamic_shared()

inline void __syncthreads() { shim::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::ballot(mask, false); }
inline unsigned __ballot_sync(unsigned mask, bool value) { return shim::ballot(mask, value); }
inline int __any_sync(unsigned mask, bool value) { return shim::ballot(mask, value) != 0; }
inline int __all_sync(unsigned mask, bool value) { return (shim::ballot(mask, value) & mask) == mask; }
inline void __threadfence() {}

template <class V> V shim_exchange(unsigned mask, V value, int from) {
  static_assert(sizeof(V) <= 8, "at most 64 bits");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = shim::exchange(mask, bits, from);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class V> V __shfl_sync(unsigned mask, V value, int from, int width = 32) {
  const int lane = shim::lane();
  return shim_exchange(mask, value, lane / width * width + from % width);
}
template <class V> V __shfl_down_sync(unsigned mask, V value, unsigned by, int width = 32) {
  const int lane = shim::lane(), to = lane % width + (int)by;
  return shim_exchange(mask, value, to < width ? lane + (int)by : lane);
}
template <class V> V __shfl_up_sync(unsigned mask, V value, unsigned by, int width = 32) {
  const int lane = shim::lane(), to = lane % width - (int)by;
  return shim_exchange(mask, value, to >= 0 ? lane - (int)by : lane);
}
template <class V> V __shfl_xor_sync(unsigned mask, V value, int by, int width = 32) {
  const int lane = shim::lane(), to = (lane % width) ^ by;
  return shim_exchange(mask, value, to < width ? lane / width * width + to : lane);
}

// One processor thread runs everything: plain memory is atomic enough.
template <class V> V atomicAdd(V* p, V x) {
  const V old = *p;
  *p = old + x;
  return old;
}
template <class V> V atomicMax(V* p, V x) {
  const V old = *p;
  if (x > old) *p = x;
  return old;
}
template <class V> V atomicMin(V* p, V x) {
  const V old = *p;
  if (x < old) *p = x;
  return old;
}
template <class V> V atomicOr(V* p, V x) {
  const V old = *p;
  *p = old | x;
  return old;
}
template <class V> V atomicExch(V* p, V x) {
  const V old = *p;
  *p = x;
  return old;
}
template <class V> V atomicCAS(V* p, V expected, V x) {
  const V old = *p;
  if (old == expected) *p = x;
  return old;
}

inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += (int)(int8_t)(a >> i) * (int)(int8_t)(b >> i);
  return sum;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __float_as_uint(float x) {
  unsigned y;
  memcpy(&y, &x, 4);
  return y;
}
inline float __uint_as_float(unsigned x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
