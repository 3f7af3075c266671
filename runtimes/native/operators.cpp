// The operators of domain `tokexport`: each reads its tensors, and hands its tasks to the threads.
//
// Their meaning is that of the functions of the same name (graph_passes/onnx_functions.py).
#include "operators.h"

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace tokexport {
namespace {

template <typename Made>
std::unique_ptr<Kernel> make(const Attributes& attributes) {
  return std::make_unique<Made>(attributes);
}

void require_rows(const Tensor<const int64_t>& index, size_t rows) {
  const size_t count = index.size(0) * index.size(1);
  const bool inside = std::all_of(index.data, index.data + count, [rows](int64_t i) {
    return i >= 0 && static_cast<size_t>(i) < rows;
  });
  require(inside, "An index names a row that is not there.");
}

// Rows that a task of a product takes, so that they stay in the second cache.
size_t rows_per_task(size_t rows, size_t depth) {
  const size_t most = std::max<size_t>(28, 131072 / std::max<size_t>(depth, 1));
  const size_t chunks = (rows + most - 1) / most;
  return (rows + chunks - 1) / std::max<size_t>(chunks, 1);
}

// linear(x (B, N, K), panels (P, K, 32), bias (C) [, residual (B, N, C)]) -> (B, N, C)
template <bool Gelu, bool Residual>
class Linear final : public Kernel {
 public:
  explicit Linear(const Attributes&) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    const auto panels = run.floats(1, 3);
    const auto bias = run.floats(2, 1);
    const size_t columns = bias.size(0);
    require(panels.size(0) == panel_count(columns) && panels.size(1) == x.size(2) &&
                panels.size(2) == kPanel,
            "linear: the weights are not packed for this input and bias.");
    LinearArgs args{};
    args.x = x.data;
    args.panels = panels.data;
    args.bias = bias.data;
    args.rows = x.size(0) * x.size(1);
    args.depth = x.size(2);
    args.columns = columns;
    args.gelu = Gelu;
    if constexpr (Residual) {
      const auto residual = run.floats(3, 3);
      require(residual.size(0) == x.size(0) && residual.size(1) == x.size(1) &&
                  residual.size(2) == columns,
              "linear: what is added has another shape than the product.");
      args.residual = residual.data;
    }
    args.y = run.output<float>(0, {x.size(0), x.size(1), columns});
    if (args.rows == 0 || columns == 0) return;
    args.rows_per_task = rows_per_task(args.rows, args.depth);
    const size_t chunks = (args.rows + args.rows_per_task - 1) / args.rows_per_task;
    run.in_parallel(chunks * panel_count(columns),
                    [&](size_t task) { kernels().linear_task(args, task); });
  }
};

// Room for floats that the thread keeps from run to run.
float* scratch(size_t count) {
  thread_local std::vector<float> kept;
  if (kept.size() < count) kept.resize(count);
  return kept.data();
}

// Packs, and then computes blocks of queries.
void attend(const Run& run, AttentionArgs& args) {
  const size_t pairs = args.images * args.heads;
  if (pairs * args.queries * args.value_depth == 0) return;
  require(args.keys > 0, "attention: there is no key.");
  args.packed_k = scratch(pairs * (packed_k_floats(args) + packed_v_floats(args)));
  args.packed_v = args.packed_k + pairs * packed_k_floats(args);
  args.queries_per_task = std::min<size_t>(args.queries, 56);
  const size_t chunks = (args.queries + args.queries_per_task - 1) / args.queries_per_task;
  run.in_parallel(pairs, [&](size_t task) { kernels().attention_pack_task(args, task); });
  run.in_parallel(pairs * chunks, [&](size_t task) { kernels().attention_task(args, task); });
}

void take_sizes(const Run& run, AttentionArgs& args) {
  const auto log_size = run.floats(3, 2);
  require(log_size.size(0) == args.images && log_size.size(1) == args.keys,
          "attention: the sizes are not one for each key.");
  args.log_size = log_size.data;
}

// attention(q (B, H, Nq, D), k (B, H, N, D), v (B, H, N, Dv) [, log_size (B, N)]) -> (B, H, Nq, Dv)
template <bool Sized>
class Attention final : public Kernel {
 public:
  explicit Attention(const Attributes& attributes) : scale_(attributes.number("scale")) {}

  void run(const Run& run) const override {
    const auto q = run.floats(0, 4);
    const auto k = run.floats(1, 4);
    const auto v = run.floats(2, 4);
    for (size_t axis : {0, 1})
      require(q.size(axis) == k.size(axis) && k.size(axis) == v.size(axis),
              "attention: images or heads of q, k and v differ in number.");
    require(q.size(3) == k.size(3) && k.size(2) == v.size(2),
            "attention: q and k differ in depth, or k and v in number.");
    AttentionArgs args{};
    args.images = q.size(0);
    args.heads = q.size(1);
    args.queries = q.size(2);
    args.depth = q.size(3);
    args.keys = k.size(2);
    args.value_depth = v.size(3);
    args.scale = scale_;
    float* y = run.output<float>(0, {args.images, args.heads, args.queries, args.value_depth});
    args.q = by_head(q.data, args.heads, args.queries, args.depth);
    args.k = by_head(k.data, args.heads, args.keys, args.depth);
    args.v = by_head(v.data, args.heads, args.keys, args.value_depth);
    args.y = by_head(y, args.heads, args.queries, args.value_depth);
    if constexpr (Sized) take_sizes(run, args);
    attend(run, args);
  }

 private:
  template <typename Float>
  static Rows<Float> by_head(Float* data, size_t heads, size_t rows, size_t depth) {
    return {data, heads * rows * depth, rows * depth, depth};
  }

  float scale_;
};

// rows_attention(q (B, Nq, ·), k (B, N, ·), v (B, N, ·) [, log_size (B, N)]) -> (B, Nq, H · D):
// the heads lie side by side in each row, from the channel that starts each of the three.
template <bool Sized>
class RowsAttention final : public Kernel {
 public:
  explicit RowsAttention(const Attributes& attributes)
      : scale_(attributes.number("scale")),
        heads_(attributes.only("heads")),
        depth_(attributes.only("depth")),
        q_start_(attributes.only("q_start")),
        k_start_(attributes.only("k_start")),
        v_start_(attributes.only("v_start")) {}

  void run(const Run& run) const override {
    const auto q = run.floats(0, 3);
    const auto k = run.floats(1, 3);
    const auto v = run.floats(2, 3);
    require(q.size(0) == k.size(0) && k.size(0) == v.size(0) && k.size(1) == v.size(1),
            "attention: images or keys of q, k and v differ in number.");
    AttentionArgs args{};
    args.images = q.size(0);
    args.heads = heads_;
    args.queries = q.size(1);
    args.keys = k.size(1);
    args.depth = args.value_depth = depth_;
    args.scale = scale_;
    args.q = in_rows(q, q_start_);
    args.k = in_rows(k, k_start_);
    args.v = in_rows(v, v_start_);
    const size_t width = heads_ * depth_;
    args.y = {run.output<float>(0, {args.images, args.queries, width}), args.queries * width,
              depth_, width};
    if constexpr (Sized) take_sizes(run, args);
    attend(run, args);
  }

 private:
  Rows<const float> in_rows(const Tensor<const float>& rows, size_t start) const {
    require(start + heads_ * depth_ <= rows.size(2), "attention: the rows hold fewer heads.");
    return {rows.data + start, rows.size(1) * rows.size(2), depth_, rows.size(2)};
  }

  float scale_;
  size_t heads_;
  size_t depth_;
  size_t q_start_;
  size_t k_start_;
  size_t v_start_;
};

// The two sets that tokens are split into: every `step`-th from a start.
class Sets {
 public:
  explicit Sets(const Attributes& attributes)
      : a_start_(attributes.only("a_start")),
        b_start_(attributes.only("b_start")),
        step_(attributes.only("step")) {
    require(step_ > 0, "The tokens of a set are no step apart.");
  }

  TokenSet a(size_t tokens) const { return of(a_start_, tokens); }
  TokenSet b(size_t tokens) const { return of(b_start_, tokens); }

 private:
  TokenSet of(size_t start, size_t tokens) const {
    return {start, step_, start < tokens ? (tokens - start + step_ - 1) / step_ : 0};
  }

  size_t a_start_;
  size_t b_start_;
  size_t step_;
};

// layer_norm(x (B, N, C), weight (C), bias (C)) -> (B, N, C)
class LayerNorm final : public Kernel {
 public:
  explicit LayerNorm(const Attributes& attributes) : epsilon_(attributes.number("epsilon")) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    const auto weight = run.floats(1, 1);
    const auto bias = run.floats(2, 1);
    NormArgs args{};
    args.columns = x.size(2);
    require(weight.size(0) == args.columns && bias.size(0) == args.columns,
            "layer_norm: weight or bias has another size than the rows.");
    args.x = x.data;
    args.weight = weight.data;
    args.bias = bias.data;
    args.epsilon = epsilon_;
    args.rows = x.size(0) * x.size(1);
    args.y = run.output<float>(0, {x.size(0), x.size(1), args.columns});
    args.rows_per_task = 16;
    run.in_parallel((args.rows + 15) / 16, [&](size_t task) { kernels().norm_task(args, task); });
  }

 private:
  float epsilon_;
};

// bipartite_match(scores (B, Na, Nb)) -> kept (B, Na - r), src (B, r), dst (B, r)
template <bool ByScore>
class Match final : public Kernel {
 public:
  explicit Match(const Attributes& attributes) : taken_(attributes.only("r")) {}

  void run(const Run& run) const override {
    const auto scores = run.floats(0, 3);
    MatchArgs args{};
    args.scores = scores.data;
    args.images = scores.size(0);
    args.rows = scores.size(1);
    args.columns = scores.size(2);
    args.taken = taken_;
    args.by_score = ByScore;
    require(args.columns > 0 && taken_ <= args.rows, "bipartite_match: r is more than the rows.");
    args.kept = run.output<int64_t>(0, {args.images, args.rows - taken_});
    args.src = run.output<int64_t>(1, {args.images, taken_});
    args.dst = run.output<int64_t>(2, {args.images, taken_});
    run.in_parallel(args.images, [&](size_t task) { kernels().match_task(args, task); });
  }

 private:
  size_t taken_;
};

// gather_tokens(x (B, N, C), index (B, K)) -> (B, K, C)
class Gather final : public Kernel {
 public:
  explicit Gather(const Attributes&) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    const auto index = run.indices(1, 2);
    require(x.size(0) == index.size(0), "gather_tokens: x and index differ in images.");
    require_rows(index, x.size(1));
    GatherArgs args{};
    args.x = x.data;
    args.index = index.data;
    args.images = x.size(0);
    args.taken = index.size(1);
    args.channels = x.size(2);
    args.x_image = x.size(1) * args.channels;
    args.y_image = args.taken * args.channels;
    args.y = run.output<float>(0, {args.images, args.taken, args.channels});
    run.in_parallel(args.images, [&](size_t task) { kernels().gather_task(args, task); });
  }
};

// scatter_tokens(dst (B, N, C), index (B, K), src (B, K, C)) -> (B, N, C)
template <Reduce Mode, bool IncludeSelf>
class Scatter final : public Kernel {
 public:
  explicit Scatter(const Attributes&) {}

  void run(const Run& run) const override {
    const auto dst = run.floats(0, 3);
    const auto index = run.indices(1, 2);
    const auto src = run.floats(2, 3);
    require(dst.size(0) == index.size(0) && src.size(0) == index.size(0) &&
                src.size(1) == index.size(1) && src.size(2) == dst.size(2),
            "scatter_tokens: the shapes do not fit.");
    require_rows(index, dst.size(1));
    ScatterArgs args{};
    args.dst = dst.data;
    args.index = index.data;
    args.src = src.data;
    args.images = dst.size(0);
    args.rows = dst.size(1);
    args.taken = index.size(1);
    args.channels = dst.size(2);
    args.src_image = args.taken * args.channels;
    args.y_image = args.rows * args.channels;
    args.mode = Mode;
    args.include_self = IncludeSelf;
    args.y = run.output<float>(0, {args.images, args.rows, args.channels});
    run.in_parallel(scatter_tasks(args), [&](size_t task) { kernels().scatter_task(args, task); });
  }
};

// merge_tokens(a (B, Na, C), b (B, Nb, C), kept (B, Na - r), src (B, r), dst (B, r))
// -> (B, Na - r + Nb, C)
template <Reduce Mode>
class Merge final : public Kernel {
 public:
  explicit Merge(const Attributes&) {}

  void run(const Run& run) const override {
    const auto a = run.floats(0, 3);
    const auto b = run.floats(1, 3);
    const auto kept = run.indices(2, 2);
    const auto src = run.indices(3, 2);
    const auto dst = run.indices(4, 2);
    const size_t images = a.size(0);
    const size_t channels = a.size(2);
    require(b.size(0) == images && kept.size(0) == images && src.size(0) == images &&
                dst.size(0) == images && b.size(2) == channels && src.size(1) == dst.size(1),
            "merge_tokens: the shapes do not fit.");
    require_rows(kept, a.size(1));
    require_rows(src, a.size(1));
    require_rows(dst, b.size(1));
    const size_t rows = kept.size(1) + b.size(1);
    float* y = run.output<float>(0, {images, rows, channels});
    GatherArgs gather{};
    gather.x = a.data;
    gather.index = kept.data;
    gather.images = images;
    gather.taken = kept.size(1);
    gather.channels = channels;
    gather.x_image = a.size(1) * channels;
    gather.y_image = rows * channels;
    gather.y = y;
    ScatterArgs scatter{};
    scatter.dst = b.data;
    scatter.index = dst.data;
    scatter.src = a.data;
    scatter.source = src.data;
    scatter.images = images;
    scatter.rows = b.size(1);
    scatter.taken = Mode == Reduce::kNone ? 0 : src.size(1);
    scatter.channels = channels;
    scatter.src_image = gather.x_image;
    scatter.y_image = gather.y_image;
    scatter.mode = Mode;
    scatter.include_self = true;
    scatter.y = y + gather.taken * channels;
    const size_t scatters = scatter_tasks(scatter);
    run.in_parallel(scatters + images, [&](size_t task) {
      if (task < scatters)
        kernels().scatter_task(scatter, task);
      else
        kernels().gather_task(gather, task - scatters);
    });
  }
};

// cosine_match(rows (B, N, ·)) -> kept (B, Na - r), src (B, r), dst (B, r)
class CosineMatch final : public Kernel {
 public:
  explicit CosineMatch(const Attributes& attributes)
      : heads_(attributes.only("heads")),
        depth_(attributes.only("depth")),
        start_(attributes.only("start")),
        sets_(attributes),
        blocked_(attributes.only("blocked")),
        taken_(attributes.only("r")) {}

  void run(const Run& run) const override {
    const auto rows = run.floats(0, 3);
    require(start_ + heads_ * depth_ <= rows.size(2), "cosine_match: the rows hold fewer heads.");
    CosineArgs args{};
    args.rows = rows.data + start_;
    args.images = rows.size(0);
    args.count = rows.size(1);
    args.width = rows.size(2);
    args.heads = heads_;
    args.depth = depth_;
    args.a = sets_.a(args.count);
    args.b = sets_.b(args.count);
    args.blocked = blocked_;
    args.match.rows = args.a.count;
    args.match.columns = args.b.count;
    args.match.images = args.images;
    args.match.taken = taken_;
    require(args.b.count > 0 && taken_ <= args.a.count, "cosine_match: r is more than the rows.");
    args.match.kept = run.output<int64_t>(0, {args.images, args.a.count - taken_});
    args.match.src = run.output<int64_t>(1, {args.images, taken_});
    args.match.dst = run.output<int64_t>(2, {args.images, taken_});
    run.in_parallel(args.images, [&](size_t task) { kernels().cosine_match_task(args, task); });
  }

 private:
  size_t heads_;
  size_t depth_;
  size_t start_;
  Sets sets_;
  size_t blocked_;
  size_t taken_;
};

// merge_by_size(x (B, N, C), size (B, N, 1), kept (B, Na - r), src (B, r), dst (B, r))
// -> (B, P + Na - r + Nb, C), (B, P + Na - r + Nb, 1)
class MergeBySize final : public Kernel {
 public:
  explicit MergeBySize(const Attributes& attributes)
      : protected_(attributes.only("protected")), sets_(attributes) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    const auto size = run.floats(1, 3);
    const auto kept = run.indices(2, 2);
    const auto src = run.indices(3, 2);
    const auto dst = run.indices(4, 2);
    BySizeArgs args{};
    args.images = x.size(0);
    args.count = x.size(1);
    args.channels = x.size(2);
    args.a = sets_.a(args.count);
    args.b = sets_.b(args.count);
    args.stay = protected_;
    args.kept_count = kept.size(1);
    args.taken = src.size(1);
    require(size.size(0) == args.images && size.size(1) == args.count && size.size(2) == 1 &&
                kept.size(0) == args.images && src.size(0) == args.images &&
                dst.size(0) == args.images && dst.size(1) == args.taken &&
                protected_ <= args.count,
            "merge_by_size: the shapes do not fit.");
    require_rows(kept, args.a.count);
    require_rows(src, args.a.count);
    require_rows(dst, args.b.count);
    args.x = x.data;
    args.size = size.data;
    args.kept = kept.data;
    args.src = src.data;
    args.dst = dst.data;
    const size_t rows = by_size_rows(args);
    args.y = run.output<float>(0, {args.images, rows, args.channels});
    args.y_size = run.output<float>(1, {args.images, rows, 1});
    run.in_parallel(by_size_tasks(args),
                    [&](size_t task) { kernels().merge_by_size_task(args, task); });
  }

 private:
  size_t protected_;
  Sets sets_;
};

template <Reduce Mode>
void add_scatters(std::vector<Operator>* to, const char* name, const char* excluding) {
  to->emplace_back(name, "fif", "f", make<Scatter<Mode, true>>);
  to->emplace_back(excluding, "fif", "f", make<Scatter<Mode, false>>);
}

std::vector<Operator> all_operators() {
  std::vector<Operator> found;
  found.emplace_back("linear", "fff", "f", make<Linear<false, false>>);
  found.emplace_back("linear_gelu", "fff", "f", make<Linear<true, false>>);
  found.emplace_back("linear_add", "ffff", "f", make<Linear<false, true>>);
  found.emplace_back("attention", "fff", "f", make<Attention<false>>);
  found.emplace_back("sized_attention", "ffff", "f", make<Attention<true>>);
  found.emplace_back("rows_attention", "fff", "f", make<RowsAttention<false>>);
  found.emplace_back("rows_sized_attention", "ffff", "f", make<RowsAttention<true>>);
  found.emplace_back("layer_norm", "fff", "f", make<LayerNorm>);
  found.emplace_back("cosine_match", "f", "iii", make<CosineMatch>);
  found.emplace_back("merge_by_size", "ffiii", "ff", make<MergeBySize>);
  found.emplace_back("bipartite_match", "f", "iii", make<Match<false>>);
  found.emplace_back("bipartite_match_by_score", "f", "iii", make<Match<true>>);
  found.emplace_back("gather_tokens", "fi", "f", make<Gather>);
  found.emplace_back("scatter_tokens_none", "fif", "f", make<Scatter<Reduce::kNone, true>>);
  add_scatters<Reduce::kSum>(&found, "scatter_tokens_sum", "scatter_tokens_sum_exclude_self");
  add_scatters<Reduce::kMean>(&found, "scatter_tokens_mean", "scatter_tokens_mean_exclude_self");
  add_scatters<Reduce::kProduct>(&found, "scatter_tokens_prod", "scatter_tokens_prod_exclude_self");
  add_scatters<Reduce::kLargest>(&found, "scatter_tokens_amax", "scatter_tokens_amax_exclude_self");
  add_scatters<Reduce::kSmallest>(&found, "scatter_tokens_amin",
                                  "scatter_tokens_amin_exclude_self");
  found.emplace_back("merge_tokens_none", "ffiii", "f", make<Merge<Reduce::kNone>>);
  found.emplace_back("merge_tokens_sum", "ffiii", "f", make<Merge<Reduce::kSum>>);
  found.emplace_back("merge_tokens_mean", "ffiii", "f", make<Merge<Reduce::kMean>>);
  found.emplace_back("merge_tokens_prod", "ffiii", "f", make<Merge<Reduce::kProduct>>);
  found.emplace_back("merge_tokens_amax", "ffiii", "f", make<Merge<Reduce::kLargest>>);
  found.emplace_back("merge_tokens_amin", "ffiii", "f", make<Merge<Reduce::kSmallest>>);
  return found;
}

}  // namespace

const std::vector<Operator>& operators() {
  static const std::vector<Operator> all = all_operators();
  return all;
}

}  // namespace tokexport
