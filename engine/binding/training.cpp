#include "../kernel_table.h"
#include "bindings.h"

namespace attune {

static void check_betas(const Call& call, double beta1, double beta2) {
  for (const auto& [name, beta] : {std::pair{"beta1", beta1}, std::pair{"beta2", beta2}})
    if (beta < 0 || beta >= 1) call.refuse(Refused::Range, std::string("step.") + name + " must be at least 0 and less than 1, got " + std::to_string(beta));
}

static AdamWStep read_step(const Call& call, int index) {
  const AdamWStep step = {
      call.number(index, "step", "lr"),          call.number(index, "step", "beta1"),       call.number(index, "step", "beta2"),
      call.number(index, "step", "eps"),         call.number(index, "step", "weightDecay"), call.number(index, "step", "correction1"),
      call.number(index, "step", "correction2"), call.number(index, "step", "gradScale"),
  };
  check_betas(call, step.beta1, step.beta2);
  for (const auto& [name, correction] : {std::pair{"correction1", step.correction1}, std::pair{"correction2", step.correction2}})
    if (!(correction > 0)) call.refuse(Refused::Range, std::string("step.") + name + " must be more than 0, got " + std::to_string(correction));
  return step;
}

napi_value bind_adamw(Call& call) {
  const int64_t count = call.size(5, "count");
  const AdamWStep step = read_step(call, 6);
  float* p = call.output(0, "p", {count});
  const float* g = call.floats(1, "g", {count});
  float* m = call.output(2, "m", {count});
  float* v = call.output(3, "v", {count});
  float* flaws = call.output(4, "flaws", {1});
  call.enqueue([=] { kernels().optim.adamw(p, g, m, v, flaws, count, step); });
  return nullptr;
}

napi_value bind_adamw_8bit(Call& call) {
  const int64_t count = call.size(5, "count");
  const AdamWStep step = read_step(call, 6);
  const int64_t blocks = count / 256 + (count % 256 > 0), words = sizeof(Moments8Bit) / sizeof(float);
  float* p = call.output(0, "p", {count});
  const float* g = call.floats(1, "g", {count});
  auto* m = reinterpret_cast<Moments8Bit*>(call.output(2, "m", {blocks, words}));
  auto* v = reinterpret_cast<Moments8Bit*>(call.output(3, "v", {blocks, words}));
  float* flaws = call.output(4, "flaws", {1});
  call.enqueue([=] { kernels().optim.adamw_8bit(p, g, m, v, flaws, count, step); });
  return nullptr;
}

napi_value bind_blend(Call& call) {
  const int64_t count = call.size(3, "count");
  const double keep = call.number(4, "keep"), add = call.number(5, "add");
  const float* x = call.floats(0, "x", {count});
  float* y = call.output(1, "y", {count});
  float* flaws = call.output(2, "flaws", {1});
  call.enqueue([=] { kernels().optim.blend(x, y, flaws, count, keep, add); });
  return nullptr;
}

napi_value bind_limit_rms(Call& call) {
  const int64_t count = call.size(2, "count");
  float* x = call.output(0, "x", {count});
  const float* squares = call.floats(1, "squares", {1});
  call.enqueue([=] { kernels().optim.limit_rms(x, squares, count); });
  return nullptr;
}

napi_value bind_lion(Call& call) {
  const int64_t count = call.size(4, "count");
  const LionStep step = {
      call.number(5, "step", "lr"),          call.number(5, "step", "beta1"),     call.number(5, "step", "beta2"),
      call.number(5, "step", "weightDecay"), call.number(5, "step", "gradScale"),
  };
  check_betas(call, step.beta1, step.beta2);
  float* p = call.output(0, "p", {count});
  const float* g = call.floats(1, "g", {count});
  float* m = call.output(2, "m", {count});
  float* flaws = call.output(3, "flaws", {1});
  call.enqueue([=] { kernels().optim.lion(p, g, m, flaws, count, step); });
  return nullptr;
}

} // namespace attune
