// A match forth and back, and what merges by it.
#include <vector>

#include "kernels/kernels.h"
#include "operators/groups.h"
#include "operators/operators.h"
#include "operators/workspace.h"

namespace tokexport {
namespace {

// scored_match(tokens (B, N, C), rare (B, N)) -> kept (B, Na - r), src (B, r), dst (B, r),
// scores (B, Na, Nb)
class ScoredMatch final : public Kernel {
 public:
  explicit ScoredMatch(const Attributes& attributes)
      : sets_(attributes), taken_(attributes.only("r")) {}

  void run(const Run& run) const override {
    const auto tokens = run.floats(0, 3);
    const auto rare = run.floats(1, 2);
    ScoredMatchArgs args{};
    args.tokens = tokens.data;
    args.rare = rare.data;
    args.images = tokens.size(0);
    args.count = tokens.size(1);
    args.channels = tokens.size(2);
    args.a = sets_.a(args.count);
    args.b = sets_.b(args.count);
    require(rare.size(0) == args.images && rare.size(1) == args.count,
            "scored_match: there is no term for each token.");
    require(args.b.count > 0 && taken_ <= args.a.count, "scored_match: r is more than the rows.");
    args.match = matched(run, args.images, args.a.count, args.b.count, taken_);
    args.scores = run.output<float>(3, {args.images, args.a.count, args.b.count});
    args.match.scores = args.scores;
    const auto work = workspace_.lease(args.images * scored_match_floats(args));
    args.work = work.data();
    run.in_phases(
        phase(2 * args.images, [&](size_t task) { kernels().scored_units_task(args, task); }),
        phase(scored_tasks(args), [&](size_t task) { kernels().scored_rows_task(args, task); }),
        phase(args.images, [&](size_t task) { kernels().match_task(args.match, task); }));
  }

 private:
  Sets sets_;
  size_t taken_;
  mutable Workspace<float> workspace_;
};

// match_back(scores (B, Na, Nb), kept (B, K)) -> kept_back (B, Nb - r), src_back (B, r),
// dst_back (B, r): the match by score of the columns to the rows that were kept
class MatchBack final : public Kernel {
 public:
  explicit MatchBack(const Attributes& attributes) : taken_(attributes.only("r")) {}

  void run(const Run& run) const override {
    const auto scores = run.floats(0, 3);
    const auto kept = run.indices(1, 2);
    MatchBackArgs args{};
    args.scores = scores.data;
    args.kept = kept.data;
    args.rows = scores.size(1);
    require(kept.size(0) == scores.size(0) && kept.size(1) > 0 && taken_ <= scores.size(2),
            "match_back: r is more than the columns, or no row was kept.");
    require_rows(kept, args.rows);
    args.match = matched(run, scores.size(0), scores.size(2), kept.size(1), taken_);
    args.match.by_score = true;
    run.in_parallel(args.match.images,
                    [&](size_t task) { kernels().match_back_task(args, task); });
  }

 private:
  size_t taken_;
};

// places_both_ways(kept, src, dst, kept_back, src_back, dst_back) -> (B, N)
class PlacesBothWays final : public Kernel {
 public:
  explicit PlacesBothWays(const Attributes& attributes)
      : map_(attributes), protected_(attributes.only("protected")) {}

  void run(const Run& run) const override {
    const size_t images = run.indices(0, 2).size(0);
    size_t count = protected_;
    for (size_t input : {0, 1, 3, 4}) count += run.indices(input, 2).size(1);
    const auto matches = map_.matches(run, 0, images, count);
    int64_t* place = run.output<int64_t>(0, {images, count});
    map_.places(matches, images, count, place);
  }

 private:
  BothWaysMap map_;
  size_t protected_;
};

// merge_both_ways(x (B, N, C) [, weight (B, N, 1)], kept, src, dst, kept_back, src_back, dst_back)
// -> (B, M, C) [, (B, M, 1)]: the sums, or the means by weight and the sums of the weights
template <bool ByWeight>
class MergeBothWays final : public Kernel {
 public:
  explicit MergeBothWays(const Attributes& attributes) : map_(attributes) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    GroupArgs args{};
    args.x = x.data;
    args.images = x.size(0);
    args.count = x.size(1);
    args.channels = x.size(2);
    if constexpr (ByWeight) {
      const auto weight = run.floats(1, 3);
      require(weight.size(0) == args.images && weight.size(1) == args.count && weight.size(2) == 1,
              "merge_both_ways: there is no weight for each token.");
      args.weight = weight.data;
    }
    std::vector<int64_t> place(args.images * args.count);
    const auto matches = map_.matches(run, ByWeight ? 2 : 1, args.images, args.count);
    args.rows = map_.places(matches, args.images, args.count, place.data());
    const Groups groups(place.data(), args.images, args.count, args.rows);
    args.start = groups.start();
    args.member = groups.member();
    args.y = run.output<float>(0, {args.images, args.rows, args.channels});
    if constexpr (ByWeight) args.y_weight = run.output<float>(1, {args.images, args.rows, 1});
    run.in_parallel(group_tasks(args), [&](size_t task) { kernels().group_task(args, task); });
  }

 private:
  BothWaysMap map_;
};

}  // namespace

void add_both_ways_operators(std::vector<Operator>* to) {
  to->push_back({"scored_match", "ff", "iiif", make<ScoredMatch>});
  to->push_back({"match_back", "fi", "iii", make<MatchBack>});
  to->push_back({"places_both_ways", "iiiiii", "i", make<PlacesBothWays>});
  to->push_back({"merge_both_ways", "fiiiiii", "f", make<MergeBothWays<false>>});
  to->push_back({"merge_both_ways_by_weight", "ffiiiiii", "ff", make<MergeBothWays<true>>});
}

}  // namespace tokexport
