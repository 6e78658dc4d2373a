// Kernels that work on the rows of a matrix. Formulas and shapes: src/engine/kernels.ts.
#pragma once
#include <stdint.h>

namespace attune {

/// How many numbers `sample` is given for a row.
constexpr int64_t sample_numbers = 6;

struct RowKernels {
  void (*embedding)(const int32_t* ids, const void* w, int w_type, float* y, int64_t rows, int64_t cols);
  void (*scatter_rows)(const float* x, const int32_t* indices, float* y, int64_t rows, int64_t cols, bool accumulate);
  void (*rms_norm)(const float* x, const float* w, float* y, float* rstd, int64_t rows, int64_t cols, float eps,
                   float offset);
  void (*rms_norm_grad)(const float* dy, const float* x, const float* w, const float* rstd, float* dx, int64_t rows, int64_t cols,
                        float offset, bool accumulate);
  void (*rms_norm_weight_grad)(const float* dy, const float* x, const float* rstd, float* dw, int64_t rows, int64_t cols, bool accumulate);
  void (*layer_norm)(const float* x, const float* w, const float* b, float* y, float* mean, float* rstd, int64_t rows, int64_t cols, float eps);
  void (*layer_norm_grad)(const float* dy, const float* x, const float* w, const float* mean, const float* rstd, float* dx, int64_t rows,
                          int64_t cols, bool accumulate);
  void (*layer_norm_weight_grad)(const float* dy, const float* x, const float* mean, const float* rstd, float* dw, int64_t rows, int64_t cols,
                                 bool accumulate);
  void (*copy_columns)(const float* x, int64_t x_cols, float* y, int64_t y_cols, int64_t rows, int64_t cols, bool accumulate);
  void (*rope)(const float* x, float* y, const float* table, const int32_t* positions, int64_t rows, int64_t heads, int64_t head_dim,
               bool inverse);
  void (*cross_entropy)(float* logits, const int32_t* targets, float* losses, int64_t rows, int64_t vocab, double smoothing,
                        bool gradient);
  /// Numbers of each row: temperature, top-p, top-k, repetition penalty, uniform number, temperature of the log-probabilities (0: none wanted).
  void (*sample)(float* logits, const double* draws, const int32_t* seen, const int64_t* seen_starts, float* y, int64_t rows, int64_t vocab,
                 int64_t top);
  void (*add_bias)(float* y, const float* bias, int64_t rows, int64_t cols);
  void (*bias_grad)(const float* dy, float* dbias, int64_t rows, int64_t cols, bool accumulate);
};

} // namespace attune
