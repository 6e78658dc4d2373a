import type { LogitsUpdate } from "../../core/ops/chunked-logits.js";
import { dropout } from "../../core/ops/dropout.js";
import { addLinear, linear } from "../../core/ops/linear.js";
import { type CrossEntropyOptions, linearCrossEntropy } from "../../core/ops/linear-cross-entropy.js";
import { tokenLogProbs } from "../../core/ops/token-log-probs.js";
import type { Rng } from "../../core/rng.js";
import type { Tensor } from "../../core/tensor.js";
import type { Linear, OutputProjection } from "../../nn/linear.js";
import { Module } from "../../nn/module.js";
import { changedWeight, copied, differenceOf, type Factors, FrozenFactors, trainable } from "./factors.js";
import type { AdaptedLinear, UpdateOptions } from "./lora-linear.js";
import { balancedFactors } from "./svd.js";

/**
 * PiSSA: LoRA that starts from the principal part of W instead of zero, while the base keeps the rest.
 *   y = x (W − s · B₀ A₀)ᵀ + s · dropout(x) Aᵀ Bᵀ,   A = A₀ = √(S/s) Vᵀ and B = B₀ = U √(S/s) at the start, with U S Vᵀ ≈ W of rank R
 *
 * Source: Meng et al. 2024, arXiv:2404.02948, eq. 2–4; PEFT 0.21, lora/layer.py `pissa_init`. There W itself is replaced by the rest; here
 * B₀ A₀ is taken away as it goes, which computes the same, leaves the base untouched in whatever type it has, and costs two more thin products.
 * What was learnt is s · (B A − B₀ A₀): it leaves as an ordinary LoRA of twice the rank (PEFT's `subtract_mutated_init`).
 */
export class PissaLinear extends Module implements AdaptedLinear, OutputProjection {
  readonly base_layer: Linear;
  readonly lora_A: Linear;
  readonly lora_B: Linear;
  readonly start: FrozenFactors;
  readonly scaling: number;
  readonly #dropout: number;

  constructor(base: Linear, rank: number, iterations: number, { scaling, dropout }: UpdateOptions, rng: Rng) {
    super();
    this.base_layer = base;
    const factors = balancedFactors(base.weight.value, rank, iterations, 1 / scaling, rng);
    const { a, b } = copied(factors);
    this.start = new FrozenFactors(factors);
    this.lora_A = trainable(a);
    this.lora_B = trainable(b);
    this.scaling = scaling;
    this.#dropout = dropout;
  }

  forward(x: Tensor): Tensor {
    const { base_layer, lora_A, lora_B, start, scaling } = this;
    const rest = addLinear(base_layer.forward(x), linear(x, start.A.value), start.B.value, -scaling);
    return addLinear(rest, lora_A.forward(dropout(x, this.#dropout)), lora_B.weight.value, scaling);
  }

  crossEntropy(x: Tensor, targets: Int32Array, options?: CrossEntropyOptions): Tensor {
    return linearCrossEntropy(x, this.base_layer.weight.value, targets, this.#updates(x), options);
  }

  logProbs(x: Tensor, targets: Int32Array, temperature = 1): Tensor {
    return tokenLogProbs(x, this.base_layer.weight.value, targets, this.#updates(x), { temperature });
  }

  #updates(x: Tensor): LogitsUpdate[] {
    const { lora_A, lora_B, start, scaling } = this;
    return [
      { narrow: linear(x, start.A.value), weight: start.B.value, scale: -scaling },
      { narrow: lora_A.forward(dropout(x, this.#dropout)), weight: lora_B.weight.value, scale: scaling },
    ];
  }

  mergedWeight(): Tensor {
    const { base_layer, lora_A, lora_B, start, scaling } = this;
    return changedWeight(base_layer.weight.value, [
      { a: lora_A.weight.value, b: lora_B.weight.value, scale: scaling },
      { a: start.A.value, b: start.B.value, scale: -scaling },
    ]);
  }

  difference(): Factors {
    return differenceOf(this, this.start);
  }
}
