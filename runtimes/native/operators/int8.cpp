// Linear layers in 8-bit integers.
#include <algorithm>
#include <cmath>

#include "operators/operators.h"

namespace tokexport {
namespace {

// Elements whose range, or rows of as many whose integers, one task finds.
constexpr size_t kElementsPerTask = 16384;

struct Quantisation {
  float scale;
  int32_t zero_point;
};

// Returns the quantisation of DynamicQuantizeLinear: 0 is in its range, and is a whole number of steps
// from the ends. Where an element is not finite, the scale is NaN, and so is the product. A range whose
// steps are too small for a number is one of zeros.
Quantisation dynamic_quantisation(const MinMaxArgs& args, size_t tasks) {
  if (tasks == 0) return {1.0f, 0};
  const float low = *std::min_element(args.min, args.min + tasks);
  const float high = *std::max_element(args.max, args.max + tasks);
  if (!std::isfinite(high - low)) return {std::nanf(""), 0};
  const float step = (high - low) / 255.0f;
  const float scale = step == 0.0f ? 1.0f : step;
  const float zero_point = std::nearbyint(std::clamp(-low / scale, 0.0f, 255.0f));
  return {scale, static_cast<int32_t>(zero_point)};
}

// integer_linear(x (B, N, K), panels (P, ⌈K / 4⌉, 32, 4), scales (C), bias (C) [, residual]) ->
// (B, N, C)
template <bool Gelu, bool Residual>
class IntegerLinear final : public Kernel {
 public:
  explicit IntegerLinear(const Attributes&) {}

  void run(const Run& run) const override {
    const auto x = run.floats(0, 3);
    const auto panels = run.bytes(1, 4);
    const auto scales = run.floats(2, 1);
    const auto bias = run.floats(3, 1);
    Int8LinearArgs args{};
    LinearArgs& to = args.to;
    to.rows = x.size(0) * x.size(1);
    to.depth = x.size(2);
    to.columns = bias.size(0);
    require_shape("panels", panels, {panel_count(to.columns), ceil_div(to.depth, 4), kPackedN, 4});
    require_shape("scales", scales, {to.columns});
    to.bias = bias.data;
    to.gelu = Gelu;
    if constexpr (Residual) {
      const auto residual = run.floats(4, 3);
      require_shape("residual", residual, {x.size(0), x.size(1), to.columns});
      to.residual = residual.data;
    }
    to.y = run.output<float>(0, {x.size(0), x.size(1), to.columns});
    if (to.rows == 0 || to.columns == 0) return;
    args.panels = panels.data;
    args.scales = scales.data;
    args.row_bytes = panels.size(1) * 4;
    to.rows_per_task = rows_per_task(to.rows, args.row_bytes);
    const size_t count = to.rows * to.depth;
    const size_t parts = ceil_div(count, kElementsPerTask);
    Layout layout;
    const auto min = layout.add<float>(parts);
    const auto max = layout.add<float>(parts);
    const auto quantised = layout.add<uint8_t>(to.rows * args.row_bytes);
    std::byte* memory = thread_memory(layout.bytes());
    const MinMaxArgs range{x.data, min.in(memory), max.in(memory), count, kElementsPerTask};
    QuantiseArgs from{};
    from.x = x.data;
    from.q = quantised.in(memory);
    from.rows = to.rows;
    from.depth = to.depth;
    from.row_bytes = args.row_bytes;
    from.rows_per_task = std::max<size_t>(1, kElementsPerTask / std::max<size_t>(from.depth, 1));
    args.q = from.q;
    run.in_phases(
        phase(parts, [&](size_t task) { kernels().int8.min_max_task(range, task); }),
        phase(1,
              [&](size_t) {
                const Quantisation found = dynamic_quantisation(range, parts);
                from.scale = args.scale = found.scale;
                from.zero_point = args.zero_point = found.zero_point;
              }),
        phase(ceil_div(from.rows, from.rows_per_task),
              [&](size_t task) { kernels().int8.quantise_task(from, task); }),
        phase(linear_tasks(to), [&](size_t task) { kernels().int8.linear_task(args, task); }));
  }
};

}  // namespace

void add_int8_operators(std::vector<Operator>* to) {
  if (kernels().int8.linear_task == nullptr) return;
  to->push_back({"integer_linear", "fbff", "f", make<IntegerLinear<false, false>>});
  to->push_back({"integer_linear_gelu", "fbff", "f", make<IntegerLinear<true, false>>});
  to->push_back({"integer_linear_add", "fbfff", "f", make<IntegerLinear<false, true>>});
}

}  // namespace tokexport
