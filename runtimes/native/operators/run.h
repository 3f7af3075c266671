// What an operator sees of the runtime that runs it: attributes, tensors and a pool of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <ostream>
#include <utility>
#include <vector>

#include "operators/errors.h"
#include "operators/phases.h"

namespace tokexport {

// Counts and sizes of a file are bounded where they come in: an attribute that counts, and the product
// of a tensor's sizes, its empty axes left out. Products of two counts, and of sizes of two tensors one
// of which was padded, fit in 64 bits then.
constexpr int64_t kMaxCount = int64_t{1} << 24;
constexpr int64_t kMaxElements = int64_t{1} << 44;

// Refuses sizes of a tensor that no memory holds.
template <typename Size>
void require_bounded(const Size* sizes, size_t rank) {
  int64_t left = kMaxElements;
  for (size_t axis = 0; axis < rank; ++axis) {
    const auto size = static_cast<int64_t>(sizes[axis]);
    require(size >= 0 && size <= left, "a tensor has more than the ", kMaxElements,
            " elements that are expected at most: size ", size, " on axis ", axis);
    left /= std::max<int64_t>(size, 1);
  }
}

// The sizes of a tensor, of which no operator takes more than these axes.
struct Shape {
  static constexpr size_t kMaxRank = 4;

  size_t rank = 0;
  int64_t sizes[kMaxRank] = {};
};

inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '(';
  for (size_t axis = 0; axis < std::min(shape.rank, Shape::kMaxRank); ++axis)
    out << (axis == 0 ? "" : ", ") << shape.sizes[axis];
  return out << (shape.rank > Shape::kMaxRank ? ", ...)" : ")");
}

template <typename Element>
struct Tensor {
  Element* data;
  Shape shape;

  // Of an axis that the tensor has.
  size_t size(size_t axis) const { return static_cast<size_t>(shape.sizes[axis]); }
};

// Refuses a tensor of another shape than the expected one.
template <typename Element>
void require_shape(const char* name, const Tensor<Element>& tensor,
                   std::initializer_list<size_t> expected) {
  bool same = tensor.shape.rank == expected.size();
  for (size_t axis = 0; same && axis < expected.size(); ++axis)
    same = tensor.size(axis) == expected.begin()[axis];
  if (same) return;
  Shape wanted;
  for (size_t size : expected) wanted.sizes[wanted.rank++] = static_cast<int64_t>(size);
  throw OperatorError(joined_text(name, " has shape ", tensor.shape, ", expected ", wanted));
}

// Attributes of a node, read when its kernel is made.
class Attributes {
 public:
  virtual ~Attributes() = default;

  virtual float real(const char* name) const = 0;

  // Returns a count, the only element of a list.
  size_t count(const char* name) const {
    int64_t value = 0;
    read(name, &value, 1);
    return checked(name, value);
  }

  // Returns two counts, the elements of a list.
  std::pair<size_t, size_t> count_pair(const char* name) const {
    int64_t values[2] = {};
    read(name, values, 2);
    return {checked(name, values[0]), checked(name, values[1])};
  }

 protected:
  // Reads a list of so many elements; one of another length is refused.
  virtual void read(const char* name, int64_t* values, size_t size) const = 0;

 private:
  static size_t checked(const char* name, int64_t value) {
    require(value >= 0 && value <= kMaxCount, "attribute ", name, " is ", value,
            ", expected 0 to ", kMaxCount);
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
  Element* output(size_t index, std::initializer_list<size_t> shape) const {
    require_bounded(shape.begin(), shape.size());
    return static_cast<Element*>(output_data(index, shape));
  }

  // Returns how many threads the session runs an operator on; a worker's number is below it.
  virtual size_t threads() const = 0;

  // Runs body(0) … body(tasks - 1) on the threads of the session.
  template <typename Body>
  void in_parallel(size_t tasks, const Body& body) const {
    in_phases(phase(tasks, body));
  }

  // Runs the tasks of each phase on the threads of the session, those of the next when all are done.
  // To hand tasks to its threads and to have them back costs a runtime several times what it costs
  // them to wait for one another.
  template <typename... Bodies>
  void in_phases(const Phase<Bodies>&... phases) const {
    const size_t workers =
        std::clamp<size_t>(threads(), 1, std::max<size_t>(std::max({phases.tasks...}), 1));
    const size_t shares = std::min(workers, kMaxShares);
    Progress progress[sizeof...(Bodies)];
    const auto work = [&](size_t thread) {
      Progress* next = progress;
      (run_phase(phases, thread, thread * shares / workers, shares, next++), ...);
    };
    if (workers == 1) return work(0);
    const auto call = [](void* data, size_t thread) {
      (*static_cast<decltype(work)*>(data))(thread);
    };
    run_tasks(call, workers, const_cast<void*>(static_cast<const void*>(&work)));
  }

 protected:
  virtual const void* input_data(size_t input, Shape* shape) const = 0;
  virtual void* output_data(size_t index, std::initializer_list<size_t> shape) const = 0;
  virtual void run_tasks(void (*call)(void*, size_t), size_t tasks, void* data) const = 0;

 private:
  template <typename Element>
  Tensor<const Element> in(size_t input, size_t rank) const {
    Shape shape;
    const void* data = input_data(input, &shape);
    require(shape.rank == rank, "input ", input, " has ", shape.rank, " axes, expected ", rank);
    require_bounded(shape.sizes, rank);
    return {static_cast<const Element*>(data), shape};
  }
};

// The operator of a node in a session; may be run by several threads at once.
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
