import { above, addProduct, beside, converted, copyOf, scaled } from "../../core/linalg.js";
import type { Rng } from "../../core/rng.js";
import { scope, Tensor, unscoped } from "../../core/tensor.js";
import { drawnValues } from "../../nn/init.js";
import { Linear } from "../../nn/linear.js";
import { Module, Parameter } from "../../nn/module.js";

/** The change B A that a layer learns, before it is scaled. */
export interface Factors {
  /** (R, in) */
  readonly a: Tensor;
  /** (out, R) */
  readonly b: Tensor;
}

/** Kaiming-uniform(√5) for A and zero for B, so that step 0 equals the base model: as microsoft/LoRA and PEFT start. */
export function freshFactors({ inFeatures, outFeatures, weight }: Linear, rank: number, rng: Rng): Factors {
  const { device } = weight.value;
  const bound = 1 / Math.sqrt(inFeatures);
  return {
    a: drawnValues(device, [rank, inFeatures], () => rng.uniform(-bound, bound)),
    b: unscoped(() => Tensor.zeros(device, [outFeatures, rank])),
  };
}

/** A Linear without bias that trains. */
export function trainable(weight: Tensor): Linear {
  const [outFeatures, inFeatures] = weight.shape as [number, number];
  const layer = new Linear(inFeatures, outFeatures, { weight: new Parameter(weight.shape, weight) });
  layer.weight.requiresGrad = true;
  return layer;
}

/** Factors that do not train but are saved with what does. */
export class FrozenFactors extends Module {
  readonly A: Parameter;
  readonly B: Parameter;

  constructor({ a, b }: Factors) {
    super();
    this.A = new Parameter(a.shape, a);
    this.B = new Parameter(b.shape, b);
    this.A.isSaved = this.B.isSaved = true;
  }
}

/** Both once more, for the caller to dispose. */
export function copied({ a, b }: Factors): Factors {
  return unscoped(() => ({ a: copyOf(a), b: copyOf(b) }));
}

/** w + scale · B A in f32, shape (out, in), for the caller to dispose; w may be of any type. */
export function changedWeight(w: Tensor, changes: readonly (Factors & { readonly scale: number })[]): Tensor {
  const changed = unscoped(() => converted(w, "f32"));
  for (const { a, b, scale } of changes) addProduct(changed, b, a, scale);
  return changed;
}

/**
 * What a layer has learnt since a start that was not zero, as one pair of twice the rank: [A; A₀] and [B, −B₀], whose product is
 * B A − B₀ A₀. For the caller to dispose.
 */
export function differenceOf(layer: { lora_A: Linear; lora_B: Linear }, start: FrozenFactors): Factors {
  const negative = scope(() => scaled(start.B.value, -1));
  const both = unscoped(() => ({
    a: above(layer.lora_A.weight.value, start.A.value),
    b: beside(layer.lora_B.weight.value, negative),
  }));
  negative.dispose();
  return both;
}
