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
#include <utility>

#if !defined(TOKEXPORT_ISA) || !defined(TOKEXPORT_WIDTH)
#error "TOKEXPORT_ISA and TOKEXPORT_WIDTH say what this file is compiled for."
#endif

namespace tokexport::TOKEXPORT_ISA {

// Floats in a vector.
inline constexpr size_t kWidth = TOKEXPORT_WIDTH;

using Floats = float __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));
using Ints = int32_t __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));
using Words = uint32_t __attribute__((vector_size(4 * TOKEXPORT_WIDTH)));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// Copies so many floats; of none, neither place need be one.
inline void copy(float* to, const float* from, size_t count) {
  if (count != 0) std::memcpy(to, from, count * sizeof(float));
}

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

// Lanes of a and, from kWidth on, of b.
template <int... Lanes, typename Vector>
inline Vector lanes_of(Vector a, Vector b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Lanes...);
#else
  return __builtin_shuffle(a, b, Ints{Lanes...});
#endif
}

// Swaps what lies off the diagonal in blocks of 2 · Half rows and lanes, then in their halves.
template <int Half, int... Lane>
inline void swap_off_diagonal(Floats* rows, std::integer_sequence<int, Lane...> lanes) {
  constexpr int width = kWidth;
#pragma GCC unroll 16
  for (int r = 0; r < width; ++r) {
    if (r & Half) continue;
    const Floats upper = rows[r];
    const Floats lower = rows[r + Half];
    rows[r] = lanes_of<(Lane & Half ? width + Lane - Half : Lane)...>(upper, lower);
    rows[r + Half] = lanes_of<(Lane & Half ? width + Lane : Lane + Half)...>(upper, lower);
  }
  if constexpr (Half > 1) swap_off_diagonal<Half / 2>(rows, lanes);
}

// Writes the transpose of kWidth rows of kWidth floats; strides in floats.
inline void transpose(const float* from, size_t from_stride, float* to, size_t to_stride) {
  Floats rows[kWidth];
#pragma GCC unroll 16
  for (size_t r = 0; r < kWidth; ++r) rows[r] = load(from + r * from_stride);
  swap_off_diagonal<kWidth / 2>(rows, std::make_integer_sequence<int, kWidth>{});
#pragma GCC unroll 16
  for (size_t r = 0; r < kWidth; ++r) store(to + r * to_stride, rows[r]);
}

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

// Joins all lanes: lanes that are Half apart, then those of half the distance, down to neighbours.
// Every lane of the result holds it.
template <int Half = kWidth / 2, typename Vector, typename Join, int... Lane>
inline Vector joined(Vector value, Join join, std::integer_sequence<int, Lane...> lanes) {
  value = join(value, lanes_of<(Lane ^ Half)...>(value, value));
  if constexpr (Half > 1) return joined<Half / 2>(value, join, lanes);
  return value;
}

template <typename Vector, typename Join>
inline Vector joined(Vector value, Join join) {
  return joined(value, join, std::make_integer_sequence<int, kWidth>{});
}

inline bool any_of(Ints truths) {
  return joined(truths, [](Ints a, Ints b) { return a | b; })[0] != 0;
}

inline float sum_of(Floats value) {
  return joined(value, [](Floats a, Floats b) { return a + b; })[0];
}

inline float largest_of(Floats value) {
  return joined(value, [](Floats a, Floats b) { return larger(a, b); })[0];
}

}  // namespace tokexport::TOKEXPORT_ISA
