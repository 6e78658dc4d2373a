import { recordLoss } from "../tape.js";
import { checkShape, Tensor } from "../tensor.js";
import { ChunkedLogits, type LogitsUpdate } from "./chunked-logits.js";

/** How `sample` takes the largest logit: temperature 0, no cuts, no penalty, no log-probability. */
const greedy = [0, 1, 0, 1, 0, 0] as const;

export interface CrossEntropyOptions {
  /** s: the share of the wanted probability that all tokens get alike; the target gets the rest. 0 where not given. */
  readonly smoothing?: number;
  /** (S, 2): gets the token of the largest logit of each row, the first of several, and a 0 beside it. */
  readonly likeliest?: Tensor;
}

/**
 * Σ over rows of −log softmax(hidden Wᵀ + updates)[target], or with smoothing of (1 − s) times that plus s times the mean of −log softmax over
 * the vocabulary: the output projection and the loss in one, in chunks of rows, so that the logits
 * (S, V) are never whole in memory. The gradient is made from the same logits as the loss, chunk by chunk; so while a tape records,
 * nothing is computed before backward, and the result can only be a root of it (`recordLoss`).
 * Source of the idea: Hsu et al. 2024, arXiv:2410.10989 (Liger), fused linear cross-entropy; of smoothing: transformers' LabelSmoother.
 * hidden (S, C) f32, weight (V, C) of any type, targets (S) → sum (1). Throws ShapeError.
 */
export function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  targets: Int32Array,
  updates: readonly LogitsUpdate[] = [],
  { smoothing = 0, likeliest }: CrossEntropyOptions = {},
): Tensor {
  if (likeliest !== undefined)
    checkShape("linearCrossEntropy", "likeliest", likeliest, [targets.length, 2], "two numbers for each target");
  const logits = new ChunkedLogits("linearCrossEntropy", hidden, weight, targets, updates);
  const { rows, device } = hidden;
  const { kernels } = device;

  const sum = Tensor.empty(device, [1]);
  return recordLoss(sum, logits.inputs, logits.saved, (grads, seed) => {
    const losses = Tensor.empty(device, [rows, 1]);
    logits.inChunks(
      (chunk, some, start) => {
        if (likeliest !== undefined) {
          const draws = Float64Array.from({ length: chunk.rows * greedy.length }, (_, i) => greedy[i % greedy.length]!);
          const to = likeliest.rowRange(start, chunk.rows).id;
          kernels.sample(chunk.id, draws, new Int32Array(0), to, chunk.rows, chunk.columns, 0);
        }
        const loss = losses.rowRange(start, chunk.rows).id;
        kernels.crossEntropy(chunk.id, some, loss, chunk.columns, smoothing, grads !== null);
      },
      { grads, seed },
    );
    kernels.sum(losses.id, sum.id, rows, false);
  });
}
