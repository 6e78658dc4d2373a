// Optimizer steps. Formulas: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

namespace attune {

struct AdamWStep {
  double lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
};

struct LionStep {
  double lr, beta1, beta2, weight_decay, grad_scale;
};

/// 256 numbers, each code of the dynamic map times `absmax`; the last block of an array may be filled in part.
struct Moments8Bit {
  float absmax;
  uint8_t code[256];
};

struct OptimKernels {
  void (*adamw)(float* p, const float* g, float* m, float* v, float* flaws, int64_t count, const AdamWStep& step);
  void (*adamw_8bit)(float* p, const float* g, Moments8Bit* m, Moments8Bit* v, float* flaws, int64_t count,
                     const AdamWStep& step);
  void (*blend)(const float* x, float* y, float* flaws, int64_t count, double keep, double add);
  void (*limit_rms)(float* x, const float* squares, int64_t count);
  void (*lion)(float* p, const float* g, float* m, float* flaws, int64_t count, const LionStep& step);
};

} // namespace attune
