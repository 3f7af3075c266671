// What ToMe computes between attention and MLP: the match by cosine, and the mean by size.
#pragma once

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/layer_norm.h"
#include "kernels/tokens.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes the mean of a token's heads at length one: the sum of the heads over its own length.
inline void normalized_metric(size_t heads, size_t depth, const float* token, float* metric) {
  Floats squares{};
  for (size_t d = 0; d < depth; d += kLanes) {
    const size_t count = min(kLanes, depth - d);
    Floats total = load_tail(token + d, count);
    for (size_t head = 1; head < heads; ++head)
      total += load_tail(token + head * depth + d, count);
    store_tail(metric + d, total, count);
    squares += total * total;
  }
  const float factor = 1.0f / __builtin_sqrtf(reduce_add(squares));
  for (size_t d = 0; d < depth; d += kLanes) {
    const size_t count = min(kLanes, depth - d);
    store_tail(metric + d, load_tail(metric + d, count) * factor, count);
  }
}

// Writes some tokens of b at length one as columns of a panel.
inline void cosine_normalize_task(const CosineArgs& args, size_t task, void* scratch) {
  const size_t groups = panel_count(args.b.count) * (kPackedN / kNormalizedPerTask);
  const size_t image = task / groups;
  const size_t begin = task % groups * kNormalizedPerTask;
  const float* rows = args.rows + image * args.count * args.width;
  float* panel = args.panels + image * cosine_panel_floats(args) +
                 begin / kPackedN * kPackedN * args.depth + begin % kPackedN;
  auto* units = static_cast<float*>(scratch);  // (kLanes, depth)
  static_assert(kNormalizedPerTask % kLanes == 0);
  for (size_t i = 0; i < kNormalizedPerTask; i += kLanes) {
    const size_t left = begin + i < args.b.count ? args.b.count - begin - i : 0;
    const size_t present = min(kLanes, left);
    for (size_t j = 0; j < present; ++j)
      normalized_metric(args.heads, args.depth,
                        rows + token_at(args.b, begin + i + j) * args.width,
                        units + j * args.depth);
    transpose_rows(units, args.depth, present, args.depth, panel + i);
  }
}

// Finds the partner of some tokens of a.
inline void cosine_argmax_task(const CosineArgs& args, size_t task, void* scratch) {
  const size_t chunks = ceil_div(args.a.count, kCosineRowsPerTask);
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kCosineRowsPerTask;
  const size_t depth = args.depth;
  const size_t width = padded_columns(args.b.count);
  const float* rows = args.rows + image * args.count * args.width;
  const float* panels = args.panels + image * cosine_panel_floats(args);
  float* best = args.best + image * args.a.count;
  int64_t* partner = args.partner + image * args.a.count;
  auto* units = static_cast<float*>(scratch);  // (kMR, depth)
  float* scores = units + kMR * depth;         // (kMR, width)
  for_row_blocks(min(kCosineRowsPerTask, args.a.count - begin), [&](size_t first, size_t count) {
    for (size_t r = 0; r < count; ++r)
      normalized_metric(args.heads, depth, rows + token_at(args.a, begin + first + r) * args.width,
                        units + r * depth);
    for (size_t column = 0; column < args.b.count; column += kNR)
      gemm_rows(count, units, depth, depth,
                panels + column / kPackedN * kPackedN * depth + column % kPackedN, scores + column,
                width);
    for (size_t r = 0; r < count; ++r) {
      const size_t row = begin + first + r;
      argmax_row(scores + r * width, args.b.count, &best[row], &partner[row]);
      if (row >= args.protected_rows) continue;
      best[row] = -__builtin_inff();
      partner[row] = 0;
    }
  });
}

// Takes the best pairs of one image.
inline void cosine_select_task(const CosineArgs& args, size_t image, void* scratch) {
  const size_t first = image * args.a.count;
  auto* keys = static_cast<uint64_t*>(scratch);
  select_pairs(args.match, image, args.best + first, args.partner + first, keys,
               reinterpret_cast<bool*>(keys + args.a.count));
}

// Writes some rows of one image: tokens as they are, or the mean of those that merge, and the norm.
inline void merge_by_size_task(const MergeBySizeArgs& args, size_t task) {
  const size_t rows = merge_by_size_rows(args);
  const size_t chunks = ceil_div(rows, kMergeRowsPerTask);
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kMergeRowsPerTask;
  const size_t channels = args.channels;
  const float* x = args.x + image * args.count * channels;
  const float* size = args.size + image * args.count;
  const int64_t* kept = args.kept + image * args.kept_count;
  const int64_t* src = args.src + image * args.pairs;
  const int64_t* first = args.first + image * args.b.count;
  const int64_t* next = args.next + image * args.pairs;
  const size_t first_b = args.protected_tokens + args.kept_count;
  for (size_t row = begin; row < min(rows, begin + kMergeRowsPerTask); ++row) {
    const size_t token =
        row < args.protected_tokens ? row
        : row < first_b
            ? token_at(args.a, static_cast<size_t>(kept[row - args.protected_tokens]))
            : token_at(args.b, row - first_b);
    const int64_t first_pair = row < first_b ? -1 : first[row - first_b];
    // Calls body(x of a token that merges into the row, its size), in the order of the pairs.
    const auto for_merged = [&](auto body) {
      for (int64_t pair = first_pair; pair >= 0; pair = next[pair]) {
        const size_t merged = token_at(args.a, static_cast<size_t>(src[pair]));
        body(x + merged * channels, size[merged]);
      }
    };
    const float* own = x + token * channels;
    float* y = args.y + (image * rows + row) * channels;
    float total = size[token];
    if (first_pair < 0) {
      copy(y, own, channels);
    } else {
      for_merged([&](const float*, float weight) { total += weight; });
      for (size_t c = 0; c < channels; c += kLanes) {
        const size_t count = min(kLanes, channels - c);
        Floats sum = load_tail(own + c, count) * size[token];
        for_merged([&](const float* merged, float weight) {
          sum += load_tail(merged + c, count) * weight;
        });
        store_tail(y + c, sum / total, count);
      }
    }
    args.y_size[image * rows + row] = total;
    if (args.norm.y != nullptr)
      layer_norm_row(args.norm, y, args.norm.y + (image * rows + row) * channels);
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
