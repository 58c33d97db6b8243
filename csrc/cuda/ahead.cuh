// Copies to shared memory that a thread asks for and waits for later. On the host: host/shim.h.
#pragma once
#include "cuda/device.cuh"

#if defined(__CUDACC__) && __CUDA_ARCH__ < 800  // no such copies there: at once
__device__ __forceinline__ void copy_ahead(void* to, const void* from, bool there) {
  *(uint4*)to = there ? *(const uint4*)from : uint4{};
}
__device__ __forceinline__ void end_group() {}
template <int Groups> __device__ __forceinline__ void wait_for_groups() {}
#elif defined(__CUDACC__)
// 16 bytes to shared memory, zeros where there is nothing; there when the group that they are of has been waited for
__device__ __forceinline__ void copy_ahead(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most so many of the thread's groups are on their way.
template <int Groups> __device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}
#endif
