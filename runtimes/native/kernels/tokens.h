// Matches of tokens by their scores, and whole rows gathered and scattered.
#pragma once

#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

// Finds the maximum of a row and the first place it is at; a NaN counts as the maximum.
inline void argmax_row(const float* row, size_t count, float* best, int64_t* place) {
  const size_t whole = count / kLanes * kLanes;
  const Floats lowest = broadcast(-__builtin_inff());
  Floats tops = lowest;
  Ints places{};
  Ints has_nan{};
  for (size_t i = 0; i < whole; i += kLanes) {
    const Floats value = load(row + i);
    const Ints wins = value > tops;
    tops = wins ? value : tops;
    places = wins ? Ints{} + static_cast<int32_t>(i) : places;
    has_nan |= value != value;
  }
  float top = reduce_max(tops);
  int32_t first[kLanes];
  float lanes[kLanes];
  std::memcpy(first, &places, sizeof first);
  store(lanes, tops);
  auto at = static_cast<int32_t>(count);
  for (int32_t lane = 0; whole > 0 && lane < static_cast<int32_t>(kLanes); ++lane)
    if (lanes[lane] == top && first[lane] + lane < at) at = first[lane] + lane;
  bool all_numbers = !any_lane(has_nan);
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

// Moves a key down in a heap whose least key is at its root.
inline void sift_down(uint64_t* heap, size_t count, size_t place, uint64_t key) {
  for (;;) {
    size_t child = 2 * place + 1;
    if (child >= count) break;
    if (child + 1 < count && heap[child + 1] < heap[child]) ++child;
    if (key <= heap[child]) break;
    heap[place] = heap[child];
    place = child;
  }
  heap[place] = key;
}

// Puts the `wanted` largest keys first, the largest before the others; what is behind is in no order.
inline void partial_sort_descending(uint64_t* keys, size_t wanted, size_t count) {
  for (size_t i = wanted / 2; i-- > 0;) sift_down(keys, wanted, i, keys[i]);
  for (size_t i = wanted; wanted > 0 && i < count; ++i) {
    const uint64_t key = keys[i];
    if (key <= keys[0]) continue;
    keys[i] = keys[0];
    sift_down(keys, wanted, 0, key);
  }
  for (size_t last = wanted; last-- > 1;) {
    const uint64_t key = keys[last];
    keys[last] = keys[0];
    sift_down(keys, last, 0, key);
  }
}

// Of the best score of a row and the row itself, a key that is larger the earlier the row comes: NaN
// above all as in torch, equal scores by the lower row.
inline uint64_t sort_key(float best, size_t row) {
  const float score = best + 0.0f;  // no -0
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  const uint32_t rank = score != score       ? ~uint32_t{0}
                        : (bits >> 31) != 0 ? ~bits
                                            : bits | uint32_t{1} << 31;
  return uint64_t{rank} << 32 | (~static_cast<uint32_t>(row));
}

inline size_t row_of_key(uint64_t key) { return size_t{~static_cast<uint32_t>(key)}; }

// Takes the best pairs of one image, from the best score and the partner of each row; `keys` and
// `is_paired` are scratch memory for as many rows.
inline void select_pairs(const MatchArgs& args, size_t image, const float* best,
                         const int64_t* partner, uint64_t* keys, bool* is_paired) {
  const size_t rows = args.rows;
  if (rows == 0) return;
  for (size_t row = 0; row < rows; ++row) keys[row] = sort_key(best[row], row);
  int64_t* kept = args.kept + image * (rows - args.pairs);
  if (args.by_score) {
    partial_sort_descending(keys, rows, rows);
    for (size_t i = args.pairs; i < rows; ++i) *kept++ = static_cast<int64_t>(row_of_key(keys[i]));
  } else {
    partial_sort_descending(keys, args.pairs, rows);
    std::memset(is_paired, 0, rows * sizeof *is_paired);
    for (size_t i = 0; i < args.pairs; ++i) is_paired[row_of_key(keys[i])] = true;
    for (size_t row = 0; row < rows; ++row)
      if (!is_paired[row]) *kept++ = static_cast<int64_t>(row);
  }
  for (size_t i = 0; i < args.pairs; ++i) {
    const size_t row = row_of_key(keys[i]);
    args.src[image * args.pairs + i] = static_cast<int64_t>(row);
    args.dst[image * args.pairs + i] = partner[row];
  }
}

// The parts of match_scratch_bytes.
struct MatchScratch {
  MatchScratch(void* scratch, size_t rows)
      : keys(static_cast<uint64_t*>(scratch)),
        partner(reinterpret_cast<int64_t*>(keys + rows)),
        best(reinterpret_cast<float*>(partner + rows)),
        is_paired(reinterpret_cast<bool*>(best + rows)) {}

  uint64_t* keys;
  int64_t* partner;
  float* best;
  bool* is_paired;
};

// Finds the best partner of each row of one image, and the best pairs.
inline void match_task(const MatchArgs& args, size_t image, void* scratch) {
  const MatchScratch of(scratch, args.rows);
  for (size_t row = 0; row < args.rows; ++row)
    argmax_row(args.scores + (image * args.rows + row) * args.columns, args.columns, &of.best[row],
               &of.partner[row]);
  select_pairs(args, image, of.best, of.partner, of.keys, of.is_paired);
}

inline Floats combine(Reduce mode, Floats a, Floats b) {
  switch (mode) {
    case Reduce::kSum:
    case Reduce::kMean:
      return a + b;
    case Reduce::kProduct:
      return a * b;
    case Reduce::kMax:
      return ((b > a) | (b != b)) ? b : a;
    case Reduce::kMin:
      return ((b < a) | (b != b)) ? b : a;
    default:
      return b;
  }
}

// Copies the rows of one image that the index names.
inline void gather_task(const GatherArgs& args, size_t image) {
  for (size_t i = 0; i < args.index_count; ++i) {
    const auto from = static_cast<size_t>(args.index[image * args.index_count + i]);
    copy(args.y + image * args.y_image_stride + i * args.channels,
         args.x + image * args.x_image_stride + from * args.channels, args.channels);
  }
}

// Reduces rows of src into the rows of y that the index names, for one chunk of the channels.
inline void scatter_task(const ScatterArgs& args, size_t task, float* scratch) {
  const size_t chunks = ceil_div(args.channels, kScatterChannelsPerTask);
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kScatterChannelsPerTask;
  const size_t channels = min(kScatterChannelsPerTask, args.channels - begin);
  const int64_t* index = args.index + image * args.index_count;
  const float* dst = args.dst + image * args.rows * args.channels + begin;
  float* y = args.y + image * args.y_image_stride + begin;
  for (size_t i = 0; i < args.rows; ++i)
    copy(y + i * args.channels, dst + i * args.channels, channels);
  if (args.mode == Reduce::kNone && args.index_count == 0) return;
  float* summands = scratch;  // of each row
  for (size_t i = 0; i < args.rows; ++i) summands[i] = args.include_self ? 1.0f : 0.0f;
  for (size_t i = 0; i < args.index_count; ++i) {
    const auto row = static_cast<size_t>(index[i]);
    const size_t from = args.src_row == nullptr
                            ? i
                            : static_cast<size_t>(args.src_row[image * args.index_count + i]);
    const float* src = args.src + image * args.src_image_stride + from * args.channels + begin;
    float* to = y + row * args.channels;
    const bool overwrite = args.mode == Reduce::kNone || summands[row] == 0.0f;
    summands[row] += 1.0f;
    if (overwrite) {
      copy(to, src, channels);
      continue;
    }
    for (size_t c = 0; c < channels; c += kLanes) {
      const size_t count = min(kLanes, channels - c);
      store_tail(to + c, combine(args.mode, load_tail(to + c, count), load_tail(src + c, count)),
                 count);
    }
  }
  if (args.mode != Reduce::kMean) return;
  for (size_t i = 0; i < args.rows; ++i) {
    if (summands[i] <= 1.0f) continue;
    float* to = y + i * args.channels;
    for (size_t c = 0; c < channels; c += kLanes) {
      const size_t count = min(kLanes, channels - c);
      store_tail(to + c, load_tail(to + c, count) / summands[i], count);
    }
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
