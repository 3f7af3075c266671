// Attention that is computed before tokens merge: what it says of them, and its product with the
// values of the merged ones.
#pragma once

#include <cmath>

#include "kernels/attention.h"

namespace tokexport::TOKEXPORT_ISA {

// Computes the attention that some tokens of one image receive.
inline void received_task(const CriteriaArgs& args, size_t task) {
  const size_t chunks = (args.count + kMeanColumns - 1) / kMeanColumns;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kMeanColumns;
  const size_t columns = smaller(kMeanColumns, args.count - begin);
  const float* weights = args.weights + image * args.rows * args.count + begin;
  Floats sums[kMeanColumns / kWidth] = {};
  for (size_t row = 0; row < args.rows; ++row)
    for (size_t c = 0; c < columns; c += kWidth)
      sums[c / kWidth] += load_first(weights + row * args.count + c, smaller(kWidth, columns - c));
  for (size_t c = 0; c < columns; c += kWidth)
    store_first(args.rare + image * args.count + begin + c,
                sums[c / kWidth] / static_cast<float>(args.rows), smaller(kWidth, columns - c));
}

// Computes the criteria of one image, whose tokens' received attention is known.
inline void criteria_task(const CriteriaArgs& args, size_t image) {
  float* rare = args.rare + image * args.count;
  float* share = args.share + image * args.count;
  const float* size = args.size + image * args.count;
  float rarest = 1.0f / rare[0];
  float smallest = 1.0f / size[0];
  float largest = size[0];
  for (size_t i = 0; i < args.count; ++i) {
    const float of_info = 1.0f / rare[i];
    const float of_size = 1.0f / size[i];
    rarest = of_info > rarest ? of_info : rarest;
    smallest = of_size > smallest ? of_size : smallest;
    largest = size[i] > largest ? size[i] : largest;
  }
  for (size_t i = 0; i < args.count; ++i) {
    share[i] = rare[i] * size[i] / largest;
    rare[i] = powf(1.0f / rare[i] / rarest, args.info_power) *
              powf(1.0f / size[i] / smallest, args.size_power);
  }
}

// Packs the values of one image and head, a row for each key.
inline void ahead_values_task(const AheadArgs& args, size_t task) {
  const size_t image = task / args.heads;
  pack_straight(args.v.at(image, task % args.heads), args.v.row, args.count, args.value_depth,
                args.packed_v + task * packed_v_floats(args), args.place + image * args.count);
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
  for (size_t from = 0; from < count; from += kWidth) {
    const size_t width = smaller(kWidth, count - from);
    Floats sum = load_first(first + from, width) * share[members[0]];
    for (size_t i = 1; i < queries; ++i)
      sum += load_first(weights + members[i] * count + from, width) * share[members[i]];
    store_first(row + from, sum / total, width);
  }
}

// Computes a block of rows of one image and head.
inline void ahead_task(const AheadArgs& args, size_t task) {
  const size_t chunks = (args.rows + args.rows_per_task - 1) / args.rows_per_task;
  const size_t begin = task % chunks * args.rows_per_task;
  const size_t pair = task / chunks;
  const size_t image = pair / args.heads;
  const float* weights = args.weights + pair * args.count * args.count;
  const float* share = args.share + image * args.count;
  const size_t* start = args.start + image * (args.rows + 1) + begin;
  const size_t* member = args.member + image * args.count;
  const float* values = args.packed_v + pair * packed_v_floats(args);
  thread_local Buffer<float> scratch;
  float* averaged = scratch.of(kRows * args.count);
  float tile[kRows][kColumns];
  in_blocks(smaller(args.rows_per_task, args.rows - begin), [&](size_t first, size_t count) {
    for (size_t r = 0; r < count; ++r) {
      const size_t from = start[first + r];
      average_queries(weights, share, member + from, start[first + r + 1] - from, args.count,
                      averaged + r * args.count);
    }
    float* rows = args.y.at(image, pair % args.heads) + (begin + first) * args.y.row;
    for (size_t column = 0; column < args.value_depth; column += kColumns) {
      multiply_rows(count, averaged, args.count, args.count,
                    values + column / kPanel * kPanel * args.count + column % kPanel, tile[0],
                    kColumns);
      const size_t columns = smaller(kColumns, args.value_depth - column);
      for (size_t r = 0; r < count; ++r)
        for (size_t from = 0; from < columns; from += kWidth)
          store_first(rows + r * args.y.row + column + from, load(tile[r] + from),
                      smaller(kWidth, columns - from));
    }
  });
}

}  // namespace tokexport::TOKEXPORT_ISA
