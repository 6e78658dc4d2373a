import { ShapeError } from "../../errors.js";
import { type Gradients, recordLoss } from "../tape.js";
import { checkFloat, checkShape, scope, Tensor } from "../tensor.js";

/** How much memory the logits of one chunk of rows may take. */
const CHUNK_BYTES = 32 * 2 ** 20;

/** What a low-rank change adds to logits: scale · narrow Bᵀ, with narrow (S, R) and B (V, R) in f32. */
export interface LogitsUpdate {
  readonly narrow: Tensor;
  readonly weight: Tensor;
  readonly scale: number;
}

/**
 * Σ over rows of −log softmax(hidden Wᵀ + updates)[target]: the output projection and the loss in one, in chunks of rows, so that the logits
 * (S, V) are never whole in memory. The gradient is made from the same logits as the loss, chunk by chunk; so while a tape records,
 * nothing is computed before backward, and the result can only be a root of it (`recordLoss`).
 * Source of the idea: Hsu et al. 2024, arXiv:2410.10989 (Liger), fused linear cross-entropy.
 * hidden (S, C) f32, weight (V, C) of any type, targets (S) → sum (1). Throws ShapeError.
 */
export function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  targets: Int32Array,
  updates: readonly LogitsUpdate[] = [],
): Tensor {
  const [vocab, width] = weight.shape;
  if (vocab === undefined || weight.shape.length !== 2 || hidden.columns !== width)
    throw new ShapeError(
      `linearCrossEntropy: expected hidden of shape [S, ${width}] (the columns of weight), got [${hidden.shape.join(", ")}]`,
    );
  if (targets.length !== hidden.rows)
    throw new ShapeError(`linearCrossEntropy: expected ${hidden.rows} targets (rows of hidden), got ${targets.length}`);
  checkFloat("linearCrossEntropy", weight.requiresGrad ? { hidden, weight } : { hidden });
  for (const { narrow, weight: b } of updates) {
    checkShape(
      "linearCrossEntropy",
      "narrow",
      narrow,
      [hidden.rows, b.columns],
      "rows of hidden, columns of the update's weight",
    );
    checkShape("linearCrossEntropy", "the update's weight", b, [vocab, b.columns], "the rows of weight");
    checkFloat("linearCrossEntropy", { narrow, b });
  }
  const { kernels, compute } = hidden.device;
  const rows = hidden.rows;
  const chunkRows = Math.max(1, Math.floor(CHUNK_BYTES / (4 * vocab)));

  const sum = Tensor.empty(hidden.device, [1]);
  const run = (grads: Gradients | null, seed: number) => {
    const losses = Tensor.empty(hidden.device, [rows, 1]);
    const gradientOf = (x: Tensor) => (grads !== null && x.requiresGrad ? Tensor.empty(x.device, x.shape) : null);
    const dhidden = gradientOf(hidden);
    const parts = updates.map((update) => ({ ...update, dnarrow: gradientOf(update.narrow), rank: update.weight.columns }));
    for (let start = 0; start < rows; start += chunkRows) {
      const count = Math.min(chunkRows, rows - start);
      scope(() => {
        const x = hidden.rowRange(start, count);
        const logits = Tensor.empty(hidden.device, [count, vocab]);
        kernels.matmul(x.id, weight.id, weight.dtype, logits.id, count, vocab, width, 1, false, compute);
        for (const { narrow, weight: b, scale, rank } of parts)
          kernels.matmul(narrow.rowRange(start, count).id, b.id, "f32", logits.id, count, vocab, rank, scale, true, compute);
        kernels.crossEntropy(
          logits.id,
          targets.subarray(start, start + count),
          losses.rowRange(start, count).id,
          vocab,
          grads !== null,
        );
        if (dhidden !== null) {
          const dx = dhidden.rowRange(start, count);
          kernels.matmulInputGrad(logits.id, weight.id, weight.dtype, dx.id, count, vocab, width, seed, false, compute);
        }
        grads?.into(weight, (dw, accumulate) =>
          kernels.matmulWeightGrad(logits.id, x.id, dw, count, vocab, width, seed, accumulate, compute),
        );
        for (const { narrow, weight: b, scale, rank, dnarrow } of parts) {
          const part = narrow.rowRange(start, count);
          if (dnarrow !== null) {
            const dx = dnarrow.rowRange(start, count);
            kernels.matmulInputGrad(logits.id, b.id, "f32", dx.id, count, vocab, rank, scale * seed, false, compute);
          }
          grads?.into(b, (db, accumulate) =>
            kernels.matmulWeightGrad(logits.id, part.id, db, count, vocab, rank, scale * seed, accumulate, compute),
          );
        }
      });
    }
    kernels.sum(losses.id, sum.id, rows, false);
    if (dhidden !== null) grads?.pass(hidden, dhidden);
    for (const { narrow, dnarrow } of parts) if (dnarrow !== null) grads?.pass(narrow, dnarrow);
  };

  const narrows = updates.map(({ narrow }) => narrow);
  return recordLoss(sum, [hidden, weight, ...narrows, ...updates.map((update) => update.weight)], [hidden, ...narrows], run);
}
