// GEMM of a few rows with a packed panel of 32 columns: the microkernel of linear and attention.
#pragma once

#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr size_t kVectorRegisters = 32;
#else
inline constexpr size_t kVectorRegisters = 16;
#endif

// Columns of the microkernel: two vectors.
inline constexpr size_t kNR = 2 * kLanes;
static_assert(kPackedN % kNR == 0);
// Rows of the microkernel: their accumulators, two vectors a row, fill the registers.
inline constexpr size_t kMR = kVectorRegisters == 32 ? 14 : 6;
static_assert(kMR <= kMaxMR);
// How many steps of the depth a panel is prefetched ahead.
inline constexpr size_t kPrefetchDistance = 32;

// Memory that is prefetched into the second cache during a product: `step` bytes further with each
// step of its depth.
struct Prefetch {
  const char* from;
  size_t step;
};

// Prefetches the next panel part by part, over all the `products` of this one, `bytes` of each step of
// `depth` in all. A panel that has to be waited for doubles the time of its first product. Where there
// is one product alone, every second cache line is fetched.
struct PanelPrefetch {
  PanelPrefetch(const void* next, size_t depth, size_t bytes, size_t products)
      : part{static_cast<const char*>(next), (bytes + products - 1) / products}, depth(depth) {}

  // Returns the part for the next product.
  Prefetch next_part() {
    const Prefetch now = part;
    part.from += part.step * depth;
    return now;
  }

  Prefetch part;
  size_t depth;
};

// Where a product is written, the stride in floats, and what is added to it.
struct GemmOutput {
  float* out;
  size_t stride;
  const float* bias;      // kNR of them
  const float* residual;  // strided like `out`; not read without `Residual`
};

inline constexpr float kZeroBias[kNR] = {};

// out (MR, kNR) = bias + x (MR, depth) · panel (depth, kNR of 32) [+ residual]; strides in floats. With
// `Cold` the next rows of x are prefetched too, as another core may have written them: 0.5 % slower
// where they are in the cache already.
template <size_t MR, bool Residual, bool Cold>
[[gnu::noinline]] void gemm_microkernel(const float* x, size_t x_stride, size_t depth,
                                        const float* panel, GemmOutput to, Prefetch next_panel,
                                        Prefetch next_rows) {
  Floats left_sums[MR];
  Floats right_sums[MR];
  const Floats left_bias = load(to.bias);
  const Floats right_bias = load(to.bias + kLanes);
#pragma GCC unroll 14
  for (size_t r = 0; r < MR; ++r) {
    left_sums[r] = left_bias;
    right_sums[r] = right_bias;
  }
  // Three rows share a pointer, so that all of them stay in registers: p, p + s, p + 2 s.
  constexpr size_t kPointers = (MR + 2) / 3;
  const float* rows[kPointers];
#pragma GCC unroll 5
  for (size_t p = 0; p < kPointers; ++p) rows[p] = x + 3 * p * x_stride;
  for (const float* end = panel + depth * kPackedN; panel != end; panel += kPackedN) {
    __builtin_prefetch(panel + kPrefetchDistance * kPackedN);
    __builtin_prefetch(panel + kPrefetchDistance * kPackedN + kLanes);
    __builtin_prefetch(next_panel.from, 0, 2);
    next_panel.from += next_panel.step;
    if constexpr (Cold) {
      __builtin_prefetch(next_rows.from);
      next_rows.from += next_rows.step;
    }
    const Floats left = load(panel);
    const Floats right = load(panel + kLanes);
#pragma GCC unroll 14
    for (size_t r = 0; r < MR; ++r) {
      const Floats factor = broadcast(rows[r / 3][r % 3 * x_stride]);
      left_sums[r] += factor * left;
      right_sums[r] += factor * right;
    }
#pragma GCC unroll 5
    for (size_t p = 0; p < kPointers; ++p) {
      ++rows[p];
      asm("" : "+r"(rows[p]));  // keeps the compiler from a pointer for each row
    }
  }
#pragma GCC unroll 14
  for (size_t r = 0; r < MR; ++r) {
    if constexpr (Residual) {
      left_sums[r] += load(to.residual + r * to.stride);
      right_sums[r] += load(to.residual + r * to.stride + kLanes);
    }
    store(to.out + r * to.stride, left_sums[r]);
    store(to.out + r * to.stride + kLanes, right_sums[r]);
  }
}

// The same for any number of rows up to MR.
template <bool Residual, bool Cold, size_t MR = kMR>
inline void gemm_rows(size_t rows, const float* x, size_t x_stride, size_t depth,
                      const float* panel, const GemmOutput& to, Prefetch next_panel,
                      Prefetch next_rows) {
  if constexpr (MR > 0) {
    if (rows == MR)
      gemm_microkernel<MR, Residual, Cold>(x, x_stride, depth, panel, to, next_panel, next_rows);
    else
      gemm_rows<Residual, Cold, MR - 1>(rows, x, x_stride, depth, panel, to, next_panel,
                                        next_rows);
  }
}

// The same where nothing has to be added or prefetched.
inline void gemm_rows(size_t rows, const float* x, size_t x_stride, size_t depth,
                      const float* panel, float* out, size_t out_stride) {
  const Prefetch nothing{reinterpret_cast<const char*>(panel), 0};
  const GemmOutput to{out, out_stride, kZeroBias, nullptr};
  gemm_rows<false, false>(rows, x, x_stride, depth, panel, to, nothing, nothing);
}

template <size_t MR = kMR>
inline size_t row_block_count(size_t rows) {
  return ceil_div(rows, MR);
}

// Calls body(first, count) for blocks of nearly equal height, MR at most, that cover `rows`.
template <size_t MR = kMR, typename Body>
inline void for_row_blocks(size_t rows, Body body) {
  const size_t blocks = row_block_count<MR>(rows);
  for (size_t block = 0; block < blocks; ++block) {
    const size_t from = rows * block / blocks;
    body(from, rows * (block + 1) / blocks - from);
  }
}

}  // namespace tokexport::TOKEXPORT_ISA
