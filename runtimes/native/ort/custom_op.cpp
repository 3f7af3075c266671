#include "ort/custom_op.h"

#include <cstring>
#include <exception>

namespace tokexport {

namespace {

// Turns a status of ONNX Runtime into a Refusal.
void check(const abi::Api* api, OrtStatus* status, const char* what) {
  if (status == nullptr) return;
  abi::ReleaseStatus::of(api)(status);
  throw Refusal(std::string("ONNX Runtime gave ") + what + ".");
}

class OrtAttributes final : public Attributes {
 public:
  OrtAttributes(const abi::Api* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  float number(const char* name) const override {
    float value = 0;
    check(api_, abi::KernelInfoGetAttributeFloat::of(api_)(info_, name, &value), name);
    return value;
  }

 protected:
  void read(const char* name, int64_t* values, size_t size) const override {
    size_t found = size;
    check(api_, abi::KernelInfoGetAttributeArrayInt64::of(api_)(info_, name, values, &found), name);
    require(found == size, "An attribute is a list of another length than the operator takes.");
  }

 private:
  const abi::Api* api_;
  const OrtKernelInfo* info_;
};

// Where a tensor lies, and its sizes; of more axes than a shape has, none.
struct Located {
  const void* data = nullptr;
  Shape shape;
};

Located locate(const abi::Api* api, const OrtValue* value) {
  Located found;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, abi::GetTensorTypeAndShape::of(api)(value, &info), "no shape");
  Shape& shape = found.shape;
  OrtStatus* status = abi::GetDimensionsCount::of(api)(info, &shape.axes);
  if (status == nullptr && shape.axes <= Shape::kMostAxes)
    status = abi::GetDimensions::of(api)(info, shape.sizes, shape.axes);
  abi::ReleaseTensorTypeAndShapeInfo::of(api)(info);
  check(api, status, "no sizes");
  void* data = nullptr;
  check(api, abi::GetTensorMutableData::of(api)(const_cast<OrtValue*>(value), &data), "no data");
  found.data = data;
  return found;
}

// The inputs of a node that are constants of the model. They lie where they are for as long as the
// session lives: ONNX Runtime frees a constant only once every node that reads it has packed it, and
// these never do. To ask for each again with every run would cost a small model 1 % of its time.
class Constants {
 public:
  Constants(const abi::Api* api, const OrtKernelInfo* info, size_t inputs) : found_(inputs) {
    for (size_t input = 0; input < inputs; ++input) {
      int is_constant = 0;
      const OrtValue* value = nullptr;
      check(api,
            abi::KernelInfoGetConstantInput::of(api)(info, input, &is_constant, &value),
            "no constant");
      if (is_constant != 0 && value != nullptr) found_[input] = locate(api, value);
    }
  }

  const Located* at(size_t input) const {
    const Located& one = found_[input];
    return one.data == nullptr ? nullptr : &one;
  }

 private:
  std::vector<Located> found_;
};

class OrtRun final : public Run {
 public:
  OrtRun(const abi::Api* api, OrtKernelContext* context, const Constants& constants)
      : api_(api), context_(context), constants_(constants) {}

 private:
  const void* input_data(size_t input, Shape* shape) const override {
    const Located* constant = constants_.at(input);
    if (constant == nullptr) {
      const OrtValue* value = nullptr;
      check(api_, abi::KernelContextGetInput::of(api_)(context_, input, &value), "no input");
      const Located found = locate(api_, value);
      *shape = found.shape;
      return found.data;
    }
    *shape = constant->shape;
    return constant->data;
  }

  void* output_data(size_t place, std::initializer_list<size_t> shape) const override {
    std::vector<int64_t> sizes(shape.begin(), shape.end());
    OrtValue* value = nullptr;
    check(api_,
          abi::KernelContextGetOutput::of(api_)(context_, place, sizes.data(), sizes.size(),
                                                &value),
          "no output");
    void* data = nullptr;
    check(api_, abi::GetTensorMutableData::of(api_)(value, &data), "no data");
    return data;
  }

  void run_tasks(void (*call)(void*, size_t), size_t tasks, void* data) const override {
    check(api_, abi::KernelContextParallelFor::of(api_)(context_, call, tasks, 0, data),
          "no threads");
  }

  const abi::Api* api_;
  OrtKernelContext* context_;
  const Constants& constants_;
};

// A node with the interface that it was made with.
struct Node {
  const abi::Api* api;
  Constants constants;
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

const Operator& cast(const abi::CustomOp* op) { return static_cast<const OrtOperator*>(op)->what; }

}  // namespace

OrtOperator::OrtOperator(const Operator& what) : abi::CustomOp{}, what(what) {
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
      const Operator& what = cast(op);
      *kernel = new Node{api, Constants(api, info, std::strlen(what.inputs)),
                         what.make(OrtAttributes(api, info))};
    });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return guarded(node.api, [&] { node.kernel->run(OrtRun(node.api, context, node.constants)); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
}

}  // namespace tokexport
