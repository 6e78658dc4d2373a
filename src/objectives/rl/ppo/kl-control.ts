/**
 * The weight of the KL divergence in the rewards, which follows a target: after each round β ← β (1 + clip(KL / target − 1, ±0.2) · answers / horizon),
 * KL in nats per answer. Fixed where there is no target. Source: Ziegler et al. 2019, §2.2; TRL 0.9.6, core.py `AdaptiveKLController`.
 */
export function nextCoefficient(
  coefficient: number,
  klPerAnswer: number,
  { target, horizon, answers }: { readonly target: number | null; readonly horizon: number; readonly answers: number },
): number {
  if (target === null) return coefficient;
  const error = Math.min(Math.max(klPerAnswer / target - 1, -0.2), 0.2);
  return coefficient * (1 + (error * answers) / horizon);
}

/** Mean and deviation of all scores of a run so far. */
export interface Moments {
  readonly count: number;
  readonly mean: number;
  /** Of a population. */
  readonly variance: number;
}

export const noMoments: Moments = { count: 0, mean: 0, variance: 1 };

/** With more scores taken in. Source: Chan et al. 1979; TRL 0.9.6, core.py `RunningMoments`. */
export function withScores({ count, mean, variance }: Moments, scores: readonly number[]): Moments {
  if (scores.length === 0) return { count, mean, variance };
  const ofNew = scores.reduce((sum, score) => sum + score, 0) / scores.length;
  const squares = scores.reduce((sum, score) => sum + (score - ofNew) ** 2, 0);
  const total = count + scores.length;
  const delta = ofNew - mean;
  const before = count === 0 ? 0 : variance * count;
  return {
    count: total,
    mean: mean + (delta * scores.length) / total,
    variance: (before + squares + (delta ** 2 * count * scores.length) / total) / total,
  };
}

/** Scores less the mean of all, over their deviation (Bessel). */
export function normalizedScore(score: number, { count, mean, variance }: Moments): number {
  const deviation = Math.sqrt((variance * count) / Math.max(1, count - 1));
  return (score - mean) / (deviation + 2 ** -23);
}
