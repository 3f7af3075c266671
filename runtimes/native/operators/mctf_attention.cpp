// Attention that is computed before tokens merge, and used behind it.
#include <algorithm>
#include <vector>

#include "kernels/kernels.h"
#include "operators/groups.h"
#include "operators/operators.h"

namespace tokexport {
namespace {

// fusion_criteria(weights (B, H, Nq, N), size (B, N, 1)) -> rare (B, N), share (B, N, 1)
class FusionCriteria final : public Kernel {
 public:
  explicit FusionCriteria(const Attributes& attributes)
      : info_power_(attributes.number("info_power")),
        size_power_(attributes.number("size_power")) {}

  void run(const Run& run) const override {
    const auto weights = run.floats(0, 4);
    const auto size = run.floats(1, 3);
    CriteriaArgs args{};
    args.weights = weights.data;
    args.size = size.data;
    args.images = weights.size(0);
    args.rows = weights.size(1) * weights.size(2);
    args.count = weights.size(3);
    args.info_power = info_power_;
    args.size_power = size_power_;
    require(args.rows * args.count > 0, "fusion_criteria: there is no attention.");
    require(size.size(0) == args.images && size.size(1) == args.count && size.size(2) == 1,
            "fusion_criteria: there is no size for each token.");
    args.rare = run.output<float>(0, {args.images, args.count});
    args.share = run.output<float>(1, {args.images, args.count, 1});
    run.in_phases(
        phase(args.images * tasks_for(args.count, kMeanColumns),
              [&](size_t task) { kernels().received_task(args, task); }),
        phase(args.images, [&](size_t task) { kernels().criteria_task(args, task); }));
  }

 private:
  float info_power_;
  float size_power_;
};

// ahead_attention(weights (B, H, N, N), v (B, M, ·), place (B, N), share (B, N, 1), kept, src, dst,
// kept_back, src_back, dst_back) -> (B, M, H · D): each key takes the row of v at its place, and
// queries that merge are averaged by their shares.
class AheadAttention final : public Kernel {
 public:
  explicit AheadAttention(const Attributes& attributes)
      : heads_(attributes.only("heads")),
        depth_(attributes.only("depth")),
        v_start_(attributes.only("v_start")),
        map_(attributes) {}

  void run(const Run& run) const override {
    const auto weights = run.floats(0, 4);
    const auto v = run.floats(1, 3);
    const auto place = run.indices(2, 2);
    const auto share = run.floats(3, 3);
    AheadArgs args{};
    args.images = v.size(0);
    args.heads = heads_;
    args.count = weights.size(2);
    args.value_depth = depth_;
    require(weights.size(0) == args.images && weights.size(1) == heads_ &&
                weights.size(3) == args.count && place.size(0) == args.images &&
                place.size(1) == args.count && share.size(0) == args.images &&
                share.size(1) == args.count && share.size(2) == 1,
            "ahead_attention: the shapes do not fit.");
    require_heads(v_start_, heads_, depth_, v.size(2));
    require_rows(place, v.size(1));
    std::vector<int64_t> goes_to(args.images * args.count);
    const auto matches = map_.matches(run, 4, args.images, args.count);
    args.rows = map_.places(matches, args.images, args.count, goes_to.data());
    const Groups groups(goes_to.data(), args.images, args.count, args.rows);
    const size_t width = heads_ * depth_;
    args.weights = weights.data;
    args.share = share.data;
    args.v = {v.data + v_start_, v.size(1) * v.size(2), depth_, v.size(2)};
    args.place = place.data;
    args.start = groups.start();
    args.member = groups.member();
    args.y = {run.output<float>(0, {args.images, args.rows, width}), args.rows * width, depth_,
              width};
    args.rows_per_task = evenly(args.rows, 56);
    const size_t pairs = args.images * heads_;
    if (pairs * args.rows * depth_ == 0) return;
    args.packed_v = static_cast<float*>(scratch(pairs * packed_v_floats(args) * sizeof(float)));
    run.in_phases(phase(pairs, [&](size_t task) { kernels().ahead_values_task(args, task); }),
                  phase(pairs * tasks_for(args.rows, args.rows_per_task),
                        [&](size_t task) { kernels().ahead_task(args, task); }));
  }

 private:
  size_t heads_;
  size_t depth_;
  size_t v_start_;
  BothWaysMap map_;
};

}  // namespace

void add_ahead_operators(std::vector<Operator>* to) {
  to->push_back({"fusion_criteria", "ff", "ff", make<FusionCriteria>});
  to->push_back({"ahead_attention", "ffifiiiiii", "f", make<AheadAttention>});
}

}  // namespace tokexport
