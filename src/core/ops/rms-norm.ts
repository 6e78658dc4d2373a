import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/**
 * y = x / sqrt(mean(x²) + eps) · weight, over the last dimension.
 * Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; eps as in Llama.
 * x (..., C) f32, weight (C) f32 → y (..., C). y is cheap to compute again, so backward does not hold its memory. Throws ShapeError.
 */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor {
  checkFloat("rmsNorm", { x, weight });
  checkShape("rmsNorm", "weight", weight, [x.columns], "the last dimension of x");
  const { rows, columns } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  const rstd = Tensor.empty(x.device, [rows]).keepExact(); // 1 / sqrt(mean(x²) + eps), one per row
  kernels.rmsNorm(x.id, weight.id, y.id, rstd.id, rows, columns, eps);
  y.remakeFrom([x, rstd], (again) => kernels.rmsNorm(x.id, weight.id, again, rstd.id, rows, columns, eps));

  return record(y, [x, weight], [x, rstd], (dy, grads) => {
    grads.into(x, (dx, accumulate) => kernels.rmsNormGrad(dy.id, x.id, weight.id, rstd.id, dx, rows, columns, accumulate));
    grads.into(weight, (dw, accumulate) => kernels.rmsNormWeightGrad(dy.id, x.id, rstd.id, dw, rows, columns, accumulate));
  });
}
