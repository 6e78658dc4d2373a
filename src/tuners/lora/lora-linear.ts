import type { LogitsUpdate } from "../../core/ops/chunked-logits.js";
import { dropout } from "../../core/ops/dropout.js";
import { addLinear } from "../../core/ops/linear.js";
import { type CrossEntropyOptions, linearCrossEntropy } from "../../core/ops/linear-cross-entropy.js";
import { tokenLogProbs } from "../../core/ops/token-log-probs.js";
import type { Tensor } from "../../core/tensor.js";
import type { Linear, OutputProjection, Projection } from "../../nn/linear.js";
import { Module } from "../../nn/module.js";
import { changedWeight, differenceOf, type Factors, type FrozenFactors, trainable } from "./factors.js";

/** What a layer's update is multiplied by, and its chance of dropping an input feature. */
export interface UpdateOptions {
  readonly scaling: number;
  readonly dropout: number;
}

/** A frozen Linear whose weight a low-rank change adapts. Names are PEFT's: they are the keys of saved adapters. */
export interface AdaptedLinear extends Projection {
  readonly base_layer: Linear;
  readonly lora_A: Linear;
  readonly lora_B: Linear;
  readonly scaling: number;
  /** The changed weight in f32, (out, in), for the caller to dispose: in an ordinary Linear it needs no LoRA code to run. */
  mergedWeight(): Tensor;
  /** What was learnt since a start that was not zero, as factors of twice the rank for the caller to dispose; null after a start from zero. */
  difference(): Factors | null;
}

/** y = x Wᵀ + s · dropout(x) Aᵀ Bᵀ. x (..., in) → y (..., out), with A (R, in) and B (out, R). */
export class LoraLinear extends Module implements AdaptedLinear, OutputProjection {
  readonly base_layer: Linear;
  readonly lora_A: Linear;
  readonly lora_B: Linear;
  /** Where LoftQ began: what the base lost when it was quantized. */
  readonly loftqStart: FrozenFactors | null;
  readonly scaling: number;
  readonly #dropout: number;

  constructor(base: Linear, { a, b }: Factors, { scaling, dropout }: UpdateOptions, loftqStart: FrozenFactors | null = null) {
    super();
    this.base_layer = base;
    this.loftqStart = loftqStart;
    this.lora_A = trainable(a);
    this.lora_B = trainable(b);
    this.scaling = scaling;
    this.#dropout = dropout;
  }

  forward(x: Tensor): Tensor {
    const y = this.base_layer.forward(x);
    const narrow = this.lora_A.forward(dropout(x, this.#dropout)); // (..., R)
    return addLinear(y, narrow, this.lora_B.weight.value, this.scaling);
  }

  crossEntropy(x: Tensor, targets: Int32Array, options?: CrossEntropyOptions): Tensor {
    return linearCrossEntropy(x, this.base_layer.weight.value, targets, [this.#update(x)], options);
  }

  logProbs(x: Tensor, targets: Int32Array, temperature = 1): Tensor {
    return tokenLogProbs(x, this.base_layer.weight.value, targets, [this.#update(x)], { temperature });
  }

  #update(x: Tensor): LogitsUpdate {
    const narrow = this.lora_A.forward(dropout(x, this.#dropout));
    return { narrow, weight: this.lora_B.weight.value, scale: this.scaling };
  }

  mergedWeight(): Tensor {
    const { base_layer, lora_A, lora_B, scaling } = this;
    return changedWeight(base_layer.weight.value, [{ a: lora_A.weight.value, b: lora_B.weight.value, scale: scaling }]);
  }

  difference(): Factors | null {
    return this.loftqStart && differenceOf(this, this.loftqStart);
  }
}
