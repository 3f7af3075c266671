// The arguments of the kernels, plain pointers and sizes, and the table of an instruction set's kernels.
//
// A kernel does one task of a loop whose tasks are independent. One that needs scratch memory gets as
// much as the function beside its arguments says, from the caller: no kernel allocates.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokexport {

// Columns of a panel of packed weights.
inline constexpr size_t kPackedN = 32;
// Of all instruction sets: the most rows that a GEMM microkernel computes at once, and the most floats
// of a vector.
inline constexpr size_t kMaxMR = 14;
inline constexpr size_t kMaxLanes = 16;

// Functions here are static, so that each file which includes this one has its own copy of them.
static inline size_t ceil_div(size_t count, size_t by) { return (count + by - 1) / by; }

static inline size_t panel_count(size_t columns) { return ceil_div(columns, kPackedN); }

static inline size_t padded_columns(size_t columns) { return panel_count(columns) * kPackedN; }

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
  return ceil_div(args.rows, args.rows_per_task) * panel_count(args.columns);
}

// The patches of one image (channels, height, width) as rows, in the order of the grid; pixels beside
// the grid are left out.
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

// The minimum and the maximum of `count` numbers and 0, one of each for every task.
struct MinMaxArgs {
  const float* x;
  float* min;
  float* max;
  size_t count;
  size_t per_task;
};

// q (rows, row_bytes) = x (rows, depth) / scale + zero point, with zeros behind each row. ARM's kernels
// multiply signed bytes, and hold q less 128.
struct QuantiseArgs {
  const float* x;
  uint8_t* q;
  size_t rows;
  size_t depth;
  size_t row_bytes;
  size_t rows_per_task;
  float scale;
  int32_t zero_point;
};

// The product of (q - zero_point) · scale and w · scales, in place of that of x and panels in `to`.
struct Int8LinearArgs {
  LinearArgs to;
  const uint8_t* q;      // (rows, row_bytes)
  const int8_t* panels;  // (⌈columns / 32⌉, row_bytes / 4, 32, 4), padded with zeros
  const float* scales;   // (columns)
  size_t row_bytes;
  float scale;
  int32_t zero_point;
};

// A tensor of rows for every image and head; strides in floats, the channels side by side.
template <typename Float>
struct Rows {
  Float* data;
  size_t image_stride;
  size_t head_stride;
  size_t row_stride;
};

template <typename Float>
static inline Float* rows_of(const Rows<Float>& rows, size_t image, size_t head) {
  return rows.data + image * rows.image_stride + head * rows.head_stride;
}

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
  return padded_columns(args.keys) * args.depth;
}

static inline size_t packed_v_floats(const AttentionArgs& args) {
  return padded_columns(args.value_depth) * args.keys;
}

// The logits of a block of queries, and what is added to them.
static inline size_t attention_scratch_floats(const AttentionArgs& args) {
  return (1 + kMaxMR) * padded_columns(args.keys);
}

// y = weights · v of tokens that merged behind the softmax: each key takes the value of the row that
// it became part of, and the rows of queries that merged are averaged.
struct MergedAttentionArgs {
  const float* weights;      // the softmax, (images, heads, count, count)
  const float* share;        // of a query in its row, (images, count)
  Rows<const float> v;       // (rows) of them
  const int64_t* value_row;  // (images, count), the row of v that each key takes
  const size_t* row_start;   // (images, rows + 1), where the queries of each row begin
  const size_t* members;     // (images, count), the queries
  Rows<float> y;             // (rows) of them
  float* packed_v;           // packed_v_floats for every image and head
  size_t images;
  size_t heads;
  size_t count;
  size_t rows;
  size_t value_depth;
  size_t rows_per_task;
};

static inline size_t packed_v_floats(const MergedAttentionArgs& args) {
  return padded_columns(args.value_depth) * args.count;
}

static inline size_t merged_attention_scratch_floats(const MergedAttentionArgs& args) {
  return kMaxMR * args.count;
}

// Of each token the attention it receives, the mean of its column in all heads, and from that and
// its size: its rarity, and its share in what it merges into.
struct FusionCriteriaArgs {
  const float* weights;  // (images, heads · queries, count)
  const float* size;     // (images, count)
  float* rarity;         // (images, count); the attention received, between the two tasks
  float* share;          // (images, count)
  size_t images;
  size_t rows;  // heads · queries
  size_t count;
  float info_power;
  float size_power;
};

inline constexpr size_t kMeanColumnsPerTask = 64;

// Layer normalisation of x (rows, columns).
struct LayerNormArgs {
  const float* x;
  const float* weight;
  const float* bias;  // or null
  float* y;
  size_t rows;
  size_t columns;
  size_t rows_per_task;
  float epsilon;
};

// The best partner of each row of scores (images, rows, columns), and the `pairs` best of these.
struct MatchArgs {
  const float* scores;
  int64_t* kept;  // (images, rows - pairs)
  int64_t* src;   // (images, pairs)
  int64_t* dst;   // (images, pairs)
  size_t images;
  size_t rows;
  size_t columns;
  size_t pairs;
  bool by_score;
};

// Of each row a sort key, and whether it is among the best.
static inline size_t select_scratch_bytes(size_t rows) {
  return rows * (sizeof(uint64_t) + sizeof(bool));
}

// Of each row also its best score and partner.
static inline size_t match_scratch_bytes(size_t rows) {
  return select_scratch_bytes(rows) + rows * (sizeof(int64_t) + sizeof(float));
}

// How rows that meet at one destination are reduced.
enum class Reduce { kNone, kSum, kMean, kProduct, kMax, kMin };

inline constexpr size_t kScatterChannelsPerTask = 256;

// y (images, index_count, channels) = the rows of x that index names; strides of images in floats.
struct GatherArgs {
  const float* x;
  const int64_t* index;
  float* y;
  size_t x_image_stride;
  size_t y_image_stride;
  size_t images;
  size_t index_count;
  size_t channels;
};

// y (images, rows, channels) = dst, with rows of src reduced into the rows that index names.
struct ScatterArgs {
  const float* dst;
  const int64_t* index;    // (images, index_count)
  const float* src;
  const int64_t* src_row;  // (images, index_count), or null where the rows of src come in order
  float* y;
  size_t src_image_stride;
  size_t y_image_stride;
  size_t images;
  size_t rows;
  size_t index_count;
  size_t channels;
  Reduce mode;
  bool include_self;
};

static inline size_t scatter_tasks(const ScatterArgs& args) {
  return args.images * ceil_div(args.channels, kScatterChannelsPerTask);
}

// How many rows were reduced into each.
static inline size_t scatter_scratch_floats(const ScatterArgs& args) { return args.rows; }

// Every `step`-th token from `start`.
struct TokenSet {
  size_t start;
  size_t step;
  size_t count;
};

static inline size_t token_at(const TokenSet& set, size_t i) { return set.start + i * set.step; }

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
  size_t protected_rows;  // the first of a that find no partner
  float* panels;          // cosine_panel_floats for every image: the tokens of b, of length one
  float* best;            // (images, a.count), the score of each token of a
  int64_t* partner;       // (images, a.count), the token of b that gives it
  MatchArgs match;        // its scores are not kept
};

// Tokens of b that one task brings to length one, and tokens of a whose partner one task finds.
inline constexpr size_t kNormalizedPerTask = 16;
inline constexpr size_t kCosineRowsPerTask = 14;

static inline size_t cosine_panel_floats(const CosineArgs& args) {
  return padded_columns(args.b.count) * args.depth;
}

static inline size_t cosine_normalize_tasks(const CosineArgs& args) {
  return args.images * panel_count(args.b.count) * (kPackedN / kNormalizedPerTask);
}

static inline size_t cosine_argmax_tasks(const CosineArgs& args) {
  return args.images * ceil_div(args.a.count, kCosineRowsPerTask);
}

// For some tokens of a or b at length one, and the scores of those of a.
static inline size_t cosine_scratch_bytes(const CosineArgs& args) {
  const size_t floats = kMaxLanes * (args.depth + padded_columns(args.b.count));
  const size_t bytes = floats * sizeof(float);
  const size_t select = select_scratch_bytes(args.a.count);
  return bytes > select ? bytes : select;
}

// The mean of the tokens that merge, weighted with their sizes, and the sums of the sizes.
struct MergeBySizeArgs {
  const float* x;       // (images, count, channels)
  const float* size;    // (images, count)
  const int64_t* kept;  // (images, kept_count)
  const int64_t* src;   // (images, pairs)
  const int64_t* dst;   // (images, pairs)
  int64_t* first;       // (images, b.count), the first of the pairs that merge into it, or -1
  int64_t* next;        // (images, pairs), the pair behind each that merges into the same, or -1
  float* y;             // (images, merge_by_size_rows, channels)
  float* y_size;        // (images, merge_by_size_rows)
  size_t images;
  size_t count;
  size_t channels;
  TokenSet a;
  TokenSet b;
  size_t protected_tokens;  // the first tokens, which come first as they are
  size_t kept_count;
  size_t pairs;
  LayerNormArgs norm;  // of y, where its own y is not null
};

static inline size_t merge_by_size_rows(const MergeBySizeArgs& args) {
  return args.protected_tokens + args.kept_count + args.b.count;
}

inline constexpr size_t kMergeRowsPerTask = 16;

static inline size_t merge_by_size_tasks(const MergeBySizeArgs& args) {
  return args.images * ceil_div(merge_by_size_rows(args), kMergeRowsPerTask);
}

inline constexpr size_t kMergeChannelsPerTask = 96;

// The scores of pairs of the tokens of a and b, and the match by them. A score is half of one more
// than the cosine of the tokens, times the rarity of each of the two.
struct ScoredMatchArgs {
  const float* tokens;  // (images, count, channels)
  const float* rarity;  // (images, count)
  float* scores;        // (images, a.count, b.count)
  float* unit_tokens;   // scored_match_floats for every image
  size_t images;
  size_t count;
  size_t channels;
  TokenSet a;
  TokenSet b;
  MatchArgs match;
};

// Rows of a whose scores one task computes.
inline constexpr size_t kScoreRowsPerTask = 28;

static inline size_t scores_tasks(const ScoredMatchArgs& args) {
  return args.images * ceil_div(args.a.count, kScoreRowsPerTask);
}

// Of length one: the tokens of a, those of b, and panels of those.
static inline size_t scored_match_floats(const ScoredMatchArgs& args) {
  return (args.a.count + args.b.count + padded_columns(args.b.count)) * args.channels;
}

// The rarity of each token of b, or what the match takes.
static inline size_t scored_match_scratch_bytes(const ScoredMatchArgs& args) {
  const size_t rarity = (padded_columns(args.b.count) + kPackedN) * sizeof(float);
  const size_t match = match_scratch_bytes(args.a.count);
  return rarity > match ? rarity : match;
}

// The match of the columns of scores to those of their rows that were kept.
struct MatchBackArgs {
  const float* scores;  // (images, rows, match.rows)
  const int64_t* kept;  // (images, match.columns)
  size_t rows;
  MatchArgs match;  // its scores are those, transposed
};

// The sums of the tokens that become one, or their means by weight.
struct MergeGroupsArgs {
  const float* x;           // (images, count, channels)
  const float* weight;      // (images, count), or null for sums
  const size_t* row_start;  // (images, rows + 1), where the tokens of each row begin
  const size_t* members;    // (images, count), the tokens
  float* y;                 // (images, rows, channels)
  float* y_weight;          // (images, rows), the sums of weights, or null
  size_t images;
  size_t count;
  size_t rows;
  size_t channels;
};

// The first chunk of an image's channels writes its weights, also where there is no channel.
static inline size_t merge_groups_chunks(const MergeGroupsArgs& args) {
  return args.channels == 0 ? 1 : ceil_div(args.channels, kMergeChannelsPerTask);
}

static inline size_t merge_groups_tasks(const MergeGroupsArgs& args) {
  return args.images * merge_groups_chunks(args);
}

// The kernels of 8-bit integers; null where the processor has no dot product of bytes.
struct Int8Kernels {
  void (*min_max_task)(const MinMaxArgs&, size_t task);
  void (*quantise_task)(const QuantiseArgs&, size_t task);
  void (*linear_task)(const Int8LinearArgs&, size_t task);
};

// The kernels of one instruction set. `scratch` is memory for the one task.
struct Kernels {
  const char* name;
  Int8Kernels int8;
  void (*linear_task)(const LinearArgs&, size_t task, bool cold);
  void (*patches_task)(const PatchArgs&, size_t task);
  void (*attention_keys_task)(const AttentionArgs&, size_t task);
  void (*attention_values_task)(const AttentionArgs&, size_t task);
  void (*attention_task)(const AttentionArgs&, size_t task, float* scratch);
  void (*attention_weights_task)(const AttentionArgs&, size_t task, float* scratch);
  void (*attention_received_task)(const FusionCriteriaArgs&, size_t task);
  void (*fusion_criteria_task)(const FusionCriteriaArgs&, size_t image);
  void (*merged_values_task)(const MergedAttentionArgs&, size_t task);
  void (*merged_attention_task)(const MergedAttentionArgs&, size_t task, float* scratch);
  void (*layer_norm_task)(const LayerNormArgs&, size_t task);
  void (*match_task)(const MatchArgs&, size_t image, void* scratch);
  void (*cosine_normalize_task)(const CosineArgs&, size_t task, void* scratch);
  void (*cosine_argmax_task)(const CosineArgs&, size_t task, void* scratch);
  void (*cosine_select_task)(const CosineArgs&, size_t image, void* scratch);
  void (*merge_by_size_task)(const MergeBySizeArgs&, size_t task);
  void (*scored_normalize_task)(const ScoredMatchArgs&, size_t task);
  void (*scores_task)(const ScoredMatchArgs&, size_t task, void* scratch);
  void (*match_back_task)(const MatchBackArgs&, size_t image, void* scratch);
  void (*merge_groups_task)(const MergeGroupsArgs&, size_t task);
  void (*gather_task)(const GatherArgs&, size_t image);
  void (*scatter_task)(const ScatterArgs&, size_t task, float* scratch);
};

// Returns the kernels for the processor at hand, those with its widest vectors.
const Kernels& kernels();

}  // namespace tokexport
