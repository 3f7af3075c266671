// The operators that move tokens, as one operator of OpenVINO whose attribute names the kernel.
//
// A graph on disk does not hold it: runtimes/openvino/kernels.py puts it in where a graph is loaded, so
// that the graph runs without this library too. Indices are int32 here, as in the CPU plugin.
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <map>
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <utility>

#include "operators/operators.h"

namespace tokexport {
namespace {

using Numbers = std::map<std::string, int64_t>;

class NamedAttributes final : public Attributes {
 public:
  explicit NamedAttributes(const Numbers& numbers) : numbers_(numbers) {}

  float real(const char* name) const override {
    throw OperatorError(joined_text("attribute ", name, " is a real number, expected a count"));
  }

 protected:
  void read(const char* name, int64_t* values, size_t size) const override {
    require(size == 1, "attribute ", name, " has ", size, " elements, expected 1");
    const auto found = numbers_.find(name);
    require(found != numbers_.end(), "attribute ", name, " is not given");
    values[0] = found->second;
  }

 private:
  const Numbers& numbers_;
};

// One run; it widens indices for the kernel, and narrows those that the kernel gives.
class OpenVinoRun final : public Run {
 public:
  OpenVinoRun(ov::TensorVector& outputs, const ov::TensorVector& inputs)
      : outputs_(outputs), inputs_(inputs), read_(inputs.size()), written_(outputs.size()) {}

  // The CPU plugin runs a graph in an arena of its threads, which the tasks stay in.
  size_t threads() const override {
    return static_cast<size_t>(std::max(tbb::this_task_arena::max_concurrency(), 1));
  }

  // Puts the indices that the kernel gave into the tensors.
  void finish() const {
    for (size_t index = 0; index < outputs_.size(); ++index)
      std::transform(written_[index].begin(), written_[index].end(),
                     narrow(outputs_[index], written_[index].size()),
                     [](int64_t index) { return static_cast<int32_t>(index); });
  }

 private:
  static int32_t* narrow(ov::Tensor& tensor, size_t count) {
    return count == 0 ? nullptr : tensor.data<int32_t>();
  }

  const void* input_data(size_t input, Shape* shape) const override {
    const ov::Tensor& tensor = inputs_.at(input);
    const ov::Shape& sizes = tensor.get_shape();
    shape->rank = sizes.size();
    std::copy_n(sizes.begin(), std::min(sizes.size(), Shape::kMaxRank), shape->sizes);
    if (tensor.get_element_type() != ov::element::i32) return tensor.data();
    const auto* indices = tensor.data<const int32_t>();
    read_[input].assign(indices, indices + tensor.get_size());
    return read_[input].data();
  }

  void* output_data(size_t index, std::initializer_list<size_t> shape) const override {
    ov::Tensor& tensor = outputs_.at(index);
    require(tensor.get_shape() == ov::Shape(shape), "output ", index, " has shape ",
            ov::Shape(shape), ", expected ", tensor.get_shape(), " as its node says");
    if (tensor.get_element_type() != ov::element::i32) return tensor.data();
    written_[index].resize(tensor.get_size());
    return written_[index].data();
  }

  void run_tasks(void (*call)(void*, size_t), size_t tasks, void* data) const override {
    tbb::parallel_for(size_t{0}, tasks, [=](size_t task) { call(data, task); });
  }

  ov::TensorVector& outputs_;
  const ov::TensorVector& inputs_;
  mutable std::vector<std::vector<int64_t>> read_;
  mutable std::vector<std::vector<int64_t>> written_;
};

const Operator& operator_named(const std::string& name) {
  static const std::vector<Operator> all = [] {
    std::vector<Operator> found;
    add_token_operators(&found);
    add_tome_operators(&found);
    add_mctf_operators(&found);
    return found;
  }();
  const auto found = std::find_if(all.begin(), all.end(),
                                  [&name](const Operator& one) { return name == one.name; });
  OPENVINO_ASSERT(found != all.end(), "There is no kernel ", name, ".");
  return *found;
}

class TokenOperator final : public ov::op::Op {
 public:
  OPENVINO_OP("TokenOperator", "tokexport");

  TokenOperator() = default;

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("operator", name_);
    visitor.on_attribute("attributes", attributes_);
    visitor.on_attribute("numbers", numbers_);
    visitor.on_attribute("output_shapes", shapes_);
    return true;
  }

  void validate_and_infer_types() override {
    const Operator& what = operator_named(name_);
    const std::string inputs = what.inputs;
    const std::string outputs = what.outputs;
    NODE_VALIDATION_CHECK(this, get_input_size() == inputs.size(), name_, " has ",
                          get_input_size(), " inputs, expected ", inputs.size(), ".");
    for (size_t i = 0; i < inputs.size(); ++i)
      NODE_VALIDATION_CHECK(this, get_input_element_type(i) == type_of(inputs[i]), "Input ", i,
                            " of ", name_, " is ", get_input_element_type(i), ", expected ",
                            type_of(inputs[i]), ".");
    NODE_VALIDATION_CHECK(this, attributes_.size() == numbers_.size(), name_, " has ",
                          numbers_.size(), " numbers, expected ", attributes_.size(),
                          ", one for each attribute.");
    auto next = shapes_.begin();  // the rank of an output, and then its sizes
    for (size_t i = 0; i < outputs.size(); ++i) {
      NODE_VALIDATION_CHECK(this,
                            next != shapes_.end() && *next >= 0 && shapes_.end() - next > *next,
                            "The shape of output ", i, " of ", name_, " is missing or cut off.");
      const auto rank = static_cast<size_t>(*next);
      require_bounded(&next[1], rank);
      set_output_type(i, type_of(outputs[i]), ov::Shape(next + 1, next + 1 + *next));
      next += 1 + *next;
    }
    Numbers numbers;
    for (size_t i = 0; i < attributes_.size(); ++i) numbers[attributes_[i]] = numbers_[i];
    named([&] { kernel_ = what.make(NamedAttributes(numbers)); });
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    auto made = std::make_shared<TokenOperator>();
    made->name_ = name_;
    made->attributes_ = attributes_;
    made->numbers_ = numbers_;
    made->shapes_ = shapes_;
    made->set_arguments(inputs);
    made->constructor_validate_and_infer_types();
    return made;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const OpenVinoRun run(outputs, inputs);
    named([&] { kernel_->run(run); });
    run.finish();
    return true;
  }

 private:
  // Calls the body; an error of an operator gets the operator's name.
  template <typename Body>
  void named(const Body& body) const {
    try {
      body();
    } catch (const OperatorError& error) {
      throw OperatorError(joined_text(name_, ": ", error.what()));
    }
  }

  static ov::element::Type type_of(char letter) {
    return letter == 'f' ? ov::element::f32 : ov::element::i32;
  }

  std::string name_;
  std::vector<std::string> attributes_;
  std::vector<int64_t> numbers_;
  std::vector<int64_t> shapes_;
  std::shared_ptr<const Kernel> kernel_;
};

}  // namespace
}  // namespace tokexport

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>(
    {std::make_shared<ov::OpExtension<tokexport::TokenOperator>>()}));
