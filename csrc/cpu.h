// What this processor can run.
#pragma once

namespace fastae {

// Marketing name of the processor, such as "AMD EPYC 9654 96-Core Processor".
const char* cpu_brand();

// Whether processor and operating system can run the kernels of an instruction set: "baseline",
// "avx2", "avx512", "avx512_bf16", "avx512_amx" or "neon"; or "avx512_vnni". Unknown names are false.
bool cpu_has(const char* isa);

// Asks the operating system for the use of AMX in this process; false where it refuses.
bool cpu_allow_tiles();

}  // namespace fastae
