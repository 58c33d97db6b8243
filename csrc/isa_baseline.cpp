// The kernels compiled for baseline; see setup.py for the flags.
#include "run.h"

extern "C" const fastae::Kernels* fastae_kernels_baseline() {
  static const fastae::Kernels kernels = {"baseline",           fastae::workspace_bytes, fastae::run,
                                          fastae::permutation,  fastae::all_finite,      fastae::fma_rate,
                                          fastae::rounded_rate, fastae::int8_rate};
  return &kernels;
}
