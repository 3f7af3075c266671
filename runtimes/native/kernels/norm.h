// Layer normalisation of rows.
#pragma once

#include <algorithm>
#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

// The sum of term(c, count) over the columns, count of them from c on; four sums that do not wait for
// one another.
template <typename Term>
inline float sum_over(size_t columns, const Term& term) {
  Floats sums[4] = {};
  size_t c = 0;
  for (; c + 4 * kWidth <= columns; c += 4 * kWidth)
    for (size_t i = 0; i < 4; ++i) sums[i] += term(c + i * kWidth, kWidth);
  for (; c < columns; c += kWidth) sums[0] += term(c, smaller(kWidth, columns - c));
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// y = (x − mean) / √(variance + epsilon) · weight + bias for one row.
inline void norm_row(const NormArgs& args, const float* x, float* y) {
  const size_t columns = args.columns;
  const auto at = [&](size_t c, size_t count) { return load_first(x + c, count); };
  const float mean = sum_over(columns, at) / static_cast<float>(columns);
  const auto square = [&](size_t c, size_t count) {
    const Floats off = load_first(x + c, count, mean) - mean;
    return off * off;
  };
  const float variance = sum_over(columns, square) / static_cast<float>(columns);
  const float factor = 1.0f / __builtin_sqrtf(variance + args.epsilon);
  for (size_t c = 0; c < columns; c += kWidth) {
    const size_t count = smaller(kWidth, columns - c);
    Floats value = (load_first(x + c, count) - mean) * factor;
    value *= load_first(args.weight + c, count);
    if (args.bias != nullptr) value += load_first(args.bias + c, count);
    store_first(y + c, value, count);
  }
}

// The rows of one chunk.
inline void norm_task(const NormArgs& args, size_t task) {
  const size_t begin = task * args.rows_per_task;
  const size_t end = smaller(args.rows, begin + args.rows_per_task);
  for (size_t r = begin; r < end; ++r)
    norm_row(args, args.x + r * args.columns, args.y + r * args.columns);
}

}  // namespace tokexport::TOKEXPORT_ISA
