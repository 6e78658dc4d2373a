// Rows and columns of a matrix: their factors, dot products, transposes and singular values. Formulas and shapes: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

namespace attune {

struct MatrixKernels {
  void (*scale_rows)(const float* x, const float* scale, float* y, int64_t rows, int64_t cols);
  void (*scale_columns)(const float* x, const float* scale, float* y, int64_t rows, int64_t cols);
  void (*row_dots)(const float* a, const float* b, float* y, int64_t rows, int64_t cols, bool accumulate);
  void (*column_dots)(const float* a, const float* b, float* y, int64_t rows, int64_t cols, bool accumulate);
  void (*transpose)(const float* x, float* y, int64_t rows, int64_t cols);
  void (*square_root)(const float* x, float* y, int64_t count);
  void (*divide_sqrt)(const float* x, const float* squares, float* y, int64_t count);
  void (*svd)(float* x, float* u, float* s, int64_t rows, int64_t cols);
};

} // namespace attune
