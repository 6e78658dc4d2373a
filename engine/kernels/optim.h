// Optimizer steps. Formulas: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

namespace attune {

struct AdamWStep {
  double lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
};

struct OptimKernels {
  void (*adamw)(float* p, const float* g, float* m, float* v, int64_t count, const AdamWStep& step);
};

} // namespace attune
