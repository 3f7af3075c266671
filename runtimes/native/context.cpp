#include "context.h"

#include <cstring>
#include <exception>

namespace tokexport {

void check(const abi::Api* api, OrtStatus* status, const char* what) {
  if (status == nullptr) return;
  abi::ReleaseStatus::of(api)(status);
  throw Refusal(std::string("ONNX Runtime gave ") + what + ".");
}

float Attributes::number(const char* name) const {
  float value = 0;
  check(api_, abi::KernelInfoGetAttributeFloat::of(api_)(info_, name, &value), name);
  return value;
}

size_t Attributes::count(const char* name) const {
  int64_t value = 0;
  check(api_, abi::KernelInfoGetAttributeInt64::of(api_)(info_, name, &value), name);
  require(value >= 0, "An attribute that counts is negative.");
  return static_cast<size_t>(value);
}

size_t Attributes::only(const char* name) const {
  int64_t value = 0;
  size_t size = 1;
  check(api_, abi::KernelInfoGetAttributeArrayInt64::of(api_)(info_, name, &value, &size), name);
  require(size == 1 && value >= 0, "An attribute that counts is no list of one number.");
  return static_cast<size_t>(value);
}

const void* Run::input_data(size_t input, size_t rank, std::vector<int64_t>* shape) const {
  const OrtValue* value = nullptr;
  check(api_, abi::KernelContextGetInput::of(api_)(context_, input, &value), "no input");
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api_, abi::GetTensorTypeAndShape::of(api_)(value, &info), "no shape");
  size_t found = 0;
  OrtStatus* status = abi::GetDimensionsCount::of(api_)(info, &found);
  if (status == nullptr) {
    shape->resize(found);
    status = abi::GetDimensions::of(api_)(info, shape->data(), found);
  }
  abi::ReleaseTensorTypeAndShapeInfo::of(api_)(info);
  check(api_, status, "no sizes");
  require(found == rank, "An input has another number of axes than the operator takes.");
  void* data = nullptr;
  check(api_, abi::GetTensorMutableData::of(api_)(const_cast<OrtValue*>(value), &data), "no data");
  return data;
}

void* Run::output_data(size_t place, std::initializer_list<size_t> shape) const {
  std::vector<int64_t> sizes(shape.begin(), shape.end());
  OrtValue* value = nullptr;
  check(api_,
        abi::KernelContextGetOutput::of(api_)(context_, place, sizes.data(), sizes.size(), &value),
        "no output");
  void* data = nullptr;
  check(api_, abi::GetTensorMutableData::of(api_)(value, &data), "no data");
  return data;
}

namespace {

// A node with the interface that it was made with.
struct Node {
  const abi::Api* api;
  std::unique_ptr<Kernel> kernel;
};

// Calls the body; what it throws becomes a status.
template <typename Body>
OrtStatus* guarded(const abi::Api* api, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return abi::CreateStatus::of(api)(abi::kFail, error.what());
  }
}

int element_type(char letter) {
  return letter == 'f' ? abi::kFloat : letter == 'b' ? abi::kInt8 : abi::kInt64;
}

const Operator& cast(const abi::CustomOp* op) { return *static_cast<const Operator*>(op); }

}  // namespace

Operator::Operator(const char* name, const char* inputs, const char* outputs, Make make)
    : abi::CustomOp{}, name(name), inputs(inputs), outputs(outputs), make(make) {
  version = abi::kVersion;
  GetName = [](const abi::CustomOp* op) { return cast(op).name; };
  GetExecutionProviderType = [](const abi::CustomOp*) -> const char* { return nullptr; };
  GetInputTypeCount = [](const abi::CustomOp* op) { return std::strlen(cast(op).inputs); };
  GetInputType = [](const abi::CustomOp* op, size_t i) { return element_type(cast(op).inputs[i]); };
  GetOutputTypeCount = [](const abi::CustomOp* op) { return std::strlen(cast(op).outputs); };
  GetOutputType = [](const abi::CustomOp* op, size_t i) {
    return element_type(cast(op).outputs[i]);
  };
  GetInputCharacteristic = [](const abi::CustomOp*, size_t) { return abi::kRequired; };
  GetOutputCharacteristic = [](const abi::CustomOp*, size_t) { return abi::kRequired; };
  GetInputMemoryType = [](const abi::CustomOp*, size_t) { return 0; };  // OrtMemTypeDefault
  CreateKernelV2 = [](const abi::CustomOp* op, const abi::Api* api, const OrtKernelInfo* info,
                      void** kernel) {
    return guarded(api, [&] {
      *kernel = new Node{api, cast(op).make(Attributes(api, info))};
    });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return guarded(node.api, [&] { node.kernel->run(Run(node.api, context)); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
}

}  // namespace tokexport
