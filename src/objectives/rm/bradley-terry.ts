import type { Total } from "../objective.js";
import { logSigmoid, sigmoid } from "../preference/math.js";

/** What a reward model's scores of pairs come to. */
export interface PairwiseLoss {
  readonly sum: number;
  readonly gradient: Float32Array;
  readonly metrics: Readonly<Record<"accuracy" | "margin" | "min_reward" | "mean_reward" | "max_reward", Total>>;
}

/**
 * Σ over pairs of −log σ(rc − rr − margin) + c · (rc + rr)², rc and rr the scores of the chosen and the rejected answer. The first is Bradley and Terry's
 * model of who wins; the second keeps scores near 0, which the first leaves open (Eisenstein et al. 2023, arXiv:2312.09244 §2, where c is 0.01).
 *
 * `scores` holds rc, rr of each pair in turn (2 · pairs). Metrics are TRL's; the least and the largest score are those of the batch, so over several
 * batches they are means. Source: TRL 1.16, trainer/reward_trainer.py `compute_loss`. LLaMA-Factory 0.9.5 (train/rm/trainer.py) knows neither margin nor c.
 */
export function bradleyTerry(scores: Float32Array, margins: readonly number[], centering: number): PairwiseLoss {
  const gradient = new Float32Array(scores.length);
  const total = { accuracy: 0, margin: 0, reward: 0, min: Number.POSITIVE_INFINITY, max: Number.NEGATIVE_INFINITY };
  let sum = 0;
  for (const [i, margin] of margins.entries()) {
    const [chosen, rejected] = [scores[2 * i]!, scores[2 * i + 1]!];
    const lead = chosen - rejected - margin;
    const both = chosen + rejected;
    sum += centering * both * both - logSigmoid(lead);
    const pull = sigmoid(-lead);
    gradient[2 * i] = -pull + 2 * centering * both;
    gradient[2 * i + 1] = pull + 2 * centering * both;
    if (chosen > rejected) total.accuracy++;
    total.margin += chosen - rejected;
    total.reward += both;
    total.min = Math.min(total.min, chosen, rejected);
    total.max = Math.max(total.max, chosen, rejected);
  }
  const count = margins.length;
  return {
    sum,
    gradient,
    metrics: {
      accuracy: { sum: total.accuracy, count },
      margin: { sum: total.margin, count },
      min_reward: { sum: total.min, count: 1 },
      mean_reward: { sum: total.reward, count: 2 * count },
      max_reward: { sum: total.max, count: 1 },
    },
  };
}
