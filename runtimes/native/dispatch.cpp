// Chooses the kernels for the processor at hand.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace tokexport {

namespace baseline {
extern const Kernels kernels;
}
#ifdef TOKEXPORT_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

const Kernels& chosen() {
  // For tests and comparisons: no wider vectors than these.
  const char* most = std::getenv("TOKEXPORT_MAX_ISA");
  const auto allowed = [most](const char* name) {
    return most == nullptr || std::strcmp(most, name) == 0;
  };
#ifdef TOKEXPORT_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512 && allowed("avx512")) return avx512::kernels;
  if (has_avx2 && (allowed("avx2") || allowed("avx512"))) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = chosen();
  return table;
}

}  // namespace tokexport
