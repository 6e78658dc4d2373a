import { ConfigError } from "../errors.js";
import type { Evaluated } from "../evaluate/evaluate.js";
import type { Metrics } from "../objectives/metrics.js";

/** How evaluations are compared, and what follows. */
export interface BestSettings {
  /** `loss`, or a metric's name; with `eval_` before it or not. */
  readonly metric: string;
  readonly isGreaterBetter: boolean;
  /** After so many evaluations in a row without improvement the run ends; null: it does not. */
  readonly patience: number | null;
  /** An evaluation is no improvement for `patience` unless it is better by more than this. */
  readonly threshold: number;
  /** Whether each evaluation that is the best so far is saved as a checkpoint. */
  readonly isSaved: boolean;
}

export const lowestLoss: BestSettings = { metric: "loss", isGreaterBetter: false, patience: null, threshold: 0, isSaved: false };

/** The best evaluation so far. */
export interface Best {
  readonly step: number;
  /** Its number of the metric that decides. */
  readonly score: number;
  readonly evalLoss: number;
  readonly metrics: Metrics | null;
}

/** What a run remembers of its evaluations. */
export interface Judged {
  best: Best | null;
  /** Evaluations in a row that were no improvement. */
  badEvaluations: number;
  isStoppedEarly: boolean;
}

/** `loss` and the names of metrics, those in groups as `group/name`. */
export function namesOf(metrics: Metrics | null): string[] {
  return ["loss", ...Object.keys(numbersOf(metrics ?? {}))];
}

/** Throws ConfigError if an evaluation gives no such metric. */
export function checkMetric(metric: string, names: readonly string[]): void {
  if (!names.includes(plainName(metric)))
    throw new ConfigError(
      `metric_for_best_model: ${metric} is not measured; this run measures ${names.map((name) => `eval_${name}`).join(", ")}`,
    );
}

/**
 * Takes in an evaluation; returns whether it is the best so far. A number that is not better than the best, or not by more than the threshold, is no
 * improvement, as in transformers' EarlyStoppingCallback. Throws ConfigError if the metric is not among those measured.
 */
export function judge(
  judged: Judged,
  { loss, metrics }: Evaluated,
  step: number,
  { metric, isGreaterBetter, patience, threshold }: BestSettings,
): boolean {
  checkMetric(metric, namesOf(metrics));
  const score = { loss, ...numbersOf(metrics ?? {}) }[plainName(metric)]!;
  const { best } = judged;
  const isBetter = !Number.isNaN(score) && (best === null || (isGreaterBetter ? score > best.score : score < best.score));
  const isImprovement = isBetter && (best === null || Math.abs(score - best.score) > threshold);
  judged.badEvaluations = isImprovement ? 0 : judged.badEvaluations + 1;
  judged.isStoppedEarly = patience !== null && judged.badEvaluations >= patience;
  if (isBetter) judged.best = { step, score, evalLoss: loss, metrics };
  return isBetter;
}

/** Without the prefix that the files of a run give it. */
export function plainName(metric: string): string {
  return metric.startsWith("eval_") ? metric.slice("eval_".length) : metric;
}

function numbersOf(metrics: Metrics): Record<string, number> {
  const entries = Object.entries(metrics).flatMap(([name, value]): [string, number][] =>
    typeof value === "number" ? [[name, value]] : Object.entries(numbersOf(value)).map(([key, one]) => [`${name}/${key}`, one]),
  );
  return Object.fromEntries(entries);
}
