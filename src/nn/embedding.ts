import { embedding } from "../core/ops/embedding.js";
import type { Tensor } from "../core/tensor.js";
import { Module, Parameter } from "./module.js";

/** A table of vectors: weight (V, C) in the type in which it is stored. ids (T) → (T, C) f32. */
export class Embedding extends Module {
  readonly weight: Parameter;

  constructor(
    readonly vocabSize: number,
    readonly width: number,
    weight = new Parameter([vocabSize, width]),
  ) {
    super();
    this.weight = weight;
  }

  forward(ids: Int32Array): Tensor {
    return embedding(ids, this.weight.value);
  }
}
