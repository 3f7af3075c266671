// A match forth and back, and what merges by it.
#include <vector>

#include "groups.h"
#include "kernels.h"
#include "operators.h"
#include "workspace.h"

namespace tokexport {
namespace {

// match_both_ways(tokens (B, N, C), rare (B, N)) -> kept (B, Na - r), src (B, r), dst (B, r), and
// the same of the match back: (B, Nb - s), (B, s), (B, s)
class MatchBothWays final : public Kernel {
 public:
  explicit MatchBothWays(const Attributes& attributes)
      : sets_(attributes), forth_(attributes.only("r")), back_(attributes.only("back")) {}

  void run(const Run& run) const override {
    const auto tokens = run.floats(0, 3);
    const auto rare = run.floats(1, 2);
    BothWaysArgs args{};
    args.tokens = tokens.data;
    args.rare = rare.data;
    args.images = tokens.size(0);
    args.count = tokens.size(1);
    args.channels = tokens.size(2);
    args.a = sets_.a(args.count);
    args.b = sets_.b(args.count);
    require(rare.size(0) == args.images && rare.size(1) == args.count,
            "match_both_ways: there is no term for each token.");
    require(args.b.count > 0 && forth_ < args.a.count && back_ <= args.b.count,
            "match_both_ways: more tokens merge than there are.");
    args.forth = matched(run, 0, args.images, args.a.count, forth_);
    args.back = matched(run, 3, args.images, args.b.count, back_);
    args.back.by_score = true;
    const Workspace::Lease work = workspace_.lease(args.images * both_ways_floats(args));
    args.work = work.data();
    const size_t chunks = tasks_for(args.a.count, kScoredRows);
    run.in_parallel(2 * args.images,
                    [&](size_t task) { kernels().both_ways_units_task(args, task); });
    run.in_parallel(args.images * chunks,
                    [&](size_t task) { kernels().both_ways_scores_task(args, task); });
    run.in_parallel(args.images,
                    [&](size_t task) { kernels().both_ways_match_task(args, task); });
  }

 private:
  static MatchArgs matched(const Run& run, size_t output, size_t images, size_t rows,
                           size_t taken) {
    MatchArgs args{};
    args.images = images;
    args.rows = rows;
    args.taken = taken;
    args.kept = run.output<int64_t>(output, {images, rows - taken});
    args.src = run.output<int64_t>(output + 1, {images, taken});
    args.dst = run.output<int64_t>(output + 2, {images, taken});
    return args;
  }

  Sets sets_;
  size_t forth_;
  size_t back_;
  mutable Workspace workspace_;
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
    int64_t* place = run.output<int64_t>(0, {images, count});
    map_.places(run, 0, images, count, place);
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
    args.rows = map_.places(run, ByWeight ? 2 : 1, args.images, args.count, place.data());
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
  to->push_back({"match_both_ways", "ff", "iiiiii", make<MatchBothWays>});
  to->push_back({"places_both_ways", "iiiiii", "i", make<PlacesBothWays>});
  to->push_back({"merge_both_ways", "fiiiiii", "f", make<MergeBothWays<false>>});
  to->push_back({"merge_both_ways_by_weight", "ffiiiiii", "ff", make<MergeBothWays<true>>});
}

}  // namespace tokexport
