// What MCTF computes of tokens: the matches forth and back, and the means of what became one token.
#pragma once

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/tokens.h"
#include "kernels/tome.h"

namespace tokexport::TOKEXPORT_ISA {

// The tokens of one image at length one.
struct UnitTokens {
  float* a;         // (a.count, channels)
  float* b;         // (b.count, channels)
  float* b_panels;  // those of b, packed
};

inline UnitTokens unit_tokens(const ScoredMatchArgs& args, size_t image) {
  float* a = args.unit_tokens + image * scored_match_floats(args);
  float* b = a + args.a.count * args.channels;
  return {a, b, b + args.b.count * args.channels};
}

// Brings the tokens of a, or those of b, of one image to length one.
inline void scored_normalize_task(const ScoredMatchArgs& args, size_t task) {
  const size_t image = task / 2;
  const bool is_a = task % 2 == 0;
  const UnitTokens units = unit_tokens(args, image);
  const float* tokens = args.tokens + image * args.count * args.channels;
  const TokenSet& set = is_a ? args.a : args.b;
  float* to = is_a ? units.a : units.b;
  for (size_t i = 0; i < set.count; ++i)
    normalized_metric(1, args.channels, tokens + token_at(set, i) * args.channels,
                      to + i * args.channels);
  if (!is_a) pack_transposed(to, args.channels, set.count, args.channels, units.b_panels);
}

// Computes the scores of some tokens of a.
inline void scores_task(const ScoredMatchArgs& args, size_t task, void* scratch) {
  const size_t chunks = ceil_div(args.a.count, kScoreRowsPerTask);
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kScoreRowsPerTask;
  const UnitTokens units = unit_tokens(args, image);
  const float* rarity = args.rarity + image * args.count;
  auto* rarity_of_b = static_cast<float*>(scratch);
  for (size_t i = 0; i < args.b.count + kNR; ++i)
    rarity_of_b[i] = i < args.b.count ? rarity[token_at(args.b, i)] : 0.0f;
  float tile[kMR][kNR];
  for_row_blocks(min(kScoreRowsPerTask, args.a.count - begin), [&](size_t first, size_t count) {
    const size_t row = begin + first;
    for (size_t column = 0; column < args.b.count; column += kNR) {
      gemm_rows(count, units.a + row * args.channels, args.channels, args.channels,
                units.b_panels + column / kPackedN * kPackedN * args.channels + column % kPackedN,
                tile[0], kNR);
      const size_t columns = min(kNR, args.b.count - column);
      for (size_t r = 0; r < count; ++r) {
        const float rarity_of_a = rarity[token_at(args.a, row + r)];
        float* scores = args.scores + (image * args.a.count + row + r) * args.b.count + column;
        for (size_t from = 0; from < columns; from += kLanes)
          store_tail(scores + from,
                     (load(tile[r] + from) + 1.0f) / 2.0f * rarity_of_a *
                         load(rarity_of_b + column + from),
                     min(kLanes, columns - from));
      }
    }
  });
}

// Finds for each column of one image the best of the rows that were kept, the first of equal ones,
// and the best pairs.
inline void match_back_task(const MatchBackArgs& args, size_t image, void* scratch) {
  const size_t columns = args.match.rows;
  const float* scores = args.scores + image * args.rows * columns;
  const int64_t* kept = args.kept + image * args.match.columns;
  const MatchScratch of(scratch, columns);
  for (size_t column = 0; column < columns; column += kLanes) {
    const size_t present = min(kLanes, columns - column);
    const auto scored = [&](size_t i) {
      return load_tail(scores + static_cast<size_t>(kept[i]) * columns + column, present);
    };
    Floats top = scored(0);
    Ints place{};
    for (size_t i = 1; i < args.match.columns; ++i) {
      const Floats value = scored(i);
      const Ints wins = (value > top) | ((value != value) & (top == top));
      top = wins ? value : top;
      place = wins ? Ints{} + static_cast<int32_t>(i) : place;
    }
    int32_t places[kLanes];
    std::memcpy(places, &place, sizeof places);
    store_tail(of.best + column, top, present);
    for (size_t i = 0; i < present; ++i) of.partner[column + i] = places[i];
  }
  select_pairs(args.match, image, of.best, of.partner, of.keys, of.is_paired);
}

// Merges the tokens of one image that become one, for one chunk of the channels.
inline void merge_groups_task(const MergeGroupsArgs& args, size_t task) {
  const size_t chunks = merge_groups_chunks(args);
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kMergeChannelsPerTask;
  const size_t channels = min(kMergeChannelsPerTask, args.channels - begin);
  const float* x = args.x + image * args.count * args.channels + begin;
  const float* weight = args.weight == nullptr ? nullptr : args.weight + image * args.count;
  const size_t* row_start = args.row_start + image * (args.rows + 1);
  const size_t* members = args.members + image * args.count;
  for (size_t row = 0; row < args.rows; ++row) {
    const size_t* tokens = members + row_start[row];
    const size_t count = row_start[row + 1] - row_start[row];
    float* y = args.y + (image * args.rows + row) * args.channels + begin;
    float total = weight == nullptr ? 1.0f : 0.0f;
    for (size_t i = 0; i < count && weight != nullptr; ++i) total += weight[tokens[i]];
    if (args.y_weight != nullptr && begin == 0) args.y_weight[image * args.rows + row] = total;
    if (count == 1) {
      copy(y, x + tokens[0] * args.channels, channels);
      continue;
    }
    for (size_t c = 0; c < channels; c += kLanes) {
      const size_t present = min(kLanes, channels - c);
      Floats sum{};
      for (size_t i = 0; i < count; ++i) {
        const Floats value = load_tail(x + tokens[i] * args.channels + c, present);
        sum += weight == nullptr ? value : value * weight[tokens[i]];
      }
      store_tail(y + c, weight == nullptr ? sum : sum / total, present);
    }
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
