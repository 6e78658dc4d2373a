#include "../kernel_table.h"
#include "bindings.h"

namespace attune {

napi_value bind_scale_rows(Call& call) {
  const int64_t rows = call.size(3, "rows"), cols = call.size(4, "cols");
  const float* x = call.floats(0, "x", {rows, cols});
  const float* scale = call.floats(1, "scale", {rows});
  float* y = call.output(2, "y", {rows, cols});
  call.enqueue([=] { kernels().matrix.scale_rows(x, scale, y, rows, cols); });
  return nullptr;
}

napi_value bind_scale_columns(Call& call) {
  const int64_t rows = call.size(3, "rows"), cols = call.size(4, "cols");
  const float* x = call.floats(0, "x", {rows, cols});
  const float* scale = call.floats(1, "scale", {cols});
  float* y = call.output(2, "y", {rows, cols});
  call.enqueue([=] { kernels().matrix.scale_columns(x, scale, y, rows, cols); });
  return nullptr;
}

napi_value bind_row_dots(Call& call) {
  const int64_t rows = call.size(3, "rows"), cols = call.size(4, "cols");
  const bool accumulate = call.flag(5, "accumulate");
  const float* a = call.floats(0, "a", {rows, cols});
  const float* b = call.floats(1, "b", {rows, cols});
  float* y = call.output(2, "y", {rows});
  call.enqueue([=] { kernels().matrix.row_dots(a, b, y, rows, cols, accumulate); });
  return nullptr;
}

napi_value bind_column_dots(Call& call) {
  const int64_t rows = call.size(3, "rows"), cols = call.size(4, "cols");
  const bool accumulate = call.flag(5, "accumulate");
  const float* a = call.floats(0, "a", {rows, cols});
  const float* b = call.floats(1, "b", {rows, cols});
  float* y = call.output(2, "y", {cols});
  call.enqueue([=] { kernels().matrix.column_dots(a, b, y, rows, cols, accumulate); });
  return nullptr;
}

napi_value bind_transpose(Call& call) {
  const int64_t rows = call.size(2, "rows"), cols = call.size(3, "cols");
  const float* x = call.floats(0, "x", {rows, cols});
  float* y = call.output(1, "y", {cols, rows});
  call.enqueue([=] { kernels().matrix.transpose(x, y, rows, cols); });
  return nullptr;
}

napi_value bind_square_root(Call& call) {
  const int64_t count = call.size(2, "count");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {count});
  call.enqueue([=] { kernels().matrix.square_root(x, y, count); });
  return nullptr;
}

napi_value bind_divide_sqrt(Call& call) {
  const int64_t count = call.size(3, "count");
  const float* x = call.floats(0, "x", {count});
  const float* squares = call.floats(1, "squares", {count});
  float* y = call.output(2, "y", {count});
  call.enqueue([=] { kernels().matrix.divide_sqrt(x, squares, y, count); });
  return nullptr;
}

napi_value bind_svd(Call& call) {
  const int64_t rows = call.size(3, "rows"), cols = call.size(4, "cols");
  float* x = call.output(0, "x", {rows, cols});
  float* u = call.output(1, "u", {rows, rows});
  float* s = call.output(2, "s", {rows});
  call.enqueue([=] { kernels().matrix.svd(x, u, s, rows, cols); });
  return nullptr;
}

} // namespace attune
