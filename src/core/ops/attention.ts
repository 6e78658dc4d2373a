import type { Id } from "../../engine/kernels.js";
import { ShapeError } from "../../errors.js";
import { dropoutRng, record } from "../tape.js";
import { checkFloat, Tensor } from "../tensor.js";

/** Where the queries and the keys of one sequence lie among all rows. */
export interface Segment {
  readonly qStart: number;
  readonly qLength: number;
  readonly kStart: number;
  readonly kLength: number;
  /** Keys that come before these, and may be those of another segment as well. */
  readonly prefix?: { readonly kStart: number; readonly kLength: number };
}

export interface AttentionOptions {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Default 1 / sqrt(D). */
  readonly scale?: number;
  /** Query i sees keys j ≤ i + (number of keys) − qLength of its segment, the prefix counted. Default true. */
  readonly causal?: boolean;
  /** How many of the last keys a query sees; 0, the default, for all. */
  readonly window?: number;
  /** The chance p that a probability is dropped in training; the others are divided by 1 − p. Default 0. */
  readonly dropout?: number;
}

/**
 * o = dropout(softmax(scale · q kᵀ)) v, each sequence for itself, in tiles: no T × T array is ever held, nor any mask.
 * Source: Dao 2023, arXiv:2307.08691 (tiles, online softmax, recomputation in backward); grouped heads of Ainslie et al. 2023,
 * arXiv:2305.13245: query head h reads key/value head ⌊h · G / H⌋. A prefix of several segments is Liu et al. 2025, arXiv:2506.05433 (Prefix
 * Grouper): its keys and values are there once, and their gradients are the sums over the segments.
 * q (Tq, H · D), k and v (Tk, G · D) f32 → o (Tq, H · D). Throws ShapeError.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, segments: readonly Segment[], options: AttentionOptions): Tensor {
  const { heads, kvHeads, headDim, scale = headDim ** -0.5, causal = true, window = 0 } = options;
  const rng = options.dropout ? dropoutRng() : null;
  const drop = { dropout: rng === null ? 0 : options.dropout!, seed: rng?.uint64() ?? 0n };
  checkFloat("attention", { q, k, v });
  if (heads % kvHeads !== 0) throw new ShapeError(`attention: ${heads} heads are not a multiple of ${kvHeads} key/value heads`);
  for (const [name, tensor, width] of [
    ["q", q, heads * headDim],
    ["k", k, kvHeads * headDim],
    ["v", v, kvHeads * headDim],
  ] as const)
    if (tensor.columns !== width)
      throw new ShapeError(`attention: expected ${name} with ${width} columns, got [${tensor.shape.join(", ")}]`);
  if (k.rows !== v.rows) throw new ShapeError(`attention: expected as many keys as values, got ${k.rows} and ${v.rows}`);

  const shape = { qRows: q.rows, kRows: k.rows, heads, kvHeads, headDim, scale, causal, window, ...drop };
  const flat = Int32Array.from(
    segments.flatMap(({ qStart, qLength, kStart, kLength, prefix }) => [
      ...[qStart, qLength, kStart, kLength],
      ...[prefix?.kStart ?? 0, prefix?.kLength ?? 0],
    ]),
  );
  const { kernels, compute } = q.device;

  const o = Tensor.empty(q.device, q.shape);
  const lse = Tensor.empty(q.device, [q.rows, heads]).keepExact(); // log Σ exp(scores), one per query and head
  const write = (to: Id) => kernels.attention(q.id, k.id, v.id, to, lse.id, flat, shape, compute);
  write(o.id);
  o.remakeIfCheckpointed([q, k, v, lse], write);

  return record(o, [q, k, v], [q, k, v, o, lse], (dy, grads) => {
    const dq = Tensor.empty(q.device, q.shape);
    const dk = Tensor.empty(k.device, k.shape);
    const dv = Tensor.empty(v.device, v.shape);
    kernels.attentionGrad(q.id, k.id, v.id, o.id, lse.id, dy.id, dq.id, dk.id, dv.id, flat, shape, compute);
    grads.pass(q, dq);
    grads.pass(k, dk);
    grads.pass(v, dv);
  });
}
