#include <algorithm>
#include <chrono>

#include "../kernel_table.h"
#include "bindings.h"

namespace attune {

// For tests: "bf16" takes AMX's path over emulated tile instructions, on whatever machine.
static bool emulates_amx = false;

struct ProductSizes {
  int64_t m, n, k;
  float scale;
  bool accumulate;
  int compute;
};

static ProductSizes read_sizes(const Call& call, int first) {
  const int compute = call.compute(first + 5);
  return {call.size(first, "m"),
          call.size(first + 1, "n"),
          call.size(first + 2, "k"),
          static_cast<float>(call.number(first + 3, "scale")),
          call.flag(first + 4, "accumulate"),
          compute == COMPUTE_BF16 && emulates_amx ? COMPUTE_EMULATED_AMX : compute};
}

napi_value bind_matmul(Call& call) {
  const DType type = call.dtype(2, "wType");
  const ProductSizes s = read_sizes(call, 4);
  const float* x = call.floats(0, "x", {s.m, s.k});
  const void* w = call.elements(1, "w", type, {s.n, s.k});
  float* y = call.output(3, "y", {s.m, s.n});
  call.enqueue([=] { kernels().gemm.matmul(x, w, type, y, s.m, s.n, s.k, s.scale, s.accumulate, s.compute); });
  return nullptr;
}

napi_value bind_matmul_input_grad(Call& call) {
  const DType type = call.dtype(2, "wType");
  const ProductSizes s = read_sizes(call, 4);
  const float* dy = call.floats(0, "dy", {s.m, s.n});
  const void* w = call.elements(1, "w", type, {s.n, s.k});
  float* dx = call.output(3, "dx", {s.m, s.k});
  call.enqueue([=] { kernels().gemm.matmul_input_grad(dy, w, type, dx, s.m, s.n, s.k, s.scale, s.accumulate, s.compute); });
  return nullptr;
}

napi_value bind_matmul_weight_grad(Call& call) {
  const ProductSizes s = read_sizes(call, 3);
  const float* dy = call.floats(0, "dy", {s.m, s.n});
  const float* x = call.floats(1, "x", {s.m, s.k});
  float* dw = call.output(2, "dw", {s.n, s.k});
  call.enqueue([=] { kernels().gemm.matmul_weight_grad(dy, x, dw, s.m, s.n, s.k, s.scale, s.accumulate, s.compute); });
  return nullptr;
}

napi_value bind_emulate_amx(Call& call) {
  emulates_amx = call.flag(0, "on");
  return nullptr;
}

napi_value bind_peak_flops(Call& call) {
  const int compute = call.compute(0);
  double flops = 0;
  run_on_stream([&] {
    for (int64_t rounds = 1 << 14;; rounds *= 2) {
      const auto start = std::chrono::steady_clock::now();
      const double operations = kernels().gemm.limit(rounds, compute);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      flops = std::max(flops, operations / seconds);
      if (seconds > 0.02) break; // long enough for the clock to settle
    }
  });
  napi_value value;
  if (napi_create_double(call.env(), flops, &value) != napi_ok) throw PendingException{};
  return value;
}

} // namespace attune
