import type { z } from "zod";
import type { Recipe } from "../recipe/schema.js";
import type { RunEvent } from "../runs/events.js";
import type { Executor, RunContext } from "../runs/run.js";

/**
 * Who executes a recipe: the third axis, beside tuner and objective. A recipe is data, and a run is a stream of events; lock, folder, recording and
 * the choice of the checkpoint to go on from are around it (src/runs/). Nobody asks which backend it is.
 */
export interface Backend<Config = unknown> extends Executor {
  /** Value of `backend` in a recipe. */
  readonly name: string;
  /** One line for help and documentation. */
  readonly summary: string;
  /** Settings that only this backend reads: flags, YAML checks, UI forms and docs are made from it. */
  readonly config: z.ZodType<Config>;
  /** Settings of other trainers that change nothing about the result here, each with the reason. */
  readonly unneeded: Readonly<Record<string, string>>;
  run(recipe: Recipe, context: RunContext<Config>): AsyncIterable<RunEvent>;
}

/** Keeps the type of settings while the list forgets it. */
export function defineBackend<Config>(backend: Backend<Config>): Backend<Config> {
  return backend;
}
