import { ShapeError } from "../../errors.js";
import { type Gradients, recordLoss } from "../tape.js";
import { checkFloat, scope, Tensor } from "../tensor.js";

/** How much memory the logits of one chunk of rows may take. */
const CHUNK_BYTES = 32 * 2 ** 20;

/**
 * Σ over rows of −log softmax(hidden Wᵀ)[target]: the output projection and the loss in one, in chunks of rows, so that the logits
 * (S, V) are never whole in memory. The gradient is made from the same logits as the loss, chunk by chunk; so while a tape records,
 * nothing is computed before backward, and the result can only be differentiated (the tape refuses any other use).
 * Source of the idea: Hsu et al. 2024, arXiv:2410.10989 (Liger), fused linear cross-entropy.
 * hidden (S, C) f32, weight (V, C) of any type, targets (S) → sum (1). Throws ShapeError.
 */
export function linearCrossEntropy(hidden: Tensor, weight: Tensor, targets: Int32Array): Tensor {
  const [vocab, width] = weight.shape;
  if (vocab === undefined || weight.shape.length !== 2 || hidden.columns !== width)
    throw new ShapeError(
      `linearCrossEntropy: expected hidden of shape [S, ${width}] (the columns of weight), got [${hidden.shape.join(", ")}]`,
    );
  if (targets.length !== hidden.rows)
    throw new ShapeError(`linearCrossEntropy: expected ${hidden.rows} targets (rows of hidden), got ${targets.length}`);
  checkFloat("linearCrossEntropy", weight.requiresGrad ? { hidden, weight } : { hidden });
  const { kernels, compute } = hidden.device;
  const rows = hidden.rows;
  const chunkRows = Math.max(1, Math.floor(CHUNK_BYTES / (4 * vocab)));

  const sum = Tensor.empty(hidden.device, [1]);
  const run = (grads: Gradients | null) => {
    const losses = Tensor.empty(hidden.device, [rows, 1]);
    const dhidden = grads !== null && hidden.requiresGrad ? Tensor.empty(hidden.device, hidden.shape) : null;
    for (let start = 0; start < rows; start += chunkRows) {
      const count = Math.min(chunkRows, rows - start);
      scope(() => {
        const x = hidden.rowRange(start, count);
        const logits = Tensor.empty(hidden.device, [count, vocab]);
        kernels.matmul(x.id, weight.id, weight.dtype, logits.id, count, vocab, width, 1, false, compute);
        kernels.crossEntropy(
          logits.id,
          targets.subarray(start, start + count),
          losses.rowRange(start, count).id,
          vocab,
          grads !== null,
        );
        if (dhidden !== null) {
          const dx = dhidden.rowRange(start, count);
          kernels.matmulInputGrad(logits.id, weight.id, weight.dtype, dx.id, count, vocab, width, 1, false, compute);
        }
        grads?.into(weight, (dw, accumulate) =>
          kernels.matmulWeightGrad(logits.id, x.id, dw, count, vocab, width, 1, accumulate, compute),
        );
      });
    }
    kernels.sum(losses.id, sum.id, rows, false);
    if (dhidden !== null) grads?.pass(hidden, dhidden);
  };

  return recordLoss(sum, [hidden, weight], [hidden], run);
}
