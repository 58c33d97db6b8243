// The kernels compiled for avx512; see setup.py for the flags. Sets that only multiply bfloat16 in another way are tables
// of the same functions.
#include "run.h"

namespace fastae {
namespace {

#ifdef FASTAE_BF16
template <int how> int64_t workspace_bytes_as(const PlanRecord& plan, int threads) noexcept {
  PlanRecord p = plan;
  p.bf16_product = how;
  return workspace_bytes(p, threads);
}

template <int how> int64_t run_as(const PlanRecord& plan, const JobRecord& job) noexcept {
  PlanRecord p = plan;
  p.bf16_product = how;
  return run(p, job);
}
#endif

}  // namespace
}  // namespace fastae

extern "C" const fastae::Kernels* fastae_kernels_avx512() {
  static const fastae::Kernels kernels = {
      "avx512",           fastae::workspace_bytes, fastae::run,          fastae::permutation,
      fastae::all_finite, fastae::fma_rate,        fastae::rounded_rate, fastae::int8_rate};
  return &kernels;
}

// null where the compiler does not know the instructions
extern "C" const fastae::Kernels* fastae_kernels_avx512_bf16() {
#ifdef FASTAE_BF16
  constexpr int how = fastae::bf16_product::dots;
  static const fastae::Kernels kernels = {"avx512_bf16",       fastae::workspace_bytes_as<how>,
                                          fastae::run_as<how>, fastae::permutation,
                                          fastae::all_finite,  fastae::fma_rate,
                                          fastae::dot_rate,    fastae::int8_rate};
  return &kernels;
#else
  return nullptr;
#endif
}

extern "C" const fastae::Kernels* fastae_kernels_avx512_amx() {
#ifdef FASTAE_BF16
  constexpr int how = fastae::bf16_product::tiles;
  static const fastae::Kernels kernels = {"avx512_amx",        fastae::workspace_bytes_as<how>,
                                          fastae::run_as<how>, fastae::permutation,
                                          fastae::all_finite,  fastae::fma_rate,
                                          fastae::tile_rate,   fastae::int8_rate};
  return &kernels;
#else
  return nullptr;
#endif
}
