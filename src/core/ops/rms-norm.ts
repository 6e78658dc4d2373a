import { ShapeError } from "../../errors.js";
import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

export interface RmsNormOptions {
  /** Each of so many equal parts of a row is normalised for itself, all with the same weight. Default 1. */
  readonly heads?: number;
  /** What is added to the weight. Default 0. */
  readonly offset?: number;
}

/**
 * y = x / sqrt(mean(x²) + eps) · (weight + offset), over the last dimension or over each head's part of it.
 * Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; eps as in Llama, heads as in Qwen3, offset 1 as in Gemma.
 * x (..., H · D) f32, weight (D) → y (..., H · D). y is cheap to compute again, so backward does not hold its memory. Throws ShapeError.
 */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number, { heads = 1, offset = 0 }: RmsNormOptions = {}): Tensor {
  checkFloat("rmsNorm", { x, weight });
  if (x.columns % heads !== 0) throw new ShapeError(`rmsNorm: ${heads} heads do not divide x of shape [${x.shape.join(", ")}]`);
  const columns = x.columns / heads;
  const rows = x.rows * heads;
  checkShape("rmsNorm", "weight", weight, [columns], heads === 1 ? "the last dimension of x" : `that over ${heads} heads`);
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  const rstd = Tensor.empty(x.device, [rows]).keepExact(); // 1 / sqrt(mean(x²) + eps), one per row
  kernels.rmsNorm(x.id, weight.id, y.id, rstd.id, rows, columns, eps, offset);
  y.remakeFrom([x, rstd], (again) => kernels.rmsNorm(x.id, weight.id, again, rstd.id, rows, columns, eps, offset));

  return record(y, [x, weight], [x, rstd], (dy, grads) => {
    grads.into(x, (dx, accumulate) =>
      kernels.rmsNormGrad(dy.id, x.id, weight.id, rstd.id, dx, rows, columns, offset, accumulate),
    );
    grads.into(weight, (dw, accumulate) => kernels.rmsNormWeightGrad(dy.id, x.id, rstd.id, dw, rows, columns, accumulate));
  });
}
