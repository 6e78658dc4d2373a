import { Tensor, unscoped } from "../core/tensor.js";
import type { Parameter } from "../nn/module.js";

/** In how many bits the moments are stored, by the name of the optimizer in recipes (transformers' OptimizerNames). */
export const momentBits = {
  adamw_torch: 32,
  adamw_torch_fused: 32,
  adamw_hf: 32,
  adamw: 32,
  adamw_8bit: 8,
  adamw_bnb_8bit: 8,
  paged_adamw_8bit: 8,
} as const satisfies Record<string, 8 | 32>;

export type OptimizerName = keyof typeof momentBits;
export const optimizerNames = Object.keys(momentBits) as OptimizerName[];

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** The weight decay of each parameter, by its name; a parameter that is not listed does not decay. */
  readonly weightDecay: ReadonlyMap<string, number>;
  /** Bits of a moment; 32 where not given. */
  readonly bits?: 8 | 32;
}

/**
 * First and second moments of one parameter: of its shape, f32; or in 8 bits, (blocks, 65) words: a block of 256 is its absmax and 256 codes,
 * see `Kernels.adamw8bit`.
 */
export interface Moments {
  readonly m: Tensor;
  readonly v: Tensor;
  readonly bits: 8 | 32;
}

/** Parameters with fewer numbers have their moments in f32: bitsandbytes' min_8bit_size. */
const min8BitSize = 4096;
const momentsInBlock = 256;
const wordsOfBlock = 65;

/** Whether a stored moment of this shape may be in 8 bits, if the optimizer's are. */
export function mayBeBlocks([blocks = 0, words]: readonly number[]): boolean {
  return words === wordsOfBlock && blocks >= min8BitSize / momentsInBlock;
}

/** The numbers among the words of moments in 8 bits: the absmax of each block. */
export function absmaxOf(bytes: Uint8Array): Uint8Array {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return new Uint8Array(words.filter((_, i) => i % wordsOfBlock === 0).buffer);
}

/**
 * AdamW: Adam with weight decay apart from the gradient.
 * Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, as torch.optim.AdamW computes it.
 *
 * In 8 bits it is bitsandbytes' AdamW8bit (Dettmers et al. 2022, arXiv:2110.02861): 2 bytes of moments for a number instead of 8. Unlike
 * Hugging Face's Trainer, which leaves embeddings in f32, all large parameters have their moments in 8 bits.
 */
export class AdamW {
  readonly moments: ReadonlyMap<string, Moments>;
  readonly #parameters: ReadonlyMap<string, Parameter>;
  readonly #options: AdamWOptions;
  readonly #flaws: Tensor | undefined;
  /** Steps taken. */
  step = 0;

  /** Moments start at zero. Throws EngineError if memory is short. */
  constructor(parameters: ReadonlyMap<string, Parameter>, options: AdamWOptions) {
    this.#parameters = parameters;
    this.#options = options;
    this.moments = unscoped(
      () => new Map([...parameters].map(([name, { value }]) => [name, zeroMoments(value, options.bits ?? 32)])),
    );
    const [first] = parameters.values();
    this.#flaws = first && unscoped(() => Tensor.zeros(first.value.device, [1]));
  }

  /** Takes one step along the accumulated gradients, each times `gradScale`, and then frees them. */
  update(lr: number, gradScale: number): void {
    this.step++;
    const { beta1, beta2, eps, weightDecay } = this.#options;
    const correction1 = 1 - beta1 ** this.step;
    const correction2 = 1 - beta2 ** this.step;
    for (const [name, parameter] of this.#parameters) {
      const { value } = parameter;
      if (value.grad === null) continue;
      const { m, v, bits } = this.moments.get(name)!;
      const step = {
        lr: lr * parameter.learningRateScale,
        beta1,
        beta2,
        eps,
        weightDecay: weightDecay.get(name) ?? 0,
        correction1,
        correction2,
        gradScale,
      };
      const { kernels } = value.device;
      const take = bits === 8 ? kernels.adamw8bit : kernels.adamw;
      take.call(kernels, value.id, value.grad.id, m.id, v.id, this.#flaws!.id, value.size, step);
      parameter.zeroGrad();
    }
  }

  /**
   * How many weights were no longer finite after an update, or had a moment that was not, summed over all steps so far. Waits for the updates
   * under way.
   */
  async flaws(): Promise<number> {
    return this.#flaws ? await this.#flaws.item() : 0;
  }

  /** The parameter whose moments are not finite; null if all are. */
  async firstFlawedMoments(): Promise<string | null> {
    for (const [name, { m, v, bits }] of this.moments)
      for (const moment of [m, v]) {
        const words = await moment.read();
        if (words.some((word, i) => (bits === 32 || i % wordsOfBlock === 0) && !Number.isFinite(word))) return name;
      }
    return null;
  }

  dispose(): void {
    this.#flaws?.dispose();
    for (const { m, v } of this.moments.values()) {
      m.dispose();
      v.dispose();
    }
  }
}

function zeroMoments({ device, shape, size }: Tensor, wanted: 8 | 32): Moments {
  const bits = size < min8BitSize ? 32 : wanted;
  const zeros = () => Tensor.zeros(device, bits === 8 ? [Math.ceil(size / momentsInBlock), wordsOfBlock] : shape);
  return { m: zeros(), v: zeros(), bits };
}
