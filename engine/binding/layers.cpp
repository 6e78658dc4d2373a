#include "../kernel_table.h"
#include "bindings.h"

namespace attune {

napi_value bind_embedding(Call& call) {
  const DType type = call.dtype(2, "wType");
  const int64_t cols = call.size(4, "cols"), vocab = call.size(5, "vocab");
  Indices ids = call.indices(0, "ids", vocab, "vocab");
  const void* w = call.elements(1, "w", type, {vocab, cols});
  float* y = call.output(3, "y", {ids.count, cols});
  call.enqueue([=, ids = std::move(ids)] { kernels().rows.embedding(ids.data.get(), w, type, y, ids.count, cols); });
  return nullptr;
}

napi_value bind_embedding_grad(Call& call) {
  const int64_t cols = call.size(3, "cols"), vocab = call.size(4, "vocab");
  Indices ids = call.indices(0, "ids", vocab, "vocab");
  const float* dy = call.floats(1, "dy", {ids.count, cols});
  float* dw = call.output(2, "dw", {vocab, cols});
  call.enqueue([=, ids = std::move(ids)] { kernels().rows.scatter_rows(dy, ids.data.get(), dw, ids.count, cols, true); });
  return nullptr;
}

napi_value bind_rms_norm(Call& call) {
  const int64_t rows = call.size(4, "rows"), cols = call.size(5, "cols");
  const float eps = static_cast<float>(call.number(6, "eps"));
  const float offset = static_cast<float>(call.number(7, "offset"));
  if (eps < 0) call.refuse(Refused::Range, "eps must be 0 or more, got " + std::to_string(eps));
  const float* x = call.floats(0, "x", {rows, cols});
  const float* w = call.floats(1, "w", {cols});
  float* y = call.output(2, "y", {rows, cols});
  float* rstd = call.output(3, "rstd", {rows});
  call.enqueue([=] { kernels().rows.rms_norm(x, w, y, rstd, rows, cols, eps, offset); });
  return nullptr;
}

napi_value bind_rms_norm_grad(Call& call) {
  const int64_t rows = call.size(5, "rows"), cols = call.size(6, "cols");
  const float offset = static_cast<float>(call.number(7, "offset"));
  const bool accumulate = call.flag(8, "accumulate");
  const float* dy = call.floats(0, "dy", {rows, cols});
  const float* x = call.floats(1, "x", {rows, cols});
  const float* w = call.floats(2, "w", {cols});
  const float* rstd = call.floats(3, "rstd", {rows});
  float* dx = call.output(4, "dx", {rows, cols});
  call.enqueue([=] { kernels().rows.rms_norm_grad(dy, x, w, rstd, dx, rows, cols, offset, accumulate); });
  return nullptr;
}

napi_value bind_rms_norm_weight_grad(Call& call) {
  const int64_t rows = call.size(4, "rows"), cols = call.size(5, "cols");
  const bool accumulate = call.flag(6, "accumulate");
  const float* dy = call.floats(0, "dy", {rows, cols});
  const float* x = call.floats(1, "x", {rows, cols});
  const float* rstd = call.floats(2, "rstd", {rows});
  float* dw = call.output(3, "dw", {cols});
  call.enqueue([=] { kernels().rows.rms_norm_weight_grad(dy, x, rstd, dw, rows, cols, accumulate); });
  return nullptr;
}

napi_value bind_layer_norm(Call& call) {
  const int64_t rows = call.size(6, "rows"), cols = call.size(7, "cols");
  const float eps = static_cast<float>(call.number(8, "eps"));
  if (eps < 0) call.refuse(Refused::Range, "eps must be 0 or more, got " + std::to_string(eps));
  const float* x = call.floats(0, "x", {rows, cols});
  const float* w = call.floats(1, "w", {cols});
  const float* b = call.floats(2, "b", {cols});
  float* y = call.output(3, "y", {rows, cols});
  float* mean = call.output(4, "mean", {rows});
  float* rstd = call.output(5, "rstd", {rows});
  call.enqueue([=] { kernels().rows.layer_norm(x, w, b, y, mean, rstd, rows, cols, eps); });
  return nullptr;
}

napi_value bind_layer_norm_grad(Call& call) {
  const int64_t rows = call.size(6, "rows"), cols = call.size(7, "cols");
  const bool accumulate = call.flag(8, "accumulate");
  const float* dy = call.floats(0, "dy", {rows, cols});
  const float* x = call.floats(1, "x", {rows, cols});
  const float* w = call.floats(2, "w", {cols});
  const float* mean = call.floats(3, "mean", {rows});
  const float* rstd = call.floats(4, "rstd", {rows});
  float* dx = call.output(5, "dx", {rows, cols});
  call.enqueue([=] { kernels().rows.layer_norm_grad(dy, x, w, mean, rstd, dx, rows, cols, accumulate); });
  return nullptr;
}

napi_value bind_layer_norm_weight_grad(Call& call) {
  const int64_t rows = call.size(5, "rows"), cols = call.size(6, "cols");
  const bool accumulate = call.flag(7, "accumulate");
  const float* dy = call.floats(0, "dy", {rows, cols});
  const float* x = call.floats(1, "x", {rows, cols});
  const float* mean = call.floats(2, "mean", {rows});
  const float* rstd = call.floats(3, "rstd", {rows});
  float* dw = call.output(4, "dw", {cols});
  call.enqueue([=] { kernels().rows.layer_norm_weight_grad(dy, x, mean, rstd, dw, rows, cols, accumulate); });
  return nullptr;
}

napi_value bind_rope(Call& call) {
  const int64_t table_rows = call.size(4, "tableRows"), heads = call.size(5, "heads"), head_dim = call.size(6, "headDim");
  const bool inverse = call.flag(7, "inverse");
  if (head_dim % 2 != 0) call.refuse(Refused::Range, "headDim must be even, got " + std::to_string(head_dim));
  Indices positions = call.indices(3, "positions", table_rows, "tableRows");
  const float* x = call.floats(0, "x", {positions.count, heads, head_dim});
  float* y = call.output(1, "y", {positions.count, heads, head_dim});
  const float* table = call.floats(2, "table", {table_rows, head_dim});
  call.enqueue([=, positions = std::move(positions)] {
    kernels().rows.rope(x, y, table, positions.data.get(), positions.count, heads, head_dim, inverse);
  });
  return nullptr;
}

napi_value bind_cross_entropy(Call& call) {
  const int64_t vocab = call.size(3, "vocab");
  const double smoothing = call.number(4, "smoothing");
  if (smoothing < 0.0 || smoothing > 1.0) call.refuse(Refused::Range, "smoothing must be a number from 0 to 1, got " + std::to_string(smoothing));
  const bool gradient = call.flag(5, "gradient");
  Indices targets = call.indices(1, "targets", vocab, "vocab");
  float* logits = call.output(0, "logits", {targets.count, vocab});
  float* losses = call.output(2, "losses", {targets.count});
  call.enqueue([=, targets = std::move(targets)] {
    kernels().rows.cross_entropy(logits, targets.data.get(), losses, targets.count, vocab, smoothing, gradient);
  });
  return nullptr;
}

/// Where the places of each row begin among `places`, which must be in the order of rows.
static std::unique_ptr<int64_t[]> row_starts(const Call& call, const Indices& places, int64_t rows, int64_t cols, const char* name) {
  std::unique_ptr<int64_t[]> starts(new int64_t[static_cast<size_t>(rows) + 1]);
  int64_t row = 0;
  starts[0] = 0;
  for (int64_t i = 0; i < places.count; i++) {
    const int64_t of = places.data[i] / cols;
    if (of < row)
      call.refuse(Refused::Range, std::string(name) + "[" + std::to_string(i) + "] is in row " + std::to_string(of) + ", after one of row " +
                                      std::to_string(row) + ": expected the order of rows");
    while (row < of) starts[++row] = i;
  }
  while (row < rows) starts[++row] = places.count;
  return starts;
}

napi_value bind_sample(Call& call) {
  const int64_t rows = call.size(4, "rows"), vocab = call.size(5, "vocab"), top = call.size(6, "top");
  constexpr int64_t most = int64_t(1) << 24; // ids leave as f32
  if (vocab > most) call.refuse(Refused::Range, "vocab must be a whole number of at most " + std::to_string(most) + ", got " + std::to_string(vocab));
  if (top > vocab) call.refuse(Refused::Range, "top must be a whole number of at most vocab, got " + std::to_string(top));
  std::vector<double> draws = call.float64s(1, "draws");
  if (draws.size() % sample_numbers != 0 || static_cast<int64_t>(draws.size()) / sample_numbers != rows)
    call.refuse(Refused::Range, "draws must hold " + std::to_string(sample_numbers) + " numbers for each of rows, a whole number, which is " +
                                    std::to_string(rows) + ", got " + std::to_string(draws.size()) + " numbers");
  Indices seen = call.indices(2, "seen", rows * vocab, "rows × vocab");
  std::unique_ptr<int64_t[]> starts = row_starts(call, seen, rows, vocab, "seen");
  float* logits = call.floats(0, "logits", {rows, vocab});
  float* y = call.output(3, "y", {rows, 1 + top, 2});
  if (vocab == 0 && rows > 0) call.refuse(Refused::Range, "vocab must be a whole number of 1 or more where there are rows");
  call.enqueue([=, draws = std::move(draws), seen = std::move(seen), starts = std::move(starts)] {
    kernels().rows.sample(logits, draws.data(), seen.data.get(), starts.get(), y, rows, vocab, top);
  });
  return nullptr;
}

} // namespace attune
