// What an operator sees of ONNX Runtime: tensors, attributes and its pool of threads.
#pragma once

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace tokexport {

// A refusal that reaches the person as the message of a failed run or load.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* what) {
  if (!holds) throw Refusal(what);
}

// Turns a status of ONNX Runtime into a Refusal.
void check(const abi::Api* api, OrtStatus* status, const char* what);

template <typename Element>
struct Tensor {
  Element* data;
  std::vector<int64_t> shape;

  size_t size(size_t axis) const { return static_cast<size_t>(shape.at(axis)); }
};

// Attributes of a node, read when its session is made.
class Attributes {
 public:
  Attributes(const abi::Api* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  float number(const char* name) const;
  size_t count(const char* name) const;
  // The only element of a list.
  size_t only(const char* name) const;

 private:
  const abi::Api* api_;
  const OrtKernelInfo* info_;
};

// One run of a node.
class Run {
 public:
  Run(const abi::Api* api, OrtKernelContext* context) : api_(api), context_(context) {}

  Tensor<const float> floats(size_t input, size_t rank) const { return in<float>(input, rank); }
  Tensor<const int8_t> bytes(size_t input, size_t rank) const { return in<int8_t>(input, rank); }
  Tensor<const int64_t> indices(size_t input, size_t rank) const { return in<int64_t>(input, rank); }

  template <typename Element>
  Element* output(size_t place, std::initializer_list<size_t> shape) const {
    return static_cast<Element*>(output_data(place, shape));
  }

  // Runs body(0) … body(tasks - 1) on the threads of the session.
  template <typename Body>
  void in_parallel(size_t tasks, const Body& body) const {
    if (tasks == 1) return body(0);
    const auto call = [](void* data, size_t task) { (*static_cast<const Body*>(data))(task); };
    check(api_,
          abi::KernelContextParallelFor::of(api_)(context_, call, tasks, 0,
                                                  const_cast<Body*>(&body)),
          "no threads");
  }

 private:
  template <typename Element>
  Tensor<const Element> in(size_t input, size_t rank) const {
    std::vector<int64_t> shape;
    const void* data = input_data(input, rank, &shape);
    return {static_cast<const Element*>(data), std::move(shape)};
  }
  const void* input_data(size_t input, size_t rank, std::vector<int64_t>* shape) const;
  void* output_data(size_t place, std::initializer_list<size_t> shape) const;

  const abi::Api* api_;
  OrtKernelContext* context_;
};

// A node of a session; may be run by several threads at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void run(const Run& run) const = 0;
};

// An operator of the domain: in a signature `f` is a float32 tensor, `i` an int64 and `b` an int8
// one.
struct Operator : abi::CustomOp {
  using Make = std::unique_ptr<Kernel> (*)(const Attributes&);

  Operator(const char* name, const char* inputs, const char* outputs, Make make);

  const char* name;
  const char* inputs;
  const char* outputs;
  Make make;
};

}  // namespace tokexport
