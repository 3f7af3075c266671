// Whole rows gathered, scattered and merged, and the match that says which.
#pragma once

#include <algorithm>

#include "kernels/buffer.h"
#include "kernels/kernels.h"

namespace tokexport::TOKEXPORT_ISA {

// The largest of a row and the first place it is at.
inline void best_of(const float* row, size_t count, float* best, int64_t* place) {
  const size_t whole = count / kWidth * kWidth;
  const Floats lowest = all(-__builtin_inff());
  Floats tops = lowest;
  Ints places{};
  Ints strange{};
  for (size_t i = 0; i < whole; i += kWidth) {
    const Floats value = load(row + i);
    const Ints wins = value > tops;
    tops = wins ? value : tops;
    places = wins ? Ints{} + static_cast<int32_t>(i) : places;
    strange |= value != value;
  }
  float top = largest_of(tops);
  int32_t first[kWidth];
  float lanes[kWidth];
  std::memcpy(first, &places, sizeof first);
  store(lanes, tops);
  auto at = static_cast<int32_t>(count);
  for (int32_t lane = 0; whole > 0 && lane < static_cast<int32_t>(kWidth); ++lane)
    if (lanes[lane] == top && first[lane] + lane < at) at = first[lane] + lane;
  bool all_numbers = !any_of(strange);
  for (size_t i = whole; i < count; ++i) {
    all_numbers = all_numbers && row[i] == row[i];
    if (row[i] > top || at == static_cast<int32_t>(count)) {
      top = row[i];
      at = static_cast<int32_t>(i);
    }
  }
  if (!all_numbers) {
    at = 0;
    while (row[at] == row[at]) ++at;
    top = row[at];
  }
  *best = top;
  *place = at;
}

// Takes the best pairs of one image, once each row's best score and partner are known.
inline void rank_pairs(const MatchArgs& args, size_t image, const float* best,
                       const int64_t* partner) {
  const size_t rows = args.rows;
  if (rows == 0) return;
  // The better score is the larger number: NaN above all as in torch, equal ones by index.
  thread_local Buffer<uint64_t> numbers;
  uint64_t* ranked = numbers.of(rows);
  for (size_t i = 0; i < rows; ++i) {
    const float score = best[i] + 0.0f;  // no -0
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    const uint32_t rank = score != score       ? ~uint32_t{0}
                          : (bits >> 31) != 0 ? ~bits
                                              : bits | uint32_t{1} << 31;
    ranked[i] = uint64_t{rank} << 32 | (~static_cast<uint32_t>(i));
  }
  uint64_t* middle = ranked + args.taken;
  uint64_t* end = ranked + rows;
  const auto larger_first = [](uint64_t a, uint64_t b) { return a > b; };
  const auto row_of = [](uint64_t number) { return size_t{~static_cast<uint32_t>(number)}; };
  int64_t* kept = args.kept + image * (rows - args.taken);
  if (args.by_score) {
    std::sort(ranked, end, larger_first);
    for (size_t i = 0; i < rows - args.taken; ++i) kept[i] = static_cast<int64_t>(row_of(middle[i]));
  } else {
    std::partial_sort(ranked, middle, end, larger_first);
    thread_local Buffer<bool> marks;
    bool* is_taken = marks.of(rows);
    std::memset(is_taken, 0, rows);
    for (size_t i = 0; i < args.taken; ++i) is_taken[row_of(ranked[i])] = true;
    for (size_t i = 0; i < rows; ++i)
      if (!is_taken[i]) *kept++ = static_cast<int64_t>(i);
  }
  for (size_t i = 0; i < args.taken; ++i) {
    const size_t row = row_of(ranked[i]);
    args.src[image * args.taken + i] = static_cast<int64_t>(row);
    args.dst[image * args.taken + i] = partner[row];
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
    copy(args.y + image * args.y_image + i * args.channels,
         args.x + image * args.x_image + from * args.channels, args.channels);
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
    copy(y + i * args.channels, dst + i * args.channels, channels);
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
      copy(to, src, channels);
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
