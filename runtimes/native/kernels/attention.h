// softmax(q kᵀ scale + log_size) v for every image and head, a block of queries at a time.
#pragma once

#include "kernels/activations.h"
#include "kernels/gemm.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes up to kLanes rows of `width` floats as columns of a panel, and zeros for missing rows.
inline void transpose_rows(const float* rows, size_t stride, size_t present, size_t width,
                           float* columns) {
  const size_t whole = present >= kLanes ? width / kLanes * kLanes : 0;
  for (size_t d = 0; d < whole; d += kLanes)
    transpose(rows + d, stride, columns + d * kPackedN, kPackedN);
  for (size_t d = whole; d < width; ++d)
    for (size_t i = 0; i < kLanes; ++i)
      columns[d * kPackedN + i] = i < present ? rows[i * stride + d] : 0.0f;
}

// Writes rows (count, width) as panels (⌈count / 32⌉, width, 32) of their transpose.
inline void pack_transposed(const float* rows, size_t stride, size_t count, size_t width,
                            float* panels) {
  for (size_t first = 0; first < count; first += kPackedN)
    for (size_t j = 0; j < kPackedN; j += kLanes) {
      const size_t row = first + j;
      transpose_rows(rows + row * stride, stride, row < count ? count - row : 0, width,
                     panels + first * width + j);
    }
}

// Writes rows (count, width), or those that an index names, as panels (⌈width / 32⌉, count, 32).
inline void pack_rows(const float* rows, size_t stride, size_t count, size_t width, float* panels,
                      const int64_t* index = nullptr) {
  for (size_t first = 0; first < width; first += kPackedN) {
    const size_t present = min(kPackedN, width - first);
    for (size_t i = 0; i < count; ++i) {
      const size_t from = index == nullptr ? i : static_cast<size_t>(index[i]);
      const float* row = rows + from * stride + first;
      for (size_t j = 0; j < kPackedN; j += kLanes)
        store(panels + j, load_tail(row + j, j < present ? min(kLanes, present - j) : 0));
      panels += kPackedN;
    }
  }
}

// Packs the keys of one image and head.
inline void attention_keys_task(const AttentionArgs& args, size_t task) {
  pack_transposed(rows_of(args.k, task / args.heads, task % args.heads), args.k.row_stride, args.keys,
                  args.depth, args.packed_k + task * packed_k_floats(args));
}

// Packs the values of one image and head.
inline void attention_values_task(const AttentionArgs& args, size_t task) {
  pack_rows(rows_of(args.v, task / args.heads, task % args.heads), args.v.row_stride, args.keys,
            args.value_depth, args.packed_v + task * packed_v_floats(args));
}

// Turns a row of logits into weights that still have to be divided by their sum, and returns the sum.
// The width is whole vectors; behind the last key the bias is -inf and the weight 0.
inline float softmax_unnormalized(float* row, size_t width, float scale, const float* bias) {
  const float lowest = -__builtin_inff();
  Floats highest = broadcast(lowest);
  Ints has_nan{};
  for (size_t i = 0; i < width; i += kLanes) {
    const Floats value = load(row + i) * scale + load(bias + i);
    store(row + i, value);
    has_nan |= value != value;
    highest = max(highest, value);
  }
  const float top = reduce_max(highest);
  if (top == lowest || top == -lowest || any_lane(has_nan)) return __builtin_nanf("");
  Floats total{};
  for (size_t i = 0; i < width; i += kLanes) {
    const Floats value = exp(load(row + i) - top);
    store(row + i, value);
    total += value;
  }
  return reduce_add(total);
}

// The queries of one image and head that a task computes.
struct QueryBlock {
  size_t pair;  // of image and head
  size_t image;
  size_t head;
  size_t begin;
  size_t count;
};

inline QueryBlock query_block(const AttentionArgs& args, size_t task) {
  const size_t chunks = ceil_div(args.queries, args.queries_per_task);
  const size_t begin = task % chunks * args.queries_per_task;
  const size_t pair = task / chunks;
  return {pair, pair / args.heads, pair % args.heads, begin,
          min(args.queries_per_task, args.queries - begin)};
}

// How many logits of a row are computed: one for each key, up to a multiple of kNR.
inline size_t logits_width(const AttentionArgs& args) {
  return ceil_div(args.keys, kNR) * kNR;
}

// Writes what is added to the logits of each key, and -inf behind the last.
inline void write_key_bias(const AttentionArgs& args, size_t image, size_t width, float* bias) {
  const float* log_size = args.log_size == nullptr ? nullptr : args.log_size + image * args.keys;
  for (size_t key = 0; key < width; ++key)
    bias[key] = key >= args.keys ? -__builtin_inff() : log_size == nullptr ? 0.0f : log_size[key];
}

// Rows of weights, each to be divided by its sum, and where their result goes.
struct UnnormalizedRows {
  size_t count;
  const float* weights;  // (count, width)
  size_t width;
  const float* sums;
  float* y;
};

// Calls body(block, rows) for the rows of weights of a task.
template <typename Body>
inline void for_softmax_rows(const AttentionArgs& args, size_t task, float* scratch, Body body) {
  const QueryBlock block = query_block(args, task);
  const float* keys = args.packed_k + block.pair * packed_k_floats(args);
  const size_t width = logits_width(args);
  float* bias = scratch;
  float* logits = bias + width;
  float sums[kMR];
  write_key_bias(args, block.image, width, bias);
  for_row_blocks(block.count, [&](size_t first, size_t count) {
    const size_t row = block.begin + first;
    const float* q = rows_of(args.q, block.image, block.head) + row * args.q.row_stride;
    for (size_t key = 0; key < width; key += kNR)
      gemm_rows(count, q, args.q.row_stride, args.depth,
                keys + key / kPackedN * kPackedN * args.depth + key % kPackedN, logits + key, width);
    for (size_t r = 0; r < count; ++r)
      sums[r] = softmax_unnormalized(logits + r * width, width, args.scale, bias);
    float* y = rows_of(args.y, block.image, block.head) + row * args.y.row_stride;
    body(block, UnnormalizedRows{count, logits, width, sums, y});
  });
}

// Computes a block of queries of one image and head.
inline void attention_task(const AttentionArgs& args, size_t task, float* scratch) {
  float tile[kMR][kNR];
  for_softmax_rows(args, task, scratch, [&](const QueryBlock& block, const UnnormalizedRows& rows) {
    const float* values = args.packed_v + block.pair * packed_v_floats(args);
    for (size_t column = 0; column < args.value_depth; column += kNR) {
      gemm_rows(rows.count, rows.weights, rows.width, args.keys,
                values + column / kPackedN * kPackedN * args.keys + column % kPackedN, tile[0],
                kNR);
      const size_t columns = min(kNR, args.value_depth - column);
      for (size_t r = 0; r < rows.count; ++r) {
        float* y = rows.y + r * args.y.row_stride + column;
        const float inverse_sum = 1.0f / rows.sums[r];
        for (size_t from = 0; from < columns; from += kLanes)
          store_tail(y + from, load(tile[r] + from) * inverse_sum, min(kLanes, columns - from));
      }
    }
  });
}

// Computes the weights of a block of queries of one image and head: y is the softmax itself.
inline void attention_weights_task(const AttentionArgs& args, size_t task, float* scratch) {
  for_softmax_rows(args, task, scratch, [&](const QueryBlock&, const UnnormalizedRows& rows) {
    for (size_t r = 0; r < rows.count; ++r) {
      const float inverse_sum = 1.0f / rows.sums[r];
      for (size_t from = 0; from < args.keys; from += kLanes)
        store_tail(rows.y + r * args.y.row_stride + from,
                   load(rows.weights + r * rows.width + from) * inverse_sum,
                   min(kLanes, args.keys - from));
    }
  });
}

}  // namespace tokexport::TOKEXPORT_ISA
