import {
  addProduct,
  addRowDots,
  copyOf,
  multiplyRows,
  productTransposed,
  rowSquares,
  scaled,
  squareRoots,
  transposed,
} from "../../core/linalg.js";
import { add } from "../../core/ops/add.js";
import { addBias } from "../../core/ops/add-bias.js";
import { divideSqrt } from "../../core/ops/divide-sqrt.js";
import { dropout } from "../../core/ops/dropout.js";
import { addLinear, linear } from "../../core/ops/linear.js";
import { scaleColumns } from "../../core/ops/scale-columns.js";
import { scope, type Tensor, unscoped } from "../../core/tensor.js";
import type { Linear } from "../../nn/linear.js";
import { Module, Parameter } from "../../nn/module.js";
import { changedWeight, type Factors, trainable } from "./factors.js";
import type { AdaptedLinear, UpdateOptions } from "./lora-linear.js";

/**
 * DoRA: each row of W + s · B A gives a direction, and a magnitude m (out) of its own trains beside it.
 *   y = c · (x Wᵀ + s · x Aᵀ Bᵀ) + bias,   c = m / ‖W + s · B A‖ by row, m = ‖W‖ at the start
 *
 * Source: Liu et al. 2024, arXiv:2402.09353, eq. 5 and §4.3: the norm is taken as a constant in backward. PEFT 0.21, lora/dora.py, whose
 * `lora_magnitude_vector` is m; with dropout the base's own product is taken of x as it is, as there:
 * y = x Wᵀ + (c − 1) · x′ Wᵀ + c · s · x′ Aᵀ Bᵀ + bias, x′ = dropout(x).
 */
export class DoraLinear extends Module implements AdaptedLinear {
  readonly base_layer: Linear;
  readonly lora_A: Linear;
  readonly lora_B: Linear;
  readonly lora_magnitude_vector: Parameter;
  /** ‖W‖² by row, which stays as W does. */
  readonly baseSquares: Parameter;
  readonly scaling: number;
  readonly #dropout: number;

  constructor(base: Linear, { a, b }: Factors, { scaling, dropout }: UpdateOptions) {
    super();
    this.base_layer = base;
    this.lora_A = trainable(a);
    this.lora_B = trainable(b);
    this.scaling = scaling;
    this.#dropout = dropout;
    const squares = unscoped(() => rowSquares(base.weight.value));
    this.baseSquares = new Parameter(squares.shape, squares);
    const magnitude = unscoped(() => squareRoots(squares)); // ‖W‖, as B is zero
    this.lora_magnitude_vector = new Parameter(magnitude.shape, magnitude);
    this.lora_magnitude_vector.requiresGrad = true;
  }

  forward(x: Tensor): Tensor {
    const { base_layer, lora_A, lora_B, scaling } = this;
    const weight = base_layer.weight.value;
    const dropped = dropout(x, this.#dropout);
    const direction = addLinear(linear(dropped, weight), lora_A.forward(dropped), lora_B.weight.value, scaling);
    const y = scaleColumns(direction, this.#factors());
    if (dropped === x) return base_layer.bias === null ? y : addBias(y, base_layer.bias.value);
    return add(base_layer.forward(x), addLinear(y, dropped, weight, -1));
  }

  mergedWeight(): Tensor {
    const { base_layer, lora_A, lora_B, scaling } = this;
    const changed = changedWeight(base_layer.weight.value, [{ a: lora_A.weight.value, b: lora_B.weight.value, scale: scaling }]);
    scope(() => multiplyRows(changed, this.#factors()));
    return changed;
  }

  difference(): null {
    return null;
  }

  /** c */
  #factors(): Tensor {
    return divideSqrt(this.lora_magnitude_vector.value, this.#squares().keepExact()).keepExact();
  }

  /**
   * ‖W + s · B A‖² by row, without W + s · B A: ‖W‖² + B · (2s · W Aᵀ + s² · B A Aᵀ), where only the product with W is wide. Nothing of it is
   * recorded.
   */
  #squares(): Tensor {
    const { lora_A, lora_B, scaling: s } = this;
    const [w, a, b] = [this.base_layer.weight.value, lora_A.weight.value, lora_B.weight.value];
    return scope(() => {
      const inner = scaled(transposed(productTransposed(a, w)), 2 * s);
      addProduct(inner, b, productTransposed(a, a), s * s);
      const squares = copyOf(this.baseSquares.value);
      addRowDots(squares, b, inner);
      return squares;
    });
  }
}
