// What the processor at hand can do, as far as kernels are chosen by it.
//
// CPUID is asked here, and not __builtin_cpu_supports: of the compilers that know the latter, zig links
// an answer that is no to everything.
#pragma once

#if defined(TOKEXPORT_X86)
#include <cpuid.h>
#elif defined(TOKEXPORT_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace tokexport {

#if defined(TOKEXPORT_X86)

struct Processor {
  bool avx2 = false;    // with FMA
  bool avx512 = false;  // F, BW, DQ and VL
  bool avx512vnni = false;
  bool avxvnni = false;
};

static inline bool has_bits(unsigned word, unsigned bits) { return (word & bits) == bits; }

// Returns what processor and operating system have; the latter has to save the registers.
static inline Processor processor_at_hand() {
  Processor found;
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kFma = 1u << 12, kOsSaves = 1u << 27;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !has_bits(c, kFma | kOsSaves)) return found;
  unsigned saved = 0, high = 0;
  asm volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return found;
  constexpr unsigned kYmm = 0x6, kZmm = 0xe6, kAvx2 = 1u << 5, kVnni = 1u << 11;
  constexpr unsigned kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  found.avx2 = has_bits(saved, kYmm) && has_bits(b, kAvx2);
  found.avx512 = found.avx2 && has_bits(saved, kZmm) && has_bits(b, kAvx512);
  found.avx512vnni = found.avx512 && has_bits(c, kVnni);
  constexpr unsigned kAvxVnni = 1u << 4;
  found.avxvnni = found.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && has_bits(a, kAvxVnni);
  return found;
}

#elif defined(TOKEXPORT_ARM)

struct Processor {
  bool dotprod = false;
  bool i8mm = false;
};

// Returns what Linux calls asimddp and i8mm; headers older than the processors lack the bits' names.
static inline Processor processor_at_hand() {
  Processor found;
#ifdef __linux__
  found.dotprod = (getauxval(AT_HWCAP) & 1ul << 20) != 0;
  found.i8mm = found.dotprod && (getauxval(AT_HWCAP2) & 1ul << 13) != 0;
#endif
  return found;
}

#endif

}  // namespace tokexport
