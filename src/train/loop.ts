import { performance } from "node:perf_hooks";
import { Rng } from "../core/rng.js";
import type { Row } from "../data/example.js";
import { type Evaluated, evaluate } from "../evaluate/evaluate.js";
import type { Metrics } from "../objectives/metrics.js";
import type { Task } from "../objectives/objective.js";
import { Sums } from "../objectives/sums.js";
import { type ScheduleName, scheduleOf } from "../optim/schedule.js";
import type { CheckpointEvent, EvalEvent, StepEvent } from "../runs/events.js";
import { type Trainee, trainedName } from "./assemble.js";
import { type BestSettings, type Judged, judge, lowestLoss } from "./best.js";
import { lossDiverged } from "./diverged.js";
import { peakMemoryBytes } from "./peak-memory.js";
import { runStep, type StepResult } from "./step.js";
import type { StepPlan } from "./step-plan.js";

export interface TrainSettings {
  readonly learningRate: number;
  readonly schedule: ScheduleName;
  /** `lr_scheduler_kwargs`. */
  readonly scheduleSettings?: Readonly<Record<string, unknown>> | null;
  readonly warmupSteps: number;
  readonly maxGradNorm: number;
  readonly seed: number;
  /**
   * Evaluate, and save, after every so many steps; 0 for never. Where it evaluates at all, it does so at the end too. In rounds of several steps:
   * after the round in which such a step lies.
   */
  readonly evalSteps: number;
  readonly saveSteps: number;
  /** Rows of an evaluation batch. */
  readonly evalBatchSize: number;
  /** Which evaluation is the best, and whether the run ends where none gets better; the lowest loss where not given. */
  readonly best?: BestSettings;
}

/** What a run has done so far, beside weights and moments: a checkpoint holds it, and a resumed run goes on from it. */
export interface Progress extends Judged {
  step: number;
  epoch: number;
  /** Σ of the steps' mean losses, and those of the first and the last step; null before it. */
  lossSum: number;
  firstLoss: number | null;
  lastLoss: number | null;
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
  /** The step that was done last is to be evaluated, and the run was stopped before it was. */
  isEvaluationDue: boolean;
}

export const noProgress = (): Progress => ({
  step: 0,
  epoch: 0,
  lossSum: 0,
  firstLoss: null,
  lastLoss: null,
  tokens: 0,
  supervisedTokens: null,
  rows: 0,
  stepMs: 0,
  elapsedMs: 0,
  evalLoss: null,
  metrics: null,
  isEvaluationDue: false,
  best: null,
  badEvaluations: 0,
  isStoppedEarly: false,
});

export interface TrainWork {
  readonly trainee: Trainee;
  readonly task: Task;
  readonly trainRows: readonly Row[];
  readonly evalRows: readonly Row[];
  readonly plan: StepPlan;
  readonly settings: TrainSettings;
  readonly progress: Progress;
  /** Writes a checkpoint and returns its path. */
  readonly save: () => Promise<string>;
  /** Ends the run after the round that is under way, or before it if that has not come to its first step. */
  readonly signal: AbortSignal;
}

export type LoopEvent = StepEvent | EvalEvent | CheckpointEvent;

/** Whether a run was stopped with work left to do. */
export function isUnfinished({ step, isEvaluationDue, isStoppedEarly }: Progress, { totalSteps }: StepPlan): boolean {
  return (step < totalSteps && !isStoppedEarly) || isEvaluationDue;
}

/**
 * The one training loop, in rounds: a task may first make experience of the round's rows; then come the round's optimizer steps, one where the
 * task says nothing else; between rounds it evaluates and saves. `progress` is kept current. Nothing random depends on what ran before a round, so
 * a resumed run equals an uninterrupted one. Throws DivergedError as `runStep` does, and if a held-out loss is not finite.
 */
export async function* train(work: TrainWork): AsyncGenerator<LoopEvent> {
  const { trainee, task, plan, settings, progress, signal } = work;
  const loopStartedMs = performance.now();
  const startedMs = loopStartedMs - progress.elapsedMs;
  const firstStep = progress.step;
  const horizon = { ...settings, totalSteps: plan.totalSteps };
  const factor = scheduleOf(settings.schedule, settings.scheduleSettings ?? null, horizon);
  const evaluates = work.evalRows.length > 0 && settings.evalSteps > 0;
  progress.isEvaluationDue &&= evaluates;
  const { best = lowestLoss } = settings;

  const evaluateIfDue = async function* (): AsyncGenerator<EvalEvent> {
    const evaluated = progress.isEvaluationDue ? await evaluateHeldOut(work) : null;
    if (evaluated === null) return;
    progress.isEvaluationDue = false;
    progress.evalLoss = evaluated.loss;
    progress.metrics = evaluated.metrics;
    const isBest = judge(progress, evaluated, progress.step, best);
    progress.elapsedMs = performance.now() - startedMs;
    yield {
      type: "eval",
      step: progress.step,
      epoch: progress.epoch,
      evalLoss: evaluated.loss,
      ...(evaluated.metrics !== null && { metrics: evaluated.metrics }),
      ...(isBest && { best: progress.best!.score }),
      elapsedMs: progress.elapsedMs,
    };
  };

  yield* evaluateIfDue();
  while (progress.step < plan.totalSteps && !progress.isStoppedEarly && !signal.aborted) {
    const round = await nextRound(work);
    if (round === null) break;
    const before = progress.step;
    for (const { microBatches, epochAfter } of round.steps) {
      const stepStartedMs = performance.now();
      const learningRate = settings.learningRate * factor(progress.step);
      const result = await runStep(trainee, task, microBatches, {
        step: progress.step,
        seed: settings.seed,
        learningRate,
        peakLearningRate: settings.learningRate,
        maxGradNorm: settings.maxGradNorm,
      });

      const nowMs = performance.now();
      progress.step++;
      progress.epoch = epochAfter;
      progress.lossSum += result.loss;
      progress.firstLoss ??= progress.step === 1 ? result.loss : null;
      progress.lastLoss = result.loss;
      progress.tokens += result.tokens;
      if (result.supervisedTokens !== null)
        progress.supervisedTokens = (progress.supervisedTokens ?? 0) + result.supervisedTokens;
      progress.rows += microBatches.reduce((sum, rows) => sum + rows.length, 0);
      progress.stepMs += nowMs - stepStartedMs;
      progress.elapsedMs = nowMs - startedMs;
      const metrics = allMetrics(result, round.metrics);
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
        ...(metrics !== null && { metrics }),
        tokensPerSecond: (1000 * result.tokens) / (nowMs - stepStartedMs),
        elapsedMs: progress.elapsedMs,
        remainingMs: ((plan.totalSteps - progress.step) * (nowMs - loopStartedMs)) / (progress.step - firstStep),
        peakMemoryBytes: peakMemoryBytes(),
      };
    }

    const isLast = progress.step === plan.totalSteps;
    const isDue = (every: number) => every > 0 && Math.floor(progress.step / every) > Math.floor(before / every);
    progress.isEvaluationDue = evaluates && (isLast || isDue(settings.evalSteps));
    yield* evaluateIfDue();
    if ((task.whyStop?.() ?? null) !== null) progress.isStoppedEarly = true;
    const isNewBest = best.isSaved && progress.best?.step === progress.step;
    if (!signal.aborted && (isNewBest || (!isLast && isDue(settings.saveSteps))))
      yield { type: "checkpoint", step: progress.step, path: await work.save() };
  }
}

interface Round {
  readonly steps: readonly { readonly microBatches: readonly (readonly Row[])[]; readonly epochAfter: number }[];
  /** Of the experience, if the task made any. */
  readonly metrics: Metrics | null;
}

/** The optimizer steps of the round that begins now; null if the run was stopped while the task made experience, which is then dropped. */
async function nextRound({ trainee, task, trainRows, plan, settings, progress, signal }: TrainWork): Promise<Round | null> {
  const { microBatches, epochsAfter } = plan.at(progress.step);
  const rows = microBatches.map((batch) => batch.map((row) => trainRows[row]!));
  if (task.rollOut === undefined) return { steps: [{ microBatches: rows, epochAfter: epochsAfter[0]! }], metrics: null };

  const round = progress.step / epochsAfter.length;
  const at = {
    ...{ round, step: progress.step, batchSizes: microBatches.map(({ length }) => length), policy: trainedName },
    ...{ rng: Rng.for(settings.seed, `rollOut/${round}`), signal },
  };
  try {
    const experience = await task.rollOut(rows.flat(), at, trainee.base);
    if (signal.aborted) return null;
    const { steps, metrics = {} } = experience;
    if (steps.length !== epochsAfter.length)
      throw new RangeError(`rollOut gave ${steps.length} optimizer steps, and stepsPerRound is ${epochsAfter.length}`);
    experience.taken?.();
    const sums = new Sums();
    sums.addMetrics(metrics);
    return { steps: steps.map((step, i) => ({ microBatches: step, epochAfter: epochsAfter[i]! })), metrics: sums.metrics };
  } catch (error) {
    if (signal.aborted && error === signal.reason) return null;
    throw error;
  }
}

function allMetrics(step: StepResult, round: Metrics | null): Metrics | null {
  return step.metrics === null && round === null ? null : { ...round, ...step.metrics };
}

function evaluateHeldOut({ trainee, task, evalRows, settings, progress, signal }: TrainWork): Promise<Evaluated | null> {
  const now = { step: progress.step, learningRate: settings.learningRate };
  return evaluate(trainee.base, trainedName, task, evalRows, {
    batchSize: settings.evalBatchSize,
    step: progress.step,
    signal,
    async onBatch(values, rows) {
      const error = await lossDiverged(`after step ${progress.step}: the held-out loss`, values, trainee.base, rows, now);
      if (error !== null) throw error;
    },
  });
}
