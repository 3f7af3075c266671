// ToMe between attention and MLP: the match by cosine, the mean by size, and both with the layer
// norm behind them.
#include <algorithm>

#include "operators/groups.h"

namespace tokexport {
namespace {

// The match of the tokens of rows (B, N, ·), by the cosine of the mean of their heads.
class CosineMatcher {
 public:
  explicit CosineMatcher(const Attributes& attributes)
      : heads_(attributes.count("heads")),
        depth_(attributes.count("depth")),
        start_(attributes.count("start")),
        split_(attributes),
        protected_(attributes.count("blocked")),
        pairs_(attributes.count("r")) {}

  CosineArgs args(const Tensor<const float>& rows) const {
    require_heads("rows", start_, heads_, depth_, rows.size(2));
    CosineArgs args{};
    args.rows = rows.data + start_;
    args.images = rows.size(0);
    args.count = rows.size(1);
    args.width = rows.size(2);
    args.heads = heads_;
    args.depth = depth_;
    args.a = split_.a(args.count);
    args.b = split_.b(args.count);
    args.protected_rows = protected_;
    require(args.b.count > 0, "no token to match with, expected at least one");
    require(pairs_ <= args.a.count, "attribute r is ", pairs_, ", expected 0 to the ", args.a.count,
            " rows");
    args.match.rows = args.a.count;
    args.match.columns = args.b.count;
    args.match.images = args.images;
    args.match.pairs = pairs_;
    return args;
  }

 private:
  size_t heads_;
  size_t depth_;
  size_t start_;
  TokenSplit split_;
  size_t protected_;
  size_t pairs_;
};

// The memory of one match by cosine.
struct CosineMemory {
  CosineMemory(const Run& run, const CosineArgs& args, Layout* layout)
      : panels(layout->add<float>(args.images * cosine_panel_floats(args))),
        best(layout->add<float>(args.images * args.a.count)),
        partner(layout->add<int64_t>(args.images * args.a.count)),
        scratch(layout->add_per_thread(run.threads(), cosine_scratch_bytes(args))) {}

  void give(std::byte* memory, CosineArgs* args) const {
    args->panels = panels.in(memory);
    args->best = best.in(memory);
    args->partner = partner.in(memory);
  }

  Part<float> panels;
  Part<float> best;
  Part<int64_t> partner;
  PerThread scratch;
};

// The merge of x (B, N, C) by pairs, weighted with size (B, N, 1).
class SizeMerger {
 public:
  explicit SizeMerger(const Attributes& attributes)
      : protected_(attributes.count("protected")), split_(attributes) {}

  // Returns what merges x; its results are the first two outputs.
  MergeBySizeArgs args(const Run& run, const Tensor<const float>& x,
                       const Tensor<const float>& size, size_t kept, size_t pairs) const {
    MergeBySizeArgs args{};
    args.x = x.data;
    args.size = size.data;
    args.images = x.size(0);
    args.count = x.size(1);
    args.channels = x.size(2);
    args.a = split_.a(args.count);
    args.b = split_.b(args.count);
    args.protected_tokens = protected_;
    args.kept_count = kept;
    args.pairs = pairs;
    require_shape("size", size, {args.images, args.count, 1});
    require(protected_ <= args.count, "attribute protected is ", protected_, ", expected 0 to the ",
            args.count, " tokens");
    const size_t rows = merge_by_size_rows(args);
    args.y = run.output<float>(0, {args.images, rows, args.channels});
    args.y_size = run.output<float>(1, {args.images, rows, 1});
    return args;
  }

  // Chains the pairs of an image that merge into the same token.
  static void chain(const MergeBySizeArgs& args, size_t image) {
    const int64_t* dst = args.dst + image * args.pairs;
    int64_t* first = args.first + image * args.b.count;
    int64_t* next = args.next + image * args.pairs;
    std::fill(first, first + args.b.count, -1);
    for (size_t pair = args.pairs; pair-- > 0;) {
      next[pair] = first[dst[pair]];
      first[dst[pair]] = static_cast<int64_t>(pair);
    }
  }

 private:
  size_t protected_;
  TokenSplit split_;
};

// The memory of one merge by size.
struct SizeMergeMemory {
  SizeMergeMemory(const MergeBySizeArgs& args, Layout* layout)
      : first(layout->add<int64_t>(args.images * args.b.count)),
        next(layout->add<int64_t>(args.images * args.pairs)) {}

  void give(std::byte* memory, MergeBySizeArgs* args) const {
    args->first = first.in(memory);
    args->next = next.in(memory);
  }

  Part<int64_t> first;
  Part<int64_t> next;
};

// cosine_match(rows (B, N, ·)) -> kept (B, Na - r), src (B, r), dst (B, r)
class CosineMatch final : public Kernel {
 public:
  explicit CosineMatch(const Attributes& attributes) : matcher_(attributes) {}

  void run(const Run& run) const override {
    CosineArgs args = matcher_.args(run.floats(0, 3));
    args.match = match_outputs(run, args.images, args.a.count, args.b.count, args.match.pairs);
    Layout layout;
    const CosineMemory parts(run, args, &layout);
    const auto lease = workspace_.lease(layout.bytes());
    std::byte* memory = lease.memory();
    parts.give(memory, &args);
    const auto scratch = [&](Worker worker) { return parts.scratch.in(memory, worker.thread); };
    run.in_phases(
        phase(cosine_normalize_tasks(args),
              [&](size_t task, Worker worker) {
                kernels().cosine_normalize_task(args, task, scratch(worker));
              }),
        phase(cosine_argmax_tasks(args),
              [&](size_t task, Worker worker) {
                kernels().cosine_argmax_task(args, task, scratch(worker));
              }),
        phase(args.images, [&](size_t image, Worker worker) {
          kernels().cosine_select_task(args, image, scratch(worker));
        }));
  }

 private:
  CosineMatcher matcher_;
  mutable Workspace workspace_;
};

// merge_by_size(x (B, N, C), size (B, N, 1), kept (B, Na - r), src (B, r), dst (B, r))
// -> (B, P + Na - r + Nb, C), (B, P + Na - r + Nb, 1)
class MergeBySize final : public Kernel {
 public:
  explicit MergeBySize(const Attributes& attributes) : merger_(attributes) {}

  void run(const Run& run) const override {
    const auto kept = run.indices(2, 2);
    const auto src = run.indices(3, 2);
    const auto dst = run.indices(4, 2);
    MergeBySizeArgs args =
        merger_.args(run, run.floats(0, 3), run.floats(1, 3), kept.size(1), src.size(1));
    require_shape("kept", kept, {args.images, kept.size(1)});
    require_shape("src", src, {args.images, args.pairs});
    require_shape("dst", dst, {args.images, args.pairs});
    require_rows("kept", kept, args.a.count);
    require_rows("src", src, args.a.count);
    require_rows("dst", dst, args.b.count);
    args.kept = kept.data;
    args.src = src.data;
    args.dst = dst.data;
    Layout layout;
    const SizeMergeMemory parts(args, &layout);
    const auto lease = workspace_.lease(layout.bytes());
    parts.give(lease.memory(), &args);
    run.in_phases(phase(args.images, [&](size_t image) { SizeMerger::chain(args, image); }),
                  phase(merge_by_size_tasks(args),
                        [&](size_t task) { kernels().merge_by_size_task(args, task); }));
  }

 private:
  SizeMerger merger_;
  mutable Workspace workspace_;
};

// cosine_merge_norm(rows (B, N, ·), x (B, N, C), size (B, N, 1), weight (C), bias (C)) -> y and
// y_size, what merge_by_size gives of x, size and cosine_match of rows; and layer_norm of y
class CosineMergeNorm final : public Kernel {
 public:
  explicit CosineMergeNorm(const Attributes& attributes)
      : matcher_(attributes), merger_(attributes), epsilon_(attributes.real("epsilon")) {}

  void run(const Run& run) const override {
    const auto rows = run.floats(0, 3);
    const auto x = run.floats(1, 3);
    const auto weight = run.floats(3, 1);
    const auto bias = run.floats(4, 1);
    CosineArgs matching = matcher_.args(rows);
    MatchArgs& match = matching.match;
    require_shape("x", x, {matching.images, matching.count, x.size(2)});
    require_shape("weight", weight, {x.size(2)});
    require_shape("bias", bias, {x.size(2)});
    const size_t kept = match.rows - match.pairs;
    MergeBySizeArgs merging = merger_.args(run, x, run.floats(2, 3), kept, match.pairs);
    merging.norm.weight = weight.data;
    merging.norm.bias = bias.data;
    merging.norm.columns = merging.channels;
    merging.norm.epsilon = epsilon_;
    merging.norm.y =
        run.output<float>(2, {merging.images, merge_by_size_rows(merging), merging.channels});
    Layout layout;
    const CosineMemory match_parts(run, matching, &layout);
    const SizeMergeMemory merge_parts(merging, &layout);
    const auto src = layout.add<int64_t>(merging.images * match.pairs);
    const auto dst = layout.add<int64_t>(merging.images * match.pairs);
    const auto kept_rows = layout.add<int64_t>(merging.images * kept);
    const auto lease = workspace_.lease(layout.bytes());
    std::byte* memory = lease.memory();
    match_parts.give(memory, &matching);
    merge_parts.give(memory, &merging);
    merging.src = match.src = src.in(memory);
    merging.dst = match.dst = dst.in(memory);
    merging.kept = match.kept = kept_rows.in(memory);
    const auto scratch = [&](Worker worker) {
      return match_parts.scratch.in(memory, worker.thread);
    };
    run.in_phases(
        phase(cosine_normalize_tasks(matching),
              [&](size_t task, Worker worker) {
                kernels().cosine_normalize_task(matching, task, scratch(worker));
              }),
        phase(cosine_argmax_tasks(matching),
              [&](size_t task, Worker worker) {
                kernels().cosine_argmax_task(matching, task, scratch(worker));
              }),
        phase(matching.images,
              [&](size_t image, Worker worker) {
                kernels().cosine_select_task(matching, image, scratch(worker));
                SizeMerger::chain(merging, image);
              }),
        phase(merge_by_size_tasks(merging),
              [&](size_t task) { kernels().merge_by_size_task(merging, task); }));
  }

 private:
  CosineMatcher matcher_;
  SizeMerger merger_;
  float epsilon_;
  mutable Workspace workspace_;
};

}  // namespace

void add_tome_operators(std::vector<Operator>* to) {
  to->push_back({"cosine_match", "f", "iii", make<CosineMatch>});
  to->push_back({"merge_by_size", "ffiii", "ff", make<MergeBySize>});
  to->push_back({"cosine_merge_norm", "fffff", "fff", make<CosineMergeNorm>});
}

}  // namespace tokexport
