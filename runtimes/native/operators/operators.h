// The operators of domain `tokexport`.
//
// Their meaning is that of the functions of the same name in graph_passes/ops.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "operators/memory.h"
#include "operators/run.h"

namespace tokexport {

template <typename Made>
std::unique_ptr<Kernel> make(const Attributes& attributes) {
  return std::make_unique<Made>(attributes);
}

// Refuses heads that do not lie side by side in rows of so many channels, from a channel on.
inline void require_heads(const char* rows, size_t start, size_t heads, size_t depth,
                          size_t channels) {
  require(heads > 0 && depth > 0 && start <= channels && heads <= (channels - start) / depth,
          rows, " has ", channels, " channels, expected ", heads, " heads of ", depth,
          " from channel ", start, " on");
}

// Returns how many of `count` a task takes, 1 … `most`, so that all tasks take nearly as many.
inline size_t balanced(size_t count, size_t most) {
  if (count == 0) return 1;
  return ceil_div(count, ceil_div(count, most));
}

// Returns how many rows of so many bytes a task of a product takes, so that they stay in the second
// cache.
inline size_t rows_per_task(size_t rows, size_t row_bytes) {
  return balanced(rows, std::max<size_t>(28, 524288 / std::max<size_t>(row_bytes, 1)));
}

// Returns memory that the thread keeps from run to run. For operators of ONNX Runtime alone, whose
// thread takes up no other run while it waits; others lease a Workspace.
std::byte* thread_memory(size_t bytes);

void add_dense_operators(std::vector<Operator>* to);
// Adds none where the processor has no kernels for them.
void add_int8_operators(std::vector<Operator>* to);
void add_mctf_attention_operators(std::vector<Operator>* to);
void add_mctf_operators(std::vector<Operator>* to);
void add_token_operators(std::vector<Operator>* to);
void add_tome_operators(std::vector<Operator>* to);

inline std::vector<Operator> all_operators() {
  std::vector<Operator> found;
  add_dense_operators(&found);
  add_int8_operators(&found);
  add_token_operators(&found);
  add_tome_operators(&found);
  add_mctf_operators(&found);
  add_mctf_attention_operators(&found);
  return found;
}

}  // namespace tokexport
