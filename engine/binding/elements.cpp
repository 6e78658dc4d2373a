#include <tuple>

#include "../kernel_table.h"
#include "bindings.h"

namespace attune {

napi_value bind_fill(Call& call) {
  const float value = static_cast<float>(call.number(1, "value"));
  const int64_t count = call.size(2, "count");
  float* y = call.output(0, "y", {count});
  call.enqueue([=] { kernels().elements.fill(y, value, count); });
  return nullptr;
}

napi_value bind_copy(Call& call) {
  const int64_t count = call.size(2, "count");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {count});
  call.enqueue([=] { kernels().elements.copy(x, y, count); });
  return nullptr;
}

napi_value bind_convert(Call& call) {
  const DType x_type = call.dtype(1, "xType"), y_type = call.dtype(3, "yType");
  const int64_t count = call.size(4, "count");
  const bool to_block = dtype_info[y_type].block > 1, from_block = dtype_info[x_type].block > 1;
  if (to_block || (from_block && y_type != F32))
    call.refuse(Refused::Range, std::string("cannot convert ") + dtype_info[x_type].name + " to " + dtype_info[y_type].name +
                                    ": only number types convert to each other, and blocks to f32");
  const void* x = call.elements(0, "x", x_type, {count});
  void* y = call.output(2, "y", y_type, {count});
  if (x == y && x_type != y_type && count > 0) call.refuse(Refused::Range, "x and y must be two blocks");
  call.enqueue([=] { kernels().elements.convert(x, x_type, y, y_type, count); });
  return nullptr;
}

napi_value bind_quantize(Call& call) {
  const DType x_type = call.dtype(1, "xType"), y_type = call.dtype(3, "yType");
  const int64_t rows = call.size(4, "rows"), cols = call.size(5, "cols");
  if (!is_quantized_to(y_type)) call.refuse(Refused::Range, std::string("cannot quantize to ") + dtype_info[y_type].name);
  if (dtype_info[x_type].block > 1)
    call.refuse(Refused::Range, std::string("cannot quantize ") + dtype_info[x_type].name + ": expected x in f32, f16 or bf16");
  const void* x = call.elements(0, "x", x_type, {rows, cols});
  void* y = call.output(2, "y", y_type, {rows, cols});
  if (x == y && rows * cols > 0) call.refuse(Refused::Range, "x and y must be two blocks");
  call.enqueue([=] { kernels().quant.quantize(x, x_type, y, y_type, rows * cols); });
  return nullptr;
}

napi_value bind_add(Call& call) {
  const int64_t count = call.size(3, "count");
  const float* a = call.floats(0, "a", {count});
  const float* b = call.floats(1, "b", {count});
  float* y = call.output(2, "y", {count});
  call.enqueue([=] { kernels().elements.add(a, b, y, count); });
  return nullptr;
}

napi_value bind_scale(Call& call) {
  const float scale = static_cast<float>(call.number(2, "scale"));
  const int64_t count = call.size(3, "count");
  const bool accumulate = call.flag(4, "accumulate");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {count});
  call.enqueue([=] { kernels().elements.scale(x, y, scale, count, accumulate); });
  return nullptr;
}

napi_value bind_mul(Call& call) {
  const int64_t count = call.size(3, "count");
  const bool accumulate = call.flag(4, "accumulate");
  const float* a = call.floats(0, "a", {count});
  const float* b = call.floats(1, "b", {count});
  float* y = call.output(2, "y", {count});
  call.enqueue([=] { kernels().elements.mul(a, b, y, count, accumulate); });
  return nullptr;
}

napi_value bind_add_bias(Call& call) {
  const int64_t rows = call.size(2, "rows"), cols = call.size(3, "cols");
  float* y = call.output(0, "y", {rows, cols});
  const float* bias = call.floats(1, "bias", {cols});
  call.enqueue([=] { kernels().rows.add_bias(y, bias, rows, cols); });
  return nullptr;
}

napi_value bind_bias_grad(Call& call) {
  const int64_t rows = call.size(2, "rows"), cols = call.size(3, "cols");
  const bool accumulate = call.flag(4, "accumulate");
  const float* dy = call.floats(0, "dy", {rows, cols});
  float* dbias = call.output(1, "dbias", {cols});
  call.enqueue([=] { kernels().rows.bias_grad(dy, dbias, rows, cols, accumulate); });
  return nullptr;
}

napi_value bind_activation(Call& call) {
  const int kind = call.activation(2);
  const int64_t count = call.size(3, "count");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {count});
  call.enqueue([=] { kernels().elements.activation(x, y, kind, count); });
  return nullptr;
}

napi_value bind_activation_grad(Call& call) {
  const int kind = call.activation(3);
  const int64_t count = call.size(4, "count");
  const bool accumulate = call.flag(5, "accumulate");
  const float* dy = call.floats(0, "dy", {count});
  const float* x = call.floats(1, "x", {count});
  float* dx = call.output(2, "dx", {count});
  call.enqueue([=] { kernels().elements.activation_grad(dy, x, dx, kind, count, accumulate); });
  return nullptr;
}

napi_value bind_gated(Call& call) {
  const int kind = call.activation(3);
  const int64_t count = call.size(4, "count");
  const float* gate = call.floats(0, "gate", {count});
  const float* up = call.floats(1, "up", {count});
  float* y = call.output(2, "y", {count});
  call.enqueue([=] { kernels().elements.gated(gate, up, y, kind, count); });
  return nullptr;
}

napi_value bind_gated_grad(Call& call) {
  const int kind = call.activation(5);
  const int64_t count = call.size(6, "count");
  const float* dy = call.floats(0, "dy", {count});
  const float* gate = call.floats(1, "gate", {count});
  const float* up = call.floats(2, "up", {count});
  float* dgate = call.output(3, "dgate", {count});
  float* dup = call.output(4, "dup", {count});
  call.enqueue([=] { kernels().elements.gated_grad(dy, gate, up, dgate, dup, kind, count); });
  return nullptr;
}

napi_value bind_dropout(Call& call) {
  const double p = call.number(2, "p");
  if (!(p >= 0 && p < 1)) call.refuse(Refused::Range, "p must be at least 0 and less than 1, got " + std::to_string(p));
  const uint64_t seed = call.seed(3, "seed");
  const int64_t count = call.size(4, "count");
  const bool accumulate = call.flag(5, "accumulate");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {count});
  call.enqueue([=] { kernels().elements.dropout(x, y, p, seed, count, accumulate); });
  return nullptr;
}

napi_value bind_add_uniform(Call& call) {
  const uint64_t seed = call.seed(3, "seed");
  const int64_t rows = call.size(4, "rows"), cols = call.size(5, "cols");
  std::vector<double> scales = call.float64s(1, "scales");
  if (static_cast<int64_t>(scales.size()) != rows)
    call.refuse(Refused::Range, "scales must hold one of its numbers for each of rows, which is " + std::to_string(rows) + ", got " +
                                    std::to_string(scales.size()) + " numbers");
  const float* x = call.floats(0, "x", {rows, cols});
  float* y = call.output(2, "y", {rows, cols});
  call.enqueue([=, scales = std::move(scales)] { kernels().elements.add_uniform(x, scales.data(), y, seed, rows, cols); });
  return nullptr;
}

napi_value bind_copy_columns(Call& call) {
  const int64_t x_cols = call.size(1, "xCols"), x_start = call.size(2, "xStart");
  const int64_t y_cols = call.size(4, "yCols"), y_start = call.size(5, "yStart");
  const int64_t rows = call.size(6, "rows"), cols = call.size(7, "cols");
  const bool accumulate = call.flag(8, "accumulate");
  for (const auto& [name, start, all] : {std::tuple{"xStart", x_start, x_cols}, std::tuple{"yStart", y_start, y_cols}})
    if (start > all || cols > all - start)
      call.refuse(Refused::Range, std::string(name) + ": columns " + std::to_string(start) + " to " + std::to_string(start + cols) +
                                      " are outside of " + std::to_string(all));
  const float* x = call.floats(0, "x", {rows, x_cols});
  float* y = call.output(3, "y", {rows, y_cols});
  call.enqueue([=] { kernels().rows.copy_columns(x + x_start, x_cols, y + y_start, y_cols, rows, cols, accumulate); });
  return nullptr;
}

napi_value bind_gather_rows(Call& call) {
  const int64_t x_rows = call.size(3, "xRows"), cols = call.size(4, "cols");
  Indices indices = call.indices(1, "indices", x_rows, "xRows");
  const float* x = call.floats(0, "x", {x_rows, cols});
  float* y = call.output(2, "y", {indices.count, cols});
  call.enqueue([=, indices = std::move(indices)] { kernels().rows.embedding(indices.data.get(), x, F32, y, indices.count, cols); });
  return nullptr;
}

napi_value bind_scatter_rows(Call& call) {
  const int64_t y_rows = call.size(3, "yRows"), cols = call.size(4, "cols");
  const bool accumulate = call.flag(5, "accumulate");
  Indices indices = call.indices(1, "indices", y_rows, "yRows");
  const float* x = call.floats(0, "x", {indices.count, cols});
  float* y = call.output(2, "y", {y_rows, cols});
  call.enqueue([=, indices = std::move(indices)] { kernels().rows.scatter_rows(x, indices.data.get(), y, indices.count, cols, accumulate); });
  return nullptr;
}

napi_value bind_sum(Call& call) {
  const int64_t count = call.size(2, "count");
  const bool accumulate = call.flag(3, "accumulate");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {1});
  call.enqueue([=] { kernels().elements.sum(x, y, count, accumulate); });
  return nullptr;
}

napi_value bind_sum_squares(Call& call) {
  const int64_t count = call.size(2, "count");
  const bool accumulate = call.flag(3, "accumulate");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {1});
  call.enqueue([=] { kernels().elements.sum_squares(x, y, count, accumulate); });
  return nullptr;
}

} // namespace attune
