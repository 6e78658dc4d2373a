import type { Device } from "../core/device.js";
import type { Segment } from "../core/ops/attention.js";
import { gatherRows } from "../core/ops/rows.js";
import type { Tensor } from "../core/tensor.js";
import type { KVCache } from "../nn/kv-cache.js";
import type { Linear } from "../nn/linear.js";
import { Module } from "../nn/module.js";

/** Tokens of several sequences in one row of T, without padding. */
export interface TokenBatch {
  /** (T) */
  readonly ids: Int32Array;
  /** (T) Each sequence counts from 0. */
  readonly positions: Int32Array;
  /** Which rows belong together. With a cache, keys are counted in the cache's rows. */
  readonly segments: readonly Segment[];
  /** Present while generating: where keys and values of these tokens go. */
  readonly cache?: { readonly store: KVCache; readonly rows: Int32Array };
}

/** What the rest of attune needs to know of a decoder's shape. */
export interface CausalLMShape {
  readonly vocabSize: number;
  readonly width: number;
  readonly layers: number;
  /** Columns of one layer's keys: G · D. */
  readonly kvWidth: number;
  readonly maxPositions: number;
}

/**
 * A decoder that predicts the next token. Tuners reach it through its seams: Linears found among its modules can be replaced
 * (`Module.replace`). A model knows its seams, never who uses them.
 */
export abstract class CausalLM extends Module {
  abstract readonly device: Device;
  abstract readonly shape: CausalLMShape;
  /** Compute each layer twice instead of keeping its activations for backward. */
  gradientCheckpointing = false;

  /** The output projection: weight (V, C). */
  abstract readonly lm_head: Linear;

  /** The last hidden state of every token, ready for the output projection: (T, C). */
  abstract hidden(batch: TokenBatch): Tensor;

  /** Logits (rows, V) at the given rows of the batch. */
  logits(batch: TokenBatch, rows: Int32Array): Tensor {
    return this.lm_head.forward(gatherRows(this.hidden(batch), rows));
  }
}

/** Lays sequences one behind the other; each attends only to itself. */
export function packSequences(sequences: readonly Int32Array[]): TokenBatch {
  const total = sequences.reduce((sum, sequence) => sum + sequence.length, 0);
  const ids = new Int32Array(total);
  const positions = new Int32Array(total);
  const segments: Segment[] = [];
  let start = 0;
  for (const sequence of sequences) {
    const length = sequence.length;
    ids.set(sequence, start);
    for (let i = 0; i < length; i++) positions[start + i] = i;
    segments.push({ qStart: start, qLength: length, kStart: start, kLength: length });
    start += length;
  }
  return { ids, positions, segments };
}

/** New tokens for slots of a cache, which takes the rows for them into use. */
export function continueSequences(cache: KVCache, slots: readonly number[], sequences: readonly Int32Array[]): TokenBatch {
  const packed = packSequences(sequences);
  const rows = new Int32Array(packed.ids.length);
  const segments = packed.segments.map((segment, i): Segment => {
    const slot = slots[i]!;
    const before = cache.lengthOf(slot);
    const first = cache.extend(slot, segment.qLength);
    for (let t = 0; t < segment.qLength; t++) {
      rows[segment.qStart + t] = first + t;
      packed.positions[segment.qStart + t]! += before;
    }
    return { ...segment, kStart: slot * cache.capacity, kLength: before + segment.qLength };
  });
  return { ...packed, segments, cache: { store: cache, rows } };
}
