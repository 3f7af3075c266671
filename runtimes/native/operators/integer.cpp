// Linear layers in 8-bit integers, and the memory that operators share.
#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "operators/operators.h"

namespace tokexport {
namespace {

// Numbers whose range, or rows whose integers, one task finds.
constexpr size_t kNumbersPerTask = 16384;

struct Range {
  float scale;
  int32_t zero;
};

// The range of DynamicQuantizeLinear: 0 is in it, and is a whole number of steps from its ends. Where
// a number is not finite, neither is the scale, and no result of the product is.
Range joined(const RangeArgs& args, size_t tasks) {
  if (tasks == 0) return {1.0f, 0};
  const float low = *std::min_element(args.least, args.least + tasks);
  const float high = *std::max_element(args.largest, args.largest + tasks);
  if (!std::isfinite(high - low)) return {std::nanf(""), 0};
  const float scale = low == high ? 1.0f : (high - low) / 255.0f;
  const float zero = std::nearbyint(std::clamp(-low / scale, 0.0f, 255.0f));
  return {scale, static_cast<int32_t>(zero)};
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
    IntegerLinearArgs args{};
    LinearArgs& to = args.to;
    to.rows = x.size(0) * x.size(1);
    to.depth = x.size(2);
    to.columns = bias.size(0);
    require(panels.size(0) == panel_count(to.columns) && panels.size(1) == (to.depth + 3) / 4 &&
                panels.size(2) == kPanel && panels.size(3) == 4 && scales.size(0) == to.columns,
            "integer_linear: the weights are not packed for this input and bias.");
    to.bias = bias.data;
    to.gelu = Gelu;
    if constexpr (Residual) {
      const auto residual = run.floats(4, 3);
      require(residual.size(0) == x.size(0) && residual.size(1) == x.size(1) &&
                  residual.size(2) == to.columns,
              "integer_linear: what is added has another shape than the product.");
      to.residual = residual.data;
    }
    to.y = run.output<float>(0, {x.size(0), x.size(1), to.columns});
    if (to.rows == 0 || to.columns == 0) return;
    args.panels = panels.data;
    args.scales = scales.data;
    args.row_bytes = panels.size(1) * 4;
    to.rows_per_task = rows_per_task(to.rows, args.row_bytes);
    const size_t count = to.rows * to.depth;
    const size_t parts = tasks_for(count, kNumbersPerTask);
    auto* least = static_cast<float*>(
        scratch(2 * parts * sizeof(float) + to.rows * args.row_bytes));
    const RangeArgs range{x.data, least, least + parts, count, kNumbersPerTask};
    QuantiseArgs from{};
    from.x = x.data;
    from.q = reinterpret_cast<uint8_t*>(least + 2 * parts);
    from.rows = to.rows;
    from.depth = to.depth;
    from.row_bytes = args.row_bytes;
    from.rows_per_task = std::max<size_t>(1, kNumbersPerTask / std::max<size_t>(from.depth, 1));
    args.q = from.q;
    run.in_phases(
        phase(parts, [&](size_t task) { kernels().integers.range_task(range, task); }),
        phase(1,
              [&](size_t) {
                const Range found = joined(range, parts);
                from.scale = args.scale = found.scale;
                from.zero = args.zero = found.zero;
              }),
        phase(tasks_for(from.rows, from.rows_per_task),
              [&](size_t task) { kernels().integers.quantise_task(from, task); }),
        phase(linear_tasks(to), [&](size_t task) { kernels().integers.linear_task(args, task); }));
  }
};

}  // namespace

void* scratch(size_t bytes) {
  thread_local std::vector<double> kept;
  const size_t numbers = (bytes + sizeof(double) - 1) / sizeof(double);
  if (kept.size() < numbers) kept.resize(numbers);
  return kept.data();
}

void add_integer_operators(std::vector<Operator>* to) {
  if (kernels().integers.linear_task == nullptr) return;
  to->push_back({"integer_linear", "fbff", "f", make<IntegerLinear<false, false>>});
  to->push_back({"integer_linear_gelu", "fbff", "f", make<IntegerLinear<true, false>>});
  to->push_back({"integer_linear_add", "fbfff", "f", make<IntegerLinear<false, true>>});
}

}  // namespace tokexport
