import { SymbolicDevice } from "../../core/symbolic.js";
import { ConfigError } from "../../errors.js";
import type { LanguageModel } from "../../models/language-model.js";
import type { Objective } from "../../objectives/objective.js";
import { weightDecays } from "../../optim/weight-decay.js";
import type { Recipe } from "../../recipe/schema.js";
import { type Parts, sketch, trainedName } from "../../train/assemble.js";

/**
 * Checks on shapes alone, before data and weights are read, that the objective can train the model with these settings; returns how many tokens of
 * a row it takes. Throws ModelError, ConfigError.
 */
export function checkModel(recipe: Recipe, parts: Parts, objective: Objective): number {
  const { base } = sketch(new SymbolicDevice(), parts);
  return base.with(trainedName, (model) => {
    objective.check?.(model);
    checkRates(model, recipe);
    return maxTokensOf(model);
  });
}

/** How many tokens of a row a model takes. Throws ConfigError if virtual tokens leave no room for them. */
function maxTokensOf({ virtualTokens, shape }: LanguageModel): number {
  const maxTokens = shape.maxPositions - virtualTokens;
  if (maxTokens < 2)
    throw new ConfigError(
      `num_virtual_tokens: ${virtualTokens} leave no room for text in the model's ${shape.maxPositions} positions: choose fewer`,
    );
  return maxTokens;
}

/** Throws ConfigError if a step would not fit f32, or take away the whole of a weight that learns faster than the rest. */
function checkRates(sketch: LanguageModel, { learning_rate, weight_decay }: Recipe): void {
  const decays = weightDecays(sketch, weight_decay);
  for (const [name, { learningRateScale }] of sketch.trainableParameters()) {
    const rate = learning_rate * learningRateScale;
    if (Number.isFinite(Math.fround(rate)) && rate * (decays.get(name) ?? 0) < 1) continue;
    throw new ConfigError(
      `learning_rate: ${name} learns ${learningRateScale} times as fast, at ${rate}, with a weight_decay of ${weight_decay}: ` +
        "their product must be below 1, and the rate a number that f32 holds",
    );
  }
}
