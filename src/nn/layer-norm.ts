import { layerNorm } from "../core/ops/layer-norm.js";
import type { Tensor } from "../core/tensor.js";
import { Module, Parameter } from "./module.js";

/** Layer normalisation with weight and bias (C) in f32. */
export class LayerNorm extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter;

  constructor(
    width: number,
    readonly eps: number,
  ) {
    super();
    this.weight = new Parameter([width]);
    this.bias = new Parameter([width]);
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight.value, this.bias.value, this.eps);
  }
}
