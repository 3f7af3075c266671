// The patches of an image as rows.
#pragma once

#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

// Writes the patches of one row of the grid: of each its channels, of these their lines.
inline void patches_task(const PatchArgs& args, size_t task) {
  const size_t line = args.patch_width;
  const size_t depth = args.channels * args.patch_height * line;
  float* rows = args.rows + task * args.across * depth;
  for (size_t channel = 0; channel < args.channels; ++channel)
    for (size_t i = 0; i < args.patch_height; ++i) {
      const float* from =
          args.image + (channel * args.height + task * args.patch_height + i) * args.width;
      float* to = rows + (channel * args.patch_height + i) * line;
      for (size_t patch = 0; patch < args.across; ++patch, from += line, to += depth) {
        if (line % kLanes == 0)
          for (size_t c = 0; c < line; c += kLanes) store(to + c, load(from + c));
        else
          std::memcpy(to, from, line * sizeof(float));
      }
    }
}

}  // namespace tokexport::TOKEXPORT_ISA
