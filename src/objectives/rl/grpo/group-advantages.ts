import { deviation, normalizeThenSum, sumOf } from "../../../rewards/judge.js";
import type { Reward } from "../../../rewards/reward.js";
import type { Answered } from "../rollout.js";

/** What the rewards of groups are divided by: the deviation of each group, that of all rewards, or nothing. */
export const rewardScales = ["group", "batch", "none"] as const;
export type RewardScale = (typeof rewardScales)[number];

export interface GroupAdvantages {
  readonly advantages: readonly (readonly number[])[];
  /** Groups whose rewards are all the same, and teach nothing. */
  readonly isFlat: readonly boolean[];
}

/** Added to a deviation before it divides. */
const leastDeviation = 1e-4;
/** Below this, a deviation is what rounding left of none: torch.isclose to 0. */
const rounding = 1e-8;

/**
 * A = (r − mean of the group) / (deviation + 1e-4), with Bessel's correction. An answer without a reward, and each of a group whose rewards are all the
 * same, has 0: no rest of rounding is blown up to an advantage.
 * Source: Shao et al. 2024 (DeepSeekMath), §4.1.1; Liu et al. 2025 (Dr. GRPO) for "none"; TRL 1.16, grpo_trainer.py, which divides rests as they are.
 */
export function groupAdvantages(groups: readonly (readonly (number | null)[])[], scale: RewardScale): GroupAdvantages {
  const given = (group: readonly (number | null)[]) => group.filter((reward) => reward !== null);
  const overall = deviation(groups.flatMap(given));
  const isFlat = groups.map((group) => deviation(given(group)) <= rounding * Math.max(1, ...given(group).map(Math.abs)));
  const advantages = groups.map((group, i) => {
    const rewards = given(group);
    const mean = sumOf(rewards) / rewards.length;
    const divisor = { group: deviation(rewards) + leastDeviation, batch: overall + leastDeviation, none: 1 }[scale];
    return group.map((reward) => (reward === null || isFlat[i] ? 0 : (reward - mean) / divisor));
  });
  return { advantages, isFlat };
}

/** Advantages of which each reward has its own normalized share (`normalizeThenSum`); a group is flat where every reward says the same of all its answers. */
export function rewardwiseAdvantages(answered: readonly Answered[], rewards: readonly Reward[]): GroupAdvantages {
  const groups = answered.map(({ answers }) => answers);
  const size = groups[0]?.length ?? 1;
  const scores = rewards.map((_, i) => groups.flat().map((answer) => answer.scores[i]!));
  const all = normalizeThenSum(
    { scores },
    rewards.map(({ weight }) => weight),
    size,
  );
  const advantages = groups.map((_, g) => all.slice(g * size, (g + 1) * size));
  const isFlat = groups.map((answers) =>
    rewards.every((_, i) => new Set(answers.flatMap(({ scores }) => scores[i] ?? [])).size < 2),
  );
  return { advantages, isFlat };
}
