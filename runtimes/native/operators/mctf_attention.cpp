// Attention that MCTF computes before its tokens merge, and uses behind the merge.
#include <vector>

#include "operators/groups.h"

namespace tokexport {
namespace {

// fusion_criteria(weights (B, H, Nq, N), size (B, N, 1)) -> rarity (B, N), share (B, N, 1)
class FusionCriteria final : public Kernel {
 public:
  explicit FusionCriteria(const Attributes& attributes)
      : info_power_(attributes.real("info_power")),
        size_power_(attributes.real("size_power")) {}

  void run(const Run& run) const override {
    const auto weights = run.floats(0, 4);
    const auto size = run.floats(1, 3);
    FusionCriteriaArgs args{};
    args.weights = weights.data;
    args.size = size.data;
    args.images = weights.size(0);
    args.rows = weights.size(1) * weights.size(2);
    args.count = weights.size(3);
    args.info_power = info_power_;
    args.size_power = size_power_;
    require(args.rows * args.count > 0, "weights has shape ", weights.shape,
            ", expected heads, queries and keys");
    require_shape("size", size, {args.images, args.count, 1});
    args.rarity = run.output<float>(0, {args.images, args.count});
    args.share = run.output<float>(1, {args.images, args.count, 1});
    run.in_phases(
        phase(args.images * ceil_div(args.count, kMeanColumnsPerTask),
              [&](size_t task) { kernels().attention_received_task(args, task); }),
        phase(args.images, [&](size_t image) { kernels().fusion_criteria_task(args, image); }));
  }

 private:
  float info_power_;
  float size_power_;
};

// ahead_attention(weights (B, H, N, N), v (B, M, ·), place (B, N), share (B, N, 1), kept, src, dst,
// kept_back, src_back, dst_back) -> (B, M, H · D): each key takes the row of v at its place, and
// queries that merge are averaged by their shares.
class MergedAttention final : public Kernel {
 public:
  explicit MergedAttention(const Attributes& attributes)
      : heads_(attributes.count("heads")),
        depth_(attributes.count("depth")),
        v_start_(attributes.count("v_start")),
        map_(attributes) {}

  void run(const Run& run) const override {
    const auto weights = run.floats(0, 4);
    const auto v = run.floats(1, 3);
    const auto place = run.indices(2, 2);
    const auto share = run.floats(3, 3);
    MergedAttentionArgs args{};
    args.images = v.size(0);
    args.heads = heads_;
    args.count = weights.size(2);
    args.value_depth = depth_;
    require_shape("weights", weights, {args.images, heads_, args.count, args.count});
    require_shape("place", place, {args.images, args.count});
    require_shape("share", share, {args.images, args.count, 1});
    require_heads("v", v_start_, heads_, depth_, v.size(2));
    require_rows("place", place, v.size(1));
    std::vector<int64_t> destination(args.images * args.count);
    const auto matches = map_.matches(run, 4, args.images, args.count);
    args.rows = map_.destinations(matches, args.images, args.count, destination.data());
    const Groups groups(destination.data(), args.images, args.count, args.rows);
    const size_t width = heads_ * depth_;
    args.weights = weights.data;
    args.share = share.data;
    args.v = {v.data + v_start_, v.size(1) * v.size(2), depth_, v.size(2)};
    args.value_row = place.data;
    args.row_start = groups.row_start();
    args.members = groups.members();
    args.y = {run.output<float>(0, {args.images, args.rows, width}), args.rows * width, depth_,
              width};
    args.rows_per_task = balanced(args.rows, 56);
    const size_t heads = args.images * heads_;
    if (heads * args.rows * depth_ == 0) return;
    Layout layout;
    const auto packed_v = layout.add<float>(heads * packed_v_floats(args));
    const auto scratch = layout.add_per_thread(
        run.threads(), merged_attention_scratch_floats(args) * sizeof(float));
    std::byte* memory = thread_memory(layout.bytes());
    args.packed_v = packed_v.in(memory);
    run.in_phases(phase(heads, [&](size_t task) { kernels().merged_values_task(args, task); }),
                  phase(heads * ceil_div(args.rows, args.rows_per_task),
                        [&](size_t task, Worker worker) {
                          kernels().merged_attention_task(
                              args, task, scratch.in<float>(memory, worker.thread));
                        }));
  }

 private:
  size_t heads_;
  size_t depth_;
  size_t v_start_;
  BidirectionalMap map_;
};

}  // namespace

void add_mctf_attention_operators(std::vector<Operator>* to) {
  to->push_back({"fusion_criteria", "ff", "ff", make<FusionCriteria>});
  to->push_back({"ahead_attention", "ffifiiiiii", "f", make<MergedAttention>});
}

}  // namespace tokexport
