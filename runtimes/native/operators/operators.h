// The operators of domain `tokexport`.
//
// Their meaning is that of the functions of the same name: graph_passes/ops/onnx_functions.py,
// fused_functions.py and both_ways_functions.py.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "operators/run.h"

namespace tokexport {

template <typename Made>
std::unique_ptr<Kernel> make(const Attributes& attributes) {
  return std::make_unique<Made>(attributes);
}

// Heads that lie side by side in rows of so many channels, from a channel on.
inline void require_heads(size_t start, size_t heads, size_t depth, size_t channels) {
  require(heads > 0 && depth > 0 && start <= channels && heads <= (channels - start) / depth,
          "The rows hold fewer heads.");
}

// How many tasks cover `count`, each taking so many.
inline size_t tasks_for(size_t count, size_t per_task) {
  return (count + per_task - 1) / per_task;
}

// How many of `count` a task takes, 1 … `most`, so that all tasks take nearly as many.
inline size_t evenly(size_t count, size_t most) {
  if (count == 0) return 1;
  return tasks_for(count, tasks_for(count, most));
}

// Rows of so many bytes that a task of a product takes, so that they stay in the second cache.
inline size_t rows_per_task(size_t rows, size_t row_bytes) {
  return evenly(rows, std::max<size_t>(28, 524288 / std::max<size_t>(row_bytes, 1)));
}

// Room for so many bytes that the thread keeps from run to run, aligned for any type. For operators
// of ONNX Runtime alone, whose thread takes up no other run while it waits; others lease a Workspace.
void* scratch(size_t bytes);

void add_ahead_operators(std::vector<Operator>* to);
void add_both_ways_operators(std::vector<Operator>* to);
void add_dense_operators(std::vector<Operator>* to);
// None, where the processor has no kernels for them.
void add_integer_operators(std::vector<Operator>* to);
void add_token_operators(std::vector<Operator>* to);
void add_tome_operators(std::vector<Operator>* to);

}  // namespace tokexport
