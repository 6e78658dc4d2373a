import type { Device } from "../core/device.js";
import { scope, Tensor, unscoped } from "../core/tensor.js";
import { ShapeError } from "../errors.js";

export interface CacheShape {
  readonly layers: number;
  /** How many sequences it holds. */
  readonly slots: number;
  /** Columns of one layer's keys: G · D. */
  readonly width: number;
}

/** One sequence, in rows of its own: P virtual tokens, then the tokens. */
interface Slot {
  start: number;
  /** Rows that belong to it, used or not. */
  rows: number;
  /** P */
  virtual: number;
  /** Tokens that it holds. */
  length: number;
}

/**
 * Keys and values of tokens seen so far, for each layer (rows, G · D) f32. A slot holds one sequence in neighbouring rows, so that attention reads
 * it as one segment. Slots take rows as they need them, and may move; all rows together are as many as were needed at once. What a slot holds
 * stays until it is cleared. Outside the tape: for generation only.
 */
export class KVCache {
  readonly #device: Device;
  readonly #width: number;
  readonly #layers: { keys: Tensor; values: Tensor }[];
  readonly #slots: Slot[];

  constructor(device: Device, { layers, slots, width }: CacheShape) {
    this.#device = device;
    this.#width = width;
    this.#layers = Array.from({ length: layers }, () => ({ keys: this.#empty(0), values: this.#empty(0) }));
    this.#slots = Array.from({ length: slots }, () => ({ start: 0, rows: 0, virtual: 0, length: 0 }));
  }

  /** How many tokens a slot holds. */
  lengthOf(slot: number): number {
    return this.#slots[slot]!.length;
  }

  /** Tokens for which a slot has rows. */
  capacityOf(slot: number): number {
    const { rows, virtual } = this.#slots[slot]!;
    return Math.max(0, rows - virtual);
  }

  /** The first row of a slot; until it next takes rows or gives them back. */
  startOf(slot: number): number {
    return this.#slots[slot]!.start;
  }

  /** Empties a slot for a sequence with `virtual` virtual tokens. */
  begin(slot: number, virtual: number): void {
    Object.assign(this.#slots[slot]!, { virtual, length: 0 });
  }

  /**
   * Rows for so many tokens, of each slot named, those that it holds among them. Throws EngineError if memory is short; nothing has changed then.
   */
  reserve(wanted: ReadonlyMap<number, number>): void {
    const outgrown = [...wanted].filter(([slot, tokens]) => tokens > this.capacityOf(slot));
    if (outgrown.length === 0) return;
    const taken = this.#slots.filter(({ rows }) => rows > 0).map(({ start, rows }) => ({ start, rows }));
    const placed = outgrown.map(([index, tokens]) => {
      const slot = this.#slots[index]!;
      const rows = slot.virtual + tokens;
      const own = taken.findIndex(({ start }) => slot.rows > 0 && start === slot.start);
      const place = { start: placeFor(rows, taken, own, this.#rows), rows };
      if (own >= 0 && taken[own]!.start === place.start) taken[own] = place;
      else taken.push(place); // the old rows stay taken until all have moved
      return { slot, place };
    });
    this.#grow(Math.max(...taken.map(({ start, rows }) => start + rows)));
    for (const { slot, place } of placed) {
      if (slot.length > 0) this.#copy(slot.start, place.start, slot.virtual + slot.length);
      Object.assign(slot, place);
    }
  }

  /** Takes `count` more rows of a slot into use, and returns the first of them. Throws EngineError if memory is short. */
  extend(slot: number, count: number): number {
    const state = this.#slots[slot]!;
    const capacity = this.capacityOf(slot);
    const length = state.length + count;
    if (length > capacity) this.reserve(new Map([[slot, Math.max(length, 2 * capacity)]]));
    const first = state.start + state.virtual + state.length;
    state.length = length;
    return first;
  }

  /** Forgets all but the first `length` tokens of a slot. */
  truncate(slot: number, length: number): void {
    const state = this.#slots[slot]!;
    if (length > state.length)
      throw new ShapeError(`KVCache: slot ${slot} holds ${state.length} tokens, which cannot be cut to ${length}`);
    state.length = length;
  }

  /**
   * Copies the keys and values of the first `length` tokens of slot `from` into slot `to`. Throws EngineError if memory is
   * short; nothing has changed then.
   */
  fork(from: number, to: number, length: number): void {
    const source = this.#slots[from]!;
    if (from === to || length > source.length)
      throw new ShapeError(`KVCache: slot ${from} holds ${source.length} tokens, of which slot ${to} cannot get ${length}`);
    const { virtual, length: before } = this.#slots[to]!;
    this.begin(to, source.virtual);
    try {
      this.reserve(new Map([[to, length]]));
    } catch (error) {
      Object.assign(this.#slots[to]!, { virtual, length: before });
      throw error;
    }
    if (length > 0) this.#copy(source.start, this.startOf(to), source.virtual + length);
    this.#slots[to]!.length = length;
  }

  /** Forgets the tokens of a slot and gives its rows back: to other slots; to the system with the last slot that had some. */
  clear(slot: number): void {
    Object.assign(this.#slots[slot]!, { start: 0, rows: 0, length: 0 });
    if (this.#slots.some(({ rows }) => rows > 0)) return;
    for (const layer of this.#layers) {
      layer.keys = this.#replace(layer.keys, 0);
      layer.values = this.#replace(layer.values, 0);
    }
  }

  /** Stores keys and values (T, G · D) at the given rows, and returns all of the layer's. */
  store(layer: number, keys: Tensor, values: Tensor, rows: Int32Array): [keys: Tensor, values: Tensor] {
    const [allKeys, allValues] = this.layer(layer);
    const { kernels } = keys.device;
    kernels.scatterRows(keys.id, rows, allKeys.id, allKeys.rows, keys.columns, false);
    kernels.scatterRows(values.id, rows, allValues.id, allValues.rows, values.columns, false);
    return [allKeys, allValues];
  }

  /** All keys and values of a layer. */
  layer(index: number): [keys: Tensor, values: Tensor] {
    const { keys, values } = this.#layers[index]!;
    return [keys, values];
  }

  dispose(): void {
    for (const { keys, values } of this.#layers) {
      keys.dispose();
      values.dispose();
    }
  }

  /** Rows that every layer has. */
  get #rows(): number {
    return Math.min(...this.#layers.flatMap(({ keys, values }) => [keys.rows, values.rows]));
  }

  /**
   * Grows one tensor after the other, so that at most one is in memory twice. If memory runs out in between, some have more
   * rows than others.
   */
  #grow(rows: number): void {
    for (const layer of this.#layers) {
      if (layer.keys.rows < rows) layer.keys = this.#replace(layer.keys, rows);
      if (layer.values.rows < rows) layer.values = this.#replace(layer.values, rows);
    }
  }

  #replace(tensor: Tensor, rows: number): Tensor {
    const next = this.#empty(rows);
    const copied = Math.min(tensor.rows, rows);
    if (copied > 0) this.#device.kernels.copy(tensor.id, next.id, copied * this.#width);
    tensor.dispose();
    return next;
  }

  #copy(from: number, to: number, count: number): void {
    if (from === to) return;
    scope(() => {
      for (const { keys, values } of this.#layers)
        for (const tensor of [keys, values])
          this.#device.kernels.copy(tensor.rowRange(from, count).id, tensor.rowRange(to, count).id, count * this.#width);
    });
  }

  #empty(rows: number): Tensor {
    return unscoped(() => Tensor.empty(this.#device, [rows, this.#width]));
  }
}

/**
 * Where `rows` rows fit beside the stretches that are taken: where stretch `own` lies already, if there is one and it can grow in
 * place, or in the first gap that is large enough; else at the end, where the cache has to grow.
 */
function placeFor(rows: number, taken: readonly { start: number; rows: number }[], own: number, total: number): number {
  const others = taken.filter((_, i) => i !== own);
  const freeFrom = (start: number) => Math.min(...others.filter((other) => other.start >= start).map((other) => other.start));
  const endOfOthers = Math.max(0, ...others.map((other) => other.start + other.rows));
  const here = taken[own]?.start;
  const isLast = here !== undefined && here >= endOfOthers;
  if (here !== undefined && here + rows <= Math.min(freeFrom(here), total)) return here;
  const ends = taken.map((each) => each.start + each.rows);
  for (const start of [0, ...ends].sort((a, b) => a - b)) {
    const isFree = taken.every((each) => start + rows <= each.start || start >= each.start + each.rows);
    if (isFree && start + rows <= total) return start;
  }
  return isLast ? here : Math.max(0, ...ends);
}
