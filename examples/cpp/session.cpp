#include "session.h"

#include <algorithm>
#include <thread>

namespace {

const OrtApi* interface() {
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api) return api;
  throw Problem(std::string("ONNX Runtime is ") + OrtGetApiBase()->GetVersionString() +
                ", older than the headers that this program was built with.");
}

}  // namespace

Session::Session(const Bundle& bundle, const std::string& kernels, int threads)
    : bundle_(bundle), api_(interface()) {
  OrtEnv* environment = nullptr;
  require(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "classify", &environment), "start");
  environment_.reset(environment, api_->ReleaseEnv);
  OrtSessionOptions* made = nullptr;
  require(api_->CreateSessionOptions(&made), "start");
  const std::shared_ptr<OrtSessionOptions> options(made, api_->ReleaseSessionOptions);
  require(api_->SetIntraOpNumThreads(made, threads), "take so many threads");
  if (!kernels.empty()) {
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    const std::string count = threads ? std::to_string(threads) : std::to_string(cores);
    require(api_->AddSessionConfigEntry(made, "custom_op.tokexport.threads", count.c_str()), "take so many threads");
    require(api_->RegisterCustomOpsLibrary_V2(made, kernels.c_str()), "load the kernels in " + kernels);
  }
  OrtSession* session = nullptr;
  require(api_->CreateSession(environment, bundle.artifact.c_str(), made, &session),
          "load " + bundle.artifact.string());
  session_.reset(session, api_->ReleaseSession);
}

std::vector<float> Session::run(std::vector<std::uint8_t>& pixels) const {
  OrtMemoryInfo* memory = nullptr;
  require(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "describe memory");
  const std::shared_ptr<OrtMemoryInfo> held_memory(memory, api_->ReleaseMemoryInfo);
  const int64_t shape[] = {static_cast<int64_t>(bundle_.batch), static_cast<int64_t>(bundle_.height),
                           static_cast<int64_t>(bundle_.width), 3};
  OrtValue* input = nullptr;
  require(api_->CreateTensorWithDataAsOrtValue(memory, pixels.data(), pixels.size(), shape, 4,
                                               ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &input),
          "take the pixels");
  const std::shared_ptr<OrtValue> held_input(input, api_->ReleaseValue);

  const char* inputs[] = {bundle_.input.c_str()};
  const char* outputs[] = {bundle_.output.c_str(), bundle_.checks.c_str()};
  const std::size_t wanted = bundle_.checks.empty() ? 1 : 2;
  OrtValue* results[] = {nullptr, nullptr};
  OrtStatus* ran = api_->Run(session_.get(), nullptr, inputs, &input, 1, outputs, wanted, results);
  const std::shared_ptr<OrtValue> scores(results[0], api_->ReleaseValue), checks(results[1], api_->ReleaseValue);
  require(ran, "run " + bundle_.artifact.string());
  if (checks) require_checks(checks.get());

  if (count(scores.get(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) != bundle_.batch * bundle_.classes) {
    throw Problem("The artifact gives another number of scores than its manifest says.");
  }
  void* data = nullptr;
  require(api_->GetTensorMutableData(scores.get(), &data), "give the scores");
  const auto* first = static_cast<const float*>(data);
  return {first, first + bundle_.batch * bundle_.classes};
}

void Session::require_checks(OrtValue* checks) const {
  void* data = nullptr;
  if (count(checks, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL) != bundle_.held.size()) {
    throw Problem("The artifact has another number of checks than its manifest says.");
  }
  require(api_->GetTensorMutableData(checks, &data), "give the checks");
  const auto* holds = static_cast<const bool*>(data);
  for (std::size_t place = 0; place < bundle_.held.size(); ++place) {
    if (!holds[place]) {
      throw Problem("The artifact would not answer this picture as the model does: " + bundle_.held[place] + ".");
    }
  }
}

std::size_t Session::count(OrtValue* value, ONNXTensorElementDataType type) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  require(api_->GetTensorTypeAndShape(value, &info), "describe an output");
  const std::shared_ptr<OrtTensorTypeAndShapeInfo> held(info, api_->ReleaseTensorTypeAndShapeInfo);
  ONNXTensorElementDataType found = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::size_t numbers = 0;
  require(api_->GetTensorElementType(info, &found), "describe an output");
  require(api_->GetTensorShapeElementCount(info, &numbers), "describe an output");
  if (found != type) throw Problem("An output has another type than the manifest says.");
  return numbers;
}

void Session::require(OrtStatus* status, const std::string& doing) const {
  if (!status) return;
  const std::shared_ptr<OrtStatus> held(status, api_->ReleaseStatus);
  throw Problem("ONNX Runtime cannot " + doing + ": " + api_->GetErrorMessage(status));
}
