import type { Device } from "../core/device.js";
import { Tensor, unscoped } from "../core/tensor.js";
import { ShapeError } from "../errors.js";

export interface CacheShape {
  readonly layers: number;
  /** How many sequences it holds. */
  readonly slots: number;
  /** Most tokens of a sequence. */
  readonly capacity: number;
  /** Columns of one layer's keys: G · D. */
  readonly width: number;
  /** P: rows at the beginning of every slot for virtual tokens. */
  readonly virtual?: number;
}

/**
 * Keys and values of tokens seen so far, for each layer (slots · (P + capacity), G · D) f32. A slot holds one sequence; its tokens lie in a
 * row, so that attention reads them as one segment. Outside the tape: for generation only.
 */
export class KVCache {
  readonly #keys: Tensor[] = [];
  readonly #values: Tensor[] = [];
  readonly #lengths: Int32Array;
  readonly #virtual: number;
  readonly capacity: number;

  /** Throws EngineError if memory is short. */
  constructor(device: Device, { layers, slots, capacity, width, virtual = 0 }: CacheShape) {
    this.#lengths = new Int32Array(slots);
    this.#virtual = virtual;
    this.capacity = capacity;
    const rows = slots * (virtual + capacity);
    unscoped(() => {
      for (let layer = 0; layer < layers; layer++) {
        this.#keys.push(Tensor.empty(device, [rows, width]));
        this.#values.push(Tensor.empty(device, [rows, width]));
      }
    });
  }

  /** The first row of a slot. */
  startOf(slot: number): number {
    return slot * (this.#virtual + this.capacity);
  }

  /** Tokens that slot `slot` holds. */
  lengthOf(slot: number): number {
    return this.#lengths[slot]!;
  }

  /** Takes `count` more rows of a slot into use, and returns the first of them. Throws ShapeError if the slot is full. */
  extend(slot: number, count: number): number {
    const length = this.#lengths[slot]!;
    if (length + count > this.capacity)
      throw new ShapeError(`KVCache: ${length} + ${count} tokens are more than a slot's capacity of ${this.capacity}`);
    this.#lengths[slot] = length + count;
    return this.startOf(slot) + this.#virtual + length;
  }

  /** Forgets the tokens of a slot. */
  clear(slot: number): void {
    this.#lengths[slot] = 0;
  }

  /** Stores keys and values (T, G · D) at the given rows, and returns all of the layer's. */
  store(layer: number, keys: Tensor, values: Tensor, rows: Int32Array): [keys: Tensor, values: Tensor] {
    const allKeys = this.#keys[layer]!;
    const allValues = this.#values[layer]!;
    const { kernels } = keys.device;
    kernels.scatterRows(keys.id, rows, allKeys.id, allKeys.rows, keys.columns, false);
    kernels.scatterRows(values.id, rows, allValues.id, allValues.rows, values.columns, false);
    return [allKeys, allValues];
  }

  /** All keys and values of a layer. */
  layer(index: number): [keys: Tensor, values: Tensor] {
    return [this.#keys[index]!, this.#values[index]!];
  }

  dispose(): void {
    for (const tensor of [...this.#keys, ...this.#values]) tensor.dispose();
  }
}
