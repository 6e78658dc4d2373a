import { addProductTransposed, converted } from "../../core/linalg.js";
import { embedding } from "../../core/ops/embedding.js";
import { addLinear } from "../../core/ops/linear.js";
import type { Rng } from "../../core/rng.js";
import { Tensor, unscoped } from "../../core/tensor.js";
import { Embedding } from "../../nn/embedding.js";
import { drawn } from "../../nn/init.js";
import { Module, Parameter } from "../../nn/module.js";

/**
 * A frozen table of vectors with a low-rank change.   y = W[ids] + s · A[ids] Bᵀ. ids (T) → y (T, C), with A (V, R) and B (C, R).
 *
 * Source: PEFT 0.21, tuners/lora/layer.py, Embedding: names, start (A is 0, B is normal) and no dropout are its. Files hold A as (R, V).
 */
export class LoraEmbedding extends Module {
  readonly base_layer: Embedding;
  readonly lora_embedding_A: Parameter;
  readonly lora_embedding_B: Parameter;
  readonly scaling: number;

  constructor(base: Embedding, rank: number, scaling: number, rng: Rng) {
    super();
    const { device } = base.weight.value;
    const shape = [base.vocabSize, rank];
    this.base_layer = base;
    this.lora_embedding_A = new Parameter(
      shape,
      unscoped(() => Tensor.zeros(device, shape)),
    );
    this.lora_embedding_A.isStoredTransposed = true;
    this.lora_embedding_A.requiresGrad = true;
    this.lora_embedding_B = drawn(device, [base.width, rank], () => rng.normal());
    this.scaling = scaling;
  }

  forward(ids: Int32Array): Tensor {
    const narrow = embedding(ids, this.lora_embedding_A.value);
    return addLinear(this.base_layer.forward(ids), narrow, this.lora_embedding_B.value, this.scaling);
  }

  /** An ordinary table that does the same, in f32. Its weight is its own. */
  merged(): Embedding {
    const { base_layer, lora_embedding_A, lora_embedding_B, scaling } = this;
    const [w, a, b] = [base_layer.weight.value, lora_embedding_A.value, lora_embedding_B.value];
    const changed = unscoped(() => converted(w, "f32"));
    addProductTransposed(changed, a, b, scaling);
    return new Embedding(base_layer.vocabSize, base_layer.width, new Parameter(w.shape, changed));
  }
}
