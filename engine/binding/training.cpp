#include "../kernel_table.h"
#include "bindings.h"

namespace attune {

napi_value bind_adamw(Call& call) {
  const int64_t count = call.size(4, "count");
  const AdamWStep step = {
      call.number(5, "step", "lr"),          call.number(5, "step", "beta1"),       call.number(5, "step", "beta2"),
      call.number(5, "step", "eps"),         call.number(5, "step", "weightDecay"), call.number(5, "step", "correction1"),
      call.number(5, "step", "correction2"), call.number(5, "step", "gradScale"),
  };
  for (const auto& [name, beta] : {std::pair{"beta1", step.beta1}, std::pair{"beta2", step.beta2}})
    if (beta < 0 || beta >= 1) call.refuse(Refused::Range, std::string("step.") + name + " must be at least 0 and less than 1, got " + std::to_string(beta));
  for (const auto& [name, correction] : {std::pair{"correction1", step.correction1}, std::pair{"correction2", step.correction2}})
    if (!(correction > 0)) call.refuse(Refused::Range, std::string("step.") + name + " must be more than 0, got " + std::to_string(correction));
  float* p = call.floats(0, "p", {count});
  const float* g = call.floats(1, "g", {count});
  float* m = call.floats(2, "m", {count});
  float* v = call.floats(3, "v", {count});
  call.enqueue([=] { kernels().optim.adamw(p, g, m, v, count, step); });
  return nullptr;
}

} // namespace attune
