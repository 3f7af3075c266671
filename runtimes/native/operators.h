// The operators of domain `tokexport` for ONNX Runtime.
//
// Their meaning is that of the functions of the same name: graph_passes/onnx_functions.py and
// fused_functions.py.
#pragma once

#include <memory>
#include <vector>

#include "context.h"

namespace tokexport {

template <typename Made>
std::unique_ptr<Kernel> make(const Attributes& attributes) {
  return std::make_unique<Made>(attributes);
}

void add_dense_operators(std::vector<Operator>* to);
void add_token_operators(std::vector<Operator>* to);

}  // namespace tokexport
