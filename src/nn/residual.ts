import { add } from "../core/ops/add.js";
import type { Tensor } from "../core/tensor.js";
import type { Projection } from "./linear.js";
import { Module } from "./module.js";

/** The norms of a model that does not only normalise what goes into its sub-layers. */
export interface ResidualNorms {
  /** Of what the sub-layer made, before the sum (Gemma 3): the residual applies it. */
  readonly before?: Projection;
  /** Of the sum (BERT): the layer applies it. */
  readonly after?: Projection;
}

/**
 * Joins what a sub-layer made to what went around it: x + y, both (T, C). It has no weights; it is a module so that another can stand in its
 * place. Every layer of every family has one after attention (`attention_residual`) and one after its feed-forward part (`mlp_residual`).
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
