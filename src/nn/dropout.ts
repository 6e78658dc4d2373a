import { dropout } from "../core/ops/dropout.js";
import type { Tensor } from "../core/tensor.js";
import { Module } from "./module.js";

/** A place where a model drops numbers in training, as its config says. Outside training x stays as it is. */
export class Dropout extends Module {
  /** `key` is what config.json calls the chance `p`. */
  constructor(
    readonly key: string,
    public p: number,
  ) {
    super();
  }

  forward(x: Tensor): Tensor {
    return dropout(x, this.p);
  }
}
