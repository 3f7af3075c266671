// Which tokens become one in a match forth and back, read from what the two matches say.
#pragma once

#include <array>
#include <vector>

#include "operators/operators.h"

namespace tokexport {

// The two sets that tokens are split into: every `step`-th from a start.
class TokenSplit {
 public:
  explicit TokenSplit(const Attributes& attributes);

  TokenSet a(size_t tokens) const { return of(a_start_, tokens); }
  TokenSet b(size_t tokens) const { return of(b_start_, tokens); }

 private:
  TokenSet of(size_t start, size_t tokens) const;

  size_t a_start_;
  size_t b_start_;
  size_t step_;
};

// Refuses an index outside 0 … rows - 1.
void require_rows(const char* name, const Tensor<const int64_t>& index, size_t rows);

// Makes the results of a match, the first three outputs: kept (B, N - r), src (B, r), dst (B, r).
MatchArgs match_outputs(const Run& run, size_t images, size_t rows, size_t columns, size_t pairs);

// The protected tokens stay, those of a merge into b, those of b into what is left of a; the new order
// is: what is protected, what is left of a, what is left of b.
class BidirectionalMap {
 public:
  explicit BidirectionalMap(const Attributes& attributes);

  // kept, src and dst of the match forth and of the match back, each (images, ·).
  using Matches = std::array<Tensor<const int64_t>, 6>;

  // Reads the matches, from an input on, and refuses those that are not of so many tokens.
  Matches matches(const Run& run, size_t input, size_t images, size_t count) const;

  // Writes the row that each of `count` tokens goes to, (images, count); returns how many rows there
  // are.
  size_t destinations(const Matches& matches, size_t images, size_t count,
                      int64_t* destination) const;

 private:
  size_t protected_;
  TokenSplit split_;
};

// The tokens of each row, from the row that each token goes to.
class Groups {
 public:
  Groups(const int64_t* destination, size_t images, size_t count, size_t rows);

  const size_t* row_start() const { return row_start_.data(); }
  const size_t* members() const { return members_.data(); }

 private:
  std::vector<size_t> row_start_;
  std::vector<size_t> members_;
};

}  // namespace tokexport
