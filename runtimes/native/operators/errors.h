// What an operator raises where attributes or tensors are not what it takes.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tokexport {

// An error of a node, whose text says what was found and what was expected. The runtime that runs the
// node puts the operator's name before it.
class OperatorError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string joined_text(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Raises an error whose text is the parts, one after another.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) throw OperatorError(joined_text(parts...));
}

}  // namespace tokexport
