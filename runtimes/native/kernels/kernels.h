// What a kernel is given, plain pointers and sizes, and the table of the kernels of a processor.
//
// A kernel does one task of a loop whose tasks are independent.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokexport {

// Columns of a panel of packed weights.
inline constexpr size_t kPanel = 32;

static inline size_t panel_count(size_t columns) { return (columns + kPanel - 1) / kPanel; }

// y (rows, columns) = activation(x (rows, depth) · w (depth, columns) + bias) + residual.
struct LinearArgs {
  const float* x;
  const float* panels;    // (⌈columns / 32⌉, depth, 32), the last panel padded
  const float* bias;      // (columns) or null
  const float* residual;  // (rows, columns) or null
  float* y;
  size_t rows;
  size_t depth;
  size_t columns;
  size_t rows_per_task;
  bool gelu;
};

static inline size_t linear_tasks(const LinearArgs& args) {
  return (args.rows + args.rows_per_task - 1) / args.rows_per_task * panel_count(args.columns);
}

// The patches of one image (channels, height, width) as rows, those of the grid one after another;
// what is left of the image beside the grid belongs to none.
struct PatchArgs {
  const float* image;
  float* rows;  // (down · across, channels · patch_height · patch_width)
  size_t channels;
  size_t height;
  size_t width;
  size_t patch_height;
  size_t patch_width;
  size_t down;
  size_t across;
};

// The least and the largest of `count` numbers and 0, one of each for every task.
struct RangeArgs {
  const float* x;
  float* least;
  float* largest;
  size_t count;
  size_t per_task;
};

// q (rows, row_bytes) = x (rows, depth) / scale + zero, with zeros behind each row.
struct QuantiseArgs {
  const float* x;
  uint8_t* q;
  size_t rows;
  size_t depth;
  size_t row_bytes;
  size_t rows_per_task;
  float scale;
  int32_t zero;
};

// The product of (q - zero) · scale and w · scales, in place of that of x and panels in `to`.
struct IntegerLinearArgs {
  LinearArgs to;
  const uint8_t* q;      // (rows, row_bytes)
  const int8_t* panels;  // (⌈columns / 32⌉, row_bytes / 4, 32, 4), padded with zeros
  const float* scales;   // (columns)
  size_t row_bytes;
  float scale;
  int32_t zero;
};

// A tensor of rows for every image and head; strides in floats, the channels side by side.
template <typename Float>
struct Rows {
  Float* data;
  size_t image;
  size_t head;
  size_t row;

  Float* at(size_t i, size_t h) const { return data + i * image + h * head; }
};

// y = softmax(q kᵀ scale + log_size) v.
struct AttentionArgs {
  Rows<const float> q;
  Rows<const float> k;
  Rows<const float> v;
  Rows<float> y;
  const float* log_size;  // (images, keys) or null
  float* packed_k;        // packed_k_floats for every image and head
  float* packed_v;
  size_t images;
  size_t heads;
  size_t queries;
  size_t keys;
  size_t depth;
  size_t value_depth;
  size_t queries_per_task;
  float scale;
};

static inline size_t packed_k_floats(const AttentionArgs& args) {
  return panel_count(args.keys) * kPanel * args.depth;
}

static inline size_t packed_v_floats(const AttentionArgs& args) {
  return panel_count(args.value_depth) * kPanel * args.keys;
}

// y = softmax(q kᵀ scale + log_size) v of tokens that merged behind the softmax: each key takes the
// value of the row that it became part of, and the rows of queries that merged are averaged.
struct AheadArgs {
  const float* weights;   // the softmax, (images, heads, count, count)
  const float* share;     // of a query in its row, (images, count)
  Rows<const float> v;    // (rows) of them
  const int64_t* place;   // (images, count), the row of v that each key takes
  const size_t* start;    // (images, rows + 1), where the queries of each row begin
  const size_t* member;   // (images, count), the queries
  Rows<float> y;          // (rows) of them
  float* packed_v;        // packed_v_floats for every image and head
  size_t images;
  size_t heads;
  size_t count;
  size_t rows;
  size_t value_depth;
  size_t rows_per_task;
};

static inline size_t packed_v_floats(const AheadArgs& args) {
  return panel_count(args.value_depth) * kPanel * args.count;
}

// Of each token the attention it receives, the mean of its column in all heads, and from that and
// its size: how rare it is, and its share in what it merges into.
struct CriteriaArgs {
  const float* weights;  // (images, heads · queries, count)
  const float* size;     // (images, count)
  float* rare;           // (images, count); the attention received, between the two tasks
  float* share;          // (images, count)
  size_t images;
  size_t rows;  // heads · queries
  size_t count;
  float info_power;
  float size_power;
};

// Columns whose mean one task computes.
inline constexpr size_t kMeanColumns = 64;

// Layer normalisation of x (rows, columns).
struct NormArgs {
  const float* x;
  const float* weight;
  const float* bias;  // or null
  float* y;
  size_t rows;
  size_t columns;
  size_t rows_per_task;
  float epsilon;
};

// The best partner of each row of scores (images, rows, columns), and the `taken` best pairs.
struct MatchArgs {
  const float* scores;
  int64_t* kept;  // (images, rows - taken)
  int64_t* src;   // (images, taken)
  int64_t* dst;   // (images, taken)
  size_t images;
  size_t rows;
  size_t columns;
  size_t taken;
  bool by_score;
};

// How rows that meet at one destination are reduced.
enum class Reduce { kNone, kSum, kMean, kProduct, kLargest, kSmallest };

// Channels that one task reduces.
inline constexpr size_t kChannels = 256;

// y (images, taken, channels) = the rows of x that index names; strides of images in floats.
struct GatherArgs {
  const float* x;
  const int64_t* index;
  float* y;
  size_t x_image;
  size_t y_image;
  size_t images;
  size_t taken;
  size_t channels;
};

// y (images, rows, channels) = dst, with rows of src reduced into the rows that index names.
struct ScatterArgs {
  const float* dst;
  const int64_t* index;   // (images, taken)
  const float* src;
  const int64_t* source;  // (images, taken), which row of src each is; null for one after another
  float* y;
  size_t src_image;
  size_t y_image;
  size_t images;
  size_t rows;
  size_t taken;
  size_t channels;
  Reduce mode;
  bool include_self;
};

static inline size_t scatter_tasks(const ScatterArgs& args) {
  return args.images * ((args.channels + kChannels - 1) / kChannels);
}

// Every `step`-th token from `start`.
struct TokenSet {
  size_t start;
  size_t step;
  size_t count;

  size_t token(size_t i) const { return start + i * step; }
};

// The match by the cosine between the tokens of a and b, of the mean of a token's heads.
struct CosineArgs {
  const float* rows;  // (images, count, width), from the channel of the first head
  size_t images;
  size_t count;
  size_t width;
  size_t heads;
  size_t depth;
  TokenSet a;
  TokenSet b;
  size_t blocked;    // so many of the first of a find no partner
  float* panels;     // cosine_panel_floats for every image: the tokens of b, of length one
  float* best;       // (images, a.count), the score of each token of a
  int64_t* partner;  // (images, a.count), the token of b that gives it
  MatchArgs match;   // its scores are not kept
};

// Tokens of b, and of a, that one task takes.
inline constexpr size_t kUnitTokens = 16;
inline constexpr size_t kCosineRows = 14;

static inline size_t cosine_panel_floats(const CosineArgs& args) {
  return panel_count(args.b.count) * kPanel * args.depth;
}

static inline size_t cosine_units_tasks(const CosineArgs& args) {
  return args.images * panel_count(args.b.count) * (kPanel / kUnitTokens);
}

static inline size_t cosine_rows_tasks(const CosineArgs& args) {
  return args.images * ((args.a.count + kCosineRows - 1) / kCosineRows);
}

// The mean of the tokens that merge, weighted with their sizes, and the sums of the sizes.
struct BySizeArgs {
  const float* x;       // (images, count, channels)
  const float* size;    // (images, count)
  const int64_t* kept;  // (images, kept_count)
  const int64_t* src;   // (images, taken)
  const int64_t* dst;   // (images, taken)
  int64_t* first;       // (images, b.count), the first of the pairs that merge into it, or -1
  int64_t* next;        // (images, taken), the pair behind each that merges into the same, or -1
  float* y;             // (images, by_size_rows, channels)
  float* y_size;        // (images, by_size_rows)
  size_t images;
  size_t count;
  size_t channels;
  TokenSet a;
  TokenSet b;
  size_t stay;  // so many of the first tokens come first, as they are
  size_t kept_count;
  size_t taken;
  NormArgs norm;  // of y, where its own y is not null
};

static inline size_t by_size_rows(const BySizeArgs& args) {
  return args.stay + args.kept_count + args.b.count;
}

// Rows that one task writes.
inline constexpr size_t kBySizeRows = 16;

static inline size_t by_size_tasks(const BySizeArgs& args) {
  return args.images * ((by_size_rows(args) + kBySizeRows - 1) / kBySizeRows);
}

// Channels that one task merges.
inline constexpr size_t kMergedChannels = 96;

// The scores of pairs of the tokens of a and b, and the match by them. A score is half of one more
// than the cosine of the tokens, times how rare each of the two is.
struct ScoredMatchArgs {
  const float* tokens;  // (images, count, channels)
  const float* rare;    // (images, count)
  float* scores;        // (images, a.count, b.count)
  float* work;          // scored_match_floats for every image
  size_t images;
  size_t count;
  size_t channels;
  TokenSet a;
  TokenSet b;
  MatchArgs match;
};

// Rows of a whose scores one task computes.
inline constexpr size_t kScoredRows = 28;

static inline size_t scored_tasks(const ScoredMatchArgs& args) {
  return args.images * ((args.a.count + kScoredRows - 1) / kScoredRows);
}

// The tokens of a, and panels of those of b, of length one.
static inline size_t scored_match_floats(const ScoredMatchArgs& args) {
  return (args.a.count + panel_count(args.b.count) * kPanel) * args.channels;
}

// The match of the columns of scores to those of their rows that were kept.
struct MatchBackArgs {
  const float* scores;  // (images, rows, match.rows)
  const int64_t* kept;  // (images, match.columns)
  size_t rows;
  MatchArgs match;  // its scores are those, turned
};

// The sums of the tokens that become one, or their means by weight.
struct GroupArgs {
  const float* x;        // (images, count, channels)
  const float* weight;   // (images, count), or null for sums
  const size_t* start;   // (images, rows + 1), where the tokens of each row begin
  const size_t* member;  // (images, count), the tokens
  float* y;              // (images, rows, channels)
  float* y_weight;       // (images, rows), the sums of weights, or null
  size_t images;
  size_t count;
  size_t rows;
  size_t channels;
};

// The first chunk of an image's channels writes its weights, also where there is no channel.
static inline size_t group_chunks(const GroupArgs& args) {
  return args.channels == 0 ? 1 : (args.channels + kMergedChannels - 1) / kMergedChannels;
}

static inline size_t group_tasks(const GroupArgs& args) {
  return args.images * group_chunks(args);
}

// The kernels of integers; null where the processor has no product of bytes.
struct IntegerKernels {
  void (*range_task)(const RangeArgs&, size_t);
  void (*quantise_task)(const QuantiseArgs&, size_t);
  void (*linear_task)(const IntegerLinearArgs&, size_t);
};

struct Kernels {
  const char* name;
  IntegerKernels integers;
  void (*linear_task)(const LinearArgs&, size_t, bool);
  void (*patches_task)(const PatchArgs&, size_t);
  void (*attention_keys_task)(const AttentionArgs&, size_t);
  void (*attention_values_task)(const AttentionArgs&, size_t);
  void (*attention_task)(const AttentionArgs&, size_t);
  void (*attention_weights_task)(const AttentionArgs&, size_t);
  void (*received_task)(const CriteriaArgs&, size_t);
  void (*criteria_task)(const CriteriaArgs&, size_t);
  void (*ahead_values_task)(const AheadArgs&, size_t);
  void (*ahead_task)(const AheadArgs&, size_t);
  void (*norm_task)(const NormArgs&, size_t);
  void (*match_task)(const MatchArgs&, size_t);
  void (*cosine_units_task)(const CosineArgs&, size_t);
  void (*cosine_rows_task)(const CosineArgs&, size_t);
  void (*cosine_rank_task)(const CosineArgs&, size_t);
  void (*merge_by_size_task)(const BySizeArgs&, size_t);
  void (*scored_units_task)(const ScoredMatchArgs&, size_t);
  void (*scored_rows_task)(const ScoredMatchArgs&, size_t);
  void (*match_back_task)(const MatchBackArgs&, size_t);
  void (*group_task)(const GroupArgs&, size_t);
  void (*gather_task)(const GatherArgs&, size_t);
  void (*scatter_task)(const ScatterArgs&, size_t);
};

// The kernels for the processor at hand, its widest vectors used.
const Kernels& kernels();

}  // namespace tokexport
