import type { LanguageModel } from "../../models/language-model.js";
import type { MachineFacts, RunResults } from "../../runs/events.js";
import type { Progress } from "../../train/loop.js";
import { peakMemoryBytes } from "../../train/peak-memory.js";

/** How many weights train, and how many there are. */
export function countParameters(model: LanguageModel): { trainable: number; all: number } {
  let [trainable, all] = [0, 0];
  for (const [, parameter] of model.namedParameters()) {
    all += parameter.size;
    if (parameter.requiresGrad) trainable += parameter.size;
  }
  return { trainable, all };
}

/** The evaluation whose weights are the result: after which step, its number of the metric that decides, and the checkpoint of that step. */
export interface SavedBest {
  readonly step: number;
  readonly score: number;
  readonly checkpoint: string;
}

export interface Circumstances {
  /** Null where the weights of the last step are the result, whatever evaluations say. */
  readonly best: SavedBest | null;
  /** What predict_results.json has; null where nothing was answered. */
  readonly predictions: Readonly<Record<string, number>> | null;
  readonly counts: { readonly trainable: number; readonly all: number };
  readonly machine: MachineFacts;
  /** Of a step: forward, backward and update. */
  readonly flopsPerToken: number;
  /** Null where nothing is compared with a reference. */
  readonly referenceSha256: string | null;
  /** From the start of the process. */
  readonly secondsToFirstStep: number;
}

/** The results that the `end` event carries. */
export function resultsOf(
  progress: Progress,
  { best, predictions, counts, machine, flopsPerToken, referenceSha256, secondsToFirstStep }: Circumstances,
): RunResults {
  const seconds = progress.elapsedMs / 1000;
  return {
    epoch: progress.epoch,
    train_loss: progress.lossSum / Math.max(1, progress.step),
    ...(progress.firstLoss !== null && { first_loss: progress.firstLoss }),
    ...(progress.lastLoss !== null && { last_loss: progress.lastLoss }),
    ...(progress.evalLoss === null ? {} : { eval_loss: progress.evalLoss }),
    ...(progress.metrics === null ? {} : { eval_metrics: progress.metrics }),
    ...(best !== null && { best_global_step: best.step, best_metric: best.score, best_model_checkpoint: best.checkpoint }),
    ...(predictions !== null && { predictions }),
    train_runtime: seconds,
    train_samples_per_second: progress.rows / (seconds || 1),
    train_steps_per_second: progress.step / (seconds || 1),
    total_flos: flopsPerToken * progress.tokens,
    tokens_per_second: (1000 * progress.tokens) / (progress.stepMs || 1),
    num_input_tokens_seen: progress.tokens,
    ...(progress.supervisedTokens !== null && { num_supervised_tokens: progress.supervisedTokens }),
    peak_memory_bytes: peakMemoryBytes(),
    trainable_params: counts.trainable,
    all_params: counts.all,
    ...(referenceSha256 !== null && { reference_sha256: referenceSha256 }),
    machine,
    seconds_to_first_step: secondsToFirstStep,
  };
}
