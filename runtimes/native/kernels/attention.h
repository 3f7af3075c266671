// softmax(q kᵀ scale + log_size) v for every image and head, a block of queries at a time.
#pragma once

#include "kernels/buffer.h"
#include "kernels/elementary.h"
#include "kernels/product.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes up to kWidth rows of so many floats as columns of a panel, and zeros for those missing.
inline void turn_rows(const float* rows, size_t stride, size_t present, size_t width,
                      float* columns) {
  const size_t turned = present >= kWidth ? width / kWidth * kWidth : 0;
  for (size_t d = 0; d < turned; d += kWidth)
    transpose(rows + d, stride, columns + d * kPanel, kPanel);
  for (size_t d = turned; d < width; ++d)
    for (size_t i = 0; i < kWidth; ++i)
      columns[d * kPanel + i] = i < present ? rows[i * stride + d] : 0.0f;
}

// Writes rows (count, width) as panels (⌈count / 32⌉, width, 32) of their transpose.
inline void pack_turned(const float* rows, size_t stride, size_t count, size_t width,
                        float* panels) {
  for (size_t first = 0; first < count; first += kPanel)
    for (size_t j = 0; j < kPanel; j += kWidth) {
      const size_t row = first + j;
      turn_rows(rows + row * stride, stride, row < count ? count - row : 0, width,
                panels + first * width + j);
    }
}

// Writes rows (count, width), or those that an index names, as panels (⌈width / 32⌉, count, 32).
inline void pack_straight(const float* rows, size_t stride, size_t count, size_t width,
                          float* panels, const int64_t* index = nullptr) {
  for (size_t first = 0; first < width; first += kPanel) {
    const size_t present = smaller(kPanel, width - first);
    for (size_t i = 0; i < count; ++i) {
      const size_t from = index == nullptr ? i : static_cast<size_t>(index[i]);
      const float* row = rows + from * stride + first;
      for (size_t j = 0; j < kPanel; j += kWidth)
        store(panels + j, load_first(row + j, j < present ? smaller(kWidth, present - j) : 0));
      panels += kPanel;
    }
  }
}

// Packs the keys of one image and head.
inline void attention_keys_task(const AttentionArgs& args, size_t task) {
  pack_turned(args.k.at(task / args.heads, task % args.heads), args.k.row, args.keys, args.depth,
              args.packed_k + task * packed_k_floats(args));
}

// Packs the values of one image and head.
inline void attention_values_task(const AttentionArgs& args, size_t task) {
  pack_straight(args.v.at(task / args.heads, task % args.heads), args.v.row, args.keys,
                args.value_depth, args.packed_v + task * packed_v_floats(args));
}

// Turns a row of logits into weights that still have to be divided by what it returns. Its width is
// whole vectors; where there is no key, the bias is -inf and the weight 0.
inline float soften(float* row, size_t width, float scale, const float* bias) {
  const float lowest = -__builtin_inff();
  Floats most = all(lowest);
  Ints strange{};
  for (size_t i = 0; i < width; i += kWidth) {
    const Floats value = load(row + i) * scale + load(bias + i);
    store(row + i, value);
    strange |= value != value;
    most = larger(most, value);
  }
  const float top = largest_of(most);
  if (top == lowest || top == -lowest || any_of(strange)) return __builtin_nanf("");
  Floats total{};
  for (size_t i = 0; i < width; i += kWidth) {
    const Floats value = exp_of(load(row + i) - top);
    store(row + i, value);
    total += value;
  }
  return sum_of(total);
}

// The queries of one image and head that a task takes.
struct QueryBlock {
  size_t pair;  // of image and head
  size_t image;
  size_t head;
  size_t begin;
  size_t count;
};

inline QueryBlock query_block(const AttentionArgs& args, size_t task) {
  const size_t chunks = (args.queries + args.queries_per_task - 1) / args.queries_per_task;
  const size_t begin = task % chunks * args.queries_per_task;
  const size_t pair = task / chunks;
  return {pair, pair / args.heads, pair % args.heads, begin,
          smaller(args.queries_per_task, args.queries - begin)};
}

// Logits of a row that are computed: those of the keys, and of no key up to whole columns.
inline size_t logits_width(const AttentionArgs& args) {
  return (args.keys + kColumns - 1) / kColumns * kColumns;
}

// Writes what is added to the logits of each key, and -inf where there is none.
inline void write_bias(const AttentionArgs& args, size_t image, size_t width, float* bias) {
  const float* log_size = args.log_size == nullptr ? nullptr : args.log_size + image * args.keys;
  for (size_t key = 0; key < width; ++key)
    bias[key] = key >= args.keys ? -__builtin_inff() : log_size == nullptr ? 0.0f : log_size[key];
}

// Some rows of weights, each to be divided by its sum, and where what becomes of them goes.
struct Softened {
  size_t count;
  const float* weights;  // (count, width)
  size_t width;
  const float* sums;
  float* y;
};

// Calls `body(block, softened)` for the rows of weights of a task.
template <typename Body>
inline void for_softened_rows(const AttentionArgs& args, size_t task, Body body) {
  const QueryBlock block = query_block(args, task);
  const float* keys = args.packed_k + block.pair * packed_k_floats(args);
  const size_t width = logits_width(args);
  thread_local Buffer<float> scratch;
  float* bias = scratch.of((1 + kRows) * width);
  float* logits = bias + width;
  float sums[kRows];
  write_bias(args, block.image, width, bias);
  in_blocks(block.count, [&](size_t first, size_t count) {
    const size_t row = block.begin + first;
    const float* q = args.q.at(block.image, block.head) + row * args.q.row;
    for (size_t key = 0; key < width; key += kColumns)
      multiply_rows(count, q, args.q.row, args.depth,
                    keys + key / kPanel * kPanel * args.depth + key % kPanel, logits + key, width);
    for (size_t r = 0; r < count; ++r)
      sums[r] = soften(logits + r * width, width, args.scale, bias);
    float* y = args.y.at(block.image, block.head) + row * args.y.row;
    body(block, Softened{count, logits, width, sums, y});
  });
}

// Computes a block of queries of one image and head.
inline void attention_task(const AttentionArgs& args, size_t task) {
  float tile[kRows][kColumns];
  for_softened_rows(args, task, [&](const QueryBlock& block, const Softened& rows) {
    const float* values = args.packed_v + block.pair * packed_v_floats(args);
    for (size_t column = 0; column < args.value_depth; column += kColumns) {
      multiply_rows(rows.count, rows.weights, rows.width, args.keys,
                    values + column / kPanel * kPanel * args.keys + column % kPanel, tile[0],
                    kColumns);
      const size_t columns = smaller(kColumns, args.value_depth - column);
      for (size_t r = 0; r < rows.count; ++r) {
        float* y = rows.y + r * args.y.row + column;
        const float share = 1.0f / rows.sums[r];
        for (size_t from = 0; from < columns; from += kWidth)
          store_first(y + from, load(tile[r] + from) * share, smaller(kWidth, columns - from));
      }
    }
  });
}

// Computes the weights of a block of queries of one image and head: y is the softmax itself.
inline void attention_weights_task(const AttentionArgs& args, size_t task) {
  for_softened_rows(args, task, [&](const QueryBlock&, const Softened& rows) {
    for (size_t r = 0; r < rows.count; ++r) {
      const float share = 1.0f / rows.sums[r];
      for (size_t from = 0; from < args.keys; from += kWidth)
        store_first(rows.y + r * args.y.row + from,
                    load(rows.weights + r * rows.width + from) * share,
                    smaller(kWidth, args.keys - from));
    }
  });
}

}  // namespace tokexport::TOKEXPORT_ISA
