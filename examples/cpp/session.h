// Runs an ONNX file with ONNX Runtime's C interface.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.h"

// The artifact of a bundle, loaded.
class Session {
 public:
  // kernels names tokexport's library of native kernels, or is '' to run without; of 0 threads ONNX Runtime
  // chooses. Throws Problem: it refuses the artifact or the kernels.
  Session(const Bundle& bundle, const std::string& kernels, int threads);

  // Returns the scores (batch, classes) of pixels (batch, height, width, 3).
  // Throws Problem: ONNX Runtime fails, or the artifact would not answer these pixels as the model does.
  std::vector<float> run(std::vector<std::uint8_t>& pixels) const;

 private:
  void require(OrtStatus* status, const std::string& doing) const;
  void require_checks(OrtValue* checks) const;
  std::size_t count(OrtValue* value, ONNXTensorElementDataType type) const;

  const Bundle& bundle_;
  const OrtApi* api_;
  std::shared_ptr<OrtEnv> environment_;
  std::shared_ptr<OrtSession> session_;
};
