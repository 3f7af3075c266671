// The product of a few rows and a panel of 32 columns: what linear and attention are made of.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr size_t kRegisters = 32;
#else
inline constexpr size_t kRegisters = 16;
#endif

// Columns that are computed together: two vectors of them.
inline constexpr size_t kColumns = 2 * kWidth;
static_assert(kPanel % kColumns == 0);
// Rows that are computed together: their accumulators, two vectors a row, fill the registers.
inline constexpr size_t kRows = kRegisters == 32 ? 14 : 6;
// How many steps of the depth a panel is fetched ahead.
inline constexpr size_t kAhead = 32;

// What is fetched into the second cache while products are computed: `step` bytes further with each
// step of their depth.
struct Fetch {
  const char* from;
  size_t step;
};

// The panel behind one of so many steps and bytes a step, part by part, so that memory delivers it
// over the whole time that `products` of this one take. A panel that is waited for costs the first
// of its products as much again. Where there is one product alone, it fetches every second line.
struct NextPanel {
  NextPanel(const void* next, size_t depth, size_t bytes, size_t products)
      : part{static_cast<const char*>(next), (bytes + products - 1) / products}, depth(depth) {}

  Fetch fetch() {
    const Fetch now = part;
    part.from += part.step * depth;
    return now;
  }

  Fetch part;
  size_t depth;
};

// Where a product goes, strides in floats, and what is added to it.
struct Result {
  float* out;
  size_t stride;
  const float* bias;      // kColumns of them
  const float* residual;  // as `out` lies; not read without `Residual`
};

inline constexpr float kNoBias[kColumns] = {};

// out (Rows, kColumns) = bias + x (Rows, depth) · panel (depth, kColumns of 32) [+ residual];
// strides in floats. A cold one fetches the rows behind its own as well, which another core may have
// written: that costs 0.5 % where they are near.
template <size_t Rows, bool Residual, bool Cold>
[[gnu::noinline]] void multiply_block(const float* x, size_t x_stride, size_t depth,
                                      const float* panel, Result to, Fetch fetch,
                                      Fetch rows_ahead) {
  Floats first[Rows];
  Floats second[Rows];
  const Floats left_bias = load(to.bias);
  const Floats right_bias = load(to.bias + kWidth);
#pragma GCC unroll 14
  for (size_t r = 0; r < Rows; ++r) {
    first[r] = left_bias;
    second[r] = right_bias;
  }
  // Three rows share a pointer, so that all of them stay in registers: p, p + s, p + 2 s.
  constexpr size_t kPointers = (Rows + 2) / 3;
  const float* rows[kPointers];
#pragma GCC unroll 5
  for (size_t p = 0; p < kPointers; ++p) rows[p] = x + 3 * p * x_stride;
  for (const float* end = panel + depth * kPanel; panel != end; panel += kPanel) {
    __builtin_prefetch(panel + kAhead * kPanel);
    __builtin_prefetch(panel + kAhead * kPanel + kWidth);
    __builtin_prefetch(fetch.from, 0, 2);
    fetch.from += fetch.step;
    if constexpr (Cold) {
      __builtin_prefetch(rows_ahead.from);
      rows_ahead.from += rows_ahead.step;
    }
    const Floats left = load(panel);
    const Floats right = load(panel + kWidth);
#pragma GCC unroll 14
    for (size_t r = 0; r < Rows; ++r) {
      const Floats factor = all(rows[r / 3][r % 3 * x_stride]);
      first[r] += factor * left;
      second[r] += factor * right;
    }
#pragma GCC unroll 5
    for (size_t p = 0; p < kPointers; ++p) {
      ++rows[p];
      asm("" : "+r"(rows[p]));  // keeps the compiler from a pointer for each row
    }
  }
#pragma GCC unroll 14
  for (size_t r = 0; r < Rows; ++r) {
    if constexpr (Residual) {
      first[r] += load(to.residual + r * to.stride);
      second[r] += load(to.residual + r * to.stride + kWidth);
    }
    store(to.out + r * to.stride, first[r]);
    store(to.out + r * to.stride + kWidth, second[r]);
  }
}

// The same for any number of rows up to Rows.
template <bool Residual, bool Cold, size_t Rows = kRows>
inline void multiply_rows(size_t rows, const float* x, size_t x_stride, size_t depth,
                          const float* panel, const Result& to, Fetch fetch, Fetch rows_ahead) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      multiply_block<Rows, Residual, Cold>(x, x_stride, depth, panel, to, fetch, rows_ahead);
    else
      multiply_rows<Residual, Cold, Rows - 1>(rows, x, x_stride, depth, panel, to, fetch,
                                              rows_ahead);
  }
}

// The same where nothing has to be added or fetched.
inline void multiply_rows(size_t rows, const float* x, size_t x_stride, size_t depth,
                          const float* panel, float* out, size_t out_stride) {
  const Fetch nothing{reinterpret_cast<const char*>(panel), 0};
  const Result to{out, out_stride, kNoBias, nullptr};
  multiply_rows<false, false>(rows, x, x_stride, depth, panel, to, nothing, nothing);
}

inline size_t block_count(size_t rows) { return (rows + kRows - 1) / kRows; }

// Calls `body(first, count)` for blocks of nearly equal height that cover `rows`.
template <typename Body>
inline void in_blocks(size_t rows, Body body) {
  const size_t blocks = block_count(rows);
  for (size_t block = 0; block < blocks; ++block) {
    const size_t from = rows * block / blocks;
    body(from, rows * (block + 1) / blocks - from);
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
