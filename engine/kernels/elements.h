// Kernels that treat every element alike, and sums over all of them. Formulas: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

namespace attune {

struct ElementKernels {
  void (*fill)(float* y, float value, int64_t count);
  void (*copy)(const float* x, float* y, int64_t count);
  void (*convert)(const void* x, int x_type, void* y, int y_type, int64_t count);
  void (*add)(const float* a, const float* b, float* y, int64_t count);
  void (*scale)(const float* x, float* y, float scale, int64_t count, bool accumulate);
  void (*mul)(const float* a, const float* b, float* y, int64_t count, bool accumulate);
  void (*activation)(const float* x, float* y, int kind, int64_t count);
  void (*activation_grad)(const float* dy, const float* x, float* dx, int kind, int64_t count, bool accumulate);
  void (*gated)(const float* gate, const float* up, float* y, int kind, int64_t count);
  void (*gated_grad)(const float* dy, const float* gate, const float* up, float* dgate, float* dup, int kind, int64_t count);
  void (*dropout)(const float* x, float* y, double p, uint64_t seed, int64_t count, bool accumulate);
  void (*add_uniform)(const float* x, const double* scales, float* y, uint64_t seed, int64_t rows, int64_t cols);
  void (*sum)(const float* x, float* y, int64_t count, bool accumulate);
  void (*sum_squares)(const float* x, float* y, int64_t count, bool accumulate);
};

} // namespace attune
