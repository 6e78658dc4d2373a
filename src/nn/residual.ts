import { add } from "../core/ops/add.js";
import type { Tensor } from "../core/tensor.js";
import { Module } from "./module.js";

/**
 * Joins what a sub-layer made to what went around it: x + y, both (T, C). It has no weights; it is a module so that another can stand in its
 * place. Every layer of every family has one after attention (`attention_residual`) and one after its feed-forward part (`mlp_residual`).
 */
export class Residual extends Module {
  forward(x: Tensor, y: Tensor): Tensor {
    return add(x, y);
  }
}
