import { objectives } from "../objectives/index.js";
import type { Methods, Recipe } from "../recipe/schema.js";
import type { RecordedEvent } from "../runs/events.js";
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
  return recordRun(recipe, choices.find(({ name }) => name === recipe.backend)!, options);
}
