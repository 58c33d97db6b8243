// FASTAE_REAL_IS(FASTAE_REAL): whether these are the kernels for float; some there are for float alone.
#pragma once
#define FASTAE_REAL_IS_float 1
#define FASTAE_REAL_IS_double 0
#define FASTAE_REAL_NAMED(name) FASTAE_REAL_IS_##name
#define FASTAE_REAL_IS(name) FASTAE_REAL_NAMED(name)
