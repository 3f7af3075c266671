// y = activation(x w + bias) + residual, on weights that lie in panels of 32 columns.
#pragma once

#include <type_traits>

#include "kernels/elementary.h"
#include "kernels/product.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes a product, where it does not go to its place as it is.
inline void finish_block(const LinearArgs& args, const float (*tile)[kColumns], size_t row,
                         size_t rows, size_t column, size_t columns) {
  for (size_t from = 0; from < columns; from += kWidth) {
    const size_t count = smaller(kWidth, columns - from);
    for (size_t r = 0; r < rows; ++r) {
      const size_t place = (row + r) * args.columns + column + from;
      Floats value = load(tile[r] + from);
      if (args.gelu) value = gelu_of(value);
      if (args.residual != nullptr) value = load_first(args.residual + place, count) + value;
      store_first(args.y + place, value, count);
    }
  }
}

// Computes the columns of one panel for the rows of one chunk; `cold` where another core may have
// written the rows, and this one not read them yet.
inline void linear_task(const LinearArgs& args, size_t task, bool cold) {
  const size_t panels = panel_count(args.columns);
  const size_t panel = task % panels;
  const size_t begin = task / panels * args.rows_per_task;
  const size_t rows = smaller(args.rows_per_task, args.rows - begin);
  const size_t panel_floats = kPanel * args.depth;
  NextPanel next(args.panels + (panel + 1) % panels * panel_floats, args.depth,
                 kPanel * sizeof(float), kPanel / kColumns * block_count(rows));
  float bias[kColumns];
  float tile[kRows][kColumns];
  for (size_t inner = 0; inner < kPanel; inner += kColumns) {
    const size_t column = panel * kPanel + inner;
    if (column >= args.columns) break;
    const size_t columns = smaller(kColumns, args.columns - column);
    for (size_t c = 0; c < kColumns; ++c)
      bias[c] = args.bias != nullptr && c < columns ? args.bias[column + c] : 0.0f;
    const float* weights = args.panels + panel * panel_floats + inner;
    in_blocks(rows, [&](size_t first, size_t count) {
      const size_t row = begin + first;
      const size_t place = row * args.columns + column;
      const float* x = args.x + row * args.depth;
      const auto multiply = [&](auto residual, const Result& to) {
        if (cold && inner == 0 && first + count < rows) {
          const Fetch ahead{reinterpret_cast<const char*>(x + count * args.depth),
                            count * sizeof(float)};
          multiply_rows<residual, true>(count, x, args.depth, args.depth, weights, to,
                                        next.fetch(), ahead);
        } else {
          multiply_rows<residual, false>(count, x, args.depth, args.depth, weights, to,
                                         next.fetch(), Fetch{});
        }
      };
      if (args.gelu || columns < kColumns) {
        multiply(std::false_type(), Result{tile[0], kColumns, bias, nullptr});
        finish_block(args, tile, row, count, column, columns);
      } else if (args.residual == nullptr) {
        multiply(std::false_type(), Result{args.y + place, args.columns, bias, nullptr});
      } else {
        multiply(std::true_type(),
                 Result{args.y + place, args.columns, bias, args.residual + place});
      }
    });
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
