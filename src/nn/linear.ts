import { linear } from "../core/ops/linear.js";
import { type CrossEntropyOptions, linearCrossEntropy } from "../core/ops/linear-cross-entropy.js";
import { tokenLogProbs } from "../core/ops/token-log-probs.js";
import type { Tensor } from "../core/tensor.js";
import { ShapeError } from "../errors.js";
import { Module, Parameter } from "./module.js";

/** Whatever can stand where a model has a Linear: x (..., in) → y (..., out). */
export interface Projection extends Module {
  forward(x: Tensor): Tensor;
}

/** What can stand where a model has its output projection: hidden states x (S, C) → logits (S, V). */
export interface OutputProjection extends Projection {
  /** Σ over rows of −log softmax(forward(x))[target], a scalar; the logits are never whole in memory. targets (S). */
  crossEntropy(x: Tensor, targets: Int32Array, options?: CrossEntropyOptions): Tensor;
  /** log softmax(forward(x) / temperature)[target] of each row, (S); the logits are never whole in memory. targets (S), temperature 1 if absent. */
  logProbs(x: Tensor, targets: Int32Array, temperature?: number): Tensor;
}

/** y = x Wᵀ + b. weight (out, in) in the type in which it is stored, bias (out) f32. */
export class Linear extends Module implements OutputProjection {
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

  /** Throws ShapeError for a layer with bias, which no output projection has. */
  crossEntropy(x: Tensor, targets: Int32Array, options?: CrossEntropyOptions): Tensor {
    this.#checkUnbiased("crossEntropy");
    return linearCrossEntropy(x, this.weight.value, targets, [], options);
  }

  /** Throws ShapeError for a layer with bias, as `crossEntropy` does. */
  logProbs(x: Tensor, targets: Int32Array, temperature = 1): Tensor {
    this.#checkUnbiased("logProbs");
    return tokenLogProbs(x, this.weight.value, targets, [], { temperature });
  }

  #checkUnbiased(op: string): void {
    if (this.bias !== null) throw new ShapeError(`${op}: expected an output projection without bias`);
  }
}
