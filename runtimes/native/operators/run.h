// What a kernel sees of the runtime that runs it: attributes, tensors and a pool of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "operators/phases.h"

namespace tokexport {

// A refusal that reaches the person as the message of a failed run or load.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* what) {
  if (!holds) throw Refusal(what);
}

// The cores of the machine.
inline size_t threads_at_most() {
  static const size_t cores = std::max<size_t>(std::thread::hardware_concurrency(), 1);
  return cores;
}

// What a file says of counts and sizes is bounded where it comes in: an attribute that counts, and
// the product of a tensor's sizes, its empty axes left out. Products of two counts, and of sizes of
// two tensors one of which was padded, fit in 64 bits then.
constexpr int64_t kMostCounted = int64_t{1} << 24;
constexpr int64_t kMostNumbers = int64_t{1} << 44;

// Refuses sizes of a tensor that no memory holds.
template <typename Size>
void require_bounded(const Size* sizes, size_t axes) {
  int64_t left = kMostNumbers;
  for (size_t axis = 0; axis < axes; ++axis) {
    const auto size = static_cast<int64_t>(sizes[axis]);
    require(size >= 0 && size <= left, "A tensor has more numbers than memory holds.");
    left /= std::max<int64_t>(size, 1);
  }
}

// The sizes of a tensor; of more than so many axes no operator takes any.
struct Shape {
  static constexpr size_t kMostAxes = 4;

  size_t axes = 0;
  int64_t sizes[kMostAxes] = {};
};

template <typename Element>
struct Tensor {
  Element* data;
  Shape shape;

  // Of an axis that the tensor has.
  size_t size(size_t axis) const { return static_cast<size_t>(shape.sizes[axis]); }
};

// Attributes of a node, read when its kernel is made.
class Attributes {
 public:
  virtual ~Attributes() = default;

  virtual float number(const char* name) const = 0;

  // The only element of a list that counts.
  size_t only(const char* name) const {
    int64_t value = 0;
    read(name, &value, 1);
    return counted(name, value);
  }

  // The two elements of a list that counts.
  std::pair<size_t, size_t> both(const char* name) const {
    int64_t values[2] = {};
    read(name, values, 2);
    return {counted(name, values[0]), counted(name, values[1])};
  }

 protected:
  // Reads a list of so many elements; one of another length is refused.
  virtual void read(const char* name, int64_t* values, size_t size) const = 0;

 private:
  static size_t counted(const char* name, int64_t value) {
    if (value < 0 || value > kMostCounted)
      throw Refusal(std::string("The attribute ") + name + " counts " + std::to_string(value) +
                    ", and takes 0 to " + std::to_string(kMostCounted) + ".");
    return static_cast<size_t>(value);
  }
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
    require_bounded(shape.begin(), shape.size());
    return static_cast<Element*>(output_data(place, shape));
  }

  // Runs body(0) … body(tasks - 1) on the threads of the runtime.
  template <typename Body>
  void in_parallel(size_t tasks, const Body& body) const {
    in_phases(phase(tasks, body));
  }

  // Runs the tasks of each phase on the threads of the runtime, and of the next when all are done.
  // To hand tasks to its threads and to have them back costs a runtime several times what it costs
  // them to wait for one another.
  template <typename... Bodies>
  void in_phases(const Phase<Bodies>&... phases) const {
    const size_t threads = std::min(threads_at_most(), std::max({phases.tasks...}));
    const size_t shares = std::clamp<size_t>(threads, 1, kMostShares);
    Progress progress[sizeof...(Bodies)];
    const auto work = [&](size_t thread) {
      Progress* next = progress;
      (work_off(phases, thread * shares / std::max<size_t>(threads, 1), shares, next++), ...);
    };
    if (threads <= 1) return work(0);
    const auto call = [](void* data, size_t thread) {
      (*static_cast<decltype(work)*>(data))(thread);
    };
    run_tasks(call, threads, const_cast<void*>(static_cast<const void*>(&work)));
  }

 protected:
  virtual const void* input_data(size_t input, Shape* shape) const = 0;
  virtual void* output_data(size_t place, std::initializer_list<size_t> shape) const = 0;
  virtual void run_tasks(void (*call)(void*, size_t), size_t tasks, void* data) const = 0;

 private:
  template <typename Element>
  Tensor<const Element> in(size_t input, size_t rank) const {
    Shape shape;
    const void* data = input_data(input, &shape);
    require(shape.axes == rank, "An input has another number of axes than the operator takes.");
    require_bounded(shape.sizes, rank);
    return {static_cast<const Element*>(data), shape};
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
