// Vectors of floats as wide as the processor's registers, on the compiler's vector extension.
//
// Every kernel is written once on these and compiled once for each instruction set, in a namespace
// of its own; dispatch.cpp chooses among them when the library is loaded. The kernels call no inline
// function outside that namespace, those of the standard library included: the linker keeps one copy
// of it for all, and a plain processor could be handed the one with wide vectors. What kernels.h has
// is static for that reason. tests/runtimes/test_weak_symbols.py looks at the compiled symbols.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/kernels.h"

#if !defined(TOKEXPORT_ISA) || !defined(TOKEXPORT_WIDTH)
#error "TOKEXPORT_ISA and TOKEXPORT_WIDTH say what this file is compiled for."
#endif

namespace tokexport::TOKEXPORT_ISA {

// Floats in a vector.
inline constexpr size_t kLanes = TOKEXPORT_WIDTH;
static_assert(kLanes <= kMaxLanes && kMaxLanes % kLanes == 0);

using Floats = float __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));
using Ints = int32_t __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));
using UInts = uint32_t __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));

// Reads and writes a vector anywhere in memory. GCC for ARM takes what memcpy moves through memory and
// the plain registers, also where it is an accumulator.
#ifdef __aarch64__
template <typename Vector>
struct Anywhere {
  Vector value;
} __attribute__((packed, may_alias));

template <typename Vector>
inline Vector read_vector(const void* from) {
  return static_cast<const Anywhere<Vector>*>(from)->value;
}

template <typename Vector>
inline void write_vector(void* to, Vector value) {
  static_cast<Anywhere<Vector>*>(to)->value = value;
}
#else
template <typename Vector>
inline Vector read_vector(const void* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename Vector>
inline void write_vector(void* to, Vector value) {
  std::memcpy(to, &value, sizeof value);
}
#endif

inline Floats load(const float* from) { return read_vector<Floats>(from); }

inline void store(float* to, Floats value) { write_vector(to, value); }

// Copies `count` floats; where there are none, the pointers may be null.
inline void copy(float* to, const float* from, size_t count) {
  if (count != 0) std::memcpy(to, from, count * sizeof(float));
}

inline Floats broadcast(float value) { return value - Floats{}; }

// Loads the first `count` lanes; the others are `fill`.
inline Floats load_tail(const float* from, size_t count, float fill = 0.0f) {
  if (count == kLanes) return load(from);
  float parts[kLanes];
  for (size_t i = 0; i < kLanes; ++i) parts[i] = i < count ? from[i] : fill;
  return load(parts);
}

// Stores the first `count` lanes.
inline void store_tail(float* to, Floats value, size_t count) {
  if (count == kLanes) return store(to, value);
  float parts[kLanes];
  store(parts, value);
  for (size_t i = 0; i < count; ++i) to[i] = parts[i];
}

// Picks lanes of a and, from kLanes on, of b.
template <int... Lanes, typename Vector>
inline Vector shuffle(Vector a, Vector b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Lanes...);
#else
  return __builtin_shuffle(a, b, Ints{Lanes...});
#endif
}

// Swaps what lies off the diagonal in blocks of 2 · Half rows and lanes, then in their halves.
template <int Half, int... Lane>
inline void transpose_blocks(Floats* rows, std::integer_sequence<int, Lane...> lanes) {
  constexpr int width = kLanes;
#pragma GCC unroll 16
  for (int r = 0; r < width; ++r) {
    if (r & Half) continue;
    const Floats upper = rows[r];
    const Floats lower = rows[r + Half];
    rows[r] = shuffle<(Lane & Half ? width + Lane - Half : Lane)...>(upper, lower);
    rows[r + Half] = shuffle<(Lane & Half ? width + Lane : Lane + Half)...>(upper, lower);
  }
  if constexpr (Half > 1) transpose_blocks<Half / 2>(rows, lanes);
}

// Writes the transpose of kLanes rows of kLanes floats; strides in floats.
inline void transpose(const float* from, size_t from_stride, float* to, size_t to_stride) {
  Floats rows[kLanes];
#pragma GCC unroll 16
  for (size_t r = 0; r < kLanes; ++r) rows[r] = load(from + r * from_stride);
  transpose_blocks<kLanes / 2>(rows, std::make_integer_sequence<int, kLanes>{});
#pragma GCC unroll 16
  for (size_t r = 0; r < kLanes; ++r) store(to + r * to_stride, rows[r]);
}

inline size_t min(size_t a, size_t b) { return a < b ? a : b; }

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }

// Reduces all lanes by an operation of two vectors: lanes that are Half apart, then those of half the
// distance, down to neighbours. Every lane of the result holds it.
template <int Half = kLanes / 2, typename Vector, typename Operation, int... Lane>
inline Vector reduce_lanes(Vector value, Operation operation,
                           std::integer_sequence<int, Lane...> lanes) {
  value = operation(value, shuffle<(Lane ^ Half)...>(value, value));
  if constexpr (Half > 1) return reduce_lanes<Half / 2>(value, operation, lanes);
  return value;
}

template <typename Vector, typename Operation>
inline Vector reduce_lanes(Vector value, Operation operation) {
  return reduce_lanes(value, operation, std::make_integer_sequence<int, kLanes>{});
}

inline bool any_lane(Ints mask) {
  return reduce_lanes(mask, [](Ints a, Ints b) { return a | b; })[0] != 0;
}

inline float reduce_add(Floats value) {
  return reduce_lanes(value, [](Floats a, Floats b) { return a + b; })[0];
}

inline float reduce_max(Floats value) {
  return reduce_lanes(value, [](Floats a, Floats b) { return max(a, b); })[0];
}

}  // namespace tokexport::TOKEXPORT_ISA
