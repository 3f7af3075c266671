// Matches and merges: each operator reads its tensors, and hands its tasks to the threads.
#include <vector>

#include "operators/groups.h"

namespace tokexport {
namespace {

// bipartite_match(scores (B, Na, Nb)) -> kept (B, Na - r), src (B, r), dst (B, r)
template <bool ByScore>
class Match final : public Kernel {
 public:
  explicit Match(const Attributes& attributes) : pairs_(attributes.count("r")) {}

  void run(const Run& run) const override {
    const auto scores = run.floats(0, 3);
    MatchArgs args = match_outputs(run, scores.size(0), scores.size(1), scores.size(2), pairs_);
    args.scores = scores.data;
    args.by_score = ByScore;
    Layout layout;
    const auto scratch = layout.add_per_thread(run.threads(), match_scratch_bytes(args.rows));
    const auto lease = workspace_.lease(layout.bytes());
    run.in_parallel(args.images, [&](size_t image, Worker worker) {
      kernels().match_task(args, image, scratch.in(lease.memory(), worker.thread));
    });
  }

 private:
  size_t pairs_;
  mutable Workspace workspace_;
};

// gather_tokens(x (B, N, C), index (B, K)) -> (B, K, C)
class Gather final : public Kernel {
 public:
  explicit Gather(const Attributes&) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    const auto index = run.indices(1, 2);
    require_shape("index", index, {x.size(0), index.size(1)});
    require_rows("index", index, x.size(1));
    GatherArgs args{};
    args.x = x.data;
    args.index = index.data;
    args.images = x.size(0);
    args.index_count = index.size(1);
    args.channels = x.size(2);
    args.x_image_stride = x.size(1) * args.channels;
    args.y_image_stride = args.index_count * args.channels;
    args.y = run.output<float>(0, {args.images, args.index_count, args.channels});
    run.in_parallel(args.images, [&](size_t image) { kernels().gather_task(args, image); });
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
    require_shape("index", index, {dst.size(0), index.size(1)});
    require_shape("src", src, {dst.size(0), index.size(1), dst.size(2)});
    require_rows("index", index, dst.size(1));
    ScatterArgs args{};
    args.dst = dst.data;
    args.index = index.data;
    args.src = src.data;
    args.images = dst.size(0);
    args.rows = dst.size(1);
    args.index_count = index.size(1);
    args.channels = dst.size(2);
    args.src_image_stride = args.index_count * args.channels;
    args.y_image_stride = args.rows * args.channels;
    args.mode = Mode;
    args.include_self = IncludeSelf;
    args.y = run.output<float>(0, {args.images, args.rows, args.channels});
    Layout layout;
    const auto scratch =
        layout.add_per_thread(run.threads(), scatter_scratch_floats(args) * sizeof(float));
    const auto lease = workspace_.lease(layout.bytes());
    run.in_parallel(scatter_tasks(args), [&](size_t task, Worker worker) {
      kernels().scatter_task(args, task, scratch.in<float>(lease.memory(), worker.thread));
    });
  }

 private:
  mutable Workspace workspace_;
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
    require_shape("b", b, {images, b.size(1), channels});
    require_shape("kept", kept, {images, kept.size(1)});
    require_shape("src", src, {images, src.size(1)});
    require_shape("dst", dst, {images, src.size(1)});
    require_rows("kept", kept, a.size(1));
    require_rows("src", src, a.size(1));
    require_rows("dst", dst, b.size(1));
    const size_t rows = kept.size(1) + b.size(1);
    float* y = run.output<float>(0, {images, rows, channels});
    GatherArgs gather{};
    gather.x = a.data;
    gather.index = kept.data;
    gather.images = images;
    gather.index_count = kept.size(1);
    gather.channels = channels;
    gather.x_image_stride = a.size(1) * channels;
    gather.y_image_stride = rows * channels;
    gather.y = y;
    ScatterArgs scatter{};
    scatter.dst = b.data;
    scatter.index = dst.data;
    scatter.src = a.data;
    scatter.src_row = src.data;
    scatter.images = images;
    scatter.rows = b.size(1);
    scatter.index_count = Mode == Reduce::kNone ? 0 : src.size(1);
    scatter.channels = channels;
    scatter.src_image_stride = gather.x_image_stride;
    scatter.y_image_stride = gather.y_image_stride;
    scatter.mode = Mode;
    scatter.include_self = true;
    scatter.y = y + gather.index_count * channels;
    const size_t scatters = scatter_tasks(scatter);
    Layout layout;
    const auto scratch =
        layout.add_per_thread(run.threads(), scatter_scratch_floats(scatter) * sizeof(float));
    const auto lease = workspace_.lease(layout.bytes());
    run.in_parallel(scatters + images, [&](size_t task, Worker worker) {
      if (task < scatters)
        kernels().scatter_task(scatter, task, scratch.in<float>(lease.memory(), worker.thread));
      else
        kernels().gather_task(gather, task - scatters);
    });
  }

 private:
  mutable Workspace workspace_;
};

template <Reduce Mode>
void add_scatters(std::vector<Operator>* to, const char* name, const char* excluding) {
  to->push_back({name, "fif", "f", make<Scatter<Mode, true>>});
  to->push_back({excluding, "fif", "f", make<Scatter<Mode, false>>});
}

}  // namespace

void add_token_operators(std::vector<Operator>* to) {
  to->push_back({"bipartite_match", "f", "iii", make<Match<false>>});
  to->push_back({"bipartite_match_by_score", "f", "iii", make<Match<true>>});
  to->push_back({"gather_tokens", "fi", "f", make<Gather>});
  to->push_back({"scatter_tokens_none", "fif", "f", make<Scatter<Reduce::kNone, true>>});
  add_scatters<Reduce::kSum>(to, "scatter_tokens_sum", "scatter_tokens_sum_exclude_self");
  add_scatters<Reduce::kMean>(to, "scatter_tokens_mean", "scatter_tokens_mean_exclude_self");
  add_scatters<Reduce::kProduct>(to, "scatter_tokens_prod", "scatter_tokens_prod_exclude_self");
  add_scatters<Reduce::kMax>(to, "scatter_tokens_amax", "scatter_tokens_amax_exclude_self");
  add_scatters<Reduce::kMin>(to, "scatter_tokens_amin", "scatter_tokens_amin_exclude_self");
  to->push_back({"merge_tokens_none", "ffiii", "f", make<Merge<Reduce::kNone>>});
  to->push_back({"merge_tokens_sum", "ffiii", "f", make<Merge<Reduce::kSum>>});
  to->push_back({"merge_tokens_mean", "ffiii", "f", make<Merge<Reduce::kMean>>});
  to->push_back({"merge_tokens_prod", "ffiii", "f", make<Merge<Reduce::kProduct>>});
  to->push_back({"merge_tokens_amax", "ffiii", "f", make<Merge<Reduce::kMax>>});
  to->push_back({"merge_tokens_amin", "ffiii", "f", make<Merge<Reduce::kMin>>});
}

}  // namespace tokexport
