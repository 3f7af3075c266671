// An operator of the domain as ONNX Runtime takes it.
#pragma once

#include "operators/run.h"
#include "ort/abi.h"

namespace tokexport {

// For sessions that run an operator on so many threads.
struct OrtOperator : abi::CustomOp {
  OrtOperator(const Operator& what, size_t threads);

  Operator what;
  size_t threads;
};

}  // namespace tokexport
