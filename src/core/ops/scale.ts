import { record } from "../tape.js";
import { checkFloat, type Tensor } from "../tensor.js";

/** y = factor · x, f32; in x's memory where nobody else needs it. */
export function scale(x: Tensor, factor: number): Tensor {
  checkFloat("scale", { x });
  const { size } = x;
  const { kernels } = x.device;
  const xId = x.id;
  const y = x.reuse({ from: [], write: (id) => kernels.scale(id, id, factor, size, false) });
  kernels.scale(xId, y.id, factor, size, false);

  return record(y, [x], [], (dy, grads) => {
    grads.into(x, (dx, accumulate) => kernels.scale(dy.id, dx, factor, size, accumulate));
  });
}
