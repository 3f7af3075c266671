// An operator of the domain as ONNX Runtime takes it.
#pragma once

#include "operators/run.h"
#include "ort/abi.h"

namespace tokexport {

struct OrtOperator : abi::CustomOp {
  explicit OrtOperator(const Operator& what);

  Operator what;
};

}  // namespace tokexport
