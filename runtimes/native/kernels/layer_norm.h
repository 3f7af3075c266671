// Layer normalisation of rows.
#pragma once

#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

// Sums term(c, count) over the columns, `count` of them from c on, in four sums that do not depend on
// one another.
template <typename Term>
inline float sum_columns(size_t columns, const Term& term) {
  Floats sums[4] = {};
  size_t c = 0;
  for (; c + 4 * kLanes <= columns; c += 4 * kLanes)
    for (size_t i = 0; i < 4; ++i) sums[i] += term(c + i * kLanes, kLanes);
  for (; c < columns; c += kLanes) sums[0] += term(c, min(kLanes, columns - c));
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// y = (x − mean) / √(variance + epsilon) · weight + bias, for one row.
inline void layer_norm_row(const LayerNormArgs& args, const float* x, float* y) {
  const size_t columns = args.columns;
  const auto at = [&](size_t c, size_t count) { return load_tail(x + c, count); };
  const float mean = sum_columns(columns, at) / static_cast<float>(columns);
  const auto square = [&](size_t c, size_t count) {
    const Floats centred = load_tail(x + c, count, mean) - mean;
    return centred * centred;
  };
  const float variance = sum_columns(columns, square) / static_cast<float>(columns);
  const float factor = 1.0f / __builtin_sqrtf(variance + args.epsilon);
  for (size_t c = 0; c < columns; c += kLanes) {
    const size_t count = min(kLanes, columns - c);
    Floats value = (load_tail(x + c, count) - mean) * factor;
    value *= load_tail(args.weight + c, count);
    if (args.bias != nullptr) value += load_tail(args.bias + c, count);
    store_tail(y + c, value, count);
  }
}

// Normalises the rows of one chunk.
inline void layer_norm_task(const LayerNormArgs& args, size_t task) {
  const size_t begin = task * args.rows_per_task;
  const size_t end = min(args.rows, begin + args.rows_per_task);
  for (size_t r = begin; r < end; ++r)
    layer_norm_row(args, args.x + r * args.columns, args.y + r * args.columns);
}

}  // namespace tokexport::TOKEXPORT_ISA
