import { ShapeError } from "../../errors.js";
import { dropoutRng, record } from "../tape.js";
import { checkFloat, type Tensor } from "../tensor.js";
import type { Segment } from "./attention.js";

/**
 * y = x + α / √(L · C) · u with u uniform in [−1, 1), L the length of the row's own sequence, with its prefix; of a row that is the prefix of
 * several sequences, the length of the longest. It is in x's memory where nobody else needs it. Outside
 * training, and for α = 0, y is x. x (T, C) f32, `segments` cover its rows → y (T, C). Throws ShapeError.
 *
 * Source: Jain et al. 2023, arXiv:2310.05914 (NEFTune). transformers and TRL take the padded length of the batch for L, and that of the whole pack where
 * sequences are packed: here, as in the paper's own code, how a sequence is batched changes nothing about its noise's size.
 */
export function embeddingNoise(x: Tensor, segments: readonly Segment[], alpha: number): Tensor {
  const rng = dropoutRng();
  if (alpha === 0 || rng === null) return x;
  checkFloat("embeddingNoise", { x });
  const { columns, rows } = x;
  const scales = new Float64Array(rows);
  const scaleOf = (length: number) => alpha / Math.sqrt(length * columns);
  for (const { qStart, qLength, prefix } of segments)
    scales.fill(scaleOf((prefix?.kLength ?? 0) + qLength), qStart, qStart + qLength);
  for (const { qLength, prefix } of segments) {
    if (prefix === undefined) continue;
    const { kStart, kLength } = prefix;
    scales.fill(Math.min(scales[kStart]!, scaleOf(kLength + qLength)), kStart, kStart + kLength);
  }
  if (segments.reduce((sum, { qLength }) => sum + qLength, 0) !== rows)
    throw new ShapeError(`embeddingNoise: expected sequences of ${rows} rows together, as many as x has`);
  const seed = rng.uint64();
  const { kernels } = x.device;

  const xId = x.id;
  const y = x.reuse({ from: [], write: (id) => kernels.addUniform(id, scales, id, seed, rows, columns) });
  kernels.addUniform(xId, scales, y.id, seed, rows, columns);

  return record(y, [x], [], (dy, grads) => grads.pass(x, dy));
}
