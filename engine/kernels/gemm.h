// Matrix products. Formulas and shapes: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

namespace attune {

/// The last one is for tests: AMX's path over emulated tile instructions (gemm_bf16.inl).
enum ComputeType : int { COMPUTE_F32, COMPUTE_BF16, COMPUTE_EMULATED_AMX };

struct GemmKernels {
  void (*matmul)(const float* x, const void* w, int w_type, float* y, int64_t m, int64_t n, int64_t k, float scale, bool accumulate,
                 int compute);
  void (*matmul_input_grad)(const float* dy, const void* w, int w_type, float* dx, int64_t m, int64_t n, int64_t k, float scale,
                            bool accumulate, int compute);
  void (*matmul_weight_grad)(const float* dy, const float* x, float* dw, int64_t m, int64_t n, int64_t k, float scale, bool accumulate,
                             int compute);
  /// What a product's tile does, but in registers alone, `rounds` rounds on every thread: nothing is faster. Returns the number of
  /// operations.
  double (*limit)(int64_t rounds, int compute);
};

} // namespace attune
