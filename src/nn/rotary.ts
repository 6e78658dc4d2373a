import { z } from "zod";
import type { Device } from "../core/device.js";
import { rope } from "../core/ops/rope.js";
import { Tensor, unscoped } from "../core/tensor.js";

/** How rotation angles are stretched beyond the trained context; keys as in config.json. */
export const RopeScaling = z.discriminatedUnion("rope_type", [
  z.object({ rope_type: z.literal("default") }),
  z.object({ rope_type: z.literal("linear"), factor: z.number().positive() }),
  z.object({
    rope_type: z.literal("llama3"),
    factor: z.number().positive(),
    low_freq_factor: z.number().positive(),
    high_freq_factor: z.number().positive(),
    original_max_position_embeddings: z.number().positive(),
  }),
  z.object({
    rope_type: z.literal("yarn"),
    factor: z.number().positive(),
    original_max_position_embeddings: z.number().positive().nullish(),
    attention_factor: z.number().positive().nullish(),
    beta_fast: z.number().positive().nullish(),
    beta_slow: z.number().positive().nullish(),
    mscale: z.number().nullish(),
    mscale_all_dim: z.number().nullish(),
    truncate: z.boolean().nullish(),
  }),
]);
export type RopeScaling = z.output<typeof RopeScaling>;

/**
 * Angles of rotary embedding: one frequency per pair of features, f_i = θ^(−2i/D), changed by the scaling.
 * Source: Su et al. 2021, arXiv:2104.09864; linear: Chen et al. 2023, arXiv:2306.15595; YaRN: Peng et al. 2023, arXiv:2309.00071;
 * llama3 and the exact constants: transformers `modeling_rope_utils.py`.
 */
export class RotaryEmbedding {
  readonly #frequencies: Float64Array;
  readonly #magnitude: number;
  #table: Tensor | null = null;

  constructor(
    readonly headDim: number,
    theta: number,
    scaling: RopeScaling,
    maxPositions: number,
    /** Divisors of the frequencies that a GGUF file may carry instead of llama3's parameters. */
    factors: Float32Array | null = null,
  ) {
    const plain = Float64Array.from({ length: headDim / 2 }, (_, i) => theta ** ((-2 * i) / headDim));
    this.#frequencies = scaled(plain, scaling, headDim, theta, maxPositions);
    if (factors !== null) for (let i = 0; i < this.#frequencies.length; i++) this.#frequencies[i]! /= factors[i]!;
    this.#magnitude = scaling.rope_type === "yarn" ? yarnMagnitude(scaling) : 1;
  }

  /** x (T, H · D), one position for each row. */
  forward(x: Tensor, positions: Int32Array): Tensor {
    let last = 0;
    for (const position of positions) last = Math.max(last, position);
    return rope(x, this.#tableFor(x.device, last + 1), positions, this.headDim);
  }

  dispose(): void {
    this.#table?.dispose();
    this.#table = null;
  }

  /** Cosines and sines of at least `positions` positions; grows by doubling. */
  #tableFor(device: Device, positions: number): Tensor {
    if (this.#table !== null && this.#table.device === device && this.#table.shape[0]! >= positions) return this.#table;
    const rows = 2 ** Math.ceil(Math.log2(Math.max(positions, 64)));
    const half = this.headDim / 2;
    const values = new Float32Array(rows * this.headDim);
    for (let p = 0; p < rows; p++)
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(p * Math.fround(this.#frequencies[i]!)); // in f32, as PyTorch does
        values[p * this.headDim + i] = Math.cos(angle) * this.#magnitude;
        values[p * this.headDim + half + i] = Math.sin(angle) * this.#magnitude;
      }
    this.dispose();
    this.#table = unscoped(() => Tensor.from(device, values, [rows, 2, half]));
    return this.#table;
  }
}

function scaled(plain: Float64Array, scaling: RopeScaling, headDim: number, theta: number, maxPositions: number): Float64Array {
  switch (scaling.rope_type) {
    case "default":
      return plain;
    case "linear":
      return plain.map((f) => f / scaling.factor);
    case "llama3": {
      const { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: context } = scaling;
      return plain.map((f) => {
        const turns = (context * f) / (2 * Math.PI);
        if (turns > high) return f;
        if (turns < low) return f / factor;
        const smooth = (turns - low) / (high - low);
        return ((1 - smooth) * f) / factor + smooth * f;
      });
    }
    case "yarn": {
      const context = scaling.original_max_position_embeddings ?? maxPositions;
      const dimensionOf = (turns: number) => (headDim * Math.log(context / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
      let first = dimensionOf(scaling.beta_fast ?? 32);
      let last = dimensionOf(scaling.beta_slow ?? 1);
      if (scaling.truncate ?? true) {
        first = Math.floor(first);
        last = Math.ceil(last);
      }
      first = Math.max(first, 0);
      last = Math.min(last, headDim - 1);
      const width = last === first ? 0.001 : last - first;
      return plain.map((f, i) => {
        const interpolated = Math.min(Math.max((i - first) / width, 0), 1);
        return (f / scaling.factor) * interpolated + f * (1 - interpolated);
      });
    }
  }
}

/** YaRN's attention temperature, applied to cosines and sines. */
function yarnMagnitude(scaling: RopeScaling & { rope_type: "yarn" }): number {
  if (typeof scaling.attention_factor === "number") return scaling.attention_factor;
  const mscale = (weight: number) => (scaling.factor <= 1 ? 1 : 0.1 * weight * Math.log(scaling.factor) + 1);
  if (scaling.mscale && scaling.mscale_all_dim) return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim);
  return mscale(1);
}
