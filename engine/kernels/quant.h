// Stored numbers (any DType) to f32, and numbers to blocks. Formulas: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

#include "../half.h"
#include "../quantize_gguf.h"

namespace attune {

struct QuantKernels {
  /// Numbers `first` … `first + count`, whole blocks, of a stored array to f32. One thread; callers split the work.
  void (*expand)(int dtype, const void* array, int64_t first, float* y, int64_t count);
  /// y_type must be one that `is_quantized_to` knows.
  void (*quantize)(const void* x, int x_type, void* y, int y_type, int64_t count);
};

/// Types that `quantize` makes.
static constexpr bool is_quantized_to(int type) {
  return type == Q8_0 || type == Q4_0 || type == Q4_1 || type == Q5_0 || type == Q4_K || type == Q6_K || type == NF4 || type == FP4 ||
         type == NF4_F32 || type == FP4_F32;
}

} // namespace attune
