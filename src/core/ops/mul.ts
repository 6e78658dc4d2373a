import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/** y = a · b, element by element; same shapes, f32. y is cheap to compute again, so backward does not hold its memory. Throws ShapeError. */
export function mul(a: Tensor, b: Tensor): Tensor {
  checkFloat("mul", { a, b });
  checkShape("mul", "b", b, a.shape, "the shape of a");
  const { size } = a;
  const { kernels } = a.device;

  const y = Tensor.empty(a.device, a.shape);
  kernels.mul(a.id, b.id, y.id, size, false);
  y.remakeFrom([a, b], (again) => kernels.mul(a.id, b.id, again, size, false));

  return record(y, [a, b], [a, b], (dy, grads) => {
    grads.into(a, (da, accumulate) => kernels.mul(dy.id, b.id, da, size, accumulate));
    grads.into(b, (db, accumulate) => kernels.mul(dy.id, a.id, db, size, accumulate));
  });
}
