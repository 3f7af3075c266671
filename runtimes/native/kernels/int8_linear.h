// y = activation(x w + bias) + residual with x and w in 8-bit integers: x unsigned, with one scale and
// zero point for the whole tensor, w signed, with one scale for each column.
//
// Sums are int32 and exact. It needs the dot product of four bytes with four bytes, so only instruction
// sets that have it have this kernel.
#pragma once

#include "kernels/linear.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define TOKEXPORT_INT8_DOT_PRODUCT
#include <immintrin.h>
#endif

namespace tokexport::TOKEXPORT_ISA {

#ifdef TOKEXPORT_INT8_DOT_PRODUCT

using Bytes = uint8_t __attribute__((vector_size(TOKEXPORT_WIDTH)));

// sums + the dot products of each four unsigned bytes of x with four signed ones of w.
inline Ints dot_product_add(Ints sums, Ints x, Ints w) {
#ifdef __AVX512VNNI__
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums),
                                                    reinterpret_cast<__m512i>(x),
                                                    reinterpret_cast<__m512i>(w)));
#else
  return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums),
                                                        reinterpret_cast<__m256i>(x),
                                                        reinterpret_cast<__m256i>(w)));
#endif
}

inline Ints load(const int32_t* from) {
  Ints value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Ints load_bytes(const int8_t* from) {
  Ints value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Ints broadcast_four(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return Ints{} + four;
}

inline void store(int32_t* to, Ints value) { std::memcpy(to, &value, sizeof value); }

// Finds the minimum and the maximum of one chunk and 0; infinite where one is not finite.
inline void min_max_task(const MinMaxArgs& args, size_t task) {
  const size_t begin = task * args.per_task;
  const size_t end = min(args.count, begin + args.per_task);
  Floats lowest{};
  Floats highest{};
  Floats sum{};  // of x - x: 0, or NaN
  for (size_t i = begin; i < end; i += kLanes) {
    const Floats value = load_tail(args.x + i, min(kLanes, end - i));
    lowest = min(value, lowest);
    highest = max(value, highest);
    sum += value - value;
  }
  if (reduce_add(sum) != 0.0f) highest = broadcast(__builtin_inff());
  args.min[task] = -reduce_max(-lowest);
  args.max[task] = reduce_max(highest);
}

// q = round(x / scale) + zero point, to the nearest even, for the rows of one chunk.
inline void quantise_task(const QuantiseArgs& args, size_t task) {
  const size_t begin = task * args.rows_per_task;
  const size_t end = min(args.rows, begin + args.rows_per_task);
  const Floats lowest = broadcast(-static_cast<float>(args.zero_point));
  const Floats highest = broadcast(255.0f - static_cast<float>(args.zero_point));
  const Floats scale = broadcast(args.scale);
  for (size_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.depth;
    uint8_t* q = args.q + row * args.row_bytes;
    for (size_t i = 0; i < args.depth; i += kLanes) {
      const size_t count = min(kLanes, args.depth - i);
      const Floats value =
          min(max(load_tail(x + i, count, 0.0f) / scale, lowest), highest) + 12582912.0f;
      Ints bits;
      std::memcpy(&bits, &value, sizeof bits);
      const Bytes bytes = __builtin_convertvector(bits - 0x4B400000 + args.zero_point, Bytes);
      std::memcpy(q + i, &bytes, count);
    }
    // The zeros behind a row are multiplied by weights of zero.
    std::memset(q + args.depth, 0, args.row_bytes - args.depth);
  }
}

// sums (MR, kNR) = x (MR, 4 · groups) · panel (groups, kNR of 32, 4).
template <size_t MR>
[[gnu::noinline]] void int8_microkernel(const uint8_t* x, size_t row_bytes, size_t groups,
                                        const int8_t* panel, int32_t* sums, Prefetch next_panel) {
  Ints left_sums[MR];
  Ints right_sums[MR];
#pragma GCC unroll 14
  for (size_t r = 0; r < MR; ++r) left_sums[r] = right_sums[r] = Ints{};
  constexpr size_t kPointers = (MR + 2) / 3;  // as in multiply_block
  const uint8_t* rows[kPointers];
#pragma GCC unroll 5
  for (size_t p = 0; p < kPointers; ++p) rows[p] = x + 3 * p * row_bytes;
  for (const int8_t* end = panel + groups * 4 * kPackedN; panel != end; panel += 4 * kPackedN) {
    __builtin_prefetch(panel + kPrefetchDistance * 4 * kPackedN);
    __builtin_prefetch(panel + kPrefetchDistance * 4 * kPackedN + 4 * kLanes);
    __builtin_prefetch(next_panel.from, 0, 2);
    next_panel.from += next_panel.step;
    const Ints left = load_bytes(panel);
    const Ints right = load_bytes(panel + 4 * kLanes);
#pragma GCC unroll 14
    for (size_t r = 0; r < MR; ++r) {
      const Ints factor = broadcast_four(rows[r / 3] + r % 3 * row_bytes);
      left_sums[r] = dot_product_add(left_sums[r], factor, left);
      right_sums[r] = dot_product_add(right_sums[r], factor, right);
    }
#pragma GCC unroll 5
    for (size_t p = 0; p < kPointers; ++p) {
      rows[p] += 4;
      asm("" : "+r"(rows[p]));
    }
  }
#pragma GCC unroll 14
  for (size_t r = 0; r < MR; ++r) {
    store(sums + r * kNR, left_sums[r]);
    store(sums + r * kNR + kLanes, right_sums[r]);
  }
}

template <size_t MR = kMR>
inline void int8_gemm_rows(size_t rows, const uint8_t* x, size_t row_bytes, size_t groups,
                           const int8_t* panel, int32_t* sums, Prefetch next_panel) {
  if constexpr (MR > 0) {
    if (rows == MR)
      int8_microkernel<MR>(x, row_bytes, groups, panel, sums, next_panel);
    else
      int8_gemm_rows<MR - 1>(rows, x, row_bytes, groups, panel, sums, next_panel);
  }
}

// Computes the columns of one panel for the rows of one chunk.
inline void int8_linear_task(const Int8LinearArgs& args, size_t task) {
  const LinearArgs& to = args.to;
  const size_t panels = panel_count(to.columns);
  const size_t panel = task % panels;
  const size_t begin = task / panels * to.rows_per_task;
  const size_t rows = min(to.rows_per_task, to.rows - begin);
  const size_t groups = args.row_bytes / 4;
  const size_t panel_bytes = 4 * kPackedN * groups;
  PanelPrefetch next_panel(args.panels + (panel + 1) % panels * panel_bytes, groups, 4 * kPackedN,
                           kPackedN / kNR * row_block_count(rows));
  int32_t sums[kMR][kNR];
  float tile[kMR][kNR];
  for (size_t inner = 0; inner < kPackedN; inner += kNR) {
    const size_t column = panel * kPackedN + inner;
    if (column >= to.columns) break;
    const size_t columns = min(kNR, to.columns - column);
    const int8_t* weights = args.panels + panel * panel_bytes + 4 * inner;
    // (q - zero point) w = q w - zero point · (the sum of w).
    Ints offset[2] = {};
    for (size_t g = 0; g < groups; ++g)
      for (size_t half = 0; half < 2; ++half)
        offset[half] = dot_product_add(offset[half], Ints{} + 0x01010101,
                                       load_bytes(weights + 4 * (g * kPackedN + half * kLanes)));
    Floats factor[2];
    Floats bias[2];
    for (size_t half = 0; half < 2; ++half) {
      offset[half] *= args.zero_point;
      const size_t from = half * kLanes;
      const size_t count = from < columns ? min(kLanes, columns - from) : 0;
      factor[half] = args.scale * load_tail(args.scales + column + from, count);
      bias[half] = to.bias == nullptr ? Floats{} : load_tail(to.bias + column + from, count);
    }
    for_row_blocks(rows, [&](size_t first, size_t count) {
      const size_t row = begin + first;
      int8_gemm_rows(count, args.q + row * args.row_bytes, args.row_bytes, groups, weights,
                     sums[0], next_panel.next_part());
      for (size_t r = 0; r < count; ++r)
        for (size_t half = 0; half < 2; ++half) {
          const Ints sum = load(sums[r] + half * kLanes) - offset[half];
          store(tile[r] + half * kLanes,
                __builtin_convertvector(sum, Floats) * factor[half] + bias[half]);
        }
      apply_epilogue(to, tile, row, count, column, columns);
    });
  }
}

inline constexpr Int8Kernels int8_kernels = {
    .min_max_task = min_max_task,
    .quantise_task = quantise_task,
    .linear_task = int8_linear_task,
};

#else

inline constexpr Int8Kernels int8_kernels = {};

#endif

}  // namespace tokexport::TOKEXPORT_ISA
