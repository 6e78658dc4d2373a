import type { Recipe } from "../recipe/schema.js";
import type { RunEvent } from "../runs/events.js";

export interface RunOptions {
  /** Ends the run after the step that is under way; what was trained is saved. */
  readonly signal: AbortSignal;
  /** What reading the recipe had to say. */
  readonly notices?: readonly string[];
}

/** Who executes a recipe: a recipe is data, and a run is a stream of events. */
export interface Backend {
  readonly name: string;
  run(recipe: Recipe, options: RunOptions): AsyncIterable<RunEvent>;
}
