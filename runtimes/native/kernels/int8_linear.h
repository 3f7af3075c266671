// y = activation(x w + bias) + residual with x and w in 8-bit integers: x unsigned, with one scale and
// zero point for the whole tensor, w signed, with one scale for each column.
//
// Sums are int32 and exact. It needs the dot product of four bytes with four bytes, so only instruction
// sets that have it have this kernel. ARM's i8mm multiplies two rows with two columns at once.
#pragma once

#include "kernels/linear.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define TOKEXPORT_INT8_DOT_PRODUCT
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#define TOKEXPORT_INT8_DOT_PRODUCT
#include <arm_neon.h>
#endif

namespace tokexport::TOKEXPORT_ISA {

#ifdef TOKEXPORT_INT8_DOT_PRODUCT

using Bytes = uint8_t __attribute__((vector_size(TOKEXPORT_WIDTH)));

// The dot product of x86 takes x unsigned, as it is; that of ARM takes it signed, less 128.
#ifdef __ARM_FEATURE_DOTPROD
inline constexpr int32_t kByteShift = 128;
#else
inline constexpr int32_t kByteShift = 0;
#endif

// sums + the dot products of each four bytes of x, shifted, with four signed ones of w.
inline Ints dot_product_add(Ints sums, Ints x, Ints w) {
#if defined(__ARM_FEATURE_DOTPROD)
  return reinterpret_cast<Ints>(vdotq_s32(reinterpret_cast<int32x4_t>(sums),
                                          reinterpret_cast<int8x16_t>(x),
                                          reinterpret_cast<int8x16_t>(w)));
#elif defined(__AVX512VNNI__)
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums),
                                                    reinterpret_cast<__m512i>(x),
                                                    reinterpret_cast<__m512i>(w)));
#else
  return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums),
                                                        reinterpret_cast<__m256i>(x),
                                                        reinterpret_cast<__m256i>(w)));
#endif
}

inline Ints load(const int32_t* from) { return read_vector<Ints>(from); }

inline Ints load_bytes(const int8_t* from) { return read_vector<Ints>(from); }

inline Ints broadcast_four(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return Ints{} + four;
}

inline void store(int32_t* to, Ints value) { write_vector(to, value); }

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

// q = round(x / scale) + zero point - kByteShift, to the nearest even, for the rows of one chunk.
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
      const Bytes bytes =
          __builtin_convertvector(bits - 0x4B400000 + args.zero_point - kByteShift, Bytes);
      std::memcpy(q + i, &bytes, count);
    }
    // The zeros behind a row are multiplied by weights of zero.
    for (size_t i = args.depth; i < args.row_bytes; ++i) q[i] = 0;
  }
}

#ifdef __ARM_FEATURE_MATMUL_INT8

// Rows of the microkernel: two of them and two columns share a vector of sums.
inline constexpr size_t kInt8MR = 12;

// sums of MR rows and kNR columns, as blocks of two rows and two columns.
template <size_t MR>
struct BlockSums {
  static constexpr size_t kPairs = (MR + 1) / 2;  // of rows

  int32x4_t blocks[kPairs][kNR / 2];

  // Adds the products of 8 bytes of each row with those of two groups of a panel.
  template <typename RowBytes>
  void add(const RowBytes& row_bytes, const int8_t* group, const int8_t* next_group) {
    int8x16_t columns[kNR / 2];
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      const auto first = read_vector<int32x4_t>(group + half * 4 * kLanes);
      const auto second = next_group == nullptr
                              ? int32x4_t{}
                              : read_vector<int32x4_t>(next_group + half * 4 * kLanes);
      columns[2 * half] = reinterpret_cast<int8x16_t>(vzip1q_s32(first, second));
      columns[2 * half + 1] = reinterpret_cast<int8x16_t>(vzip2q_s32(first, second));
    }
#pragma GCC unroll 7
    for (size_t p = 0; p < kPairs; ++p) {
      const int8x16_t rows = vcombine_s8(row_bytes(2 * p), row_bytes(min(2 * p + 1, MR - 1)));
#pragma GCC unroll 4
      for (size_t c = 0; c < kNR / 2; ++c)
        blocks[p][c] = vmmlaq_s32(blocks[p][c], rows, columns[c]);
    }
  }

  void store_rows(int32_t* sums) const {
#pragma GCC unroll 14
    for (size_t r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (size_t c = 0; c < kNR / 2; ++c) {
        const int32x4_t block = blocks[r / 2][c];
        vst1_s32(sums + r * kNR + 2 * c, r % 2 == 0 ? vget_low_s32(block) : vget_high_s32(block));
      }
    }
  }
};

// sums (MR, kNR) = x (MR, 4 · groups) · panel (groups, kNR of 32, 4), two groups at a time.
template <size_t MR>
[[gnu::noinline]] void int8_microkernel(const uint8_t* x, size_t row_bytes, size_t groups,
                                        const int8_t* panel, int32_t* sums, Prefetch next_panel) {
  constexpr size_t kGroup = 4 * kPackedN;
  BlockSums<MR> found{};
  for (size_t pairs = groups / 2; pairs > 0; --pairs) {
    __builtin_prefetch(panel + kPrefetchDistance * kGroup);
    __builtin_prefetch(panel + (kPrefetchDistance + 1) * kGroup);
    __builtin_prefetch(next_panel.from, 0, 2);
    next_panel.from += 2 * next_panel.step;
    const auto eight = [&](size_t r) {
      return read_vector<int8x8_t>(x + r * row_bytes);
    };
    found.add(eight, panel, panel + kGroup);
    x += 8;
    panel += 2 * kGroup;
  }
  if (groups % 2 != 0) {
    const auto four = [&](size_t r) {
      int32_t bytes;
      std::memcpy(&bytes, x + r * row_bytes, sizeof bytes);
      return reinterpret_cast<int8x8_t>(int32x2_t{bytes, 0});
    };
    found.add(four, panel, nullptr);
  }
  found.store_rows(sums);
}

#else

inline constexpr size_t kInt8MR = kMR;

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

#endif

template <size_t MR = kInt8MR>
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
                           kPackedN / kNR * row_block_count<kInt8MR>(rows));
  int32_t sums[kMR][kNR];
  float tile[kMR][kNR];
  for (size_t inner = 0; inner < kPackedN; inner += kNR) {
    const size_t column = panel * kPackedN + inner;
    if (column >= to.columns) break;
    const size_t columns = min(kNR, to.columns - column);
    const int8_t* weights = args.panels + panel * panel_bytes + 4 * inner;
    // (q - zero point) w = (q - shift) w - (zero point - shift) · (the sum of w).
    Ints offset[2] = {};
    for (size_t g = 0; g < groups; ++g)
      for (size_t half = 0; half < 2; ++half)
        offset[half] = dot_product_add(offset[half], Ints{} + 0x01010101,
                                       load_bytes(weights + 4 * (g * kPackedN + half * kLanes)));
    Floats factor[2];
    Floats bias[2];
    for (size_t half = 0; half < 2; ++half) {
      offset[half] *= args.zero_point - kByteShift;
      const size_t from = half * kLanes;
      const size_t count = from < columns ? min(kLanes, columns - from) : 0;
      factor[half] = args.scale * load_tail(args.scales + column + from, count);
      bias[half] = to.bias == nullptr ? Floats{} : load_tail(to.bias + column + from, count);
    }
    for_row_blocks<kInt8MR>(rows, [&](size_t first, size_t count) {
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
