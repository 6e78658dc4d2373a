import { z } from "zod";
import { Tensor } from "../core/tensor.js";
import { defineOptimizer, ownGradient, type UpdateRule } from "./optimizer.js";

const Args = z.strictObject({
  momentum: z.number().min(0).lt(1).default(0),
  dampening: z.number().min(0).max(1).default(0),
  nesterov: z.boolean().default(false),
});

/**
 * Stochastic gradient descent: w −= lr · (g + weightDecay · w); with momentum, along its running sum, which is all that it keeps.
 * Source: torch.optim.SGD, as transformers' Trainer builds it: without momentum unless `optim_args` says so. With momentum 0 neither `dampening` nor
 * `nesterov` changes anything.
 */
export function sgdRule({ momentum, dampening, nesterov }: z.output<typeof Args>): UpdateRule {
  return {
    begin: ({ device, shape }) => (momentum > 0 ? { momentum: { tensor: Tensor.zeros(device, shape) } } : {}),
    update(step) {
      const { value, learningRate, weightDecay, flaws } = step;
      const { kernels } = value.device;
      const blend = (x: Tensor, y: Tensor, keep: number, add: number) => kernels.blend(x.id, y.id, flaws.id, y.size, keep, add);
      const along = ownGradient(step);
      if (weightDecay > 0) blend(value, along, 1, weightDecay);
      const sum = step.kept.momentum?.tensor;
      if (sum === undefined) return blend(along, value, 1, -learningRate);
      blend(along, sum, momentum, step.step === 1 ? 1 : 1 - dampening);
      if (nesterov) blend(sum, along, 1, momentum);
      blend(nesterov ? along : sum, value, 1, -learningRate);
    },
  };
}

export const sgd = defineOptimizer({
  names: ["sgd"],
  reads: [],
  args: Args,
  rateFactor: null, // its step is as long as the gradient, which differs between models by orders of magnitude; AdamW's is not
  ruleFor({ args }) {
    const rule = sgdRule(Args.parse(args));
    return () => rule;
  },
});
