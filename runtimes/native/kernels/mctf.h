// What MCTF computes of tokens: the matches forth and back, and the means of what became one token.
#pragma once

#include "kernels/attention.h"
#include "kernels/product.h"
#include "kernels/tokens.h"
#include "kernels/tome.h"

namespace tokexport::TOKEXPORT_ISA {

// Where the parts of an image's work lie.
struct ScoredMatchWork {
  float* a;       // (a.count, channels), of length one
  float* panels;  // those of b, packed
};

inline ScoredMatchWork scored_match_work(const ScoredMatchArgs& args, size_t image) {
  float* a = args.work + image * scored_match_floats(args);
  return {a, a + args.a.count * args.channels};
}

// Brings the tokens of a, or those of b, of one image to length one.
inline void scored_units_task(const ScoredMatchArgs& args, size_t task) {
  const size_t image = task / 2;
  const ScoredMatchWork work = scored_match_work(args, image);
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
inline void scored_rows_task(const ScoredMatchArgs& args, size_t task) {
  const size_t chunks = (args.a.count + kScoredRows - 1) / kScoredRows;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kScoredRows;
  const ScoredMatchWork work = scored_match_work(args, image);
  const float* rare = args.rare + image * args.count;
  thread_local Buffer<float> scratch;
  float* of_b = scratch.of(args.b.count + kColumns);
  for (size_t i = 0; i < args.b.count + kColumns; ++i)
    of_b[i] = i < args.b.count ? rare[args.b.token(i)] : 0.0f;
  float tile[kRows][kColumns];
  in_blocks(smaller(kScoredRows, args.a.count - begin), [&](size_t first, size_t count) {
    const size_t row = begin + first;
    for (size_t column = 0; column < args.b.count; column += kColumns) {
      multiply_rows(count, work.a + row * args.channels, args.channels, args.channels,
                    work.panels + column / kPanel * kPanel * args.channels + column % kPanel,
                    tile[0], kColumns);
      const size_t columns = smaller(kColumns, args.b.count - column);
      for (size_t r = 0; r < count; ++r) {
        const float of_a = rare[args.a.token(row + r)];
        float* scores =
            args.scores + (image * args.a.count + row + r) * args.b.count + column;
        for (size_t from = 0; from < columns; from += kWidth)
          store_first(scores + from,
                      (load(tile[r] + from) + 1.0f) / 2.0f * of_a * load(of_b + column + from),
                      smaller(kWidth, columns - from));
      }
    }
  });
}

// Finds for each column of one image the best of the rows that were kept, the first of equal ones,
// and the best pairs.
inline void match_back_task(const MatchBackArgs& args, size_t image) {
  const size_t columns = args.match.rows;
  const float* scores = args.scores + image * args.rows * columns;
  const int64_t* kept = args.kept + image * args.match.columns;
  thread_local Buffer<float> bests;
  thread_local Buffer<int64_t> partners;
  float* best = bests.of(columns);
  int64_t* partner = partners.of(columns);
  for (size_t column = 0; column < columns; column += kWidth) {
    const size_t present = smaller(kWidth, columns - column);
    const auto scored = [&](size_t i) {
      return load_first(scores + static_cast<size_t>(kept[i]) * columns + column, present);
    };
    Floats top = scored(0);
    Ints place{};
    for (size_t i = 1; i < args.match.columns; ++i) {
      const Floats value = scored(i);
      const Ints wins = (value > top) | ((value != value) & (top == top));
      top = wins ? value : top;
      place = wins ? Ints{} + static_cast<int32_t>(i) : place;
    }
    int32_t places[kWidth];
    std::memcpy(places, &place, sizeof places);
    store_first(best + column, top, present);
    for (size_t i = 0; i < present; ++i) partner[column + i] = places[i];
  }
  rank_pairs(args.match, image, best, partner);
}

// Joins the tokens of one image, for one chunk of the channels.
inline void group_task(const GroupArgs& args, size_t task) {
  const size_t chunks = group_chunks(args);
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
      copy(y, x + tokens[0] * args.channels, channels);
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
