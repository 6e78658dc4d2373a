import type { z } from "zod";
import type { Recipe } from "../recipe/schema.js";
import type { RunEvent } from "../runs/events.js";
import type { Executor, RunContext } from "../runs/run.js";

/**
 * What executes a recipe: the third thing that a recipe chooses, beside tuner and objective. A backend gets a recipe and yields
 * events; `src/runs/` locks and writes the folder, records the events and chooses the checkpoint to go on from. No other code
 * asks which backend it is.
 */
export interface Backend<Config = unknown> extends Executor {
  /** Value of `backend` in a recipe. */
  readonly name: string;
  /** One line for help and documentation. */
  readonly summary: string;
  /** Settings that only this backend reads: flags, YAML checks, UI forms and docs are made from it. */
  readonly config: z.ZodType<Config>;
  /** Settings of other trainers that change nothing about the result here, each with the reason. */
  readonly needless: Readonly<Record<string, string>>;
  run(recipe: Recipe, context: RunContext<Config>): AsyncIterable<RunEvent>;
}

/** Checks a backend against the type of its own settings, which the list of all backends does not know. */
export function defineBackend<Config>(backend: Backend<Config>): Backend<Config> {
  return backend;
}
