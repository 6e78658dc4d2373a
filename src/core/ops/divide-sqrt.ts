import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/** y = x / √squares, element by element, 0 where squares is 0; same shapes, f32. Only x gets a gradient. Throws ShapeError. */
export function divideSqrt(x: Tensor, squares: Tensor): Tensor {
  checkFloat("divideSqrt", { x, squares });
  checkShape("divideSqrt", "squares", squares, x.shape, "the shape of x");
  const { size } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  kernels.divideSqrt(x.id, squares.id, y.id, size);

  return record(y, [x], [squares], (dy, grads) => {
    grads.replace(x, (dx) => kernels.divideSqrt(dy.id, squares.id, dx, size));
  });
}
