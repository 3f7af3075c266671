// Chooses the kernels for the processor at hand.
#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"

#if defined(TOKEXPORT_X86)
#include <cpuid.h>
#elif defined(TOKEXPORT_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace tokexport {

// The table of each instruction set, null where the compiler did not know the set.
#define TOKEXPORT_TABLE(isa)       \
  namespace isa {                  \
  extern const Kernels kernels;    \
  }                                \
  static const Kernels* const table_##isa = &isa::kernels
#define TOKEXPORT_NO_TABLE(isa) static const Kernels* const table_##isa = nullptr

#ifdef TOKEXPORT_ARM
TOKEXPORT_TABLE(neon);
static const Kernels* const table_plainest = table_neon;
#ifdef TOKEXPORT_HAS_NEON_DOTPROD
TOKEXPORT_TABLE(neon_dotprod);
#else
TOKEXPORT_NO_TABLE(neon_dotprod);
#endif
#ifdef TOKEXPORT_HAS_NEON_I8MM
TOKEXPORT_TABLE(neon_i8mm);
#else
TOKEXPORT_NO_TABLE(neon_i8mm);
#endif
#else
TOKEXPORT_TABLE(baseline);
static const Kernels* const table_plainest = table_baseline;
#endif
#ifdef TOKEXPORT_X86
#ifdef TOKEXPORT_HAS_AVX2
TOKEXPORT_TABLE(avx2);
#else
TOKEXPORT_NO_TABLE(avx2);
#endif
#ifdef TOKEXPORT_HAS_AVXVNNI
TOKEXPORT_TABLE(avxvnni);
#else
TOKEXPORT_NO_TABLE(avxvnni);
#endif
#ifdef TOKEXPORT_HAS_AVX512
TOKEXPORT_TABLE(avx512);
#else
TOKEXPORT_NO_TABLE(avx512);
#endif
#ifdef TOKEXPORT_HAS_AVX512VNNI
TOKEXPORT_TABLE(avx512vnni);
#else
TOKEXPORT_NO_TABLE(avx512vnni);
#endif
#endif

namespace {

#ifdef TOKEXPORT_X86
// The leaf 7.1 of CPUID; the compiler's own name for it is younger than the compilers in use.
bool has_avx_vnni() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0;
}
#endif

#if defined(TOKEXPORT_ARM) && defined(__linux__)
// What Linux calls asimddp and i8mm; headers older than the processors do not have the bits' names.
bool has_dot_product() { return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; }
bool has_matrix_product() { return (getauxval(AT_HWCAP2) & (1ul << 13)) != 0; }
#elif defined(TOKEXPORT_ARM)
bool has_dot_product() { return false; }
bool has_matrix_product() { return false; }
#endif

// What the processor can do, the best first.
struct Choice {
  const char* name;
  const Kernels* kernels;
  bool possible;
};

const Kernels& chosen() {
#ifdef TOKEXPORT_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Choice choices[] = {
      {"avx512vnni", table_avx512vnni, has_avx512 && __builtin_cpu_supports("avx512vnni")},
      {"avx512", table_avx512, has_avx512},
      {"avxvnni", table_avxvnni, has_avx2 && has_avx_vnni()},
      {"avx2", table_avx2, has_avx2},
  };
#elif defined(TOKEXPORT_ARM)
  const Choice choices[] = {
      {"neon_i8mm", table_neon_i8mm, has_dot_product() && has_matrix_product()},
      {"neon_dotprod", table_neon_dotprod, has_dot_product()},
  };
#endif
#if defined(TOKEXPORT_X86) || defined(TOKEXPORT_ARM)
  // For tests and comparisons: no better ones than these.
  const char* most = std::getenv("TOKEXPORT_MAX_ISA");
  bool allowed = most == nullptr;
  for (const Choice& choice : choices) {
    allowed = allowed || std::strcmp(most, choice.name) == 0;
    if (allowed && choice.possible && choice.kernels != nullptr) return *choice.kernels;
  }
#endif
  return *table_plainest;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = chosen();
  return table;
}

}  // namespace tokexport

// Says which kernels were chosen.
extern "C" __attribute__((visibility("default"))) const char* tokexport_kernels() {
  return tokexport::kernels().name;
}
