import { record } from "../tape.js";
import { checkFloat, Tensor } from "../tensor.js";

/** y = x[indices]: some rows of x (T, C) f32 → (indices, C). An index outside T is a RangeError of the engine. */
export function gatherRows(x: Tensor, indices: Int32Array): Tensor {
  checkFloat("gatherRows", { x });
  const { rows, columns } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, [indices.length, columns]);
  kernels.gatherRows(x.id, indices, y.id, rows, columns);

  return record(y, [x], [], (dy, grads) => {
    grads.into(x, (dx, accumulate) => {
      if (!accumulate) kernels.fill(dx, 0, x.size);
      kernels.scatterRows(dy.id, indices, dx, rows, columns, true);
    });
  });
}
