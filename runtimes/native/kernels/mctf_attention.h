// MCTF computes attention before its tokens merge: what that says of the tokens, and its product with
// the values of the merged ones.
#pragma once

#include <cmath>

#include "kernels/attention.h"

namespace tokexport::TOKEXPORT_ISA {

// Computes the attention that some tokens of one image receive.
inline void attention_received_task(const FusionCriteriaArgs& args, size_t task) {
  const size_t chunks = ceil_div(args.count, kMeanColumnsPerTask);
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kMeanColumnsPerTask;
  const size_t columns = min(kMeanColumnsPerTask, args.count - begin);
  const float* weights = args.weights + image * args.rows * args.count + begin;
  Floats sums[kMeanColumnsPerTask / kLanes] = {};
  for (size_t row = 0; row < args.rows; ++row)
    for (size_t c = 0; c < columns; c += kLanes)
      sums[c / kLanes] += load_tail(weights + row * args.count + c, min(kLanes, columns - c));
  for (size_t c = 0; c < columns; c += kLanes)
    store_tail(args.rarity + image * args.count + begin + c,
               sums[c / kLanes] / static_cast<float>(args.rows), min(kLanes, columns - c));
}

// Computes rarity and share of each token of one image from the attention that it receives.
inline void fusion_criteria_task(const FusionCriteriaArgs& args, size_t image) {
  float* rarity = args.rarity + image * args.count;
  float* share = args.share + image * args.count;
  const float* size = args.size + image * args.count;
  float max_rarity = 1.0f / rarity[0];
  float max_inverse_size = 1.0f / size[0];
  float max_size = size[0];
  for (size_t i = 0; i < args.count; ++i) {
    const float inverse_attention = 1.0f / rarity[i];
    const float inverse_size = 1.0f / size[i];
    max_rarity = inverse_attention > max_rarity ? inverse_attention : max_rarity;
    max_inverse_size = inverse_size > max_inverse_size ? inverse_size : max_inverse_size;
    max_size = size[i] > max_size ? size[i] : max_size;
  }
  for (size_t i = 0; i < args.count; ++i) {
    share[i] = rarity[i] * size[i] / max_size;
    rarity[i] = powf(1.0f / rarity[i] / max_rarity, args.info_power) *
              powf(1.0f / size[i] / max_inverse_size, args.size_power);
  }
}

// Packs the values of one image and head, a row for each key.
inline void merged_values_task(const MergedAttentionArgs& args, size_t task) {
  const size_t image = task / args.heads;
  pack_rows(rows_of(args.v, image, task % args.heads), args.v.row_stride, args.count,
            args.value_depth, args.packed_v + task * packed_v_floats(args),
            args.value_row + image * args.count);
}

// Writes the weights of the queries that became one row, averaged by their shares.
inline void average_queries(const float* weights, const float* share, const size_t* members,
                            size_t queries, size_t count, float* row) {
  const float* first = weights + members[0] * count;
  if (queries == 1) {
    copy(row, first, count);
    return;
  }
  float total = 0.0f;
  for (size_t i = 0; i < queries; ++i) total += share[members[i]];
  for (size_t from = 0; from < count; from += kLanes) {
    const size_t width = min(kLanes, count - from);
    Floats sum = load_tail(first + from, width) * share[members[0]];
    for (size_t i = 1; i < queries; ++i)
      sum += load_tail(weights + members[i] * count + from, width) * share[members[i]];
    store_tail(row + from, sum / total, width);
  }
}

// Computes a block of merged rows of one image and head.
inline void merged_attention_task(const MergedAttentionArgs& args, size_t task, float* scratch) {
  const size_t chunks = ceil_div(args.rows, args.rows_per_task);
  const size_t begin = task % chunks * args.rows_per_task;
  const size_t pair = task / chunks;
  const size_t image = pair / args.heads;
  const float* weights = args.weights + pair * args.count * args.count;
  const float* share = args.share + image * args.count;
  const size_t* start = args.row_start + image * (args.rows + 1) + begin;
  const size_t* members = args.members + image * args.count;
  const float* values = args.packed_v + pair * packed_v_floats(args);
  float* averaged = scratch;
  float tile[kMR][kNR];
  for_row_blocks(min(args.rows_per_task, args.rows - begin), [&](size_t first, size_t count) {
    for (size_t r = 0; r < count; ++r) {
      const size_t from = start[first + r];
      average_queries(weights, share, members + from, start[first + r + 1] - from, args.count,
                      averaged + r * args.count);
    }
    float* rows =
        rows_of(args.y, image, pair % args.heads) + (begin + first) * args.y.row_stride;
    for (size_t column = 0; column < args.value_depth; column += kNR) {
      gemm_rows(count, averaged, args.count, args.count,
                values + column / kPackedN * kPackedN * args.count + column % kPackedN, tile[0],
                kNR);
      const size_t columns = min(kNR, args.value_depth - column);
      for (size_t r = 0; r < count; ++r)
        for (size_t from = 0; from < columns; from += kLanes)
          store_tail(rows + r * args.y.row_stride + column + from, load(tile[r] + from),
                     min(kLanes, columns - from));
    }
  });
}

}  // namespace tokexport::TOKEXPORT_ISA
