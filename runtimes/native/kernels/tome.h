// What ToMe computes between attention and MLP: the match by cosine, and the mean by size.
#pragma once

#include "kernels/attention.h"
#include "kernels/norm.h"
#include "kernels/product.h"
#include "kernels/tokens.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes the mean of a token's heads, of length one: the sum of the heads over its own length.
inline void unit_metric(size_t heads, size_t depth, const float* token, float* metric) {
  Floats squares{};
  for (size_t d = 0; d < depth; d += kWidth) {
    const size_t count = smaller(kWidth, depth - d);
    Floats total = load_first(token + d, count);
    for (size_t head = 1; head < heads; ++head)
      total += load_first(token + head * depth + d, count);
    store_first(metric + d, total, count);
    squares += total * total;
  }
  const float factor = 1.0f / __builtin_sqrtf(sum_of(squares));
  for (size_t d = 0; d < depth; d += kWidth) {
    const size_t count = smaller(kWidth, depth - d);
    store_first(metric + d, load_first(metric + d, count) * factor, count);
  }
}

// Writes some tokens of b, of length one, as columns of a panel.
inline void cosine_units_task(const CosineArgs& args, size_t task) {
  const size_t groups = panel_count(args.b.count) * (kPanel / kUnitTokens);
  const size_t image = task / groups;
  const size_t begin = task % groups * kUnitTokens;
  const float* rows = args.rows + image * args.count * args.width;
  float* panel = args.panels + image * cosine_panel_floats(args) +
                 begin / kPanel * kPanel * args.depth + begin % kPanel;
  thread_local Buffer<float> scratch;
  float* units = scratch.of(kWidth * args.depth);
  static_assert(kUnitTokens % kWidth == 0);
  for (size_t i = 0; i < kUnitTokens; i += kWidth) {
    const size_t left = begin + i < args.b.count ? args.b.count - begin - i : 0;
    const size_t present = smaller(kWidth, left);
    for (size_t j = 0; j < present; ++j)
      unit_metric(args.heads, args.depth, rows + args.b.token(begin + i + j) * args.width,
                  units + j * args.depth);
    turn_rows(units, args.depth, present, args.depth, panel + i);
  }
}

// Finds the partner of some tokens of a.
inline void cosine_rows_task(const CosineArgs& args, size_t task) {
  const size_t chunks = (args.a.count + kCosineRows - 1) / kCosineRows;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kCosineRows;
  const size_t depth = args.depth;
  const size_t width = panel_count(args.b.count) * kPanel;
  const float* rows = args.rows + image * args.count * args.width;
  const float* panels = args.panels + image * cosine_panel_floats(args);
  float* best = args.best + image * args.a.count;
  int64_t* partner = args.partner + image * args.a.count;
  thread_local Buffer<float> scratch;
  float* units = scratch.of(kRows * (depth + width));
  float* scores = units + kRows * depth;
  in_blocks(smaller(kCosineRows, args.a.count - begin), [&](size_t first, size_t count) {
    for (size_t r = 0; r < count; ++r)
      unit_metric(args.heads, depth, rows + args.a.token(begin + first + r) * args.width,
                  units + r * depth);
    for (size_t column = 0; column < args.b.count; column += kColumns)
      multiply_rows(count, units, depth, depth,
                    panels + column / kPanel * kPanel * depth + column % kPanel, scores + column,
                    width);
    for (size_t r = 0; r < count; ++r) {
      const size_t row = begin + first + r;
      best_of(scores + r * width, args.b.count, &best[row], &partner[row]);
      if (row >= args.blocked) continue;
      best[row] = -__builtin_inff();
      partner[row] = 0;
    }
  });
}

// Takes the best pairs of one image.
inline void cosine_rank_task(const CosineArgs& args, size_t image) {
  const size_t first = image * args.a.count;
  rank_pairs(args.match, image, args.best + first, args.partner + first);
}

// Writes some rows of one image: tokens as they are, or the mean of those that merge, and the norm.
inline void merge_by_size_task(const BySizeArgs& args, size_t task) {
  const size_t rows = by_size_rows(args);
  const size_t chunks = (rows + kBySizeRows - 1) / kBySizeRows;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kBySizeRows;
  const size_t channels = args.channels;
  const float* x = args.x + image * args.count * channels;
  const float* size = args.size + image * args.count;
  const int64_t* kept = args.kept + image * args.kept_count;
  const int64_t* src = args.src + image * args.taken;
  const int64_t* first = args.first + image * args.b.count;
  const int64_t* next = args.next + image * args.taken;
  const size_t first_b = args.stay + args.kept_count;
  for (size_t row = begin; row < smaller(rows, begin + kBySizeRows); ++row) {
    const size_t token = row < args.stay ? row
                         : row < first_b ? args.a.token(static_cast<size_t>(kept[row - args.stay]))
                                         : args.b.token(row - first_b);
    const int64_t pairs = row < first_b ? -1 : first[row - first_b];
    // Calls body(x of a token that merges into the row, its size), in the order of the pairs.
    const auto for_merged = [&](auto body) {
      for (int64_t pair = pairs; pair >= 0; pair = next[pair]) {
        const size_t more = args.a.token(static_cast<size_t>(src[pair]));
        body(x + more * channels, size[more]);
      }
    };
    const float* own = x + token * channels;
    float* y = args.y + (image * rows + row) * channels;
    float total = size[token];
    if (pairs < 0) {
      copy(y, own, channels);
    } else {
      for_merged([&](const float*, float weight) { total += weight; });
      for (size_t c = 0; c < channels; c += kWidth) {
        const size_t count = smaller(kWidth, channels - c);
        Floats sum = load_first(own + c, count) * size[token];
        for_merged([&](const float* more, float weight) {
          sum += load_first(more + c, count) * weight;
        });
        store_first(y + c, sum / total, count);
      }
    }
    args.y_size[image * rows + row] = total;
    if (args.norm.y != nullptr)
      norm_row(args.norm, y, args.norm.y + (image * rows + row) * channels);
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
