import type { Total } from "../../objective.js";
import { spans, type Trajectory } from "../policy.js";

export interface PpoTrajectory extends Trajectory {
  /** Of each token: what was expected before it, how much better it was than that, and what came of it. */
  readonly values: Float32Array;
  readonly advantages: Float64Array;
  readonly returns: Float64Array;
}

export interface ClipSettings {
  readonly cliprange: number;
  readonly cliprange_value: number;
  readonly ratio_threshold: number;
}

interface Loss {
  readonly sum: number;
  readonly gradient: Float32Array;
  readonly metrics: Record<string, Total>;
}

/**
 * Σ over tokens of max(−A ρ, −A clip(ρ, 1 ± cliprange)) with ρ = exp(log π − log π_old). An answer whose mean ratio is above `ratio_threshold` is left
 * out. Sources: Schulman et al. 2017, eq. 7; TRL 0.9.6, ppo_trainer.py `loss`, which leaves out the whole batch.
 * `logProbs` (N) in the order of answers and tokens; the metrics are means over tokens, `approxkl` is ½ (log π − log π_old)².
 */
export function policyLoss(
  logProbs: Float32Array,
  answers: readonly PpoTrajectory[],
  { cliprange, ratio_threshold }: ClipSettings,
): Loss {
  const gradient = new Float32Array(logProbs.length);
  const seen = { tokens: 0, clipped: 0, squares: 0, logProb: 0, answers: 0, skipped: 0 };
  const places = spans(answers.map(({ ids }) => ids.length));
  let sum = 0;
  for (const [i, { ids, old, advantages, counts }] of answers.entries()) {
    if (!counts) continue;
    const [start, end] = places[i]!;
    const own = logProbs.subarray(start, end);
    const ratios = Float64Array.from(own, (logProb, t) => Math.exp(logProb - old![t]!));
    const isRunaway = ratios.reduce((all, ratio) => all + ratio, 0) / ids.length > ratio_threshold;
    seen.answers++;
    if (isRunaway) seen.skipped++;
    for (const [t, ratio] of ratios.entries()) {
      const advantage = advantages[t]!;
      const free = -advantage * ratio;
      const bound = -advantage * Math.min(Math.max(ratio, 1 - cliprange), 1 + cliprange);
      seen.tokens++;
      seen.squares += 0.5 * (own[t]! - old![t]!) ** 2;
      seen.logProb += own[t]!;
      if (bound > free) seen.clipped++;
      if (isRunaway) continue;
      sum += Math.max(free, bound);
      if (free >= bound) gradient[start + t] = free;
    }
  }
  const mean = (of: number): Total => ({ sum: of, count: seen.tokens });
  return {
    sum,
    gradient,
    metrics: {
      entropy: mean(-seen.logProb),
      approxkl: mean(seen.squares),
      "clip_ratio/region_mean": mean(seen.clipped),
      ratio_skipped: { sum: seen.skipped, count: seen.answers },
    },
  };
}

/**
 * ½ Σ over tokens of max((V − R)², (V_clipped − R)²), where V_clipped is within ± cliprange_value of what was expected at first.
 * Source: TRL 0.9.6, ppo_trainer.py `loss`. `values` (N) in the order of answers and tokens.
 */
export function valueLoss(
  values: Float32Array,
  answers: readonly PpoTrajectory[],
  { cliprange_value: range }: ClipSettings,
): Loss {
  const gradient = new Float32Array(values.length);
  const places = spans(answers.map(({ ids }) => ids.length));
  const seen = { tokens: 0, clipped: 0 };
  let sum = 0;
  for (const [i, { values: first, returns, counts }] of answers.entries()) {
    if (!counts) continue;
    const [start] = places[i]!;
    for (const [t, expected] of first.entries()) {
      const value = values[start + t]!;
      const clipped = Math.min(Math.max(value, expected - range), expected + range);
      const [free, bound] = [(value - returns[t]!) ** 2, (clipped - returns[t]!) ** 2];
      seen.tokens++;
      if (bound > free) seen.clipped++;
      sum += 0.5 * Math.max(free, bound);
      if (free >= bound || clipped === value) gradient[start + t] = value - returns[t]!;
    }
  }
  return { sum, gradient, metrics: { "value/clip_ratio": { sum: seen.clipped, count: seen.tokens } } };
}
