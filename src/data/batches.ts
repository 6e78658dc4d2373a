import { Rng } from "../core/rng.js";
import { ConfigError } from "../errors.js";

export interface BatchOptions {
  /** Sequences in a micro-batch: rows, or packed bins of rows. */
  readonly batchSize: number;
  readonly packing: boolean;
  /** Length of a bin, in tokens. */
  readonly cutoffLen: number;
  readonly seed: number;
  /** Rows come in their own order in every epoch. */
  readonly keepsOrder?: boolean;
}

/**
 * Which rows go into each micro-batch: every row once an epoch, in an order that the seed and the epoch's number decide alone, so that a
 * resumed run goes on exactly. Rows of a micro-batch are laid end to end without padding; lengths are therefore not sorted.
 *
 * With `packing`, rows fill bins of `cutoffLen` tokens, whole, by best fit decreasing; the bins are shuffled, and a micro-batch is
 * `batchSize` of them. With `keepsOrder` too, a bin ends where the next row does not fit. Source: Johnson 1974, "Fast algorithms for bin packing" (at most 11/9 of the fewest bins, plus one).
 */
export class BatchPlan {
  readonly #lengths: readonly number[];
  readonly #options: BatchOptions;

  constructor(lengths: readonly number[], options: BatchOptions) {
    const { batchSize, cutoffLen, packing } = options;
    if (!Number.isInteger(batchSize) || batchSize < 1)
      throw new ConfigError(`batch size ${batchSize}: expected a whole number from 1.`);
    const longest = lengths.reduce((most, length) => Math.max(most, length), 0);
    if (packing && longest > cutoffLen)
      throw new ConfigError(`packing: a row has ${longest} tokens and does not fit into a bin of cutoff_len = ${cutoffLen}.`);
    this.#lengths = lengths;
    this.#options = options;
  }

  /** The micro-batches of epoch `n` (from 0), as row numbers. */
  epoch(n: number): number[][] {
    const { seed, packing, batchSize, cutoffLen, keepsOrder = false } = this.#options;
    if (keepsOrder) {
      const rows = Array.from(this.#lengths.keys());
      return packing
        ? chunks(packInOrder(rows, this.#lengths, cutoffLen), batchSize).map((group) => group.flat())
        : chunks(rows, batchSize);
    }
    const rng = Rng.for(seed, `epoch ${n}`);
    const order = shuffled(Array.from(this.#lengths.keys()), rng);
    if (!packing) return chunks(order, batchSize);
    // Equal lengths keep the shuffled order, so other rows meet in each epoch.
    const bins = shuffled(pack(order, this.#lengths, cutoffLen), rng);
    return chunks(bins, batchSize).map((group) => group.flat());
  }
}

/** Next fit: each row into the bin of the row before it, or where that is full into a new one. */
function packInOrder(order: readonly number[], lengths: readonly number[], capacity: number): number[][] {
  const bins: number[][] = [];
  let room = 0;
  for (const row of order) {
    if (lengths[row]! > room) {
      bins.push([]);
      room = capacity;
    }
    bins.at(-1)!.push(row);
    room -= lengths[row]!;
  }
  return bins;
}

/** Best fit decreasing: the longest row first, each into the fullest bin that still has room. */
function pack(order: readonly number[], lengths: readonly number[], capacity: number): number[][] {
  const decreasing = [...order].sort((a, b) => lengths[b]! - lengths[a]!);
  const bins: number[][] = [];
  const binsByRoom: number[][] = Array.from({ length: capacity + 1 }, () => []);
  const rooms = new NextRoom(capacity);
  for (const row of decreasing) {
    const length = lengths[row]!;
    const room = rooms.atLeast(length);
    const isNew = room === undefined;
    const bin = isNew ? bins.push([]) - 1 : binsByRoom[room]!.pop()!;
    if (!isNew && binsByRoom[room]!.length === 0) rooms.remove(room);
    bins[bin]!.push(row);
    const left = (room ?? capacity) - length;
    if (left === 0) continue;
    binsByRoom[left]!.push(bin);
    rooms.add(left);
  }
  return bins;
}

/** A set of numbers up to `limit` that finds its smallest member from a number on. */
class NextRoom {
  readonly #words: Uint32Array;

  constructor(limit: number) {
    this.#words = new Uint32Array((limit >>> 5) + 1);
  }

  add(room: number): void {
    this.#words[room >>> 5]! |= 1 << (room & 31);
  }

  remove(room: number): void {
    this.#words[room >>> 5]! &= ~(1 << (room & 31));
  }

  atLeast(room: number): number | undefined {
    let word = room >>> 5;
    let bits = (this.#words[word] ?? 0) & (-1 << (room & 31));
    while (bits === 0) {
      if (++word >= this.#words.length) return undefined;
      bits = this.#words[word]!;
    }
    return word * 32 + (31 - Math.clz32(bits & -bits));
  }
}

/** Fisher–Yates. */
export function shuffled<T>(items: readonly T[], rng: Rng): T[] {
  const result = [...items];
  for (let i = result.length - 1; i > 0; i--) {
    const j = rng.below(i + 1);
    [result[i], result[j]] = [result[j]!, result[i]!];
  }
  return result;
}

function chunks<T>(items: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size));
}
