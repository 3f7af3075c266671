// y = activation(x w + bias) + residual with x and w in 8-bit integers: x unsigned, on one range for
// the whole tensor, w signed, on one scale for each column.
//
// Sums are of int32 and exact. The processor's product of four bytes with four bytes is what this is
// for, so there is no kernel for an instruction set without one.
#pragma once

#include "kernels/linear.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define TOKEXPORT_BYTE_PRODUCTS
#include <immintrin.h>
#endif

namespace tokexport::TOKEXPORT_ISA {

#ifdef TOKEXPORT_BYTE_PRODUCTS

using Bytes = uint8_t __attribute__((vector_size(TOKEXPORT_WIDTH)));

// sums + the products of each four unsigned bytes of x with the four signed ones of w.
inline Ints with_products(Ints sums, Ints x, Ints w) {
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

inline Ints all_four(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return Ints{} + four;
}

inline void store(int32_t* to, Ints value) { std::memcpy(to, &value, sizeof value); }

// The least and the largest number of one chunk, and 0; infinite where one is not finite.
inline void range_task(const RangeArgs& args, size_t task) {
  const size_t begin = task * args.per_task;
  const size_t end = smaller(args.count, begin + args.per_task);
  Floats least{};
  Floats largest{};
  Floats sum{};  // of x - x: 0, or no number
  for (size_t i = begin; i < end; i += kWidth) {
    const Floats value = load_first(args.x + i, smaller(kWidth, end - i));
    least = smaller(value, least);
    largest = larger(value, largest);
    sum += value - value;
  }
  if (sum_of(sum) != 0.0f) largest = all(__builtin_inff());
  args.least[task] = -largest_of(-least);
  args.largest[task] = largest_of(largest);
}

// q = round(x / scale) + zero, to the nearest even, for the rows of one chunk.
inline void quantise_task(const QuantiseArgs& args, size_t task) {
  const size_t begin = task * args.rows_per_task;
  const size_t end = smaller(args.rows, begin + args.rows_per_task);
  const Floats least = all(-static_cast<float>(args.zero));
  const Floats most = all(255.0f - static_cast<float>(args.zero));
  const Floats scale = all(args.scale);
  for (size_t row = begin; row < end; ++row) {
    const float* x = args.x + row * args.depth;
    uint8_t* q = args.q + row * args.row_bytes;
    for (size_t i = 0; i < args.depth; i += kWidth) {
      const size_t count = smaller(kWidth, args.depth - i);
      const Floats value =
          smaller(larger(load_first(x + i, count, 0.0f) / scale, least), most) + 12582912.0f;
      Ints bits;
      std::memcpy(&bits, &value, sizeof bits);
      const Bytes bytes = __builtin_convertvector(bits - 0x4B400000 + args.zero, Bytes);
      std::memcpy(q + i, &bytes, count);
    }
    // What fills the last four meets weights of zero.
    std::memset(q + args.depth, 0, args.row_bytes - args.depth);
  }
}

// sums (Rows, kColumns) = x (Rows, 4 · groups) · panel (groups, kColumns of 32, 4).
template <size_t Rows>
[[gnu::noinline]] void multiply_bytes(const uint8_t* x, size_t row_bytes, size_t groups,
                                      const int8_t* panel, int32_t* sums, Fetch fetch) {
  Ints first[Rows];
  Ints second[Rows];
#pragma GCC unroll 14
  for (size_t r = 0; r < Rows; ++r) first[r] = second[r] = Ints{};
  constexpr size_t kPointers = (Rows + 2) / 3;  // as in multiply_block
  const uint8_t* rows[kPointers];
#pragma GCC unroll 5
  for (size_t p = 0; p < kPointers; ++p) rows[p] = x + 3 * p * row_bytes;
  for (const int8_t* end = panel + groups * 4 * kPanel; panel != end; panel += 4 * kPanel) {
    __builtin_prefetch(panel + kAhead * 4 * kPanel);
    __builtin_prefetch(panel + kAhead * 4 * kPanel + 4 * kWidth);
    __builtin_prefetch(fetch.from, 0, 2);
    fetch.from += fetch.step;
    const Ints left = load_bytes(panel);
    const Ints right = load_bytes(panel + 4 * kWidth);
#pragma GCC unroll 14
    for (size_t r = 0; r < Rows; ++r) {
      const Ints factor = all_four(rows[r / 3] + r % 3 * row_bytes);
      first[r] = with_products(first[r], factor, left);
      second[r] = with_products(second[r], factor, right);
    }
#pragma GCC unroll 5
    for (size_t p = 0; p < kPointers; ++p) {
      rows[p] += 4;
      asm("" : "+r"(rows[p]));
    }
  }
#pragma GCC unroll 14
  for (size_t r = 0; r < Rows; ++r) {
    store(sums + r * kColumns, first[r]);
    store(sums + r * kColumns + kWidth, second[r]);
  }
}

template <size_t Rows = kRows>
inline void multiply_byte_rows(size_t rows, const uint8_t* x, size_t row_bytes, size_t groups,
                               const int8_t* panel, int32_t* sums, Fetch fetch) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      multiply_bytes<Rows>(x, row_bytes, groups, panel, sums, fetch);
    else
      multiply_byte_rows<Rows - 1>(rows, x, row_bytes, groups, panel, sums, fetch);
  }
}

// Computes the columns of one panel for the rows of one chunk.
inline void integer_linear_task(const IntegerLinearArgs& args, size_t task) {
  const LinearArgs& to = args.to;
  const size_t panels = panel_count(to.columns);
  const size_t panel = task % panels;
  const size_t begin = task / panels * to.rows_per_task;
  const size_t rows = smaller(to.rows_per_task, to.rows - begin);
  const size_t groups = args.row_bytes / 4;
  const size_t panel_bytes = 4 * kPanel * groups;
  NextPanel next(args.panels + (panel + 1) % panels * panel_bytes, groups, 4 * kPanel,
                 kPanel / kColumns * block_count(rows));
  int32_t sums[kRows][kColumns];
  float tile[kRows][kColumns];
  for (size_t inner = 0; inner < kPanel; inner += kColumns) {
    const size_t column = panel * kPanel + inner;
    if (column >= to.columns) break;
    const size_t columns = smaller(kColumns, to.columns - column);
    const int8_t* weights = args.panels + panel * panel_bytes + 4 * inner;
    // (q - zero) w = q w - zero · (the sum of w).
    Ints offset[2] = {};
    for (size_t g = 0; g < groups; ++g)
      for (size_t half = 0; half < 2; ++half)
        offset[half] = with_products(offset[half], Ints{} + 0x01010101,
                                     load_bytes(weights + 4 * (g * kPanel + half * kWidth)));
    Floats factor[2];
    Floats bias[2];
    for (size_t half = 0; half < 2; ++half) {
      offset[half] *= args.zero;
      const size_t from = half * kWidth;
      const size_t count = from < columns ? smaller(kWidth, columns - from) : 0;
      factor[half] = args.scale * load_first(args.scales + column + from, count);
      bias[half] = to.bias == nullptr ? Floats{} : load_first(to.bias + column + from, count);
    }
    in_blocks(rows, [&](size_t first, size_t count) {
      const size_t row = begin + first;
      multiply_byte_rows(count, args.q + row * args.row_bytes, args.row_bytes, groups, weights,
                         sums[0], next.fetch());
      for (size_t r = 0; r < count; ++r)
        for (size_t half = 0; half < 2; ++half) {
          const Ints sum = load(sums[r] + half * kWidth) - offset[half];
          store(tile[r] + half * kWidth,
                __builtin_convertvector(sum, Floats) * factor[half] + bias[half]);
        }
      finish_block(to, tile, row, count, column, columns);
    });
  }
}

inline constexpr IntegerKernels integer_kernels = {range_task, quantise_task, integer_linear_task};

#else

inline constexpr IntegerKernels integer_kernels = {nullptr, nullptr, nullptr};

#endif

}  // namespace tokexport::TOKEXPORT_ISA
