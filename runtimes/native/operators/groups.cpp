#include "operators/groups.h"

#include <algorithm>

namespace tokexport {

void require_rows(const char* name, const Tensor<const int64_t>& index, size_t rows) {
  const int64_t* end = index.data + index.size(0) * index.size(1);
  const int64_t* outside = std::find_if(index.data, end, [rows](int64_t i) {
    return i < 0 || static_cast<size_t>(i) >= rows;
  });
  if (outside == end) return;
  throw OperatorError(joined_text(name, " names row ", *outside, ", expected 0 to below ", rows));
}

TokenSplit::TokenSplit(const Attributes& attributes)
    : a_start_(attributes.count("a_start")),
      b_start_(attributes.count("b_start")),
      step_(attributes.count("step")) {
  require(step_ > 0, "attribute step is 0, expected 1 or more");
}

TokenSet TokenSplit::of(size_t start, size_t tokens) const {
  return {start, step_, start < tokens ? ceil_div(tokens - start, step_) : 0};
}

MatchArgs match_outputs(const Run& run, size_t images, size_t rows, size_t columns, size_t pairs) {
  require(columns > 0, "no token to match with, expected at least one");
  require(pairs <= rows, "attribute r is ", pairs, ", expected 0 to the ", rows, " rows");
  MatchArgs args{};
  args.images = images;
  args.rows = rows;
  args.columns = columns;
  args.pairs = pairs;
  args.kept = run.output<int64_t>(0, {images, rows - pairs});
  args.src = run.output<int64_t>(1, {images, pairs});
  args.dst = run.output<int64_t>(2, {images, pairs});
  return args;
}

BidirectionalMap::BidirectionalMap(const Attributes& attributes)
    : protected_(attributes.count("protected")), split_(attributes) {}

BidirectionalMap::Matches BidirectionalMap::matches(const Run& run, size_t input, size_t images,
                                                    size_t count) const {
  Matches index;
  for (size_t i = 0; i < index.size(); ++i) index[i] = run.indices(input + i, 2);
  const auto& [kept, src, dst, kept_back, src_back, dst_back] = index;
  const size_t a = split_.a(count).count;
  const size_t b = split_.b(count).count;
  require(protected_ <= count, "attribute protected is ", protected_, ", expected 0 to the ", count,
          " tokens");
  // Each match names every token of its set once, among those that are kept or those that merge.
  require(src.size(1) <= a && src_back.size(1) <= b, "src and src_back name ", src.size(1), " and ",
          src_back.size(1), " tokens, expected ", a, " and ", b, " at most");
  require_shape("kept", kept, {images, a - src.size(1)});
  require_shape("src", src, {images, src.size(1)});
  require_shape("dst", dst, {images, src.size(1)});
  require_shape("kept_back", kept_back, {images, b - src_back.size(1)});
  require_shape("src_back", src_back, {images, src_back.size(1)});
  require_shape("dst_back", dst_back, {images, src_back.size(1)});
  require_rows("kept", kept, a);
  require_rows("src", src, a);
  require_rows("dst", dst, b);
  require_rows("kept_back", kept_back, b);
  require_rows("src_back", src_back, b);
  require_rows("dst_back", dst_back, kept.size(1));
  return index;
}

size_t BidirectionalMap::destinations(const Matches& matches, size_t images, size_t count,
                                      int64_t* destination) const {
  const auto& [kept, src, dst, kept_back, src_back, dst_back] = matches;
  const TokenSet a = split_.a(count);
  const TokenSet b = split_.b(count);
  const size_t left = kept.size(1);
  const size_t left_back = kept_back.size(1);
  const auto at = [](const Tensor<const int64_t>& which, size_t image, size_t i) {
    return static_cast<size_t>(which.data[image * which.size(1) + i]);
  };
  for (size_t image = 0; image < images; ++image) {
    int64_t* to = destination + image * count;
    std::fill(to, to + count, -1);
    for (size_t i = 0; i < protected_; ++i) to[i] = static_cast<int64_t>(i);
    for (size_t i = 0; i < left; ++i)
      to[token_at(a, at(kept, image, i))] = static_cast<int64_t>(protected_ + i);
    for (size_t i = 0; i < left_back; ++i)
      to[token_at(b, at(kept_back, image, i))] = static_cast<int64_t>(protected_ + left + i);
    for (size_t i = 0; i < src_back.size(1); ++i)
      to[token_at(b, at(src_back, image, i))] =
          static_cast<int64_t>(protected_ + at(dst_back, image, i));
    for (size_t i = 0; i < src.size(1); ++i)
      to[token_at(a, at(src, image, i))] = to[token_at(b, at(dst, image, i))];
    const int64_t* missing = std::find(to, to + count, -1);
    require(missing == to + count, "the matches leave out token ", missing - to,
            ", expected each token once");
  }
  return protected_ + left + left_back;
}

Groups::Groups(const int64_t* destination, size_t images, size_t count, size_t rows)
    : row_start_(images * (rows + 1)), members_(images * count) {
  for (size_t image = 0; image < images; ++image) {
    const int64_t* to = destination + image * count;
    size_t* start = row_start_.data() + image * (rows + 1);
    for (size_t i = 0; i < count; ++i) ++start[static_cast<size_t>(to[i]) + 1];
    for (size_t row = 0; row < rows; ++row) {
      require(start[row + 1] > 0, "row ", row, " is made of no token, expected at least one");
      start[row + 1] += start[row];
    }
    // Counts up from where each row begins, and so leaves each start where the next row begins.
    std::vector<size_t> next(start, start + rows);
    for (size_t i = 0; i < count; ++i)
      members_[image * count + next[static_cast<size_t>(to[i])]++] = i;
  }
}

}  // namespace tokexport
