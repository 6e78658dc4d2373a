import type { Id } from "../../engine/kernels.js";
import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/** y = x · scale, each column with its own factor. x (..., C) f32, scale (C) f32 → y (..., C). Throws ShapeError. */
export function scaleColumns(x: Tensor, scale: Tensor): Tensor {
  checkFloat("scaleColumns", { x, scale });
  checkShape("scaleColumns", "scale", scale, [x.columns], "the last dimension of x");
  const { rows, columns } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  const write = (to: Id) => kernels.scaleColumns(x.id, scale.id, to, rows, columns);
  write(y.id);
  y.remakeFrom([x, scale], write);

  return record(y, [x, scale], scale.requiresGrad ? [x, scale] : [scale], (dy, grads) => {
    grads.into(scale, (dscale, accumulate) => kernels.columnDots(dy.id, x.id, dscale, rows, columns, accumulate));
    grads.replace(x, (dx) => kernels.scaleColumns(dy.id, scale.id, dx, rows, columns));
  });
}
