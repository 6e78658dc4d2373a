import type { Total } from "../../objective.js";
import { spans, type Trajectory } from "../policy.js";

export const grpoLosses = ["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "gspo", "sapo"] as const;
export type GrpoLoss = (typeof grpoLosses)[number];

export interface GroupTrajectory extends Trajectory {
  readonly advantage: number;
}

export interface GrpoLossSettings {
  readonly loss_type: GrpoLoss;
  readonly epsilon: number;
  /** Not set: `epsilon`, and 5 with cispo. */
  readonly epsilon_high: number | null;
  readonly delta: number | null;
  readonly beta: number;
  readonly use_bias_correction_kl: boolean;
  readonly sapo_temperature_pos: number;
  readonly sapo_temperature_neg: number;
  readonly max_new_tokens: number;
}

/** How the tokens of answers add up: each answer's by their mean (of answers), or all alike (of tokens, or of the tokens that there could be). */
const addsUp: Readonly<Record<GrpoLoss, "answers" | "tokens" | "places">> = {
  ...{ grpo: "answers", gspo: "answers", sapo: "answers" },
  ...{ dapo: "tokens", bnpo: "tokens", cispo: "tokens" },
  dr_grpo: "places",
};

/** What the sum of `grpoLoss` is divided by. An answer that is masked counts as one, and none of its tokens do, as in TRL. */
export function grpoCount(answers: readonly GroupTrajectory[], { loss_type, max_new_tokens }: GrpoLossSettings): number {
  switch (addsUp[loss_type]) {
    case "answers":
      return answers.length;
    case "tokens":
      return answers.reduce((sum, { counts, ids }) => sum + (counts ? ids.length : 0), 0);
    case "places":
      return answers.length * max_new_tokens;
  }
}

/**
 * Of each token, with the ratio ρ = exp(log π − log π_old):
 *
 *   grpo, bnpo, dr_grpo, dapo   −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A), ρ ≤ δ in the first
 *   gspo                        the same, where ρ is the exponential of the mean over the answer
 *   cispo                       −stop(min(ρ, ε_high)) A log π
 *   sapo                        −4/τ σ(τ (ρ − 1)) A, with a τ of its own for A > 0
 *
 * and β ρ (e^k − k − 1) with k = log π_ref − log π: the estimate k3 of the KL divergence, whose ρ makes its gradient that of the divergence
 * (`use_bias_correction_kl`; TRL before 1.16 had none).
 *
 * Sources: Shao et al. 2024 (grpo), Yu et al. 2025 (dapo), Liu et al. 2025 (dr_grpo), Zheng et al. 2025 (gspo), MiniMax 2025 (cispo), Gao et al. 2025
 * (sapo); TRL 1.16, grpo_trainer.py `_compute_loss`. Where we differ: what a loss is divided by is counted over the whole optimizer step, whatever its
 * micro-batches; so bnpo, of which TRL averages micro-batches, is dapo. gspo is TRL's `importance_sampling_level: sequence` with loss_type grpo. TRL
 * leaves ε_high of cispo at ε, where all ratios are cut to it.
 *
 * `logProbs` (N) in the order of answers and tokens; the metric `kl` is nats per token, `clip_ratio/…` shares of tokens.
 */
export function grpoLoss(
  logProbs: Float32Array,
  answers: readonly GroupTrajectory[],
  settings: GrpoLossSettings,
): { sum: number; gradient: Float32Array; metrics: Record<string, Total> } {
  const { loss_type, beta } = settings;
  const isSequence = loss_type === "gspo";
  const perAnswer = addsUp[loss_type] === "answers";
  const gradient = new Float32Array(logProbs.length);
  const seen = { tokens: 0, low: 0, high: 0, logProb: 0, kl: 0 };
  let sum = 0;
  const places = spans(answers.map(({ ids }) => ids.length));
  for (const [i, { ids, old, reference, advantage, counts }] of answers.entries()) {
    if (!counts) continue;
    const [own, slopes] = [logProbs, gradient].map((values) => values.subarray(...places[i]!)) as [Float32Array, Float32Array];
    const before = old ?? own;
    const weight = perAnswer ? 1 / ids.length : 1;
    let meanRatio = 0;
    if (isSequence) meanRatio = Math.exp(own.reduce((all, value, t) => all + (value - before[t]!), 0) / ids.length);
    let slopeOfMean = 0;
    for (const [t, logProb] of own.entries()) {
      const ratio = isSequence ? meanRatio : Math.exp(logProb - before[t]!);
      const policy = policyTerm(ratio, logProb, advantage, settings);
      let [value, slopeOfRatio, slope] = [policy.value, policy.slopeOfRatio, policy.slope];
      if (beta > 0) {
        const k = reference![t]! - logProb;
        const correction = settings.use_bias_correction_kl ? ratio : 1;
        const k3 = Math.exp(k) - k - 1;
        value += beta * correction * k3;
        slope += beta * correction * (1 - Math.exp(k));
        if (settings.use_bias_correction_kl) slopeOfRatio += beta * k3;
        seen.kl += correction * k3;
      }
      sum += weight * value;
      if (isSequence) slopeOfMean += (weight * slopeOfRatio * ratio) / ids.length;
      else slope += slopeOfRatio * ratio;
      slopes[t] = weight * slope;
      seen.tokens++;
      seen.logProb += logProb;
      if (ratio < 1 - settings.epsilon && advantage < 0) seen.low++;
      if (Math.min(ratio, settings.delta ?? ratio) > 1 + highOf(settings) && advantage > 0) seen.high++;
    }
    if (isSequence) for (const t of own.keys()) slopes[t]! += slopeOfMean;
  }
  const mean = (of: number): Total => ({ sum: of, count: seen.tokens });
  const clips = loss_type === "cispo" || loss_type === "sapo" ? {} : clipShares(mean(seen.low), mean(seen.high));
  return {
    sum,
    gradient,
    metrics: { entropy: mean(-seen.logProb), ...(beta > 0 && { kl: mean(seen.kl) }), ...clips },
  };
}

const highOf = ({ epsilon, epsilon_high, loss_type }: GrpoLossSettings) => epsilon_high ?? (loss_type === "cispo" ? 5 : epsilon);

/** The value of a token, and its slopes by the ratio and, beside that, by the log-probability. */
function policyTerm(
  ratio: number,
  logProb: number,
  advantage: number,
  settings: GrpoLossSettings,
): { value: number; slopeOfRatio: number; slope: number } {
  const high = highOf(settings);
  if (settings.loss_type === "cispo") {
    const weight = Math.min(ratio, high);
    return { value: -weight * advantage * logProb, slopeOfRatio: 0, slope: -weight * advantage };
  }
  if (settings.loss_type === "sapo") {
    const tau = advantage > 0 ? settings.sapo_temperature_pos : settings.sapo_temperature_neg;
    const gate = 1 / (1 + Math.exp(-tau * (ratio - 1)));
    return { value: (-4 / tau) * gate * advantage, slopeOfRatio: -4 * gate * (1 - gate) * advantage, slope: 0 };
  }
  const { epsilon, delta } = settings;
  const clipped = Math.min(Math.max(ratio, 1 - epsilon), 1 + high);
  const limited = delta === null ? ratio : Math.min(ratio, delta);
  const [free, bound] = [-limited * advantage, -clipped * advantage];
  if (free >= bound) return { value: free, slopeOfRatio: limited === ratio ? -advantage : 0, slope: 0 };
  return { value: bound, slopeOfRatio: clipped === ratio ? -advantage : 0, slope: 0 };
}

/** Shares of what is clipped below, above, and at all. */
export function clipShares(low: Total, high: Total): Record<string, Total> {
  return {
    "clip_ratio/low_mean": low,
    "clip_ratio/high_mean": high,
    "clip_ratio/region_mean": { sum: low.sum + high.sum, count: low.count },
  };
}
