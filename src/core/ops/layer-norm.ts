import type { Id } from "../../engine/kernels.js";
import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/**
 * y = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias over the last dimension, var being the mean of the squared distances.
 * Source: Ba et al. 2016, arXiv:1607.06450, eq. 4; eps as in PyTorch.
 * x (..., C) f32, weight and bias (C) f32 → y (..., C). y is cheap to compute again, so backward does not hold its memory. Throws ShapeError.
 */
export function layerNorm(x: Tensor, weight: Tensor, bias: Tensor, eps: number): Tensor {
  checkFloat("layerNorm", { x, weight, bias });
  checkShape("layerNorm", "weight", weight, [x.columns], "the last dimension of x");
  checkShape("layerNorm", "bias", bias, [x.columns], "the last dimension of x");
  const { rows, columns } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  const mean = Tensor.empty(x.device, [rows]).keepExact();
  const rstd = Tensor.empty(x.device, [rows]).keepExact(); // 1 / sqrt(var(x) + eps)
  const write = (to: Id) => kernels.layerNorm(x.id, weight.id, bias.id, to, mean.id, rstd.id, rows, columns, eps);
  write(y.id);
  y.remakeFrom([x, mean, rstd], write);

  return record(y, [x, weight, bias], [x, mean, rstd], (dy, grads) => {
    grads.into(x, (dx, accumulate) =>
      kernels.layerNormGrad(dy.id, x.id, weight.id, mean.id, rstd.id, dx, rows, columns, accumulate),
    );
    grads.into(weight, (dw, accumulate) =>
      kernels.layerNormWeightGrad(dy.id, x.id, mean.id, rstd.id, dw, rows, columns, accumulate),
    );
    grads.into(bias, (db, accumulate) => kernels.biasGrad(dy.id, db, rows, columns, accumulate));
  });
}
