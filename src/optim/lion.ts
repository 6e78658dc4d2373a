import { z } from "zod";
import { Tensor } from "../core/tensor.js";
import { defineOptimizer, type RuleSettings, type UpdateRule } from "./optimizer.js";

/**
 * Lion: every number moves by the learning rate, up or down. Keeps the running mean `m` of the gradient.
 * Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2, as bitsandbytes' Lion in 32 bits computes it, with decay apart from the gradient.
 * β₁ and β₂ are `adam_beta1` and `adam_beta2`, as in transformers' Trainer, so β₂ is 0.999 unless a recipe says the paper's 0.99.
 */
export function lionRule({ beta1, beta2 }: Pick<RuleSettings, "beta1" | "beta2">): UpdateRule {
  return {
    begin: ({ device, shape }) => ({ m: { tensor: Tensor.zeros(device, shape) } }),
    update({ value, grad, gradScale, kept, learningRate: lr, weightDecay, flaws }) {
      const step = { lr, beta1, beta2, weightDecay, gradScale };
      value.device.kernels.lion(value.id, grad.id, kept.m!.tensor.id, flaws.id, value.size, step);
    },
  };
}

export const lion = defineOptimizer({
  names: ["lion_32bit", "paged_lion_32bit"],
  reads: ["adam_beta1", "adam_beta2"],
  args: z.strictObject({}),
  rateFactor: 0.3, // the paper, section 5: a suitable rate is 3 to 10 times smaller than AdamW's; of these, short runs learn best with the largest
  ruleFor(settings) {
    const rule = lionRule(settings);
    return () => rule;
  },
});
