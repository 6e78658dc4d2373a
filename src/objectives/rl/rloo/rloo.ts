import { z } from "zod";
import { deviation, sumOf } from "../../../rewards/judge.js";
import type { Task, Total } from "../../objective.js";
import { clipShares } from "../grpo/grpo-loss.js";
import type { Judges } from "../judges.js";
import { collatePolicy, hiddenOf, longestAnswer, type PolicyBatch, type PolicyRow, spans, type Trajectory } from "../policy.js";
import { definePolicyStage, PolicyRounds, policyKeys } from "../policy-stage.js";
import type { SamplingSettings } from "../settings.js";

export const RlooConfig = z.strictObject({
  ...policyKeys,
  num_generations: z
    .int()
    .min(2)
    .max(1024)
    .default(2)
    .describe("answers to each prompt; per_device_train_batch_size counts prompts"),
  num_iterations: z.int().min(1).max(100).default(1).describe("optimizer steps made of each roll-out"),
  epsilon: z.number().gt(0).max(1).default(0.2).describe("how far below 1 the ratio of an answer counts"),
  epsilon_high: z.number().gt(0).nullable().default(null).describe("how far above 1; not set: `epsilon`"),
  beta: z
    .number()
    .min(0)
    .default(0.05)
    .describe("what a reward loses for each nat of log π − log π_ref of its answer; 0: no reference is kept"),
  normalize_advantages: z.boolean().default(false).describe("give the advantages of a round mean 0 and deviation 1"),
  reward_clip_range: z
    .tuple([z.number(), z.number()])
    .nullable()
    .default(null)
    .describe("cut rewards to this range, before the KL divergence is taken from them"),
  mask_truncated_completions: z
    .boolean()
    .default(false)
    .describe("leave answers that were cut at `max_new_tokens` out of the loss; the others are still compared with them"),
});
export type RlooConfig = z.output<typeof RlooConfig>;

interface RlooTrajectory extends Trajectory {
  readonly reward: number | null;
  readonly advantage: number;
}
type RlooRow = PolicyRow<RlooTrajectory>;
type RlooBatch = PolicyBatch<RlooTrajectory>;

/**
 * REINFORCE with a leave-one-out baseline: an answer is as good as its reward, less what the KL divergence costs, is above the mean of the others to its
 * prompt. Source: Ahmadian et al. 2024; TRL 1.16, rloo_trainer.py.
 */
export const rloo = definePolicyStage<RlooTrajectory, RlooConfig>({
  name: "rloo",
  summary: "makes answers likelier that rewards prefer to the others to the same prompt, each answer as one action",
  config: RlooConfig,
  taskOf: rlooTask,
});

export function rlooTask(config: RlooConfig & SamplingSettings, judges: Judges): Task<RlooRow, RlooBatch> {
  const { beta, num_generations: count, num_iterations: iterations } = config;
  const rounds = new PolicyRounds(config, judges, { count, hasReference: beta > 0 });
  const longest = { ...longestAnswer(config.max_new_tokens), reward: 0, advantage: 1 };
  const collate = (rows: readonly RlooRow[]) =>
    collatePolicy(
      rows,
      () => Array<RlooTrajectory>(count).fill(longest),
      (answers) => ({ loss: answers.length }),
    );

  return {
    ...rounds.task,
    stepsPerRound: iterations,
    collate,

    async rollOut(rows, at, base) {
      const answered = await rounds.answer(rows, at, base);
      const groups = answered.map(({ row, answers }): RlooRow => {
        const isLearned = (isFinished: boolean) => isFinished || !config.mask_truncated_completions;
        const known = answers.map(({ ids, isFinished, reward }) => {
          return { ids, reward, counts: isLearned(isFinished), advantage: 0 };
        });
        return { ...row, answers: known };
      });
      const batches = await rounds.score(groups, at, base, { asksPolicy: iterations > 1 || beta > 0, collate });
      const { advantages, metrics } = leaveOneOut(
        batches.flat().map(({ answers }) => answers!),
        { ...config, beta: beta * rounds.watch.health.factor },
      );
      let group = 0;
      const withAdvantages = (row: RlooRow): RlooRow => {
        const own = advantages[group++]!;
        return { ...row, answers: row.answers!.map((answer, i) => ({ ...answer, advantage: own[i]! })) };
      };
      const learned = batches.map((batch) => batch.map(withAdvantages));
      return rounds.experience(answered, Array<RlooRow[][]>(iterations).fill(learned), metrics);
    },

    terms: (model, { branches, answers }) => ({
      loss: rounds.term(model, hiddenOf(model, branches), branches, (logProbs) => rlooLoss(logProbs, answers, config)),
    }),
  };
}

/**
 * R = clip(reward) − β Σ_t (log π_old − log π_ref), and A = R − the mean of the other R of the group that there are; an answer without a reward, or
 * alone with one, has 0.
 */
export function leaveOneOut(
  groups: readonly (readonly RlooTrajectory[])[],
  {
    beta,
    reward_clip_range: range,
    normalize_advantages,
  }: Pick<RlooConfig, "beta" | "reward_clip_range" | "normalize_advantages">,
): { advantages: number[][]; metrics: Record<string, Total> } {
  const flat = groups.map((group) => deviation(group.flatMap(({ reward }) => reward ?? [])) <= 1e-8);
  const kl = { sum: 0, tokens: 0, answers: 0 };
  const returns = groups.map((group) =>
    group.map(({ ids, reward, old, reference }) => {
      const divergence = beta === 0 ? 0 : old!.reduce((sum, value, t) => sum + (value - reference![t]!), 0);
      kl.sum += divergence;
      kl.tokens += ids.length;
      kl.answers++;
      if (reward === null) return null;
      return (range === null ? reward : Math.min(Math.max(reward, range[0]), range[1])) - beta * divergence;
    }),
  );
  const raw = returns.map((group) => {
    const given = group.filter((value) => value !== null);
    const total = sumOf(given);
    return group.map((value) => (value === null || given.length < 2 ? null : value - (total - value) / (given.length - 1)));
  });
  const all = raw.flat().filter((value) => value !== null);
  const [mean, divisor] = normalize_advantages ? [sumOf(all) / all.length, deviation(all) + 1e-4] : [0, 1];
  return {
    advantages: raw.map((group) => group.map((value) => (value === null ? 0 : (value - mean) / divisor))),
    metrics: {
      frac_reward_zero_std: { sum: flat.filter(Boolean).length, count: flat.length },
      ...(beta > 0 && { kl: { sum: kl.sum, count: kl.tokens }, kl_per_answer: { sum: kl.sum, count: kl.answers } }),
    },
  };
}

/**
 * Σ over answers of −min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A), where ρ = exp(Σ_t log π − log π_old) is that of the whole answer. `logProbs` (N) in the
 * order of answers and tokens; `clip_ratio/…` are shares of answers.
 */
export function rlooLoss(
  logProbs: Float32Array,
  answers: readonly RlooTrajectory[],
  { epsilon, epsilon_high }: Pick<RlooConfig, "epsilon" | "epsilon_high">,
): { sum: number; gradient: Float32Array; metrics: Record<string, Total> } {
  const high = epsilon_high ?? epsilon;
  const gradient = new Float32Array(logProbs.length);
  const seen = { answers: 0, tokens: 0, logProb: 0, low: 0, high: 0 };
  let sum = 0;
  const places = spans(answers.map(({ ids }) => ids.length));
  for (const [i, { ids, old, advantage, counts }] of answers.entries()) {
    if (!counts) continue;
    const own = logProbs.subarray(...places[i]!);
    const ratio = Math.exp(old === undefined ? 0 : own.reduce((all, value, t) => all + (value - old[t]!), 0));
    const clipped = Math.min(Math.max(ratio, 1 - epsilon), 1 + high);
    sum += Math.max(-ratio * advantage, -clipped * advantage);
    const isFree = -ratio * advantage >= -clipped * advantage;
    if (isFree || clipped === ratio) gradient.fill(-ratio * advantage, ...places[i]!);
    seen.answers++;
    seen.tokens += ids.length;
    seen.logProb += own.reduce((all, value) => all + value, 0);
    if (ratio < 1 - epsilon && advantage < 0) seen.low++;
    if (ratio > 1 + high && advantage > 0) seen.high++;
  }
  const share = (of: number): Total => ({ sum: of, count: seen.answers });
  return {
    sum,
    gradient,
    metrics: { entropy: { sum: -seen.logProb, count: seen.tokens }, ...clipShares(share(seen.low), share(seen.high)) },
  };
}
