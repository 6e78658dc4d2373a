import { add } from "../core/ops/add.js";
import type { Tensor } from "../core/tensor.js";
import type { Projection } from "./linear.js";
import { Module } from "./module.js";

/** Norms behind a sub-layer, for models that normalise more than what goes into it. */
export interface ResidualNorms {
  /** Normalises the sub-layer's output before the sum (Gemma 3); `Residual` applies it. */
  readonly before?: Projection;
  /** Normalises the sum (BERT); the layer applies it. */
  readonly after?: Projection;
}

/**
 * Adds a sub-layer's output y to its input x: x + y, both (T, C). It has no weights; it is a module so that a tuner can put
 * another in its place. Every layer of every family has one after attention (`attention_residual`) and one after its feed-forward
 * part (`mlp_residual`).
 */
export class Residual extends Module {
  readonly #norms: ResidualNorms;

  /** The norms are the layer's own. */
  constructor(norms: ResidualNorms = {}) {
    super();
    this.#norms = norms;
  }

  get norms(): ResidualNorms {
    return this.#norms;
  }

  forward(x: Tensor, y: Tensor): Tensor {
    return add(x, this.#norms.before?.forward(y) ?? y);
  }
}
