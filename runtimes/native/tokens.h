// Whole rows gathered, scattered and merged, and the match that says which.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "kernels.h"

namespace tokexport::TOKEXPORT_ISA {

// Whether a comes before b: the larger score first, NaN above all as in torch, ties by index.
inline bool better(float a, float b) { return a > b || (a != a && b == b); }

// The largest of a row and the first place it is at.
inline void best_of(const float* row, size_t count, float* best, int64_t* place) {
  // NaN or not, most rows need one pass of maxima and one search for where the maximum is.
  float top = row[0];
  Floats tops = all(top);
  bool strange = top != top;
  Ints unequal{};
  const size_t whole = count / kWidth * kWidth;
  for (size_t i = 0; i < whole; i += kWidth) {
    const Floats value = load(row + i);
    unequal |= value != value;
    tops = larger(value, tops);
  }
  for (size_t i = whole; i < count; ++i) {
    strange |= row[i] != row[i];
    top = row[i] > top ? row[i] : top;
  }
  if (strange || any_of(unequal)) {
    size_t first = 0;
    while (row[first] == row[first]) ++first;
    *best = row[first];
    *place = static_cast<int64_t>(first);
    return;
  }
  const float widest = largest_of(tops);
  top = widest > top ? widest : top;
  *best = top;
  size_t first = 0;
  while (row[first] != top) ++first;
  *place = static_cast<int64_t>(first);
}

// Takes the best pairs of one image, once each row's best score and partner are known.
inline void rank_pairs(const MatchArgs& args, size_t image, const float* best,
                       const int64_t* partner) {
  const size_t rows = args.rows;
  thread_local Buffer<int64_t> ranks;
  int64_t* ranked = ranks.of(rows);
  for (size_t i = 0; i < rows; ++i) ranked[i] = static_cast<int64_t>(i);
  const auto before = [best](int64_t i, int64_t j) {
    const float a = best[i];
    const float b = best[j];
    return better(a, b) || (!better(b, a) && i < j);
  };
  int64_t* middle = ranked + args.taken;
  int64_t* end = ranked + rows;
  if (args.by_score) {
    std::sort(ranked, end, before);
  } else {
    std::partial_sort(ranked, middle, end, before);
    std::sort(middle, end, [](int64_t i, int64_t j) { return i < j; });
  }
  int64_t* kept = args.kept + image * (rows - args.taken);
  for (size_t i = 0; i < rows - args.taken; ++i) kept[i] = middle[i];
  for (size_t i = 0; i < args.taken; ++i) {
    args.src[image * args.taken + i] = ranked[i];
    args.dst[image * args.taken + i] = partner[static_cast<size_t>(ranked[i])];
  }
}

// Finds the best partner of each row of one image, and the r best pairs.
inline void match_task(const MatchArgs& args, size_t image) {
  thread_local Buffer<float> bests;
  thread_local Buffer<int64_t> partners;
  float* best = bests.of(args.rows);
  int64_t* partner = partners.of(args.rows);
  for (size_t i = 0; i < args.rows; ++i)
    best_of(args.scores + (image * args.rows + i) * args.columns, args.columns, &best[i],
            &partner[i]);
  rank_pairs(args, image, best, partner);
}

inline Floats reduced(Reduce mode, Floats a, Floats b) {
  switch (mode) {
    case Reduce::kSum:
    case Reduce::kMean:
      return a + b;
    case Reduce::kProduct:
      return a * b;
    case Reduce::kLargest:
      return (b > a) | (b != b) ? b : a;
    case Reduce::kSmallest:
      return (b < a) | (b != b) ? b : a;
    default:
      return b;
  }
}

// Copies rows of x where they are named, for the channels of one task.
inline void gather_task(const GatherArgs& args, size_t task) {
  const size_t image = task;
  for (size_t i = 0; i < args.taken; ++i) {
    const auto from = static_cast<size_t>(args.index[image * args.taken + i]);
    std::memcpy(args.y + image * args.y_image + i * args.channels,
                args.x + image * args.x_image + from * args.channels, 4 * args.channels);
  }
}

// Reduces rows of src into the rows of y that they name, for one chunk of the channels.
inline void scatter_task(const ScatterArgs& args, size_t task) {
  const size_t chunks = (args.channels + kChannels - 1) / kChannels;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kChannels;
  const size_t channels = smaller(kChannels, args.channels - begin);
  const int64_t* index = args.index + image * args.taken;
  const float* dst = args.dst + image * args.rows * args.channels + begin;
  float* y = args.y + image * args.y_image + begin;
  for (size_t i = 0; i < args.rows; ++i)
    std::memcpy(y + i * args.channels, dst + i * args.channels, 4 * channels);
  if (args.mode == Reduce::kNone && args.taken == 0) return;
  thread_local Buffer<float> counts;
  float* writers = counts.of(args.rows);
  for (size_t i = 0; i < args.rows; ++i) writers[i] = args.include_self ? 1.0f : 0.0f;
  for (size_t i = 0; i < args.taken; ++i) {
    const auto row = static_cast<size_t>(index[i]);
    const size_t from = args.source == nullptr
                            ? i
                            : static_cast<size_t>(args.source[image * args.taken + i]);
    const float* src = args.src + image * args.src_image + from * args.channels + begin;
    float* to = y + row * args.channels;
    const bool overwrite = args.mode == Reduce::kNone || writers[row] == 0.0f;
    writers[row] += 1.0f;
    if (overwrite) {
      std::memcpy(to, src, 4 * channels);
      continue;
    }
    for (size_t c = 0; c < channels; c += kWidth) {
      const size_t count = smaller(kWidth, channels - c);
      store_first(to + c, reduced(args.mode, load_first(to + c, count), load_first(src + c, count)),
                  count);
    }
  }
  if (args.mode != Reduce::kMean) return;
  for (size_t i = 0; i < args.rows; ++i) {
    if (writers[i] <= 1.0f) continue;
    float* to = y + i * args.channels;
    for (size_t c = 0; c < channels; c += kWidth) {
      const size_t count = smaller(kWidth, channels - c);
      store_first(to + c, load_first(to + c, count) / writers[i], count);
    }
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
