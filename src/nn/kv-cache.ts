import type { Device } from "../core/device.js";
import { Tensor, unscoped } from "../core/tensor.js";
import { ShapeError } from "../errors.js";

/**
 * Keys and values of tokens seen so far, for each layer (slots · capacity, G · D) f32. A slot holds one sequence; its tokens lie in a row,
 * so that attention reads them as one segment. Outside the tape: for generation only.
 */
export class KVCache {
  readonly #keys: Tensor[] = [];
  readonly #values: Tensor[] = [];
  readonly #lengths: Int32Array;

  /** Throws EngineError if memory is short. */
  constructor(
    device: Device,
    layers: number,
    readonly slots: number,
    readonly capacity: number,
    width: number,
  ) {
    this.#lengths = new Int32Array(slots);
    unscoped(() => {
      for (let layer = 0; layer < layers; layer++) {
        this.#keys.push(Tensor.empty(device, [slots * capacity, width]));
        this.#values.push(Tensor.empty(device, [slots * capacity, width]));
      }
    });
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
    return slot * this.capacity + length;
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

  dispose(): void {
    for (const tensor of [...this.#keys, ...this.#values]) tensor.dispose();
  }
}
