import type { Device } from "../../core/device.js";
import { activation, activations } from "../../core/ops/activation.js";
import { add } from "../../core/ops/add.js";
import { dropout } from "../../core/ops/dropout.js";
import { scale } from "../../core/ops/scale.js";
import { scaleBy } from "../../core/ops/scale-by.js";
import type { Rng } from "../../core/rng.js";
import { scope, type Tensor } from "../../core/tensor.js";
import { ConfigError } from "../../errors.js";
import { drawnValues } from "../../nn/init.js";
import { LayerNorm } from "../../nn/layer-norm.js";
import { Linear, type Projection } from "../../nn/linear.js";
import { Module, Parameter } from "../../nn/module.js";
import type { Residual, ResidualNorms } from "../../nn/residual.js";
import type { AdapterConfig } from "./config.js";

/**
 * A residual connection with an adapter: x went around the sub-layer, which made y, both (T, C). With the defaults, houlsby gives
 * x + y + A(y), pfeiffer x + y + A(x + y), parallel x + y + A(x). Where the model normalises after its sub-layers, pfeiffer's adapter reads
 * what comes out of that norm, which then follows the adapter once more. (For Gemma, the library takes the last layer's norm in all layers, by
 * a slip in `init_bottleneck`; we take each layer's own.)
 */
export class AdaptedResidual extends Module {
  /** The norm of `ln_before`, if any, and W↓ (R, C). */
  readonly adapter_down: Projection[] = [];
  /** W↑ (C, R) */
  readonly adapter_up: Linear;
  /** (1), if it trains. */
  readonly scaling: Parameter | null;
  readonly adapter_norm_after: LayerNorm | null;
  readonly #norms: ResidualNorms;
  readonly #config: AdapterConfig;

  constructor({ norms }: Residual, device: Device, width: number, bottleneck: number, config: AdapterConfig, rng: Rng) {
    super();
    const down = new Linear(width, bottleneck, { bias: true });
    if (config.ln_before) this.adapter_down.push(layerNorm(device, width));
    this.adapter_down.push(down);
    this.adapter_up = new Linear(bottleneck, width, { bias: true });
    this.scaling = config.scaling === "learned" ? new Parameter([1], filled(device, [1], 1)) : null;
    this.adapter_norm_after = config.ln_after ? layerNorm(device, width) : null;
    this.#norms = norms;
    this.#config = config;
    if ((norms.before ?? norms.after) !== undefined && !config.original_ln_after)
      throw new ConfigError("original_ln_after: must be set for a model that normalises after its sub-layers");

    const [downStart, upStart] = startOf(config.init_weights, width, rng);
    down.weight.value = filled(device, down.weight.shape, downStart);
    this.adapter_up.weight.value = filled(device, this.adapter_up.weight.shape, upStart);
    for (const { bias } of [down, this.adapter_up]) bias!.value = filled(device, bias!.shape, 0);
    for (const [, parameter] of this.namedParameters()) parameter.requiresGrad = true;
  }

  forward(x: Tensor, y: Tensor): Tensor {
    return scope(() => this.#join(x, y)); // in a scope of its own, no op takes the memory of x or y
  }

  #join(x: Tensor, y: Tensor): Tensor {
    const { is_parallel, original_ln_before, original_ln_after, residual_before_ln, adapter_residual_before_ln } = this.#config;
    const read = is_parallel ? x : original_ln_before ? this.#normed(add(x, y)) : y;
    const around = is_parallel || residual_before_ln ? y : read;
    const made = this.#adapt(read);
    const norm = this.adapter_norm_after;
    const adapted =
      norm === null
        ? add(around, made)
        : adapter_residual_before_ln && !is_parallel
          ? norm.forward(add(around, made))
          : add(around, norm.forward(made));
    return original_ln_after ? add(x, this.#norms.before?.forward(adapted) ?? adapted) : adapted;
  }

  #normed(sum: Tensor): Tensor {
    return (this.#norms.before ?? this.#norms.after)?.forward(sum) ?? sum;
  }

  #adapt(h: Tensor): Tensor {
    const { non_linearity, scaling, dropout: p } = this.#config;
    const narrow = activation(
      this.adapter_down.reduce((input, layer) => layer.forward(input), h),
      activations[non_linearity]!,
    );
    const up = this.adapter_up.forward(narrow);
    const scaled = this.scaling !== null ? scaleBy(up, this.scaling.value) : scaling === 1 ? up : scale(up, Number(scaling));
    return dropout(scaled, p);
  }
}

/** What a weight begins as: one number, or numbers drawn one after the other. */
type Start = number | (() => number);

/** How W↓ and W↑ begin; biases begin at 0. Source: methods/modeling.py. */
function startOf(init: AdapterConfig["init_weights"], width: number, rng: Rng): readonly [down: Start, up: Start] {
  switch (init) {
    case "bert": {
      const draw = () => 0.02 * rng.normal();
      return [draw, draw];
    }
    case "mam_adapter": {
      const bound = 1 / Math.sqrt(width); // Kaiming-uniform with a = √5
      return [() => rng.uniform(-bound, bound), 0];
    }
    case "houlsby": {
      const draw = (): number => {
        const value = rng.normal();
        return Math.abs(value) <= 2 ? 0.01 * value : draw();
      };
      return [draw, draw];
    }
  }
}

function filled(device: Device, shape: readonly number[], start: Start): Tensor {
  return drawnValues(device, shape, typeof start === "number" ? () => start : start);
}

/** With PyTorch's defaults. */
function layerNorm(device: Device, width: number): LayerNorm {
  const norm = new LayerNorm(width, 1e-5);
  norm.weight.value = filled(device, [width], 1);
  norm.bias.value = filled(device, [width], 0);
  return norm;
}
