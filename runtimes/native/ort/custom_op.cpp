#include "ort/custom_op.h"

#include <cstring>
#include <exception>
#include <string>

namespace tokexport {

namespace {

// Turns a failed call of ONNX Runtime into an error that says what was asked for and what it answered.
template <typename... Parts>
void check(const abi::Api* api, OrtStatus* status, const Parts&... parts) {
  if (status == nullptr) return;
  const std::string answer = abi::GetErrorMessage::of(api)(status);
  abi::ReleaseStatus::of(api)(status);
  throw OperatorError(joined_text(parts..., ": ONNX Runtime says: ", answer));
}

class OrtAttributes final : public Attributes {
 public:
  OrtAttributes(const abi::Api* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  float real(const char* name) const override {
    float value = 0;
    check(api_, abi::KernelInfoGetAttributeFloat::of(api_)(info_, name, &value), "attribute ", name);
    return value;
  }

 protected:
  void read(const char* name, int64_t* values, size_t size) const override {
    size_t found = size;
    check(api_, abi::KernelInfoGetAttributeArrayInt64::of(api_)(info_, name, values, &found),
          "attribute ", name, " of ", size, " elements");
    require(found == size, "attribute ", name, " has ", found, " elements, expected ", size);
  }

 private:
  const abi::Api* api_;
  const OrtKernelInfo* info_;
};

// Where a tensor lies, and its sizes; of more axes than a shape has, their number alone.
struct Located {
  const void* data = nullptr;
  Shape shape;
};

Located locate(const abi::Api* api, const OrtValue* value, size_t input) {
  Located found;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, abi::GetTensorTypeAndShape::of(api)(value, &info), "shape of input ", input);
  Shape& shape = found.shape;
  OrtStatus* status = abi::GetDimensionsCount::of(api)(info, &shape.rank);
  if (status == nullptr && shape.rank <= Shape::kMaxRank)
    status = abi::GetDimensions::of(api)(info, shape.sizes, shape.rank);
  abi::ReleaseTensorTypeAndShapeInfo::of(api)(info);
  check(api, status, "sizes of input ", input);
  void* data = nullptr;
  check(api, abi::GetTensorMutableData::of(api)(const_cast<OrtValue*>(value), &data),
        "data of input ", input);
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
            "constant of input ", input);
      if (is_constant != 0 && value != nullptr) found_[input] = locate(api, value, input);
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
  OrtRun(const abi::Api* api, OrtKernelContext* context, const Constants& constants,
         size_t threads)
      : api_(api), context_(context), constants_(constants), threads_(threads) {}

  size_t threads() const override { return threads_; }

 private:
  const void* input_data(size_t input, Shape* shape) const override {
    const Located* constant = constants_.at(input);
    if (constant == nullptr) {
      const OrtValue* value = nullptr;
      check(api_, abi::KernelContextGetInput::of(api_)(context_, input, &value), "input ", input);
      const Located found = locate(api_, value, input);
      *shape = found.shape;
      return found.data;
    }
    *shape = constant->shape;
    return constant->data;
  }

  void* output_data(size_t index, std::initializer_list<size_t> shape) const override {
    std::vector<int64_t> sizes(shape.begin(), shape.end());
    OrtValue* value = nullptr;
    check(api_,
          abi::KernelContextGetOutput::of(api_)(context_, index, sizes.data(), sizes.size(),
                                                &value),
          "output ", index);
    void* data = nullptr;
    check(api_, abi::GetTensorMutableData::of(api_)(value, &data), "data of output ", index);
    return data;
  }

  void run_tasks(void (*call)(void*, size_t), size_t tasks, void* data) const override {
    check(api_, abi::KernelContextParallelFor::of(api_)(context_, call, tasks, 0, data),
          "loop of ", tasks, " tasks");
  }

  const abi::Api* api_;
  OrtKernelContext* context_;
  const Constants& constants_;
  size_t threads_;
};

// A node with the interface that it was made with.
struct Node {
  const abi::Api* api;
  const OrtOperator* op;
  Constants constants;
  std::unique_ptr<Kernel> kernel;
};

// Calls the body; what it throws becomes a status that names the operator.
template <typename Body>
OrtStatus* guarded(const abi::Api* api, const Operator& what, const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return abi::CreateStatus::of(api)(abi::kFail, joined_text(what.name, ": ", error.what()).c_str());
  }
}

int element_type(char letter) {
  return letter == 'f' ? abi::kFloat : letter == 'b' ? abi::kInt8 : abi::kInt64;
}

const OrtOperator& cast(const abi::CustomOp* op) { return *static_cast<const OrtOperator*>(op); }

}  // namespace

OrtOperator::OrtOperator(const Operator& what, size_t threads)
    : abi::CustomOp{}, what(what), threads(threads) {
  version = abi::kVersion;
  GetName = [](const abi::CustomOp* op) { return cast(op).what.name; };
  GetExecutionProviderType = [](const abi::CustomOp*) -> const char* { return nullptr; };
  GetInputTypeCount = [](const abi::CustomOp* op) { return std::strlen(cast(op).what.inputs); };
  GetInputType = [](const abi::CustomOp* op, size_t i) {
    return element_type(cast(op).what.inputs[i]);
  };
  GetOutputTypeCount = [](const abi::CustomOp* op) { return std::strlen(cast(op).what.outputs); };
  GetOutputType = [](const abi::CustomOp* op, size_t i) {
    return element_type(cast(op).what.outputs[i]);
  };
  GetInputCharacteristic = [](const abi::CustomOp*, size_t) { return abi::kRequired; };
  GetOutputCharacteristic = [](const abi::CustomOp*, size_t) { return abi::kRequired; };
  GetInputMemoryType = [](const abi::CustomOp*, size_t) { return 0; };  // OrtMemTypeDefault
  CreateKernelV2 = [](const abi::CustomOp* op, const abi::Api* api, const OrtKernelInfo* info,
                      void** kernel) {
    const Operator& what = cast(op).what;
    return guarded(api, what, [&] {
      *kernel = new Node{api, &cast(op), Constants(api, info, std::strlen(what.inputs)),
                         what.make(OrtAttributes(api, info))};
    });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return guarded(node.api, node.op->what, [&] {
      node.kernel->run(OrtRun(node.api, context, node.constants, node.op->threads));
    });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
}

}  // namespace tokexport
