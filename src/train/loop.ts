import { performance } from "node:perf_hooks";
import { Rng } from "../core/rng.js";
import { differentiate } from "../core/tape.js";
import { scope, type Tensor } from "../core/tensor.js";
import type { Row } from "../data/example.js";
import type { LanguageModel } from "../models/language-model.js";
import type { Parameter } from "../nn/module.js";
import type { Batch, Metrics, Task } from "../objectives/objective.js";
import type { AdamW } from "../optim/adamw.js";
import { clipFactor, gradientSquares } from "../optim/clip.js";
import { type ScheduleName, scheduleFactor } from "../optim/schedule.js";
import type { CheckpointEvent, EvalEvent, StepEvent } from "../runs/events.js";
import { gradientDiverged, lossDiverged, updateDiverged } from "./diverged.js";
import { peakMemoryBytes } from "./peak-memory.js";
import type { StepPlan } from "./step-plan.js";

export interface TrainSettings {
  readonly learningRate: number;
  readonly schedule: ScheduleName;
  readonly warmupSteps: number;
  readonly maxGradNorm: number;
  readonly seed: number;
  /** Evaluate, and save, after every so many steps; 0 for never. Where it evaluates at all, it does so at the end too. */
  readonly evalSteps: number;
  readonly saveSteps: number;
  /** Rows of an evaluation batch. */
  readonly evalBatchSize: number;
}

/** What a run has done so far, beside weights and moments: a checkpoint holds it, and a resumed run goes on from it. */
export interface Progress {
  step: number;
  epoch: number;
  /** Σ of the steps' mean losses. */
  lossSum: number;
  tokens: number;
  /** Null where labels belong to whole rows. */
  supervisedTokens: number | null;
  rows: number;
  /** Wall time of the optimizer steps alone, and of everything. */
  stepMs: number;
  elapsedMs: number;
  evalLoss: number | null;
  /** What the last evaluation told beside the loss. */
  metrics: Metrics | null;
}

export const noProgress = (): Progress => ({
  step: 0,
  epoch: 0,
  lossSum: 0,
  tokens: 0,
  supervisedTokens: null,
  rows: 0,
  stepMs: 0,
  elapsedMs: 0,
  evalLoss: null,
  metrics: null,
});

export interface TrainWork {
  readonly model: LanguageModel;
  readonly task: Task;
  readonly trainRows: readonly Row[];
  readonly evalRows: readonly Row[];
  readonly plan: StepPlan;
  readonly optimizer: AdamW;
  readonly parameters: ReadonlyMap<string, Parameter>;
  readonly settings: TrainSettings;
  readonly progress: Progress;
  /** Writes a checkpoint and returns its path. */
  readonly save: () => Promise<string>;
  /** Ends the run after the step that is under way. */
  readonly signal: AbortSignal;
}

export type LoopEvent = StepEvent | EvalEvent | CheckpointEvent;

/**
 * The one training loop. Accumulates micro-batches, divides once by the count of the whole step, clips, updates; evaluates and saves on the
 * way. `progress` is kept current. Nothing random depends on what ran before a step, so a resumed run equals an uninterrupted one.
 * Throws DivergedError if a loss or a gradient is not finite, before the weights change; or if a weight or a moment is not after an update.
 */
export async function* train(work: TrainWork): AsyncGenerator<LoopEvent> {
  const { plan, settings, progress, signal } = work;
  const loopStartedMs = performance.now();
  const startedMs = loopStartedMs - progress.elapsedMs;
  const firstStep = progress.step;
  while (progress.step < plan.totalSteps && !signal.aborted) {
    const stepStartedMs = performance.now();
    const window = plan.at(progress.step);
    const learningRate =
      settings.learningRate * scheduleFactor(settings.schedule, progress.step, settings.warmupSteps, plan.totalSteps);
    const result = await optimizerStep(work, window.microBatches, learningRate);

    const nowMs = performance.now();
    progress.step++;
    progress.epoch = window.epochAfter;
    progress.lossSum += result.loss;
    progress.tokens += result.tokens;
    if (result.supervisedTokens !== null) progress.supervisedTokens = (progress.supervisedTokens ?? 0) + result.supervisedTokens;
    progress.rows += window.microBatches.reduce((sum, rows) => sum + rows.length, 0);
    progress.stepMs += nowMs - stepStartedMs;
    progress.elapsedMs = nowMs - startedMs;
    yield {
      type: "step",
      step: progress.step,
      totalSteps: plan.totalSteps,
      epoch: progress.epoch,
      loss: result.loss,
      gradNorm: result.gradNorm,
      learningRate,
      tokens: result.tokens,
      ...(result.supervisedTokens !== null && { supervisedTokens: result.supervisedTokens }),
      tokensPerSecond: (1000 * result.tokens) / (nowMs - stepStartedMs),
      elapsedMs: progress.elapsedMs,
      remainingMs: ((plan.totalSteps - progress.step) * (nowMs - loopStartedMs)) / (progress.step - firstStep),
      peakMemoryBytes: peakMemoryBytes(),
    };

    const isLast = progress.step === plan.totalSteps;
    const isEvaluated = work.evalRows.length > 0 && settings.evalSteps > 0;
    if (isEvaluated && (isLast || isDue(progress.step, settings.evalSteps))) {
      const { loss, metrics } = await evaluate(work);
      progress.evalLoss = loss;
      progress.metrics = metrics;
      progress.elapsedMs = performance.now() - startedMs;
      yield {
        type: "eval",
        step: progress.step,
        epoch: progress.epoch,
        evalLoss: loss,
        ...(metrics !== null && { metrics }),
        elapsedMs: progress.elapsedMs,
      };
    }
    if (!isLast && !signal.aborted && isDue(progress.step, settings.saveSteps))
      yield { type: "checkpoint", step: progress.step, path: await work.save() };
  }
}

const isDue = (step: number, every: number) => every > 0 && step % every === 0;

interface StepResult {
  /** Mean over what the step's losses sum over. */
  readonly loss: number;
  readonly gradNorm: number;
  readonly tokens: number;
  readonly supervisedTokens: number | null;
}

async function optimizerStep(
  work: TrainWork,
  microBatches: readonly (readonly number[])[],
  learningRate: number,
): Promise<StepResult> {
  const { model, task, trainRows, parameters, optimizer, settings, progress } = work;
  const batches = microBatches.map((rows) => task.collate(rows.map((row) => trainRows[row]!)));
  const count = batches.reduce((sum, batch) => sum + batch.count, 0);
  const tokens = batches.reduce((sum, batch) => sum + batch.tokens, 0);
  const supervisedTokens = batches.reduce<number | null>(
    (sum, batch) => (batch.supervisedTokens === undefined ? sum : (sum ?? 0) + batch.supervisedTokens),
    null,
  );

  const now = { step: progress.step, learningRate: settings.learningRate };
  const sums: number[] = [];
  for (const [micro, batch] of batches.entries()) {
    const rng = Rng.for(settings.seed, `dropout/${progress.step}/${micro}`);
    const loss = differentiate(() => task.loss(model, batch), rng);
    sums.push(await takeItem(loss));
    if (!Number.isFinite(sums.at(-1))) {
      model.zeroGrad();
      const rows = microBatches[micro]!.map((row) => trainRows[row]!);
      throw await lossDiverged(`step ${progress.step + 1}: the loss`, model, rows, sums.at(-1)!, now);
    }
  }
  const loss = sums.reduce((sum, value) => sum + value, 0) / count;
  const gradNorm = Math.sqrt(await takeItem(gradientSquares(parameters.values()))) / count;
  if (!Number.isFinite(gradNorm)) {
    const error = await gradientDiverged(parameters, loss, now);
    model.zeroGrad();
    throw error;
  }
  optimizer.update(learningRate, clipFactor(gradNorm, settings.maxGradNorm) / count);
  if ((await optimizer.flaws()) > 0) throw await updateDiverged(parameters, optimizer, now);
  return { loss, gradNorm, tokens, supervisedTokens };
}

/** Mean loss over the held-out rows, and what else the task tells of them. */
async function evaluate(work: TrainWork): Promise<{ loss: number; metrics: Metrics | null }> {
  const { model, task, evalRows, settings, progress } = work;
  const now = { step: progress.step, learningRate: settings.learningRate };
  const evaluation = task.evaluation?.();
  let sum = 0;
  let count = 0;
  for (let start = 0; start < evalRows.length; start += settings.evalBatchSize) {
    const rows = evalRows.slice(start, start + settings.evalBatchSize);
    const batch: Batch = task.collate(rows);
    const loss = evaluation ? await evaluation.add(model, batch) : await takeItem(scope(() => task.loss(model, batch)));
    if (!Number.isFinite(loss))
      throw await lossDiverged(`after step ${progress.step}: the held-out loss`, model, rows, loss, now);
    sum += loss;
    count += batch.count;
  }
  return { loss: sum / count, metrics: evaluation?.metrics() ?? null };
}

async function takeItem(scalar: Tensor): Promise<number> {
  const value = await scalar.item();
  scalar.dispose();
  return value;
}
