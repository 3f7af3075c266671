// What MCTF computes of tokens: the match forth and back, and the means of what became one token.
#pragma once

#include "attention.h"
#include "product.h"
#include "tokens.h"
#include "tome.h"

namespace tokexport::TOKEXPORT_ISA {

// Where the parts of an image's work lie.
struct BothWaysWork {
  float* a;       // (a.count, channels), of length one
  float* panels;  // those of b, packed
  float* scores;  // (a.count, score_width)
};

inline BothWaysWork both_ways_work(const BothWaysArgs& args, size_t image) {
  float* a = args.work + image * both_ways_floats(args);
  float* panels = a + args.a.count * args.channels;
  return {a, panels, panels + score_width(args) * args.channels};
}

// Brings the tokens of a, or those of b, of one image to length one.
inline void both_ways_units_task(const BothWaysArgs& args, size_t task) {
  const size_t image = task / 2;
  const BothWaysWork work = both_ways_work(args, image);
  const float* tokens = args.tokens + image * args.count * args.channels;
  const TokenSet& set = task % 2 == 0 ? args.a : args.b;
  thread_local Buffer<float> scratch;
  float* units = task % 2 == 0 ? work.a : scratch.of(args.b.count * args.channels);
  for (size_t i = 0; i < set.count; ++i)
    unit_metric(1, args.channels, tokens + set.token(i) * args.channels,
                units + i * args.channels);
  if (task % 2 == 1) pack_turned(units, args.channels, set.count, args.channels, work.panels);
}

// Computes the scores of some tokens of a.
inline void both_ways_scores_task(const BothWaysArgs& args, size_t task) {
  const size_t chunks = (args.a.count + kScoredRows - 1) / kScoredRows;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kScoredRows;
  const size_t width = score_width(args);
  const BothWaysWork work = both_ways_work(args, image);
  const float* rare = args.rare + image * args.count;
  thread_local Buffer<float> scratch;
  float* of_b = scratch.of(width);
  for (size_t i = 0; i < width; ++i) of_b[i] = i < args.b.count ? rare[args.b.token(i)] : 0.0f;
  in_blocks(smaller(kScoredRows, args.a.count - begin), [&](size_t first, size_t count) {
    const size_t row = begin + first;
    for (size_t column = 0; column < args.b.count; column += kColumns)
      multiply_rows(count, work.a + row * args.channels, args.channels, args.channels,
                    work.panels + column / kPanel * kPanel * args.channels + column % kPanel,
                    work.scores + row * width + column, width);
    for (size_t r = row; r < row + count; ++r) {
      const float of_a = rare[args.a.token(r)];
      float* scores = work.scores + r * width;
      for (size_t column = 0; column < args.b.count; column += kWidth)
        store(scores + column, (load(scores + column) + 1.0f) / 2.0f * of_a * load(of_b + column));
    }
  });
}

// Finds for each column the best of the rows that were kept, the first of equal ones.
inline void best_of_columns(const float* scores, size_t width, const int64_t* kept, size_t rows,
                            size_t columns, float* best, int64_t* partner) {
  for (size_t column = 0; column < columns; column += kWidth) {
    Floats top = load(scores + static_cast<size_t>(kept[0]) * width + column);
    Ints place{};
    for (size_t i = 1; i < rows; ++i) {
      const Floats value = load(scores + static_cast<size_t>(kept[i]) * width + column);
      const Ints wins = (value > top) | ((value != value) & (top == top));
      top = wins ? value : top;
      place = wins ? Ints{} + static_cast<int32_t>(i) : place;
    }
    const size_t present = smaller(kWidth, columns - column);
    int32_t places[kWidth];
    std::memcpy(places, &place, sizeof places);
    store_first(best + column, top, present);
    for (size_t i = 0; i < present; ++i) partner[column + i] = places[i];
  }
}

// Matches the tokens of one image, forth and back.
inline void both_ways_match_task(const BothWaysArgs& args, size_t image) {
  const size_t width = score_width(args);
  const float* scores = both_ways_work(args, image).scores;
  thread_local Buffer<float> bests;
  thread_local Buffer<int64_t> partners;
  const size_t most = args.a.count > args.b.count ? args.a.count : args.b.count;
  float* best = bests.of(most);
  int64_t* partner = partners.of(most);
  for (size_t i = 0; i < args.a.count; ++i)
    best_of(scores + i * width, args.b.count, &best[i], &partner[i]);
  rank_pairs(args.forth, image, best, partner);
  const size_t left = args.a.count - args.forth.taken;
  best_of_columns(scores, width, args.forth.kept + image * left, left, args.b.count, best,
                  partner);
  rank_pairs(args.back, image, best, partner);
}

// Joins the tokens of one image, for one chunk of the channels.
inline void group_task(const GroupArgs& args, size_t task) {
  const size_t chunks = (args.channels + kMergedChannels - 1) / kMergedChannels;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kMergedChannels;
  const size_t channels = smaller(kMergedChannels, args.channels - begin);
  const float* x = args.x + image * args.count * args.channels + begin;
  const float* weight = args.weight == nullptr ? nullptr : args.weight + image * args.count;
  const size_t* start = args.start + image * (args.rows + 1);
  const size_t* member = args.member + image * args.count;
  for (size_t row = 0; row < args.rows; ++row) {
    const size_t* tokens = member + start[row];
    const size_t count = start[row + 1] - start[row];
    float* y = args.y + (image * args.rows + row) * args.channels + begin;
    float total = weight == nullptr ? 1.0f : 0.0f;
    for (size_t i = 0; i < count && weight != nullptr; ++i) total += weight[tokens[i]];
    if (args.y_weight != nullptr && begin == 0) args.y_weight[image * args.rows + row] = total;
    if (count == 1) {
      std::memcpy(y, x + tokens[0] * args.channels, 4 * channels);
      continue;
    }
    for (size_t c = 0; c < channels; c += kWidth) {
      const size_t present = smaller(kWidth, channels - c);
      Floats sum{};
      for (size_t i = 0; i < count; ++i) {
        const Floats value = load_first(x + tokens[i] * args.channels + c, present);
        sum += weight == nullptr ? value : value * weight[tokens[i]];
      }
      store_first(y + c, weight == nullptr ? sum : sum / total, present);
    }
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
