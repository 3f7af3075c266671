// Runs one node by the operator that the library for OpenVINO adds, without OpenVINO's CPU plugin.
//
// The operator is made from its attributes, validated and evaluated as OpenVINO does it, on tensors
// of OpenVINO whose memory has exactly the size that their shapes say: AddressSanitizer sees what
// reads or writes beside it. nodes.py compiles this file, and calls run_node.
#include <openvino/op/parameter.hpp>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "openvino/extension.cpp"

namespace {

// Gives an operator the attributes that it asks for.
class Given final : public ov::AttributeVisitor {
 public:
  std::string name;
  std::vector<std::string> names;
  std::vector<int64_t> numbers;
  std::vector<int64_t> shapes;

  void on_adapter(const std::string&, ov::ValueAccessor<void>&) override {}
  void on_adapter(const std::string&, ov::ValueAccessor<std::string>& to) override { to.set(name); }
  void on_adapter(const std::string&, ov::ValueAccessor<std::vector<std::string>>& to) override {
    to.set(names);
  }
  void on_adapter(const std::string& asked,
                  ov::ValueAccessor<std::vector<int64_t>>& to) override {
    to.set(asked == "numbers" ? numbers : shapes);
  }
};

ov::element::Type type_of(int64_t kind) { return kind != 0 ? ov::element::i32 : ov::element::f32; }

}  // namespace

// Returns why the node was refused, or null. Kinds are 1 for indices and 0 for numbers.
extern "C" __attribute__((visibility("default"))) const char* run_node(
    const char* name, int64_t attributes, const char** names, const int64_t* numbers,
    int64_t shape_numbers, const int64_t* shapes, int64_t inputs, const int64_t* kinds,
    const int64_t* ranks, const int64_t* sizes, void** data, int64_t rooms, void** room) {
  static std::string said;
  try {
    Given given;
    given.name = name;
    given.names.assign(names, names + attributes);
    given.numbers.assign(numbers, numbers + attributes);
    given.shapes.assign(shapes, shapes + shape_numbers);
    ov::OutputVector read;
    ov::TensorVector from;
    for (int64_t input = 0; input < inputs; ++input) {
      const ov::Shape shape(sizes, sizes + ranks[input]);
      sizes += ranks[input];
      read.push_back(std::make_shared<ov::op::v0::Parameter>(type_of(kinds[input]), shape));
      from.emplace_back(type_of(kinds[input]), shape);
      if (from.back().get_byte_size() != 0)
        std::memcpy(from.back().data(), data[input], from.back().get_byte_size());
    }
    const auto made = std::make_shared<tokexport::TokenOperator>();
    made->set_arguments(read);
    made->visit_attributes(given);
    made->constructor_validate_and_infer_types();
    const auto copied = made->clone_with_new_inputs(read);  // as the CPU plugin does
    if (static_cast<int64_t>(copied->get_output_size()) != rooms) {
      said = "The harness has no room for outputs of this size.";
      return said.c_str();
    }
    ov::TensorVector to;
    for (size_t output = 0; output < copied->get_output_size(); ++output)
      to.emplace_back(copied->get_output_element_type(output), copied->get_output_shape(output));
    if (!copied->evaluate(to, from)) {
      said = "It was not evaluated.";
      return said.c_str();
    }
    for (size_t output = 0; output < to.size(); ++output)
      if (to[output].get_byte_size() != 0)
        std::memcpy(room[output], to[output].data(), to[output].get_byte_size());
    return nullptr;
  } catch (const std::exception& error) {
    said = error.what();
    return said.c_str();
  }
}
