import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/** y = s · x with a factor that may train. x (...) f32, s (1) f32 → y (...). Throws ShapeError. */
export function scaleBy(x: Tensor, s: Tensor): Tensor {
  checkFloat("scaleBy", { x, s });
  checkShape("scaleBy", "s", s, [1], "one factor for all of x");
  const { size } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  kernels.matmul(x.id, s.id, "f32", y.id, size, 1, 1, 1, false, "f32"); // (size, 1) times (1, 1)
  y.remakeIfCheckpointed([x], (again) => kernels.matmul(x.id, s.id, "f32", again, size, 1, 1, 1, false, "f32"));

  return record(y, [x, s], s.requiresGrad ? [x] : [], (dy, grads) => {
    grads.into(x, (dx, accumulate) => kernels.matmul(dy.id, s.id, "f32", dx, size, 1, 1, 1, accumulate, "f32"));
    grads.into(s, (ds, accumulate) => kernels.matmul(dy.id, x.id, "f32", ds, 1, 1, size, 1, accumulate, "f32"));
  });
}
