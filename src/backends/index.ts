import { objectives } from "../objectives/index.js";
import type { Work } from "../recipe/pipeline.js";
import type { Methods, Recipe } from "../recipe/schema.js";
import type { RecordedEvent } from "../runs/events.js";
import { recordPipeline } from "../runs/pipeline.js";
import { type RunOptions, recordRun } from "../runs/run.js";
import { tuners } from "../tuners/index.js";
import type { Backend } from "./backend.js";
import { native } from "./native/native.js";

/** All backends. A new one is a folder and a line here. */
export const backends: readonly Backend[] = [native];

/** Everything that a recipe may choose from. */
export const everyMethod: Methods = { tuners, objectives, backends };

/** Runs a recipe by the backend that it names, and records it in its folder. Throws AttuneError. */
export function runRecipe(recipe: Recipe, options: RunOptions, choices = backends): AsyncGenerator<RecordedEvent> {
  return recordRun(recipe, backendOf(recipe, choices), options);
}

function backendOf(recipe: Recipe, choices: readonly Backend[]): Backend {
  return choices.find(({ name }) => name === recipe.backend)!;
}

/** Runs a recipe, or the stages of a pipeline one after the other. Throws AttuneError. */
export function runWork({ recipe, pipeline }: Work, options: RunOptions, choices = backends): AsyncGenerator<RecordedEvent> {
  if (recipe !== undefined) return runRecipe(recipe, options, choices);
  const worker = {
    run: (stage: Recipe, ofStage: RunOptions) => runRecipe(stage, ofStage, choices),
    check: async function* (stage: Recipe) {
      const { signal, rewardFunctions = {} } = options;
      yield* backendOf(stage, choices).check?.(stage, { signal, rewardFunctions }) ?? [];
    },
  };
  return recordPipeline(pipeline, worker, options);
}
