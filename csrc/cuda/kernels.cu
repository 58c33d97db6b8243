// Every device kernel, one after another. Compiled for float and for double (-DFASTAE_REAL=double).
#include "cuda/dense.cuh"
#include "cuda/product.cuh"
#include "cuda/run.cuh"
#include "cuda/update.cuh"
