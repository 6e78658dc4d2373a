import { LayerNorm } from "../nn/layer-norm.js";
import type { Module } from "../nn/module.js";

/**
 * The weight decay of each parameter of a model: `weightDecay` for all but biases and the weights of norms, which have none. Other vectors decay:
 * DoRA's magnitudes, scales that adapters learn.
 *
 * Source: transformers 5.24, `Trainer.get_decay_parameter_names`, which goes by names, and by the class LayerNorm for names that do not say it
 * (GPT-2's ln_1).
 */
export function weightDecays(model: Module, weightDecay: number): Map<string, number> {
  const inLayerNorm = new Set([...model.namedModules()].flatMap(([, m]) => (m instanceof LayerNorm ? [m.weight, m.bias] : [])));
  const decaying = [...model.namedParameters()].filter(([name, parameter]) => !inLayerNorm.has(parameter) && !isExempt(name));
  return new Map(decaying.map(([name]) => [name, weightDecay]));
}

const exempt = [/bias/, /layernorm/, /rmsnorm/, /(?:^|\.)norm(?:$|\.)/, /_norm(?:$|\.)/];

function isExempt(name: string): boolean {
  return exempt.some((pattern) => pattern.test(name.toLowerCase()));
}
