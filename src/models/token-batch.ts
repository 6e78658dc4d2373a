import type { Segment } from "../core/ops/attention.js";
import { ShapeError } from "../errors.js";
import type { KVCache } from "../nn/kv-cache.js";

/** Tokens of several sequences in one row of T, without padding. */
export interface TokenBatch {
  /** (T) */
  readonly ids: Int32Array;
  /** (T) Each sequence counts from 0, or goes on from its prefix. */
  readonly positions: Int32Array;
  /**
   * Which rows belong together. With a cache, keys are counted in the cache's rows. A sequence begins here if it has no more keys than queries and
   * no prefix. A prefix is all rows of one that begins here, in a batch without a cache.
   */
  readonly segments: readonly Segment[];
  /** Present while generating: where keys and values of these tokens go. */
  readonly cache?: { readonly store: KVCache; readonly rows: Int32Array };
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
    const first = cache.extend(slot, segment.qLength); // the rows of other slots stay where they are
    for (let t = 0; t < segment.qLength; t++) {
      rows[segment.qStart + t] = first + t;
      packed.positions[segment.qStart + t]! += before;
    }
    return { ...segment, kStart: cache.startOf(slot), kLength: before + segment.qLength };
  });
  return { ...packed, segments, cache: { store: cache, rows } };
}

/** Throws ShapeError where a sequence in a cache does not have room for `count` virtual tokens before its own. */
export function checkVirtual({ segments, cache }: Omit<TokenBatch, "ids">, count: number): void {
  for (const { qStart, qLength, kStart, kLength } of cache === undefined ? [] : segments) {
    const room = cache!.rows[qStart]! - kStart - (kLength - qLength);
    if (room !== count) throw new ShapeError(`a cached sequence has ${room} virtual tokens, and the model ${count}`);
  }
}

/** A batch with room for P virtual tokens before every sequence that begins in it. */
export interface ExtendedBatch {
  /** (T') Where each row stands in its sequence; virtual tokens come first. */
  readonly positions: Int32Array;
  /** Queries and keys among the T' rows, or keys among the cache's. */
  readonly segments: readonly Segment[];
  /** (T) Where the tokens lie among the T' rows. */
  readonly tokenRows: Int32Array;
  /** Where the virtual tokens lie, and which of the P each is. */
  readonly virtualRows: Int32Array;
  readonly virtual: Int32Array;
  /** (T') Rows of the cache; empty without one. */
  readonly cacheRows: Int32Array;
}

/** Makes room for `count` virtual tokens before every sequence. What has a prefix begins with the prefix's own. */
export function extendBatch({ ids, positions, segments, cache }: TokenBatch, count: number): ExtendedBatch {
  const begins = ({ qLength, kLength, prefix }: Segment) => qLength === kLength && prefix === undefined;
  const newcomers = segments.filter(begins).length;
  const total = ids.length + newcomers * count;
  const extended = {
    positions: new Int32Array(total),
    segments: [] as Segment[],
    tokenRows: new Int32Array(ids.length),
    virtualRows: new Int32Array(newcomers * count),
    virtual: new Int32Array(newcomers * count),
    cacheRows: new Int32Array(cache === undefined ? 0 : total),
  };
  let [row, written] = [0, 0];
  for (const segment of segments) {
    const qStart = row;
    if (begins(segment))
      for (let i = 0; i < count; i++, row++, written++) {
        extended.positions[row] = i;
        extended.virtualRows[written] = row;
        extended.virtual[written] = i;
        if (cache !== undefined) extended.cacheRows[row] = segment.kStart + i;
      }
    for (let t = segment.qStart; t < segment.qStart + segment.qLength; t++, row++) {
      extended.positions[row] = positions[t]! + count;
      extended.tokenRows[t] = row;
      if (cache !== undefined) extended.cacheRows[row] = cache.rows[t]!;
    }
    const kStart = cache === undefined ? qStart : segment.kStart;
    const { prefix } = segment;
    extended.segments.push(
      prefix === undefined
        ? { qStart, qLength: row - qStart, kStart, kLength: segment.kLength + count }
        : {
            ...{ qStart, qLength: row - qStart, kStart, kLength: segment.kLength },
            prefix: { kStart: extended.tokenRows[prefix.kStart]! - count, kLength: prefix.kLength + count },
          },
    );
  }
  return extended;
}
