// What a kernel sees of the runtime that runs it: attributes, tensors and a pool of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tokexport {

// A refusal that reaches the person as the message of a failed run or load.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* what) {
  if (!holds) throw Refusal(what);
}

template <typename Element>
struct Tensor {
  Element* data;
  std::vector<int64_t> shape;

  size_t size(size_t axis) const { return static_cast<size_t>(shape.at(axis)); }
};

// Attributes of a node, read when its kernel is made.
class Attributes {
 public:
  virtual ~Attributes() = default;

  virtual float number(const char* name) const = 0;
  virtual size_t count(const char* name) const = 0;
  // The only element of a list.
  virtual size_t only(const char* name) const = 0;
};

// One run of a node.
class Run {
 public:
  virtual ~Run() = default;

  Tensor<const float> floats(size_t input, size_t rank) const { return in<float>(input, rank); }
  Tensor<const int8_t> bytes(size_t input, size_t rank) const { return in<int8_t>(input, rank); }
  Tensor<const int64_t> indices(size_t input, size_t rank) const { return in<int64_t>(input, rank); }

  template <typename Element>
  Element* output(size_t place, std::initializer_list<size_t> shape) const {
    return static_cast<Element*>(output_data(place, shape));
  }

  // Runs body(0) … body(tasks - 1) on the threads of the runtime.
  template <typename Body>
  void in_parallel(size_t tasks, const Body& body) const {
    if (tasks == 1) return body(0);
    const auto call = [](void* data, size_t task) { (*static_cast<const Body*>(data))(task); };
    run_tasks(call, tasks, const_cast<Body*>(&body));
  }

 protected:
  virtual const void* input_data(size_t input, std::vector<int64_t>* shape) const = 0;
  virtual void* output_data(size_t place, std::initializer_list<size_t> shape) const = 0;
  virtual void run_tasks(void (*call)(void*, size_t), size_t tasks, void* data) const = 0;

 private:
  template <typename Element>
  Tensor<const Element> in(size_t input, size_t rank) const {
    std::vector<int64_t> shape;
    const void* data = input_data(input, &shape);
    require(shape.size() == rank, "An input has another number of axes than the operator takes.");
    return {static_cast<const Element*>(data), std::move(shape)};
  }
};

// A node of a session; may be run by several threads at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void run(const Run& run) const = 0;
};

// An operator of the domain: in a signature `f` is a float32 tensor, `i` one of indices and `b` an
// int8 one.
struct Operator {
  using Make = std::unique_ptr<Kernel> (*)(const Attributes&);

  const char* name;
  const char* inputs;
  const char* outputs;
  Make make;
};

}  // namespace tokexport
