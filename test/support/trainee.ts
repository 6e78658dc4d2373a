import { Rng } from "../../src/core/rng.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import { Optimizer } from "../../src/optim/optimizer.js";
import { type OptimizerName, optimizerNamed } from "../../src/optim/optimizers.js";
import { weightDecays } from "../../src/optim/weight-decay.js";
import { type Trainee, trainedName } from "../../src/train/assemble.js";
import { SharedBase } from "../../src/tuners/shared-base.js";

/** A model as it is, to which a method was applied already, for what trains: `dispose` leaves the model. */
export function traineeOf(
  model: LanguageModel,
  { weightDecay = 0, optim = "adamw_torch" }: { weightDecay?: number; optim?: OptimizerName } = {},
): Trainee {
  const base = new SharedBase(model);
  base.add(trainedName, { changesBase: true, apply: () => {} }, { rng: new Rng(0) });
  const parameters = base.parametersOf(trainedName);
  const ruleFor = optimizerNamed(optim).ruleFor({ beta1: 0.9, beta2: 0.999, eps: 1e-8, args: {} });
  const optimizer = new Optimizer(parameters, ruleFor, weightDecays(model, weightDecay));
  return { base, parameters, optimizer, dispose: () => optimizer.dispose() };
}
