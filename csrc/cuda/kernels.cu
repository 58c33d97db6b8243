// Every device kernel, one after another. Compiled for float and for double (-DFASTAE_REAL=double).
#include "cuda/dense.cuh"
#include "cuda/product.cuh"
#include "cuda/run.cuh"
#include "cuda/update.cuh"
// of codes
#include "cuda/codes.cuh"
#include "cuda/penalties.cuh"
#include "cuda/sparse.cuh"
#include "cuda/latents.cuh"
#include "cuda/latent_grad.cuh"
#include "cuda/select.cuh"
#include "cuda/encode.cuh"
#include "cuda/batch_topk.cuh"
