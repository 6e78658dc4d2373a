import { Rng } from "../core/rng.js";
import { forward, type Root } from "../core/tape.js";
import type { Tensor } from "../core/tensor.js";
import type { Row } from "../data/example.js";
import type { Metrics } from "../objectives/metrics.js";
import type { Batch, Task, Term, TermValue } from "../objectives/objective.js";
import { compute, countOf, Sums, totalCounts } from "../objectives/sums.js";
import { clipFactor, gradientSquares } from "../optim/clip.js";
import { type Trainee, trainedName } from "./assemble.js";
import { gradientDiverged, lossDiverged, updateDiverged } from "./diverged.js";

/** When and how a step is taken. */
export interface StepSettings {
  /** Steps that the weights have behind them. */
  readonly step: number;
  readonly seed: number;
  /** Of this step, and at its peak as the recipe says it. */
  readonly learningRate: number;
  readonly peakLearningRate: number;
  /** 0 clips nothing. */
  readonly maxGradNorm: number;
}

export interface StepResult {
  readonly loss: number;
  /** Of the loss, before clipping. */
  readonly gradNorm: number;
  /** Means over the step; null where the task has none. */
  readonly metrics: Metrics | null;
  readonly tokens: number;
  /** Null where what is learned belongs to whole rows. */
  readonly supervisedTokens: number | null;
}

/**
 * One optimizer step on micro-batches of rows: forward and backward of each, one division by the counts of the whole step, clipping, update. The
 * estimator runs it on shapes, where numbers mean nothing and none is judged.
 * Throws DivergedError if a loss or a gradient is not finite, before the weights change; or if a weight or a moment is not after the update.
 */
export async function runStep<R extends Row, B extends Batch>(
  { base, parameters, optimizer }: Trainee,
  task: Task<R, B>,
  microBatches: readonly (readonly R[])[],
  { step, seed, learningRate, peakLearningRate, maxGradNorm }: StepSettings,
): Promise<StepResult> {
  const now = { step, learningRate: peakLearningRate };
  const isReal = base.device.isSymbolic !== true;
  const batches = microBatches.map((rows) => task.collate(rows));
  const counts = totalCounts(batches);
  // Gradients add up as those of sums, and the update divides: a term alone begins its backward with exactly 1.
  const divisor = Math.max(...Object.values(counts)) || 1;
  const seedOf = (name: string, { weight = 1 }: Term) => {
    const count = countOf(counts, name);
    return count === 0 ? 0 : weight * (divisor / count);
  };

  const sums = new Sums();
  for (const [micro, batch] of batches.entries()) {
    const terms = () => base.with(trainedName, (model) => task.terms(model, batch, base));
    const values = await accumulate(terms, seedOf, Rng.for(seed, `dropout/${step}/${micro}`));
    const error = isReal && (await lossDiverged(`step ${step + 1}: the loss`, values, base, microBatches[micro]!, now));
    if (error) throw dropped(error, parameters);
    sums.add(batch, values);
  }
  const { loss, metrics } = sums;
  const gradNorm = Math.sqrt(await takeItem(gradientSquares(parameters.values()))) / divisor;
  if (isReal && !Number.isFinite(gradNorm)) throw dropped(await gradientDiverged(parameters, loss, now), parameters);
  optimizer.update(learningRate, clipFactor(gradNorm, maxGradNorm) / divisor);
  if ((await optimizer.flaws()) > 0) throw await updateDiverged(parameters, optimizer, now);
  return { loss, gradNorm, metrics, tokens: sumOf(batches, ({ tokens }) => tokens), supervisedTokens: supervisedIn(batches) };
}

/** Adds the gradients of a micro-batch. Numbers are awaited between forward and backward only where a term is computed from them. */
async function accumulate(
  body: () => Readonly<Record<string, Term>>,
  seedOf: (name: string, term: Term) => number,
  rng: Rng,
): Promise<Readonly<Record<string, TermValue>>> {
  const pass = forward(body, rng);
  try {
    const roots: Root[] = [];
    const values: Record<string, TermValue> = {};
    const terms = Object.entries(pass.result);
    for (const [name, term] of terms) {
      const start = seedOf(name, term);
      if ("sum" in term) {
        roots.push({ output: term.sum, seed: start });
        continue;
      }
      const { sum, gradient, metrics } = await compute(term);
      roots.push({ output: term.of, seed: gradient.map((g) => start * g) });
      values[name] = { sum, weight: term.weight, metrics };
    }
    pass.backward(roots);
    for (const [name, term] of terms) if ("sum" in term) values[name] = { sum: await term.sum.item(), weight: term.weight };
    return values;
  } finally {
    pass.dispose();
  }
}

/** Gives up the gradients of a step that ends with an error. */
function dropped(error: Error, parameters: Trainee["parameters"]): Error {
  for (const parameter of parameters.values()) parameter.zeroGrad();
  return error;
}

const sumOf = (batches: readonly Batch[], of: (batch: Batch) => number) => batches.reduce((sum, batch) => sum + of(batch), 0);

function supervisedIn(batches: readonly Batch[]): number | null {
  const supervised = batches.filter(({ supervisedTokens }) => supervisedTokens !== undefined);
  return supervised.length === 0 ? null : sumOf(supervised, ({ supervisedTokens = 0 }) => supervisedTokens);
}

async function takeItem(scalar: Tensor): Promise<number> {
  const value = await scalar.item();
  scalar.dispose();
  return value;
}
