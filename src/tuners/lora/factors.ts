import type { Device } from "../../core/device.js";
import type { Rng } from "../../core/rng.js";
import { Tensor, unscoped } from "../../core/tensor.js";
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

/** w + scale · B A in f32, shape (out, in), for the caller to dispose; w may be of any type. */
export function changedWeight(w: Tensor, changes: readonly (Factors & { readonly scale: number })[]): Tensor {
  const { kernels } = w.device;
  const [rows, columns] = w.shape as [number, number];
  const changed = unscoped(() => Tensor.empty(w.device, w.shape));
  kernels.convert(w.id, w.dtype, changed.id, "f32", w.size);
  for (const { a, b, scale } of changes)
    kernels.matmulInputGrad(b.id, a.id, "f32", changed.id, rows, a.rows, columns, scale, true, "f32");
  return changed;
}

/** (n, n) */
export function identity(device: Device, n: number): Tensor {
  const values = Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
  return Tensor.from(device, values, [n, n]);
}

/** For the caller to dispose. */
export function copyOf(x: Tensor): Tensor {
  const copy = unscoped(() => Tensor.empty(x.device, x.shape));
  x.device.kernels.copy(x.id, copy.id, x.size);
  return copy;
}

/**
 * What a layer has learnt since a start that was not zero, as one pair of twice the rank: [A; A₀] and [B, −B₀], whose product is
 * B A − B₀ A₀. For the caller to dispose.
 */
export function differenceOf(layer: { lora_A: Linear; lora_B: Linear }, start: FrozenFactors): Factors {
  const [a, b, a0, b0] = [layer.lora_A.weight.value, layer.lora_B.weight.value, start.A.value, start.B.value];
  const { kernels } = a.device;
  const rank = a.rows;
  return unscoped(() => {
    const both = { a: Tensor.empty(a.device, [2 * rank, a.columns]), b: Tensor.empty(b.device, [b.rows, 2 * rank]) };
    kernels.copyColumns(a.id, a.size, 0, both.a.id, 2 * a.size, 0, 1, a.size, false);
    kernels.copyColumns(a0.id, a.size, 0, both.a.id, 2 * a.size, a.size, 1, a.size, false);
    const negative = copyOf(b0);
    kernels.scale(negative.id, negative.id, -1, b.size, false);
    kernels.copyColumns(b.id, rank, 0, both.b.id, 2 * rank, 0, b.rows, rank, false);
    kernels.copyColumns(negative.id, rank, 0, both.b.id, 2 * rank, rank, b.rows, rank, false);
    negative.dispose();
    return both;
  });
}
