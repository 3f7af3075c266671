// ToMe between attention and MLP: the match by cosine, the mean by size, and both with the layer
// norm behind them.
#include <algorithm>

#include "kernels/kernels.h"
#include "operators/groups.h"
#include "operators/operators.h"
#include "operators/workspace.h"

namespace tokexport {
namespace {

// Room for a match and a merge; what a run needs of it is leased.
struct Rooms {
  Workspace<float> floats;
  Workspace<int64_t> indices;
};

// The match of the tokens of rows (B, N, ·), by the cosine of the mean of their heads.
class Matcher {
 public:
  explicit Matcher(const Attributes& attributes)
      : heads_(attributes.only("heads")),
        depth_(attributes.only("depth")),
        start_(attributes.only("start")),
        sets_(attributes),
        blocked_(attributes.only("blocked")),
        taken_(attributes.only("r")) {}

  CosineArgs args(const Tensor<const float>& rows) const {
    require_heads(start_, heads_, depth_, rows.size(2));
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
    return args;
  }

  static size_t floats(const CosineArgs& args) {
    return args.images * (cosine_panel_floats(args) + args.a.count);
  }

  static size_t indices(const CosineArgs& args) { return args.images * args.a.count; }

  static void place(CosineArgs& args, float* floats, int64_t* indices) {
    args.panels = floats;
    args.best = floats + args.images * cosine_panel_floats(args);
    args.partner = indices;
  }

 private:
  size_t heads_;
  size_t depth_;
  size_t start_;
  Sets sets_;
  size_t blocked_;
  size_t taken_;
};

// The merge of x (B, N, C) by pairs, weighted with size (B, N, 1).
class Merger {
 public:
  explicit Merger(const Attributes& attributes)
      : protected_(attributes.only("protected")), sets_(attributes) {}

  // The first two outputs are its results.
  BySizeArgs args(const Run& run, const Tensor<const float>& x, const Tensor<const float>& size,
                  size_t kept, size_t taken) const {
    BySizeArgs args{};
    args.x = x.data;
    args.size = size.data;
    args.images = x.size(0);
    args.count = x.size(1);
    args.channels = x.size(2);
    args.a = sets_.a(args.count);
    args.b = sets_.b(args.count);
    args.stay = protected_;
    args.kept_count = kept;
    args.taken = taken;
    require(size.size(0) == args.images && size.size(1) == args.count && size.size(2) == 1 &&
                protected_ <= args.count,
            "merge_by_size: the shapes do not fit.");
    const size_t rows = by_size_rows(args);
    args.y = run.output<float>(0, {args.images, rows, args.channels});
    args.y_size = run.output<float>(1, {args.images, rows, 1});
    return args;
  }

  static size_t indices(const BySizeArgs& args) {
    return args.images * (args.b.count + args.taken);
  }

  static void place(BySizeArgs& args, int64_t* indices) {
    args.first = indices;
    args.next = indices + args.images * args.b.count;
  }

  // Chains the pairs of an image that merge into the same token.
  static void chain(const BySizeArgs& args, size_t image) {
    const int64_t* dst = args.dst + image * args.taken;
    int64_t* first = args.first + image * args.b.count;
    int64_t* next = args.next + image * args.taken;
    std::fill(first, first + args.b.count, -1);
    for (size_t pair = args.taken; pair-- > 0;) {
      next[pair] = first[dst[pair]];
      first[dst[pair]] = static_cast<int64_t>(pair);
    }
  }

 private:
  size_t protected_;
  Sets sets_;
};

// cosine_match(rows (B, N, ·)) -> kept (B, Na - r), src (B, r), dst (B, r)
class CosineMatch final : public Kernel {
 public:
  explicit CosineMatch(const Attributes& attributes) : matcher_(attributes) {}

  void run(const Run& run) const override {
    CosineArgs args = matcher_.args(run.floats(0, 3));
    args.match = matched(run, args.images, args.a.count, args.b.count, args.match.taken);
    const auto floats = rooms_.floats.lease(Matcher::floats(args));
    const auto indices = rooms_.indices.lease(Matcher::indices(args));
    Matcher::place(args, floats.data(), indices.data());
    run.in_phases(
        phase(cosine_units_tasks(args),
              [&](size_t task) { kernels().cosine_units_task(args, task); }),
        phase(cosine_rows_tasks(args), [&](size_t task) { kernels().cosine_rows_task(args, task); }),
        phase(args.images, [&](size_t task) { kernels().cosine_rank_task(args, task); }));
  }

 private:
  Matcher matcher_;
  mutable Rooms rooms_;
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
    BySizeArgs args =
        merger_.args(run, run.floats(0, 3), run.floats(1, 3), kept.size(1), src.size(1));
    require(kept.size(0) == args.images && src.size(0) == args.images &&
                dst.size(0) == args.images && dst.size(1) == args.taken,
            "merge_by_size: the shapes do not fit.");
    require_rows(kept, args.a.count);
    require_rows(src, args.a.count);
    require_rows(dst, args.b.count);
    args.kept = kept.data;
    args.src = src.data;
    args.dst = dst.data;
    const auto indices = indices_.lease(Merger::indices(args));
    Merger::place(args, indices.data());
    run.in_phases(
        phase(args.images, [&](size_t image) { Merger::chain(args, image); }),
        phase(by_size_tasks(args), [&](size_t task) { kernels().merge_by_size_task(args, task); }));
  }

 private:
  Merger merger_;
  mutable Workspace<int64_t> indices_;
};

// cosine_merge_norm(rows (B, N, ·), x (B, N, C), size (B, N, 1), weight (C), bias (C)) -> y and
// y_size, what merge_by_size gives of x, size and cosine_match of rows; and layer_norm of y
class CosineMergeNorm final : public Kernel {
 public:
  explicit CosineMergeNorm(const Attributes& attributes)
      : matcher_(attributes), merger_(attributes), epsilon_(attributes.number("epsilon")) {}

  void run(const Run& run) const override {
    const auto x = run.floats(1, 3);
    const auto weight = run.floats(3, 1);
    const auto bias = run.floats(4, 1);
    CosineArgs matching = matcher_.args(run.floats(0, 3));
    MatchArgs& match = matching.match;
    require(matching.images == x.size(0) && matching.count == x.size(1) &&
                weight.size(0) == x.size(2) && bias.size(0) == x.size(2),
            "cosine_merge_norm: the shapes do not fit.");
    const size_t kept = match.rows - match.taken;
    BySizeArgs merging = merger_.args(run, x, run.floats(2, 3), kept, match.taken);
    merging.norm.weight = weight.data;
    merging.norm.bias = bias.data;
    merging.norm.columns = merging.channels;
    merging.norm.epsilon = epsilon_;
    merging.norm.y =
        run.output<float>(2, {merging.images, by_size_rows(merging), merging.channels});
    const auto floats = rooms_.floats.lease(Matcher::floats(matching));
    const size_t pairs = merging.images * match.taken;
    const auto indices = rooms_.indices.lease(Matcher::indices(matching) +
                                              Merger::indices(merging) + merging.images * kept +
                                              2 * pairs);
    Matcher::place(matching, floats.data(), indices.data());
    int64_t* chains = indices.data() + Matcher::indices(matching);
    Merger::place(merging, chains);
    match.src = chains + Merger::indices(merging);
    match.dst = match.src + pairs;
    match.kept = match.dst + pairs;
    merging.kept = match.kept;
    merging.src = match.src;
    merging.dst = match.dst;
    run.in_phases(
        phase(cosine_units_tasks(matching),
              [&](size_t task) { kernels().cosine_units_task(matching, task); }),
        phase(cosine_rows_tasks(matching),
              [&](size_t task) { kernels().cosine_rows_task(matching, task); }),
        phase(matching.images,
              [&](size_t image) {
                kernels().cosine_rank_task(matching, image);
                Merger::chain(merging, image);
              }),
        phase(by_size_tasks(merging),
              [&](size_t task) { kernels().merge_by_size_task(merging, task); }));
  }

 private:
  Matcher matcher_;
  Merger merger_;
  float epsilon_;
  mutable Rooms rooms_;
};

}  // namespace

void add_tome_operators(std::vector<Operator>* to) {
  to->push_back({"cosine_match", "f", "iii", make<CosineMatch>});
  to->push_back({"merge_by_size", "ffiii", "ff", make<MergeBySize>});
  to->push_back({"cosine_merge_norm", "fffff", "fff", make<CosineMergeNorm>});
}

}  // namespace tokexport
