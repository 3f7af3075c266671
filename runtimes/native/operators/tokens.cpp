// Matches and merges: each operator reads its tensors, and hands its tasks to the threads.
#include <vector>

#include "kernels/kernels.h"
#include "operators/groups.h"
#include "operators/operators.h"

namespace tokexport {
namespace {

// bipartite_match(scores (B, Na, Nb)) -> kept (B, Na - r), src (B, r), dst (B, r)
template <bool ByScore>
class Match final : public Kernel {
 public:
  explicit Match(const Attributes& attributes) : taken_(attributes.only("r")) {}

  void run(const Run& run) const override {
    const auto scores = run.floats(0, 3);
    require(scores.size(2) > 0 && taken_ <= scores.size(1),
            "bipartite_match: r is more than the rows.");
    MatchArgs args = matched(run, scores.size(0), scores.size(1), scores.size(2), taken_);
    args.scores = scores.data;
    args.by_score = ByScore;
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
  add_scatters<Reduce::kLargest>(to, "scatter_tokens_amax", "scatter_tokens_amax_exclude_self");
  add_scatters<Reduce::kSmallest>(to, "scatter_tokens_amin",
                                  "scatter_tokens_amin_exclude_self");
  to->push_back({"merge_tokens_none", "ffiii", "f", make<Merge<Reduce::kNone>>});
  to->push_back({"merge_tokens_sum", "ffiii", "f", make<Merge<Reduce::kSum>>});
  to->push_back({"merge_tokens_mean", "ffiii", "f", make<Merge<Reduce::kMean>>});
  to->push_back({"merge_tokens_prod", "ffiii", "f", make<Merge<Reduce::kProduct>>});
  to->push_back({"merge_tokens_amax", "ffiii", "f", make<Merge<Reduce::kLargest>>});
  to->push_back({"merge_tokens_amin", "ffiii", "f", make<Merge<Reduce::kSmallest>>});
}

}  // namespace tokexport
