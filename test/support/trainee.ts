import { Rng } from "../../src/core/rng.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import { AdamW } from "../../src/optim/adamw.js";
import { weightDecays } from "../../src/optim/weight-decay.js";
import { type Trainee, trainedName } from "../../src/train/assemble.js";
import { SharedBase } from "../../src/tuners/shared-base.js";

/** A model as it is, to which a method was applied already, for what trains: `dispose` leaves the model. */
export function traineeOf(
  model: LanguageModel,
  { weightDecay = 0, bits = 32 }: { weightDecay?: number; bits?: 8 | 32 } = {},
): Trainee {
  const base = new SharedBase(model);
  base.add(trainedName, { changesBase: true, apply: () => {} }, { rng: new Rng(0) });
  const parameters = base.parametersOf(trainedName);
  const optimizer = new AdamW(parameters, {
    ...{ beta1: 0.9, beta2: 0.999, eps: 1e-8, bits },
    weightDecay: weightDecays(model, weightDecay),
  });
  return { base, parameters, optimizer, dispose: () => optimizer.dispose() };
}
