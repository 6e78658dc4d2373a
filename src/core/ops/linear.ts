import type { Id } from "../../engine/kernels.js";
import { ShapeError } from "../../errors.js";
import { type Gradients, record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/**
 * y = x Wᵀ + b. x (..., K) f32, W (N, K) of any type, b (N) f32 → y (..., N) f32. A gradient of W or b needs them in f32.
 * Throws ShapeError.
 */
export function linear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  const [n, k] = check("linear", x, weight);
  if (bias !== null) checkShape("linear", "bias", bias, [n], "the rows of weight");
  const m = x.rows;
  const { kernels, compute } = x.device;

  const y = Tensor.empty(x.device, [...x.shape.slice(0, -1), n]);
  const write = (to: Id) => {
    kernels.matmul(x.id, weight.id, weight.dtype, to, m, n, k, 1, false, compute);
    if (bias !== null) kernels.addBias(to, bias.id, m, n);
  };
  write(y.id);
  y.remakeIfCheckpointed([x], write);

  const inputs = bias === null ? [x, weight] : [x, weight, bias];
  return record(y, inputs, weight.requiresGrad ? [x] : [], (dy, grads) => {
    productGrads(dy, x, weight, 1, grads);
    if (bias !== null) grads.into(bias, (db, accumulate) => kernels.biasGrad(dy.id, db, m, n, accumulate));
  });
}

/**
 * y = base + scale · x Wᵀ: a product added to what another layer gave, in place where `base` is needed by nobody else.
 * base (..., N), x (..., K), W (N, K) → y (..., N). Throws ShapeError.
 */
export function addLinear(base: Tensor, x: Tensor, weight: Tensor, scale: number): Tensor {
  const [n, k] = check("addLinear", x, weight);
  checkShape("addLinear", "base", base, [...x.shape.slice(0, -1), n], "the shape of x Wᵀ");
  const m = x.rows;
  const { kernels, compute } = x.device;

  const baseId = base.id;
  const write = (to: Id) => kernels.matmul(x.id, weight.id, weight.dtype, to, m, n, k, scale, true, compute);
  const y = base.reuse({ from: [x], write });
  if (y.id !== baseId) kernels.copy(baseId, y.id, base.size);
  write(y.id);

  return record(y, [base, x, weight], weight.requiresGrad ? [x] : [], (dy, grads) => {
    productGrads(dy, x, weight, scale, grads);
    grads.pass(base, dy);
  });
}

function check(op: string, x: Tensor, weight: Tensor): [n: number, k: number] {
  const [n, k] = weight.shape;
  if (n === undefined || k === undefined || weight.shape.length !== 2)
    throw new ShapeError(`${op}: expected weight of shape [N, K], got [${weight.shape.join(", ")}]`);
  if (x.columns !== k)
    throw new ShapeError(`${op}: expected x of shape [..., ${k}] (the columns of weight), got [${x.shape.join(", ")}]`);
  checkFloat(op, weight.requiresGrad ? { x, weight } : { x });
  return [n, k];
}

function productGrads(dy: Tensor, x: Tensor, weight: Tensor, scale: number, grads: Gradients): void {
  const [n, k] = weight.shape as [number, number];
  const m = x.rows;
  const { kernels, compute } = x.device;
  grads.into(x, (dx, accumulate) =>
    kernels.matmulInputGrad(dy.id, weight.id, weight.dtype, dx, m, n, k, scale, accumulate, compute),
  );
  grads.into(weight, (dw, accumulate) => kernels.matmulWeightGrad(dy.id, x.id, dw, m, n, k, scale, accumulate, compute));
}
