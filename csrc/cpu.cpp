#include "cpu.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastae {
namespace {

struct Cpu {
  bool avx2 = false;         // AVX2, FMA, F16C
  bool avx512 = false;       // F, BW, DQ, VL
  bool avx512_bf16 = false;  // the above and BF16
  bool avx512_amx = false;   // the above and AMX with BF16, if the operating system lets processes ask for it
  bool avx512_vnni = false;  // avx512 and VNNI
  bool neon = false;
  char brand[49] = "unknown";
};

#if defined(__x86_64__) || defined(__i386__)

bool bit(uint32_t word, int i) { return (word >> i) & 1; }

// Register state that the operating system saves at a context switch (XCR0).
uint32_t saved_state() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

#if defined(__linux__) && defined(__x86_64__)
constexpr long kTileData = 18;  // number of the state component
bool tiles_supported() {
  uint64_t features = 0;
  constexpr long get_supported = 0x1021;  // ARCH_GET_XCOMP_SUPP
  return syscall(SYS_arch_prctl, get_supported, &features) == 0 && (features >> kTileData & 1);
}
#else
bool tiles_supported() { return false; }
#endif

Cpu detect() {
  Cpu cpu;
  uint32_t a, b, c, d;
  if (__get_cpuid(0x80000000u, &a, &b, &c, &d) && a >= 0x80000004u) {
    uint32_t words[12];
    for (uint32_t i = 0; i < 3; ++i)
      __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
    std::memcpy(cpu.brand, words, 48);
    cpu.brand[48] = 0;
    // Some vendors pad with blanks on either side.
    size_t start = 0, length = std::strlen(cpu.brand);
    while (cpu.brand[start] == ' ') ++start;
    while (length > start && cpu.brand[length - 1] == ' ') --length;
    std::memmove(cpu.brand, cpu.brand + start, length - start);
    cpu.brand[length - start] = 0;
  }

  if (!__get_cpuid(1, &a, &b, &c, &d)) return cpu;
  const bool osxsave = bit(c, 27), fma = bit(c, 12), f16c = bit(c, 29), avx = bit(c, 28);
  if (!osxsave || !avx) return cpu;
  const uint32_t state = saved_state();
  const bool ymm = (state & 0x06) == 0x06;  // xmm, ymm
  const bool zmm = (state & 0xe6) == 0xe6;  // and opmask, both halves of zmm

  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
  const uint32_t subleaves = a, words = c;
  const bool tiles = (state & 0x60000) == 0x60000 && bit(d, 22) && bit(d, 24);
  cpu.avx2 = ymm && bit(b, 5) && fma && f16c;
  cpu.avx512 = cpu.avx2 && zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  cpu.avx512_vnni = cpu.avx512 && bit(words, 11);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) cpu.avx512_bf16 = cpu.avx512 && bit(a, 5);
  cpu.avx512_amx = cpu.avx512_bf16 && tiles && tiles_supported();
  return cpu;
}

#elif defined(__aarch64__)

Cpu detect() {
  Cpu cpu;
  cpu.neon = true;  // part of every 64-bit ARM
  std::memcpy(cpu.brand, "arm64", 6);
  return cpu;
}

#else

Cpu detect() { return Cpu(); }

#endif

const Cpu& cpu() {
  static const Cpu found = detect();
  return found;
}

}  // namespace

const char* cpu_brand() { return cpu().brand; }

bool cpu_has(const char* isa) {
  if (!std::strcmp(isa, "baseline")) return true;
  if (!std::strcmp(isa, "avx2")) return cpu().avx2;
  if (!std::strcmp(isa, "avx512")) return cpu().avx512;
  if (!std::strcmp(isa, "avx512_bf16")) return cpu().avx512_bf16;
  if (!std::strcmp(isa, "avx512_amx")) return cpu().avx512_amx;
  if (!std::strcmp(isa, "avx512_vnni")) return cpu().avx512_vnni;
  if (!std::strcmp(isa, "neon")) return cpu().neon;
  return false;
}

bool cpu_allow_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  return cpu().avx512_amx && syscall(SYS_arch_prctl, request_permission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace fastae
