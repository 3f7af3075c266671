// Patch embedding, linear layers, attention and layer norm: each operator reads its tensors, and
// hands its tasks to the threads.
#include <algorithm>
#include <cmath>

#include "operators/operators.h"

namespace tokexport {
namespace {

// Reads the weights in panels (P, depth, 32), input 1, and the bias (C), input 2, of a product of so
// many rows.
LinearArgs linear_args(const Run& run, size_t rows, size_t depth) {
  const auto panels = run.floats(1, 3);
  const auto bias = run.floats(2, 1);
  LinearArgs args{};
  args.panels = panels.data;
  args.bias = bias.data;
  args.rows = rows;
  args.depth = depth;
  args.columns = bias.size(0);
  require_shape("panels", panels, {panel_count(args.columns), depth, kPackedN});
  args.rows_per_task = rows_per_task(rows, depth * sizeof(float));
  return args;
}

// linear(x (B, N, K), panels (P, K, 32), bias (C) [, residual (B, N, C)]) -> (B, N, C)
template <bool Gelu, bool Residual>
class Linear final : public Kernel {
 public:
  explicit Linear(const Attributes&) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    LinearArgs args = linear_args(run, x.size(0) * x.size(1), x.size(2));
    args.x = x.data;
    args.gelu = Gelu;
    if constexpr (Residual) {
      const auto residual = run.floats(3, 3);
      require_shape("residual", residual, {x.size(0), x.size(1), args.columns});
      args.residual = residual.data;
    }
    args.y = run.output<float>(0, {x.size(0), x.size(1), args.columns});
    run.in_parallel(linear_tasks(args), [&](size_t task, Worker worker) {
      kernels().linear_task(args, task, worker.is_first);
    });
  }
};

// Elements of patches that lie in memory at once, those of one image at least.
constexpr size_t kPatchElements = 1 << 20;

// patch_embed(images (B, Ch, H, W), panels (P, Ch · h · w, 32), bias (C), rows (1, K + N, C))
// -> (B, K + N, C): the first rows as they are, and those of the patches with their embedding
class PatchEmbed final : public Kernel {
 public:
  explicit PatchEmbed(const Attributes& attributes)
      : patch_(attributes.count_pair("patch")), first_(attributes.count("first")) {}

  void run(const Run& run) const override {
    const auto images = run.floats(0, 4);
    const auto rows = run.floats(3, 3);
    PatchArgs patches{};
    patches.channels = images.size(1);
    patches.height = images.size(2);
    patches.width = images.size(3);
    patches.patch_height = patch_.first;
    patches.patch_width = patch_.second;
    require(patch_.first > 0 && patch_.second > 0 && patch_.first <= patches.height &&
                patch_.second <= patches.width,
            "attribute patch is ", patch_.first, " x ", patch_.second, ", expected 1 x 1 to the ",
            patches.height, " x ", patches.width, " of an image");
    patches.down = patches.height / patch_.first;
    patches.across = patches.width / patch_.second;
    const size_t count = patches.down * patches.across;
    const size_t depth = patches.channels * patch_.first * patch_.second;
    LinearArgs args = linear_args(run, count, depth);
    const size_t tokens = first_ + count;
    require_shape("rows", rows, {1, tokens, args.columns});
    float* y = run.output<float>(0, {images.size(0), tokens, args.columns});
    for (size_t image = 0; image < images.size(0); ++image)
      std::copy_n(rows.data, first_ * args.columns, y + image * tokens * args.columns);
    args.residual = rows.data + first_ * args.columns;
    const size_t pixels = patches.channels * patches.height * patches.width;
    const size_t elements = count * depth;
    if (elements * images.size(0) == 0) return;
    const size_t at_once = std::clamp<size_t>(kPatchElements / elements, 1, images.size(0));
    Layout layout;
    const auto patch_rows = layout.add<float>(at_once * elements);
    patches.rows = patch_rows.in(thread_memory(layout.bytes()));
    for (size_t done = 0; done < images.size(0); done += at_once) {
      const size_t now = std::min(at_once, images.size(0) - done);
      run.in_phases(
          phase(now * patches.down,
                [&](size_t task) {
                  const size_t image = task / patches.down;
                  PatchArgs own = patches;
                  own.image = images.data + (done + image) * pixels;
                  own.rows += image * elements;
                  kernels().patches_task(own, task % patches.down);
                }),
          phase(now * linear_tasks(args), [&](size_t task, Worker worker) {
            const size_t image = task / linear_tasks(args);
            LinearArgs own = args;
            own.x = patches.rows + image * elements;
            own.y = y + ((done + image) * tokens + first_) * args.columns;
            kernels().linear_task(own, task % linear_tasks(args), worker.is_first);
          }));
    }
  }

 private:
  std::pair<size_t, size_t> patch_;
  size_t first_;
};

constexpr size_t kQueriesPerTask = 28;

// What is added to the logits of each key.
enum class KeyBias {
  kNone,
  kGiven,      // (B, N)
  kLogOfSize,  // the logarithm of a size, (B, N, 1)
};

// The memory of one attention.
struct AttentionMemory {
  Part<float> packed_k;
  Part<float> packed_v;
  Part<float> log_size;
  PerThread scratch;
};

// Makes room for one attention, reads the bias, an input, and returns the memory.
template <KeyBias Bias>
std::byte* attention_memory(const Run& run, AttentionArgs& args, size_t bias_input,
                            size_t packed_v, AttentionMemory* memory) {
  const size_t heads = args.images * args.heads;
  const size_t logarithms = Bias == KeyBias::kLogOfSize ? args.images * args.keys : 0;
  Layout layout;
  memory->packed_k = layout.add<float>(heads * packed_k_floats(args));
  memory->packed_v = layout.add<float>(heads * packed_v);
  memory->log_size = layout.add<float>(logarithms);
  memory->scratch =
      layout.add_per_thread(run.threads(), attention_scratch_floats(args) * sizeof(float));
  std::byte* at = thread_memory(layout.bytes());
  if constexpr (Bias != KeyBias::kNone) {
    const auto given = run.floats(bias_input, Bias == KeyBias::kGiven ? 2 : 3);
    if constexpr (Bias == KeyBias::kGiven)
      require_shape("log_size", given, {args.images, args.keys});
    else
      require_shape("size", given, {args.images, args.keys, 1});
    args.log_size = given.data;
    float* log_size = memory->log_size.in(at);
    for (size_t i = 0; i < logarithms; ++i) log_size[i] = std::log(given.data[i]);
    if (Bias == KeyBias::kLogOfSize) args.log_size = log_size;
  }
  args.packed_k = memory->packed_k.in(at);
  args.packed_v = memory->packed_v.in(at);
  return at;
}

// Packs keys and values, and then computes blocks of queries.
template <KeyBias Bias>
void attend(const Run& run, AttentionArgs& args) {
  const size_t heads = args.images * args.heads;
  if (heads * args.queries * args.value_depth == 0) return;
  require(args.keys > 0, "k has 0 rows, expected at least one");
  AttentionMemory parts;
  std::byte* memory = attention_memory<Bias>(run, args, 3, packed_v_floats(args), &parts);
  args.queries_per_task = balanced(args.queries, kQueriesPerTask);
  run.in_phases(phase(2 * heads,
                      [&](size_t task) {
                        if (task % 2 == 0)
                          kernels().attention_keys_task(args, task / 2);
                        else
                          kernels().attention_values_task(args, task / 2);
                      }),
                phase(heads * ceil_div(args.queries, args.queries_per_task),
                      [&](size_t task, Worker worker) {
                        kernels().attention_task(args, task,
                                                 parts.scratch.in<float>(memory, worker.thread));
                      }));
}

// attention(q (B, H, Nq, D), k (B, H, N, D), v (B, H, N, Dv) [, log_size (B, N)]) -> (B, H, Nq, Dv)
template <KeyBias Bias>
class Attention final : public Kernel {
 public:
  explicit Attention(const Attributes& attributes) : scale_(attributes.real("scale")) {}

  void run(const Run& run) const override {
    const auto q = run.floats(0, 4);
    const auto k = run.floats(1, 4);
    const auto v = run.floats(2, 4);
    AttentionArgs args{};
    args.images = q.size(0);
    args.heads = q.size(1);
    args.queries = q.size(2);
    args.depth = q.size(3);
    args.keys = k.size(2);
    args.value_depth = v.size(3);
    args.scale = scale_;
    require_shape("k", k, {args.images, args.heads, args.keys, args.depth});
    require_shape("v", v, {args.images, args.heads, args.keys, args.value_depth});
    float* y = run.output<float>(0, {args.images, args.heads, args.queries, args.value_depth});
    args.q = by_head(q.data, args.heads, args.queries, args.depth);
    args.k = by_head(k.data, args.heads, args.keys, args.depth);
    args.v = by_head(v.data, args.heads, args.keys, args.value_depth);
    args.y = by_head(y, args.heads, args.queries, args.value_depth);
    attend<Bias>(run, args);
  }

 private:
  template <typename Float>
  static Rows<Float> by_head(Float* data, size_t heads, size_t rows, size_t depth) {
    return {data, heads * rows * depth, rows * depth, depth};
  }

  float scale_;
};

// Heads that lie side by side in the rows of tensors, from a channel of each on.
class HeadsInRows {
 public:
  explicit HeadsInRows(const Attributes& attributes)
      : scale_(attributes.real("scale")),
        heads_(attributes.count("heads")),
        depth_(attributes.count("depth")),
        q_start_(attributes.count("q_start")),
        k_start_(attributes.count("k_start")) {}

  // Returns what attention reads of q (B, Nq, ·) and k (B, N, ·), the first two inputs.
  AttentionArgs args(const Run& run) const {
    const auto q = run.floats(0, 3);
    const auto k = run.floats(1, 3);
    require_shape("k", k, {q.size(0), k.size(1), k.size(2)});
    AttentionArgs args{};
    args.images = q.size(0);
    args.heads = heads_;
    args.queries = q.size(1);
    args.keys = k.size(1);
    args.depth = depth_;
    args.scale = scale_;
    args.q = in("q", q, q_start_);
    args.k = in("k", k, k_start_);
    return args;
  }

  // Returns the heads in rows (B, N, ·) from a channel on.
  Rows<const float> in(const char* name, const Tensor<const float>& rows, size_t start) const {
    require_heads(name, start, heads_, depth_, rows.size(2));
    return {rows.data + start, rows.size(1) * rows.size(2), depth_, rows.size(2)};
  }

  size_t width() const { return heads_ * depth_; }

 private:
  float scale_;
  size_t heads_;
  size_t depth_;
  size_t q_start_;
  size_t k_start_;
};

// rows_attention(q (B, Nq, ·), k (B, N, ·), v (B, N, ·) [, bias]) -> (B, Nq, H · D)
template <KeyBias Bias>
class RowsAttention final : public Kernel {
 public:
  explicit RowsAttention(const Attributes& attributes)
      : heads_(attributes), v_start_(attributes.count("v_start")) {}

  void run(const Run& run) const override {
    AttentionArgs args = heads_.args(run);
    const auto v = run.floats(2, 3);
    require_shape("v", v, {args.images, args.keys, v.size(2)});
    args.value_depth = args.depth;
    args.v = heads_.in("v", v, v_start_);
    const size_t width = heads_.width();
    args.y = {run.output<float>(0, {args.images, args.queries, width}), args.queries * width,
              args.depth, width};
    attend<Bias>(run, args);
  }

 private:
  HeadsInRows heads_;
  size_t v_start_;
};

// attention_weights(q (B, Nq, ·), k (B, N, ·) [, bias]) -> (B, H, Nq, N): the softmax of
// rows_attention itself.
template <KeyBias Bias>
class AttentionWeights final : public Kernel {
 public:
  explicit AttentionWeights(const Attributes& attributes) : heads_(attributes) {}

  void run(const Run& run) const override {
    AttentionArgs args = heads_.args(run);
    const size_t matrix = args.queries * args.keys;
    args.y = {run.output<float>(0, {args.images, args.heads, args.queries, args.keys}),
              args.heads * matrix, matrix, args.keys};
    const size_t heads = args.images * args.heads;
    if (heads * matrix == 0) return;
    AttentionMemory parts;
    std::byte* memory = attention_memory<Bias>(run, args, 2, 0, &parts);
    args.queries_per_task = balanced(args.queries, kQueriesPerTask);
    run.in_phases(
        phase(heads, [&](size_t task) { kernels().attention_keys_task(args, task); }),
        phase(heads * ceil_div(args.queries, args.queries_per_task),
              [&](size_t task, Worker worker) {
                kernels().attention_weights_task(args, task,
                                                 parts.scratch.in<float>(memory, worker.thread));
              }));
  }

 private:
  HeadsInRows heads_;
};

// layer_norm(x (B, N, C), weight (C), bias (C)) -> (B, N, C)
class LayerNorm final : public Kernel {
 public:
  explicit LayerNorm(const Attributes& attributes) : epsilon_(attributes.real("epsilon")) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    const auto weight = run.floats(1, 1);
    const auto bias = run.floats(2, 1);
    LayerNormArgs args{};
    args.columns = x.size(2);
    require_shape("weight", weight, {args.columns});
    require_shape("bias", bias, {args.columns});
    args.x = x.data;
    args.weight = weight.data;
    args.bias = bias.data;
    args.epsilon = epsilon_;
    args.rows = x.size(0) * x.size(1);
    args.y = run.output<float>(0, {x.size(0), x.size(1), args.columns});
    args.rows_per_task = 16;
    run.in_parallel(ceil_div(args.rows, args.rows_per_task),
                    [&](size_t task) { kernels().layer_norm_task(args, task); });
  }

 private:
  float epsilon_;
};

}  // namespace

std::byte* thread_memory(size_t bytes) {
  thread_local Buffer kept;
  return kept.reserve(bytes);
}

void add_dense_operators(std::vector<Operator>* to) {
  to->push_back({"linear", "fff", "f", make<Linear<false, false>>});
  to->push_back({"linear_gelu", "fff", "f", make<Linear<true, false>>});
  to->push_back({"linear_add", "ffff", "f", make<Linear<false, true>>});
  to->push_back({"patch_embed", "ffff", "f", make<PatchEmbed>});
  to->push_back({"attention", "fff", "f", make<Attention<KeyBias::kNone>>});
  to->push_back({"sized_attention", "ffff", "f", make<Attention<KeyBias::kGiven>>});
  to->push_back({"rows_attention", "fff", "f", make<RowsAttention<KeyBias::kNone>>});
  to->push_back({"rows_sized_attention", "ffff", "f", make<RowsAttention<KeyBias::kGiven>>});
  to->push_back({"rows_attention_by_size", "ffff", "f", make<RowsAttention<KeyBias::kLogOfSize>>});
  to->push_back({"attention_weights", "ff", "f", make<AttentionWeights<KeyBias::kNone>>});
  to->push_back({"sized_attention_weights", "fff", "f", make<AttentionWeights<KeyBias::kGiven>>});
  to->push_back(
      {"attention_weights_by_size", "fff", "f", make<AttentionWeights<KeyBias::kLogOfSize>>});
  to->push_back({"layer_norm", "fff", "f", make<LayerNorm>});
}

}  // namespace tokexport
