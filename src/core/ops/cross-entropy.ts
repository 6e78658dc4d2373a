import { ShapeError } from "../../errors.js";
import { recordLoss } from "../tape.js";
import { checkFloat, Tensor } from "../tensor.js";
import type { CrossEntropyOptions } from "./linear-cross-entropy.js";

/**
 * Σ over rows of −log softmax(logits)[target], smoothed as `linearCrossEntropy` says. logits (S, N) f32, targets (S) → sum (1). For few classes; over a vocabulary,
 * `linearCrossEntropy` never holds all logits. While a tape records, the value comes with backward (`recordLoss`). Throws ShapeError.
 */
export function crossEntropy(logits: Tensor, targets: Int32Array, { smoothing = 0 }: CrossEntropyOptions = {}): Tensor {
  checkFloat("crossEntropy", { logits });
  const { rows, columns, device } = logits;
  if (targets.length !== rows)
    throw new ShapeError(`crossEntropy: expected ${rows} targets (rows of logits), got ${targets.length}`);
  const { kernels } = device;

  const sum = Tensor.empty(device, [1]);
  return recordLoss(sum, [logits], [logits], (grads, seed) => {
    const gradient = Tensor.empty(device, logits.shape); // the kernel turns logits into it
    const losses = Tensor.empty(device, [rows, 1]);
    kernels.copy(logits.id, gradient.id, logits.size);
    kernels.crossEntropy(gradient.id, targets, losses.id, columns, smoothing, grads !== null);
    kernels.sum(losses.id, sum.id, rows, false);
    if (seed !== 1) kernels.scale(gradient.id, gradient.id, seed, gradient.size, false);
    grads?.pass(logits, gradient);
  });
}
