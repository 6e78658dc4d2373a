import { ConfigError } from "../errors.js";
import { NumpyRandom } from "./numpy-random.js";

/** How several data sets become one: LLaMA-Factory's names. */
export const mixStrategies = ["concat", "interleave_under", "interleave_over", "interleave_once"] as const;
export type MixStrategy = (typeof mixStrategies)[number];

export interface MixOptions {
  readonly strategy: MixStrategy;
  /** How often each data set is drawn from, summing to 1; null: in turns. */
  readonly probabilities: readonly number[] | null;
  readonly seed: number;
}

/**
 * The rows of several data sets in one order. `concat`: one after the other. The others take rows in turns, or from a data set that is drawn for each row,
 * until the first data set has no more (`interleave_under`), until each has been through once, short ones several times (`interleave_over`), or
 * until all rows are used, each once (`interleave_once`).
 * Source: LLaMA-Factory, data/data_utils.py (merge_dataset), which calls `interleave_datasets` of Hugging Face's datasets 4; the same seed draws the same
 * data sets. Throws ConfigError for a data set without rows.
 */
export function mixRows<T>(datasets: readonly (readonly T[])[], { strategy, probabilities, seed }: MixOptions): T[] {
  if (strategy === "concat") return datasets.flat();
  const empty = datasets.findIndex((rows) => rows.length === 0);
  if (empty >= 0) throw new ConfigError(`mix_strategy: data set ${empty + 1} of ${datasets.length} has no rows to train on.`);
  const draws = Math.max(...datasets.map(({ length }, i) => length / (probabilities?.[i] ?? 1)));
  if (strategy !== "interleave_under" && draws > maxDraws)
    throw new ConfigError(`interleave_probs: about ${Math.round(draws)} rows would be drawn until each data set was used up.`);

  const draw = probabilities === null ? inTurns(datasets.length) : drawn(probabilities, seed);
  const taken = datasets.map(() => 0);
  const unfinished = new Set(datasets.keys());
  const mixed: T[] = [];
  const take = (from: number) => {
    const rows = datasets[from]!;
    mixed.push(rows[taken[from]!++ % rows.length]!);
    if (taken[from] === rows.length) unfinished.delete(from);
  };
  while (strategy === "interleave_under" ? unfinished.size === datasets.length : unfinished.size > 0) {
    const from = draw();
    if (strategy !== "interleave_once" || unfinished.has(from)) take(from);
  }
  // In turns, the last turn goes on to the last data set.
  if (probabilities === null && strategy !== "interleave_once") while (mixed.length % datasets.length > 0) take(draw());
  return mixed;
}

const maxDraws = 2 ** 26;

function inTurns(count: number): () => number {
  let next = 0;
  return () => next++ % count;
}

/** As NumPy's `choice` with probabilities. */
function drawn(probabilities: readonly number[], seed: number): () => number {
  const random = new NumpyRandom(seed);
  let sum = 0;
  const sums = probabilities.map((probability) => (sum += probability));
  const bounds = sums.map((each) => each / sum);
  return () => {
    const value = random.next();
    return bounds.findIndex((bound) => value < bound);
  };
}
