import { type RmsNormOptions, rmsNorm } from "../core/ops/rms-norm.js";
import type { Tensor } from "../core/tensor.js";
import { Module, Parameter } from "./module.js";

/** Root-mean-square normalisation with a weight (C) in f32, over the whole row or over each head's part of it. */
export class RMSNorm extends Module {
  readonly weight: Parameter;

  constructor(
    width: number,
    readonly eps: number,
    readonly options: RmsNormOptions = {},
  ) {
    super();
    this.weight = new Parameter([width]);
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight.value, this.eps, this.options);
  }
}
