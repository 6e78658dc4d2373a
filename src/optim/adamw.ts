import { Tensor, unscoped } from "../core/tensor.js";
import type { Parameter } from "../nn/module.js";

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
}

/** First and second moments of one parameter, each of its shape, f32. */
export interface Moments {
  readonly m: Tensor;
  readonly v: Tensor;
}

/**
 * AdamW: Adam with weight decay apart from the gradient.
 * Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, as torch.optim.AdamW computes it. Like Hugging Face's Trainer, vectors
 * (norm weights, biases) are not decayed.
 */
export class AdamW {
  readonly moments: ReadonlyMap<string, Moments>;
  readonly #parameters: ReadonlyMap<string, Parameter>;
  readonly #options: AdamWOptions;
  /** Steps taken. */
  step = 0;

  /** Moments start at zero. Throws EngineError if memory is short. */
  constructor(parameters: ReadonlyMap<string, Parameter>, options: AdamWOptions) {
    this.#parameters = parameters;
    this.#options = options;
    this.moments = unscoped(
      () =>
        new Map(
          [...parameters].map(([name, { value }]) => {
            const zeros = () => Tensor.zeros(value.device, value.shape);
            return [name, { m: zeros(), v: zeros() }];
          }),
        ),
    );
  }

  /** One step along the gradients that have added up, each times `gradScale`; then drops them. */
  update(lr: number, gradScale: number): void {
    this.step++;
    const { beta1, beta2, eps, weightDecay } = this.#options;
    const correction1 = 1 - beta1 ** this.step;
    const correction2 = 1 - beta2 ** this.step;
    for (const [name, parameter] of this.#parameters) {
      const { value } = parameter;
      if (value.grad === null) continue;
      const { m, v } = this.moments.get(name)!;
      const decay = value.shape.length > 1 ? weightDecay : 0;
      const step = { lr, beta1, beta2, eps, weightDecay: decay, correction1, correction2, gradScale };
      value.device.kernels.adamw(value.id, value.grad.id, m.id, v.id, value.size, step);
      parameter.zeroGrad();
    }
  }

  dispose(): void {
    for (const { m, v } of this.moments.values()) {
      m.dispose();
      v.dispose();
    }
  }
}
