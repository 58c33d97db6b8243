// The device's language on a CPU, to test kernels where no GPU is: threads of a block are fibers of one processor
// thread, run in a random order that is drawn anew at every barrier, so that a missing barrier shows.
//
// Warps exchange values as on a device: an operation ends when every thread that its mask names has arrived at it, at the
// same line of the source, as a device wants the same instruction of all. Threads that wait for one that never comes end
// the launch with an error, as do blocks whose threads are at different barriers. Shared memory is filled with a pattern
// before each block. Blocks run one after another in random order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct shim_dim {
  unsigned x, y, z;
};

namespace shim {
extern shim_dim thread, block, block_size, grid_size;
// site: the line that asks for it
void block_barrier(int site);
// Gives a value to the warp and returns that of the lane `from` after all lanes of the mask have given theirs.
uint64_t exchange(unsigned mask, uint64_t value, int from, int site);
unsigned ballot(unsigned mask, bool value, int site);
// All values that a whole warp's threads give, until the thread's next operation of the warp.
const uint64_t* exchange_all(uint64_t value, int site);
// Copies of 16 bytes that a thread has begun, in groups: each is made at once, or not before its group is waited for.
void copy_later(void* to, const void* from, bool there);
// Ends the launch where an address that a device wants on 16 bytes is not.
void on_16_bytes(const void* p, const char* why);
void close_group();
void finish_groups(int left);
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

#define SHIM_SITE int site = __builtin_LINE()  // of the caller

inline void __syncthreads(SHIM_SITE) { shim::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_SITE) { shim::ballot(mask, false, site); }
inline unsigned __ballot_sync(unsigned mask, bool value, SHIM_SITE) { return shim::ballot(mask, value, site); }
inline int __any_sync(unsigned mask, bool value, SHIM_SITE) { return shim::ballot(mask, value, site) != 0; }
inline int __all_sync(unsigned mask, bool value, SHIM_SITE) { return (shim::ballot(mask, value, site) & mask) == mask; }
inline void __threadfence() {}

template <class V> V shim_exchange(unsigned mask, V value, int from, int site) {
  static_assert(sizeof(V) <= 8, "at most 64 bits");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = shim::exchange(mask, bits, from, site);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class V> V __shfl_sync(unsigned mask, V value, int from, int width = 32, SHIM_SITE) {
  const int lane = shim::lane();
  return shim_exchange(mask, value, lane / width * width + from % width, site);
}
template <class V> V __shfl_down_sync(unsigned mask, V value, unsigned by, int width = 32, SHIM_SITE) {
  const int lane = shim::lane(), to = lane % width + (int)by;
  return shim_exchange(mask, value, to < width ? lane + (int)by : lane, site);
}
template <class V> V __shfl_up_sync(unsigned mask, V value, unsigned by, int width = 32, SHIM_SITE) {
  const int lane = shim::lane(), to = lane % width - (int)by;
  return shim_exchange(mask, value, to >= 0 ? lane - (int)by : lane, site);
}
template <class V> V __shfl_xor_sync(unsigned mask, V value, int by, int width = 32, SHIM_SITE) {
  const int lane = shim::lane(), to = (lane % width) ^ by;
  return shim_exchange(mask, value, to < width ? lane / width * width + to : lane, site);
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

// Tensor cores (mma.sync.m16n8k16, bfloat16 in, float32 out): lane 4 g + t holds rows g and g + 8 of a, places 2 t, 2 t
// + 1 and those 8 further; column g of b, the same places; of the sums rows g and g + 8, columns 2 t and 2 t + 1.
inline void multiply_add_bf16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SHIM_SITE) {
  uint64_t left[2][32], right[32];
  for (int h = 0; h < 2; ++h) memcpy(left[h], shim::exchange_all(a[2 * h] | (uint64_t)a[2 * h + 1] << 32, site), 256);
  memcpy(right, shim::exchange_all(b[0] | (uint64_t)b[1] << 32, site), 256);
  const int g = shim::lane() / 4, t = shim::lane() % 4;
  const auto number = [](uint64_t word, int low, int upper) {
    return __uint_as_float((unsigned)(word >> (32 * low + 16 * upper)) << 16);
  };
  for (int i = 0; i < 4; ++i) {
    double x = sum[i];
    for (int k = 0; k < 16; ++k)
      x += (double)number(left[k / 8][4 * g + k % 8 / 2], i / 2, k % 2) *
           number(right[4 * (2 * t + i % 2) + k % 8 / 2], k / 8, k % 2);
    sum[i] = (float)x;
  }
}
// ldmatrix: four 8 x 8 matrices, whose row i of matrix j the lane 8 j + i points to.
template <bool Turned> void load_matrices(uint32_t (&m)[4], const void* row, SHIM_SITE) {
  shim::on_16_bytes(row, "a row of a matrix that tensor cores read does not lie on 16 bytes");
  uint64_t rows[32];
  memcpy(rows, shim::exchange_all((uint64_t)(uintptr_t)row, site), sizeof rows);
  const int g = shim::lane() / 4, t = shim::lane() % 4;
  for (int j = 0; j < 4; ++j) {
    m[j] = 0;
    for (int e = 0; e < 2; ++e) {
      uint16_t number;
      const int r = Turned ? 2 * t + e : g, c = Turned ? g : 2 * t + e;
      memcpy(&number, (const char*)(uintptr_t)rows[8 * j + r] + 2 * c, 2);
      m[j] |= (uint32_t)number << 16 * e;
    }
  }
}
inline void copy_ahead(void* to, const void* from, bool there) { shim::copy_later(to, from, there); }
inline void end_group() { shim::close_group(); }
template <int Groups> void wait_for_groups() { shim::finish_groups(Groups); }
