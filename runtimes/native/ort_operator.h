// An operator of the domain as ONNX Runtime takes it.
#pragma once

#include "ort_abi.h"
#include "run.h"

namespace tokexport {

struct OrtOperator : abi::CustomOp {
  explicit OrtOperator(const Operator& what);

  Operator what;
};

}  // namespace tokexport
