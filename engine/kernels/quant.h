// Stored numbers (any DType) to f32.
#pragma once
#include <stdint.h>

namespace attune {

struct QuantKernels {
  /// Writes `count` elements of `src` (at the start of a block, whole blocks) to `dst` as f32. One thread; callers split the work.
  void (*expand)(int dtype, const void* src, float* dst, int64_t count);
};

} // namespace attune
