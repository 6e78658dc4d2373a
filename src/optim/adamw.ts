import { z } from "zod";
import { Tensor } from "../core/tensor.js";
import { defineOptimizer, type Kept, type RuleSettings, type UpdateRule } from "./optimizer.js";

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
 * AdamW: Adam with weight decay apart from the gradient. Keeps the first moment `m` and the second one `v`: of the weight's shape, f32; or in 8 bits,
 * (blocks, 65) words: a block of 256 is its absmax and 256 codes, see `Kernels.adamw8bit`.
 * Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, as torch.optim.AdamW computes it.
 *
 * In 8 bits it is bitsandbytes' AdamW8bit (Dettmers et al. 2022, arXiv:2110.02861): 2 bytes of moments for a number instead of 8. Unlike
 * Hugging Face's Trainer, which leaves embeddings in f32, all large parameters have their moments in 8 bits.
 */
export function adamWRule({ beta1, beta2, eps }: Omit<RuleSettings, "args">, bits: 8 | 32): UpdateRule {
  return {
    begin: (value) => ({ m: zeroMoment(value, bits), v: zeroMoment(value, bits) }),
    update({ value, grad, gradScale, kept: { m, v }, learningRate: lr, weightDecay, step, flaws }) {
      const { kernels } = value.device;
      const corrections = { correction1: 1 - beta1 ** step, correction2: 1 - beta2 ** step };
      const settings = { lr, beta1, beta2, eps, weightDecay, ...corrections, gradScale };
      const take = m!.isBlocks ? kernels.adamw8bit : kernels.adamw;
      take.call(kernels, value.id, grad.id, m!.tensor.id, v!.tensor.id, flaws.id, value.size, settings);
    },
  };
}

function zeroMoment({ device, shape, size }: Tensor, bits: 8 | 32): Kept {
  const isBlocks = bits === 8 && size >= min8BitSize;
  return { tensor: Tensor.zeros(device, isBlocks ? [Math.ceil(size / momentsInBlock), wordsOfBlock] : shape), isBlocks };
}

const ofAdam = {
  reads: ["adam_beta1", "adam_beta2", "adam_epsilon"],
  args: z.strictObject({}),
  rateFactor: 1,
} as const;

export const adamW = defineOptimizer({
  ...ofAdam,
  names: ["adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "paged_adamw_32bit"],
  smaller: "adamw_8bit",
  ruleFor: (settings) => () => adamWRule(settings, 32),
});

export const adamW8bit = defineOptimizer({
  ...ofAdam,
  names: ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"],
  keepsBlocks: true,
  ruleFor: (settings) => () => adamWRule(settings, 8),
});
