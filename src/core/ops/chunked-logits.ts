import { ShapeError } from "../../errors.js";
import type { Gradients } from "../tape.js";
import { checkFloat, checkShape, scope, Tensor } from "../tensor.js";

/** How much memory the logits of one chunk of rows may take. */
const CHUNK_BYTES = 32 * 2 ** 20;

/** What a low-rank change adds to logits: scale · narrow Bᵀ, with narrow (S, R) and B (V, R) in f32. */
export interface LogitsUpdate {
  readonly narrow: Tensor;
  readonly weight: Tensor;
  readonly scale: number;
}

/** Work on the logits (rows of the chunk, V) of rows from `start` on, which it may overwrite. `targets` are those of its rows. */
type ChunkWork = (logits: Tensor, targets: Int32Array, start: number) => void;

/**
 * hidden Wᵀ + updates: the logits (S, V) of an output projection, of which only a chunk of rows exists at a time.
 * hidden (S, C) f32, W (V, C) of any type, targets (S). Throws ShapeError in the name of `op`.
 */
export class ChunkedLogits {
  /** Every tensor that may need a gradient; and those among them that backward reads, which must stay in memory for it. */
  readonly inputs: readonly Tensor[];
  readonly saved: readonly Tensor[];
  /** Whether `hidden` alone needs a gradient. */
  readonly isProjectionFrozen: boolean;
  readonly #hidden: Tensor;
  readonly #weight: Tensor;
  readonly #updates: readonly LogitsUpdate[];
  readonly #targets: Int32Array;
  readonly #chunkRows: number;

  constructor(op: string, hidden: Tensor, weight: Tensor, targets: Int32Array, updates: readonly LogitsUpdate[]) {
    const [vocab, width] = weight.shape;
    if (vocab === undefined || weight.shape.length !== 2 || hidden.columns !== width)
      throw new ShapeError(
        `${op}: expected hidden of shape [S, ${width}] (the columns of weight), got [${hidden.shape.join(", ")}]`,
      );
    if (targets.length !== hidden.rows)
      throw new ShapeError(`${op}: expected ${hidden.rows} targets (rows of hidden), got ${targets.length}`);
    checkFloat(op, weight.requiresGrad ? { hidden, weight } : { hidden });
    for (const { narrow, weight: b } of updates) {
      checkShape(op, "narrow", narrow, [hidden.rows, b.columns], "rows of hidden, columns of the update's weight");
      checkShape(op, "the update's weight", b, [vocab, b.columns], "the rows of weight");
      checkFloat(op, { narrow, b });
    }
    const narrows = updates.map(({ narrow }) => narrow);
    this.inputs = [hidden, weight, ...narrows, ...updates.map((update) => update.weight)];
    this.saved = [hidden, ...narrows];
    this.isProjectionFrozen = hidden.requiresGrad && this.inputs.every((input) => input === hidden || !input.requiresGrad);
    this.#hidden = hidden;
    this.#weight = weight;
    this.#updates = updates;
    this.#targets = targets;
    this.#chunkRows = Math.max(1, Math.floor(CHUNK_BYTES / (4 * vocab)));
  }

  /**
   * Makes scale · logits chunk by chunk and hands each chunk to `work`. With `grads`, `work` overwrites the chunk with its
   * gradient, without the factor `seed`, and that gradient goes on to the inputs; with `slopes` (S, C) instead, into these, as that of hidden.
   */
  inChunks(
    work: ChunkWork,
    {
      scale = 1,
      grads = null,
      slopes = null,
      seed = 1,
    }: { scale?: number; grads?: Gradients | null; slopes?: Tensor | null; seed?: number },
  ): void {
    const hidden = this.#hidden;
    const weight = this.#weight;
    const { kernels, compute } = hidden.device;
    const [vocab, width] = weight.shape as [number, number];
    const rows = hidden.rows;
    const gradientOf = (x: Tensor) => (grads !== null && x.requiresGrad ? Tensor.empty(x.device, x.shape) : null);
    const dhidden = slopes ?? gradientOf(hidden);
    const updates = this.#updates.map((update) => ({
      narrow: update.narrow,
      b: update.weight,
      rank: update.weight.columns,
      scale: scale * update.scale,
      dnarrow: gradientOf(update.narrow),
    }));
    for (let start = 0; start < rows; start += this.#chunkRows) {
      const count = Math.min(this.#chunkRows, rows - start);
      scope(() => {
        const x = hidden.rowRange(start, count);
        const logits = Tensor.empty(hidden.device, [count, vocab]);
        kernels.matmul(x.id, weight.id, weight.dtype, logits.id, count, vocab, width, scale, false, compute);
        for (const { narrow, b, rank, scale } of updates)
          kernels.matmul(narrow.rowRange(start, count).id, b.id, "f32", logits.id, count, vocab, rank, scale, true, compute);
        work(logits, this.#targets.subarray(start, start + count), start);
        if (dhidden !== null) {
          const dx = dhidden.rowRange(start, count);
          kernels.matmulInputGrad(logits.id, weight.id, weight.dtype, dx.id, count, vocab, width, scale * seed, false, compute);
        }
        grads?.into(weight, (dw, accumulate) =>
          kernels.matmulWeightGrad(logits.id, x.id, dw, count, vocab, width, scale * seed, accumulate, compute),
        );
        for (const { narrow, b, rank, scale, dnarrow } of updates) {
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
    if (dhidden !== null) grads?.pass(hidden, dhidden); // slopes stay the caller's: then there are no grads
    for (const { narrow, dnarrow } of updates) if (dnarrow !== null) grads?.pass(narrow, dnarrow);
  }
}
