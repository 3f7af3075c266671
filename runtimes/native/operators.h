// The operators of domain `tokexport` for ONNX Runtime.
#pragma once

#include <vector>

#include "context.h"

namespace tokexport {

const std::vector<Operator>& operators();

}  // namespace tokexport
