// Chooses the kernels for the processor at hand.
#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/processor.h"

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

// What the processor can do, the best first.
struct Choice {
  const char* name;
  const Kernels* kernels;
  bool possible;
};

const Kernels& chosen() {
#if defined(TOKEXPORT_X86)
  const Processor processor = processor_at_hand();
  const Choice choices[] = {
      {"avx512vnni", table_avx512vnni, processor.avx512vnni},
      {"avx512", table_avx512, processor.avx512},
      {"avxvnni", table_avxvnni, processor.avxvnni},
      {"avx2", table_avx2, processor.avx2},
  };
#elif defined(TOKEXPORT_ARM)
  const Processor processor = processor_at_hand();
  const Choice choices[] = {
      {"neon_i8mm", table_neon_i8mm, processor.i8mm},
      {"neon_dotprod", table_neon_dotprod, processor.dotprod},
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
