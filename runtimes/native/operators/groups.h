// Which tokens become one in a match forth and back, read from what the two matches say.
#pragma once

#include <array>
#include <vector>

#include "kernels/kernels.h"
#include "operators/operators.h"

namespace tokexport {

// The two sets that tokens are split into: every `step`-th from a start.
class Sets {
 public:
  explicit Sets(const Attributes& attributes);

  TokenSet a(size_t tokens) const { return of(a_start_, tokens); }
  TokenSet b(size_t tokens) const { return of(b_start_, tokens); }

 private:
  TokenSet of(size_t start, size_t tokens) const;

  size_t a_start_;
  size_t b_start_;
  size_t step_;
};

void require_rows(const Tensor<const int64_t>& index, size_t rows);

// The results of a match, the first three outputs: kept (B, N - r), src (B, r), dst (B, r).
MatchArgs matched(const Run& run, size_t images, size_t rows, size_t columns, size_t taken);

// The first tokens of all stay, those of a merge into b, those of b into what is left of a; the new
// order is: what stays, what is left of a, what is left of b.
class BothWaysMap {
 public:
  explicit BothWaysMap(const Attributes& attributes);

  // kept, src and dst of the match forth and of the match back, each (images, ·).
  using Matches = std::array<Tensor<const int64_t>, 6>;

  // Reads the matches, from an input on, and refuses those that are not of so many tokens.
  Matches matches(const Run& run, size_t input, size_t images, size_t count) const;

  // Writes where each of `count` tokens goes, (images, count). Returns how many there are then.
  size_t places(const Matches& matches, size_t images, size_t count, int64_t* place) const;

 private:
  size_t protected_;
  Sets sets_;
};

// The tokens of each row, from where each token goes.
class Groups {
 public:
  Groups(const int64_t* place, size_t images, size_t count, size_t rows);

  const size_t* start() const { return start_.data(); }
  const size_t* member() const { return member_.data(); }

 private:
  std::vector<size_t> start_;
  std::vector<size_t> member_;
};

}  // namespace tokexport
