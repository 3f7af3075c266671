// Vectors of floats as wide as the processor's registers, on the compiler's vector extension.
//
// Every kernel is written once on these and compiled once for each instruction set, in a namespace
// of its own; dispatch.cpp chooses among them when the library is loaded. Such code calls no
// function outside that namespace that the compiler might leave out of line: the linker would keep
// one copy for all, and a plain processor could be handed the one with wide vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(TOKEXPORT_ISA) || !defined(TOKEXPORT_WIDTH)
#error "TOKEXPORT_ISA and TOKEXPORT_WIDTH say what this file is compiled for."
#endif

namespace tokexport::TOKEXPORT_ISA {

// Floats in a vector.
inline constexpr size_t kWidth = TOKEXPORT_WIDTH;

using Floats = float __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));
using Ints = int32_t __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline Floats all(float value) { return value - Floats{}; }

// Reads the first `count` floats; the others are `fill`.
inline Floats load_first(const float* from, size_t count, float fill = 0.0f) {
  if (count == kWidth) return load(from);
  float parts[kWidth];
  for (size_t i = 0; i < kWidth; ++i) parts[i] = i < count ? from[i] : fill;
  return load(parts);
}

inline void store_first(float* to, Floats value, size_t count) {
  if (count == kWidth) return store(to, value);
  float parts[kWidth];
  store(parts, value);
  for (size_t i = 0; i < count; ++i) to[i] = parts[i];
}

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

inline bool any_of(Ints truths) {
  int32_t parts[kWidth];
  std::memcpy(parts, &truths, sizeof parts);
  int32_t found = 0;
  for (int32_t part : parts) found |= part;
  return found != 0;
}

inline float sum_of(Floats value) {
  float parts[kWidth];
  std::memcpy(parts, &value, sizeof parts);
  for (size_t half = kWidth / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

inline float largest_of(Floats value) {
  float parts[kWidth];
  std::memcpy(parts, &value, sizeof parts);
  for (size_t half = kWidth / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) parts[i] = parts[i] > parts[i + half] ? parts[i] : parts[i + half];
  return parts[0];
}

}  // namespace tokexport::TOKEXPORT_ISA
