import { ConfigError } from "../../errors.js";
import { record } from "../tape.js";
import { Tensor } from "../tensor.js";
import { ChunkedLogits, type LogitsUpdate } from "./chunked-logits.js";

/**
 * log softmax((hidden Wᵀ + updates) / temperature)[target] of each row: how likely the model finds tokens that are given.
 * Preference and RL losses are functions of these numbers. Logits are made in chunks of rows and are never whole in memory: once where the
 * projection is frozen, since each row's gradient is then its seed times a vector that forward can keep, (S, C) in all; otherwise in forward
 * and again in backward, and a loss that is the sum of these, negated, is cheaper as `linearCrossEntropy`.
 * hidden (S, C) f32, weight (V, C) of any type, targets (S) → (S). Throws ShapeError; ConfigError unless the temperature is above
 * 0.
 */
export function tokenLogProbs(
  hidden: Tensor,
  weight: Tensor,
  targets: Int32Array,
  updates: readonly LogitsUpdate[] = [],
  { temperature = 1 }: { temperature?: number } = {},
): Tensor {
  const logits = new ChunkedLogits("tokenLogProbs", hidden, weight, targets, updates);
  if (!(temperature > 0 && temperature < Number.POSITIVE_INFINITY))
    throw new ConfigError(`tokenLogProbs: expected a temperature above 0, got ${temperature}`);
  const { rows, device } = hidden;
  const { kernels } = device;
  const scale = 1 / temperature;

  const y = Tensor.empty(device, [rows, 1]);
  const slopes = logits.isProjectionFrozen ? Tensor.empty(device, hidden.shape).keepExact() : null; // of each y by its row of hidden
  logits.inChunks(
    (chunk, some, start) =>
      kernels.crossEntropy(chunk.id, some, y.rowRange(start, chunk.rows).id, chunk.columns, 0, slopes !== null),
    { scale, slopes, seed: -1 },
  );
  kernels.scale(y.id, y.id, -1, rows, false);

  if (slopes !== null)
    return record(y.alias([rows]), logits.inputs, [slopes], (dy, grads) =>
      grads.replace(hidden, (dx) => kernels.scaleRows(slopes.id, dy.id, dx, rows, slopes.columns)),
    );
  // The gradient of the scaled logits is −dy · (softmax − onehot), row by row.
  return record(y.alias([rows]), logits.inputs, logits.saved, (dy, grads) => {
    const seeds = dy.alias([rows, 1]);
    logits.inChunks(
      (chunk, some, start) => {
        const losses = Tensor.empty(device, [chunk.rows, 1]);
        kernels.crossEntropy(chunk.id, some, losses.id, chunk.columns, 0, true);
        kernels.scaleRows(chunk.id, seeds.rowRange(start, chunk.rows).id, chunk.id, chunk.rows, chunk.columns);
      },
      { scale, grads, seed: -1 },
    );
  });
}
