import type { Rng } from "../core/rng.js";
import { DivergedError } from "../errors.js";

export interface SamplingOptions {
  /** 0 takes the most likely token; above, logits are divided by it. */
  readonly temperature: number;
  /** Only the most likely tokens whose chances add up to this. */
  readonly topP: number;
  /** Only so many of the most likely tokens; 0 for all. */
  readonly topK: number;
  /** Above 1, tokens that stand in the text already become less likely (Keskar et al. 2019, arXiv:1909.05858, §4.1). */
  readonly repetitionPenalty: number;
}

export const greedy: SamplingOptions = { temperature: 0, topP: 1, topK: 0, repetitionPenalty: 1 };

/**
 * Draws the next token from logits (V). Order as in transformers: repetition penalty, temperature, top-k, top-p (nucleus: Holtzman et al.
 * 2020, arXiv:1904.09751). Throws DivergedError if the model says nothing: a logit is NaN, or all are infinite.
 */
export function sample(logits: Float32Array, options: SamplingOptions, seen: Iterable<number>, rng: Rng): number {
  const { temperature, topP, topK, repetitionPenalty } = options;
  if (repetitionPenalty !== 1)
    for (const id of new Set(seen)) {
      const logit = logits[id]!;
      logits[id] = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
    }
  const best = argmax(logits);
  requireFinite(logits[best]!);
  if (temperature === 0) return best;

  const top = logits[best]!;
  // exp(−20) is below the resolution of an f32 sum: tokens further down cannot be drawn.
  const candidates: { id: number; weight: number }[] = [];
  for (let id = 0; id < logits.length; id++) {
    const distance = (logits[id]! - top) / temperature;
    if (distance > -20) candidates.push({ id, weight: Math.exp(distance) });
  }
  candidates.sort((a, b) => b.weight - a.weight);
  if (topK > 0) candidates.length = Math.min(candidates.length, topK);
  const total = candidates.reduce((sum, { weight }) => sum + weight, 0);
  let nucleus = 0;
  let kept = 0;
  while (kept < candidates.length && (kept === 0 || nucleus < topP * total)) nucleus += candidates[kept++]!.weight;

  let left = rng.float() * nucleus;
  for (const { id, weight } of candidates.slice(0, kept)) {
    left -= weight;
    if (left <= 0) return id;
  }
  return candidates[kept - 1]!.id;
}

/** Of the largest value, or of the first that is NaN. */
function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) return i;
    if (values[i]! > values[best]!) best = i;
  }
  return best;
}

/** Throws DivergedError for what a model says that is no number. */
export function requireFinite(logit: number): void {
  if (!Number.isFinite(logit))
    throw new DivergedError(
      `the model's logits are ${logit}: its weights, or those of its adapter, are damaged or have diverged`,
    );
}
