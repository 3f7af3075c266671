// What ToMe computes between attention and MLP: the match by cosine, and the mean by size.
#pragma once

#include "attention.h"
#include "product.h"
#include "tokens.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes the mean of a token's heads, of length one.
inline void unit_metric(size_t heads, size_t depth, const float* token, float* metric) {
  const float share = static_cast<float>(heads);
  Floats squares{};
  for (size_t d = 0; d < depth; d += kWidth) {
    const size_t count = smaller(kWidth, depth - d);
    Floats total = load_first(token + d, count);
    for (size_t head = 1; head < heads; ++head)
      total += load_first(token + head * depth + d, count);
    total = total / share;
    store_first(metric + d, total, count);
    squares += total * total;
  }
  const float length = __builtin_sqrtf(sum_of(squares));
  for (size_t d = 0; d < depth; d += kWidth) {
    const size_t count = smaller(kWidth, depth - d);
    store_first(metric + d, load_first(metric + d, count) / length, count);
  }
}

// Matches the tokens of one image.
inline void cosine_match_task(const CosineArgs& args, size_t image) {
  const size_t depth = args.depth;
  const size_t width = panel_count(args.b.count) * kPanel;
  thread_local Buffer<float> scratch;
  float* a = scratch.of((args.a.count + args.b.count + width) * depth + kRows * width +
                        args.a.count);
  float* b = a + args.a.count * depth;
  float* panels = b + args.b.count * depth;
  float* scores = panels + width * depth;
  float* best = scores + kRows * width;
  thread_local Buffer<int64_t> partners;
  int64_t* partner = partners.of(args.a.count);
  const float* rows = args.rows + image * args.count * args.width;
  for (size_t i = 0; i < args.a.count; ++i)
    unit_metric(args.heads, depth, rows + args.a.token(i) * args.width, a + i * depth);
  for (size_t i = 0; i < args.b.count; ++i)
    unit_metric(args.heads, depth, rows + args.b.token(i) * args.width, b + i * depth);
  pack_turned(b, depth, args.b.count, depth, panels);
  in_blocks(args.a.count, [&](size_t first, size_t count) {
    for (size_t column = 0; column < args.b.count; column += kColumns)
      multiply_rows(count, a + first * depth, depth, depth,
                    panels + column / kPanel * kPanel * depth + column % kPanel, scores + column,
                    width);
    for (size_t r = 0; r < count; ++r)
      best_of(scores + r * width, args.b.count, &best[first + r], &partner[first + r]);
  });
  for (size_t i = 0; i < smaller(args.blocked, args.a.count); ++i) {
    best[i] = -__builtin_inff();
    partner[i] = 0;
  }
  rank_pairs(args.match, image, best, partner);
}

// Merges some channels of the tokens of one image.
inline void merge_by_size_task(const BySizeArgs& args, size_t task) {
  const size_t chunks = (args.channels + kMergedChannels - 1) / kMergedChannels;
  const size_t image = task / chunks;
  const size_t begin = task % chunks * kMergedChannels;
  const size_t channels = smaller(kMergedChannels, args.channels - begin);
  const size_t rows = by_size_rows(args);
  const float* x = args.x + image * args.count * args.channels + begin;
  const float* size = args.size + image * args.count;
  const int64_t* kept = args.kept + image * args.kept_count;
  const int64_t* src = args.src + image * args.taken;
  const int64_t* dst = args.dst + image * args.taken;
  float* y = args.y + image * rows * args.channels + begin;
  thread_local Buffer<float> sums;
  float* total = sums.of(args.b.count);  // the size of each destination
  thread_local Buffer<bool> marks;
  bool* merged = marks.of(args.b.count);
  const auto copy = [&](size_t row, size_t token) {
    std::memcpy(y + row * args.channels, x + token * args.channels, 4 * channels);
  };
  const size_t first_kept = args.stay;
  const size_t first_b = args.stay + args.kept_count;
  for (size_t i = 0; i < args.stay; ++i) copy(i, i);
  for (size_t i = 0; i < args.kept_count; ++i)
    copy(first_kept + i, args.a.token(static_cast<size_t>(kept[i])));
  for (size_t i = 0; i < args.b.count; ++i) {
    copy(first_b + i, args.b.token(i));
    total[i] = size[args.b.token(i)];
    merged[i] = false;
  }
  for (size_t i = 0; i < args.taken; ++i) {
    const auto to = static_cast<size_t>(dst[i]);
    const size_t token = args.a.token(static_cast<size_t>(src[i]));
    const float weight = size[token];
    const float before = merged[to] ? 1.0f : total[to];
    float* sum = y + (first_b + to) * args.channels;
    const float* more = x + token * args.channels;
    for (size_t c = 0; c < channels; c += kWidth) {
      const size_t count = smaller(kWidth, channels - c);
      store_first(sum + c, load_first(sum + c, count) * before + load_first(more + c, count) * weight,
                  count);
    }
    total[to] += weight;
    merged[to] = true;
  }
  for (size_t i = 0; i < args.b.count; ++i) {
    if (!merged[i]) continue;
    float* sum = y + (first_b + i) * args.channels;
    for (size_t c = 0; c < channels; c += kWidth) {
      const size_t count = smaller(kWidth, channels - c);
      store_first(sum + c, load_first(sum + c, count) / total[i], count);
    }
  }
  if (begin > 0) return;
  float* y_size = args.y_size + image * rows;
  for (size_t i = 0; i < args.stay; ++i) y_size[i] = size[i];
  for (size_t i = 0; i < args.kept_count; ++i)
    y_size[first_kept + i] = size[args.a.token(static_cast<size_t>(kept[i]))];
  for (size_t i = 0; i < args.b.count; ++i) y_size[first_b + i] = total[i];
}

}  // namespace tokexport::TOKEXPORT_ISA
