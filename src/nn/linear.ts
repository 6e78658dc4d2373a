import { linear } from "../core/ops/linear.js";
import type { Tensor } from "../core/tensor.js";
import { Module, Parameter } from "./module.js";

/** Whatever can stand where a model has a Linear: x (..., in) → y (..., out). */
export interface Projection extends Module {
  forward(x: Tensor): Tensor;
}

/** y = x Wᵀ + b. weight (out, in) in the type in which it is stored, bias (out) f32. */
export class Linear extends Module implements Projection {
  readonly weight: Parameter;
  readonly bias: Parameter | null;

  constructor(
    readonly inFeatures: number,
    readonly outFeatures: number,
    {
      bias = false,
      weight = new Parameter([outFeatures, inFeatures]),
      isStoredTransposed = false,
    }: { bias?: boolean | Parameter; weight?: Parameter; isStoredTransposed?: boolean } = {},
  ) {
    super();
    this.weight = weight;
    if (isStoredTransposed) weight.isStoredTransposed = true;
    this.bias = bias === true ? new Parameter([outFeatures]) : bias || null;
  }

  forward(x: Tensor): Tensor {
    return linear(x, this.weight.value, this.bias?.value ?? null);
  }
}
