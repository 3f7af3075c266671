// y = activation(x w + bias) + residual, on weights that lie in panels of 32 columns.
#pragma once

#include <type_traits>

#include "kernels/activations.h"
#include "kernels/gemm.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes a tile of the product with activation and residual, where the microkernel cannot do so itself.
inline void apply_epilogue(const LinearArgs& args, const float (*tile)[kNR], size_t row,
                           size_t rows, size_t column, size_t columns) {
  for (size_t from = 0; from < columns; from += kLanes) {
    const size_t count = min(kLanes, columns - from);
    for (size_t r = 0; r < rows; ++r) {
      const size_t place = (row + r) * args.columns + column + from;
      Floats value = load(tile[r] + from);
      if (args.gelu) value = gelu(value);
      if (args.residual != nullptr) value = load_tail(args.residual + place, count) + value;
      store_tail(args.y + place, value, count);
    }
  }
}

// Computes the columns of one panel for the rows of one chunk; `cold` where another core may have
// written the rows and this one has not read them yet.
inline void linear_task(const LinearArgs& args, size_t task, bool cold) {
  const size_t panels = panel_count(args.columns);
  const size_t panel = task % panels;
  const size_t begin = task / panels * args.rows_per_task;
  const size_t rows = min(args.rows_per_task, args.rows - begin);
  const size_t panel_floats = kPackedN * args.depth;
  PanelPrefetch next_panel(args.panels + (panel + 1) % panels * panel_floats, args.depth,
                           kPackedN * sizeof(float), kPackedN / kNR * row_block_count(rows));
  float bias[kNR];
  float tile[kMR][kNR];
  for (size_t inner = 0; inner < kPackedN; inner += kNR) {
    const size_t column = panel * kPackedN + inner;
    if (column >= args.columns) break;
    const size_t columns = min(kNR, args.columns - column);
    for (size_t c = 0; c < kNR; ++c)
      bias[c] = args.bias != nullptr && c < columns ? args.bias[column + c] : 0.0f;
    const float* weights = args.panels + panel * panel_floats + inner;
    for_row_blocks(rows, [&](size_t first, size_t count) {
      const size_t row = begin + first;
      const size_t place = row * args.columns + column;
      const float* x = args.x + row * args.depth;
      const auto multiply = [&](auto residual, const GemmOutput& to) {
        if (cold && inner == 0 && first + count < rows) {
          const Prefetch ahead{reinterpret_cast<const char*>(x + count * args.depth),
                            count * sizeof(float)};
          gemm_rows<residual, true>(count, x, args.depth, args.depth, weights, to,
                                    next_panel.next_part(), ahead);
        } else {
          gemm_rows<residual, false>(count, x, args.depth, args.depth, weights, to,
                                     next_panel.next_part(), Prefetch{});
        }
      };
      if (args.gelu || columns < kNR) {
        multiply(std::false_type(), GemmOutput{tile[0], kNR, bias, nullptr});
        apply_epilogue(args, tile, row, count, column, columns);
      } else if (args.residual == nullptr) {
        multiply(std::false_type(), GemmOutput{args.y + place, args.columns, bias, nullptr});
      } else {
        multiply(std::true_type(),
                 GemmOutput{args.y + place, args.columns, bias, args.residual + place});
      }
    });
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
