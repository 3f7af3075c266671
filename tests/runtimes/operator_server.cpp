// Runs operators that come on stdin and answers on stdout, so that another processor can be emulated.
//
// A request is lines of text, an input's elements behind its line:
//   operator NAME / counts NAME VALUE... / real NAME VALUE / input LETTER SIZE... / run
// The answer is `ok` with a line and the elements of each output, or one line `error TEXT`.
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "operators/operators.h"

extern "C" const char* tokexport_kernels();

namespace {

using namespace tokexport;

constexpr size_t kThreads = 2;

struct Value {
  char letter = 'f';
  std::vector<int64_t> sizes;
  std::vector<char> bytes;
};

size_t element_bytes(char letter) { return letter == 'f' ? 4 : letter == 'b' ? 1 : 8; }

class SentAttributes final : public Attributes {
 public:
  std::map<std::string, std::vector<int64_t>> counts;
  std::map<std::string, float> reals;

  float real(const char* name) const override { return reals.at(name); }

 protected:
  void read(const char* name, int64_t* values, size_t size) const override {
    const auto found = counts.find(name);
    require(found != counts.end(), "attribute ", name, " is missing");
    require(found->second.size() == size, "attribute ", name, " has ", found->second.size(),
            " elements, expected ", size);
    std::copy(found->second.begin(), found->second.end(), values);
  }
};

class SentRun final : public Run {
 public:
  SentRun(const std::vector<Value>& inputs, const char* letters)
      : inputs_(inputs), letters_(letters), outputs_(std::char_traits<char>::length(letters)) {}

  size_t threads() const override { return kThreads; }
  const std::vector<Value>& outputs() const { return outputs_; }

 private:
  const void* input_data(size_t input, Shape* shape) const override {
    const Value& value = inputs_.at(input);
    shape->rank = value.sizes.size();
    for (size_t axis = 0; axis < std::min(shape->rank, Shape::kMaxRank); ++axis)
      shape->sizes[axis] = value.sizes[axis];
    return value.bytes.data();
  }

  void* output_data(size_t index, std::initializer_list<size_t> shape) const override {
    Value& value = outputs_.at(index);
    value.letter = letters_[index];
    value.sizes.assign(shape.begin(), shape.end());
    size_t count = 1;
    for (size_t size : shape) count *= size;
    value.bytes.assign(count * element_bytes(value.letter), '\x5a');  // what is not written shows
    return value.bytes.data();
  }

  void run_tasks(void (*call)(void*, size_t), size_t tasks, void* data) const override {
    for (size_t task = 0; task < tasks; ++task) call(data, task);
  }

  const std::vector<Value>& inputs_;
  const char* letters_;
  mutable std::vector<Value> outputs_;
};

struct Request {
  std::string name;
  SentAttributes attributes;
  std::vector<Value> inputs;
};

bool read_request(Request* to) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "run") return true;
    std::string name;
    words >> name;
    if (kind == "operator") to->name = name;
    if (kind == "real") words >> to->attributes.reals[name];
    std::vector<int64_t> numbers;
    for (int64_t number; words >> number;) numbers.push_back(number);
    if (kind == "counts") to->attributes.counts[name] = numbers;
    if (kind != "input") continue;
    Value value{name.at(0), numbers, {}};
    size_t count = 1;
    for (int64_t size : numbers) count *= static_cast<size_t>(size);
    value.bytes.resize(count * element_bytes(value.letter));
    std::cin.read(value.bytes.data(), static_cast<std::streamsize>(value.bytes.size()));
    to->inputs.push_back(std::move(value));
  }
  return false;
}

void answer(const std::vector<Operator>& operators, const Request& request) {
  for (const Operator& one : operators) {
    if (request.name != one.name) continue;
    const auto kernel = one.make(request.attributes);
    SentRun run(request.inputs, one.outputs);
    kernel->run(run);
    std::cout << "ok\n";
    for (const Value& value : run.outputs()) {
      std::cout << value.letter;
      for (int64_t size : value.sizes) std::cout << ' ' << size;
      std::cout << '\n';
      std::cout.write(value.bytes.data(), static_cast<std::streamsize>(value.bytes.size()));
    }
    return;
  }
  throw OperatorError("no such operator: " + request.name);
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  const std::vector<Operator> operators = all_operators();
  std::cout << tokexport_kernels() << std::endl;
  for (Request request; read_request(&request); request = {}) {
    try {
      answer(operators, request);
    } catch (const std::exception& error) {
      std::cout << "error " << error.what() << '\n';
    }
    std::cout.flush();
  }
  return 0;
}
