#include "operators/groups.h"

#include <algorithm>

namespace tokexport {

void require_rows(const Tensor<const int64_t>& index, size_t rows) {
  const size_t count = index.size(0) * index.size(1);
  const bool inside = std::all_of(index.data, index.data + count, [rows](int64_t i) {
    return i >= 0 && static_cast<size_t>(i) < rows;
  });
  require(inside, "An index names a row that is not there.");
}

Sets::Sets(const Attributes& attributes)
    : a_start_(attributes.only("a_start")),
      b_start_(attributes.only("b_start")),
      step_(attributes.only("step")) {
  require(step_ > 0, "The tokens of a set are no step apart.");
}

TokenSet Sets::of(size_t start, size_t tokens) const {
  return {start, step_, start < tokens ? (tokens - start + step_ - 1) / step_ : 0};
}

MatchArgs matched(const Run& run, size_t images, size_t rows, size_t columns, size_t taken) {
  MatchArgs args{};
  args.images = images;
  args.rows = rows;
  args.columns = columns;
  args.taken = taken;
  args.kept = run.output<int64_t>(0, {images, rows - taken});
  args.src = run.output<int64_t>(1, {images, taken});
  args.dst = run.output<int64_t>(2, {images, taken});
  return args;
}

BothWaysMap::BothWaysMap(const Attributes& attributes)
    : protected_(attributes.only("protected")), sets_(attributes) {}

BothWaysMap::Matches BothWaysMap::matches(const Run& run, size_t input, size_t images,
                                          size_t count) const {
  Matches index;
  for (size_t i = 0; i < index.size(); ++i) {
    index[i] = run.indices(input + i, 2);
    require(index[i].size(0) == images, "The matches are of another number of images.");
  }
  const auto& [kept, src, dst, kept_back, src_back, dst_back] = index;
  const size_t a = sets_.a(count).count;
  const size_t b = sets_.b(count).count;
  require(protected_ <= count && kept.size(1) + src.size(1) == a && src.size(1) == dst.size(1) &&
              kept_back.size(1) + src_back.size(1) == b && src_back.size(1) == dst_back.size(1),
          "The matches do not fit the tokens.");
  require_rows(kept, a);
  require_rows(src, a);
  require_rows(dst, b);
  require_rows(kept_back, b);
  require_rows(src_back, b);
  require_rows(dst_back, kept.size(1));
  return index;
}

size_t BothWaysMap::places(const Matches& matches, size_t images, size_t count,
                           int64_t* place) const {
  const auto& [kept, src, dst, kept_back, src_back, dst_back] = matches;
  const TokenSet a = sets_.a(count);
  const TokenSet b = sets_.b(count);
  const size_t left = kept.size(1);
  const size_t left_back = kept_back.size(1);
  const auto at = [](const Tensor<const int64_t>& which, size_t image, size_t i) {
    return static_cast<size_t>(which.data[image * which.size(1) + i]);
  };
  for (size_t image = 0; image < images; ++image) {
    int64_t* to = place + image * count;
    std::fill(to, to + count, -1);
    for (size_t i = 0; i < protected_; ++i) to[i] = static_cast<int64_t>(i);
    for (size_t i = 0; i < left; ++i)
      to[a.token(at(kept, image, i))] = static_cast<int64_t>(protected_ + i);
    for (size_t i = 0; i < left_back; ++i)
      to[b.token(at(kept_back, image, i))] = static_cast<int64_t>(protected_ + left + i);
    for (size_t i = 0; i < src_back.size(1); ++i)
      to[b.token(at(src_back, image, i))] =
          static_cast<int64_t>(protected_ + at(dst_back, image, i));
    for (size_t i = 0; i < src.size(1); ++i)
      to[a.token(at(src, image, i))] = to[b.token(at(dst, image, i))];
    require(std::find(to, to + count, -1) == to + count,
            "The matches leave out a token, or name one twice.");
  }
  return protected_ + left + left_back;
}

Groups::Groups(const int64_t* place, size_t images, size_t count, size_t rows)
    : start_(images * (rows + 1)), member_(images * count) {
  for (size_t image = 0; image < images; ++image) {
    const int64_t* to = place + image * count;
    size_t* start = start_.data() + image * (rows + 1);
    for (size_t i = 0; i < count; ++i) ++start[static_cast<size_t>(to[i]) + 1];
    for (size_t row = 0; row < rows; ++row) {
      require(start[row + 1] > 0, "A row is made of no token.");
      start[row + 1] += start[row];
    }
    // Counts up from where each row begins, and so leaves each start where the next row begins.
    std::vector<size_t> next(start, start + rows);
    for (size_t i = 0; i < count; ++i)
      member_[image * count + next[static_cast<size_t>(to[i])]++] = i;
  }
}

}  // namespace tokexport
