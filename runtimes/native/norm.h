// Layer normalisation of rows.
#pragma once

#include <algorithm>
#include "kernels.h"
#include "simd.h"

namespace tokexport::TOKEXPORT_ISA {

// y = (x − mean) / √(variance + epsilon) · weight + bias for the rows of one chunk.
inline void norm_task(const NormArgs& args, size_t task) {
  const size_t begin = task * args.rows_per_task;
  const size_t end = smaller(args.rows, begin + args.rows_per_task);
  const size_t columns = args.columns;
  for (size_t r = begin; r < end; ++r) {
    const float* x = args.x + r * columns;
    float* y = args.y + r * columns;
    Floats total{};
    for (size_t c = 0; c < columns; c += kWidth)
      total += load_first(x + c, smaller(kWidth, columns - c));
    const float mean = sum_of(total) / static_cast<float>(columns);
    Floats squares{};
    for (size_t c = 0; c < columns; c += kWidth) {
      const Floats off = load_first(x + c, smaller(kWidth, columns - c), mean) - mean;
      squares += off * off;
    }
    const float variance = sum_of(squares) / static_cast<float>(columns);
    const float factor = 1.0f / __builtin_sqrtf(variance + args.epsilon);
    for (size_t c = 0; c < columns; c += kWidth) {
      const size_t count = smaller(kWidth, columns - c);
      Floats value = (load_first(x + c, count) - mean) * factor;
      value *= load_first(args.weight + c, count);
      if (args.bias != nullptr) value += load_first(args.bias + c, count);
      store_first(y + c, value, count);
    }
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
