// MCTF's match forth and back, and what merges by it.
#include <vector>

#include "operators/groups.h"

namespace tokexport {
namespace {

// scored_match(tokens (B, N, C), rarity (B, N)) -> kept (B, Na - r), src (B, r), dst (B, r),
// scores (B, Na, Nb)
class ScoredMatch final : public Kernel {
 public:
  explicit ScoredMatch(const Attributes& attributes)
      : split_(attributes), pairs_(attributes.count("r")) {}

  void run(const Run& run) const override {
    const auto tokens = run.floats(0, 3);
    const auto rarity = run.floats(1, 2);
    ScoredMatchArgs args{};
    args.tokens = tokens.data;
    args.rarity = rarity.data;
    args.images = tokens.size(0);
    args.count = tokens.size(1);
    args.channels = tokens.size(2);
    args.a = split_.a(args.count);
    args.b = split_.b(args.count);
    require_shape("rarity", rarity, {args.images, args.count});
    args.match = match_outputs(run, args.images, args.a.count, args.b.count, pairs_);
    args.scores = run.output<float>(3, {args.images, args.a.count, args.b.count});
    args.match.scores = args.scores;
    Layout layout;
    const auto unit_tokens = layout.add<float>(args.images * scored_match_floats(args));
    const auto scratch = layout.add_per_thread(run.threads(), scored_match_scratch_bytes(args));
    const auto lease = workspace_.lease(layout.bytes());
    std::byte* memory = lease.memory();
    args.unit_tokens = unit_tokens.in(memory);
    run.in_phases(
        phase(2 * args.images,
              [&](size_t task) { kernels().scored_normalize_task(args, task); }),
        phase(scores_tasks(args),
              [&](size_t task, Worker worker) {
                kernels().scores_task(args, task, scratch.in(memory, worker.thread));
              }),
        phase(args.images, [&](size_t image, Worker worker) {
          kernels().match_task(args.match, image, scratch.in(memory, worker.thread));
        }));
  }

 private:
  TokenSplit split_;
  size_t pairs_;
  mutable Workspace workspace_;
};

// match_back(scores (B, Na, Nb), kept (B, K)) -> kept_back (B, Nb - r), src_back (B, r),
// dst_back (B, r): the match by score of the columns to the rows that were kept
class MatchBack final : public Kernel {
 public:
  explicit MatchBack(const Attributes& attributes) : pairs_(attributes.count("r")) {}

  void run(const Run& run) const override {
    const auto scores = run.floats(0, 3);
    const auto kept = run.indices(1, 2);
    MatchBackArgs args{};
    args.scores = scores.data;
    args.kept = kept.data;
    args.rows = scores.size(1);
    require_shape("kept", kept, {scores.size(0), kept.size(1)});
    require_rows("kept", kept, args.rows);
    args.match = match_outputs(run, scores.size(0), scores.size(2), kept.size(1), pairs_);
    args.match.by_score = true;
    Layout layout;
    const auto scratch =
        layout.add_per_thread(run.threads(), match_scratch_bytes(args.match.rows));
    const auto lease = workspace_.lease(layout.bytes());
    run.in_parallel(args.match.images, [&](size_t image, Worker worker) {
      kernels().match_back_task(args, image, scratch.in(lease.memory(), worker.thread));
    });
  }

 private:
  size_t pairs_;
  mutable Workspace workspace_;
};

// places_both_ways(kept, src, dst, kept_back, src_back, dst_back) -> (B, N)
class TokenDestinations final : public Kernel {
 public:
  explicit TokenDestinations(const Attributes& attributes)
      : map_(attributes), protected_(attributes.count("protected")) {}

  void run(const Run& run) const override {
    const size_t images = run.indices(0, 2).size(0);
    size_t count = protected_;
    for (size_t input : {0, 1, 3, 4}) count += run.indices(input, 2).size(1);
    const auto matches = map_.matches(run, 0, images, count);
    int64_t* destination = run.output<int64_t>(0, {images, count});
    map_.destinations(matches, images, count, destination);
  }

 private:
  BidirectionalMap map_;
  size_t protected_;
};

// merge_both_ways(x (B, N, C) [, weight (B, N, 1)], kept, src, dst, kept_back, src_back, dst_back)
// -> (B, M, C) [, (B, M, 1)]: the sums, or the means by weight and the sums of the weights
template <bool ByWeight>
class BidirectionalMerge final : public Kernel {
 public:
  explicit BidirectionalMerge(const Attributes& attributes) : map_(attributes) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    MergeGroupsArgs args{};
    args.x = x.data;
    args.images = x.size(0);
    args.count = x.size(1);
    args.channels = x.size(2);
    if constexpr (ByWeight) {
      const auto weight = run.floats(1, 3);
      require_shape("weight", weight, {args.images, args.count, 1});
      args.weight = weight.data;
    }
    std::vector<int64_t> destination(args.images * args.count);
    const auto matches = map_.matches(run, ByWeight ? 2 : 1, args.images, args.count);
    args.rows = map_.destinations(matches, args.images, args.count, destination.data());
    const Groups groups(destination.data(), args.images, args.count, args.rows);
    args.row_start = groups.row_start();
    args.members = groups.members();
    args.y = run.output<float>(0, {args.images, args.rows, args.channels});
    if constexpr (ByWeight) args.y_weight = run.output<float>(1, {args.images, args.rows, 1});
    run.in_parallel(merge_groups_tasks(args),
                    [&](size_t task) { kernels().merge_groups_task(args, task); });
  }

 private:
  BidirectionalMap map_;
};

}  // namespace

void add_mctf_operators(std::vector<Operator>* to) {
  to->push_back({"scored_match", "ff", "iiif", make<ScoredMatch>});
  to->push_back({"match_back", "fi", "iii", make<MatchBack>});
  to->push_back({"places_both_ways", "iiiiii", "i", make<TokenDestinations>});
  to->push_back({"merge_both_ways", "fiiiiii", "f", make<BidirectionalMerge<false>>});
  to->push_back({"merge_both_ways_by_weight", "ffiiiiii", "ff", make<BidirectionalMerge<true>>});
}

}  // namespace tokexport
