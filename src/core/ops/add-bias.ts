import type { Id } from "../../engine/kernels.js";
import { record } from "../tape.js";
import { checkFloat, checkShape, type Tensor } from "../tensor.js";

/** y = x + bias in every row, in x's memory where nobody else needs it. x (..., C) f32, bias (C) f32 → y (..., C). Throws ShapeError. */
export function addBias(x: Tensor, bias: Tensor): Tensor {
  checkFloat("addBias", { x, bias });
  checkShape("addBias", "bias", bias, [x.columns], "the last dimension of x");
  const { rows, columns } = x;
  const { kernels } = x.device;

  const xId = x.id;
  const write = (to: Id) => kernels.addBias(to, bias.id, rows, columns);
  const y = x.reuse({ from: [bias], write });
  if (y.id !== xId) kernels.copy(xId, y.id, x.size);
  write(y.id);

  return record(y, [x, bias], [], (dy, grads) => {
    grads.pass(x, dy);
    grads.into(bias, (db, accumulate) => kernels.biasGrad(dy.id, db, rows, columns, accumulate));
  });
}
