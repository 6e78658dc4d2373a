import { copyInto } from "../../core/linalg.js";
import { activation } from "../../core/ops/activation.js";
import { splitColumns } from "../../core/ops/columns.js";
import type { Rng } from "../../core/rng.js";
import type { Tensor } from "../../core/tensor.js";
import type { LanguageModel, PastKeyValues } from "../../models/language-model.js";
import type { Embedding } from "../../nn/embedding.js";
import { drawnEmbedding, drawnLinear } from "../../nn/init.js";
import type { Linear, Projection } from "../../nn/linear.js";
import { Module } from "../../nn/module.js";
import { fitLastLayer } from "../virtual-tokens.js";

export interface PrefixEncoderOptions {
  /** P */
  readonly num_virtual_tokens: number;
  readonly prefix_projection: boolean;
  readonly encoder_hidden_size: number | null;
}

/** The projection's width: unless set, that of the paper's code (`mid_dim`). */
export function projectionWidth({ encoder_hidden_size }: Pick<PrefixEncoderOptions, "encoder_hidden_size">): number {
  return encoder_hidden_size ?? 512;
}

/**
 * Keys and values of P virtual tokens in every layer, as attention sees them: keys are rotated already, for positions 0 … P − 1. A row holds layer
 * after layer, each its keys and then its values: (P, L · 2 · G · D), as they are or made by Linear, tanh, Linear from (P, G · D).
 * Source: PEFT 0.21, tuners/prefix_tuning/model.py, whose names and shapes are kept, and the random start until `startAs`.
 */
export class PrefixEncoder extends Module implements PastKeyValues {
  readonly embedding: Embedding;
  readonly transform: readonly Projection[];
  readonly #layers: number;
  readonly #kvWidth: number;

  constructor({ device, shape }: LanguageModel, config: PrefixEncoderOptions, rng: Rng) {
    super();
    const { num_virtual_tokens: length, prefix_projection } = config;
    const { layers, kvWidth } = shape;
    const made = layers * 2 * kvWidth;
    const hidden = projectionWidth(config);
    this.embedding = drawnEmbedding(device, length, prefix_projection ? kvWidth : made, rng);
    this.transform = prefix_projection
      ? [drawnLinear(device, kvWidth, hidden, rng), new Tanh(), drawnLinear(device, hidden, made, rng)]
      : [];
    this.#layers = layers;
    this.#kvWidth = kvWidth;
  }

  get length(): number {
    return this.embedding.vocabSize;
  }

  get hasProjection(): boolean {
    return this.transform.length > 0;
  }

  /** (P, L · 2 · G · D) */
  rows(): Tensor {
    return this.#through(this.transform);
  }

  /** Lets `rows()` be `rows` for now. */
  startAs(rows: Tensor): void {
    const last = this.transform.at(-1);
    if (last === undefined) copyInto(this.embedding.weight.value, rows);
    else fitLastLayer(last as Linear, this.#through(this.transform.slice(0, -1)), rows);
  }

  #through(layers: readonly Projection[]): Tensor {
    return layers.reduce((x, layer) => layer.forward(x), this.embedding.weight.value);
  }

  forward(): readonly (readonly [keys: Tensor, values: Tensor])[] {
    const parts = splitColumns(this.rows(), Array<number>(2 * this.#layers).fill(this.#kvWidth));
    return Array.from({ length: this.#layers }, (_, layer) => [parts[2 * layer]!, parts[2 * layer + 1]!]);
  }
}

class Tanh extends Module implements Projection {
  forward(x: Tensor): Tensor {
    return activation(x, "tanh");
  }
}
