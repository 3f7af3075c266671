// Chooses the kernels for the processor at hand.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(TOKEXPORT_X86)
#include <cpuid.h>
#endif

namespace tokexport {

namespace baseline {
extern const Kernels kernels;
}
#ifdef TOKEXPORT_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avxvnni {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512vnni {
extern const Kernels kernels;
}
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

// What the processor can do, the widest vectors first.
struct Choice {
  const Kernels& kernels;
  bool possible;
};

const Kernels& chosen() {
#ifdef TOKEXPORT_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Choice choices[] = {
      {avx512vnni::kernels, has_avx512 && __builtin_cpu_supports("avx512vnni")},
      {avx512::kernels, has_avx512},
      {avxvnni::kernels, has_avx2 && has_avx_vnni()},
      {avx2::kernels, has_avx2},
  };
  // For tests and comparisons: no better ones than these.
  const char* most = std::getenv("TOKEXPORT_MAX_ISA");
  bool allowed = most == nullptr;
  for (const Choice& choice : choices) {
    allowed = allowed || std::strcmp(most, choice.kernels.name) == 0;
    if (allowed && choice.possible) return choice.kernels;
  }
#endif
  return baseline::kernels;
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
