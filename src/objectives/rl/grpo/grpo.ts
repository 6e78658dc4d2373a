import { z } from "zod";
import type { Task } from "../../objective.js";
import type { Judges } from "../judges.js";
import { collatePolicy, hiddenOf, longestAnswer, type PolicyBatch, type PolicyRow } from "../policy.js";
import { definePolicyStage, PolicyRounds, policyKeys } from "../policy-stage.js";
import type { SamplingSettings } from "../settings.js";
import { groupAdvantages, rewardScales, rewardwiseAdvantages } from "./group-advantages.js";
import { type GroupTrajectory, grpoCount, grpoLoss, grpoLosses } from "./grpo-loss.js";

export const GrpoConfig = z.strictObject({
  ...policyKeys,
  num_generations: z
    .int()
    .min(2)
    .max(1024)
    .default(8)
    .describe("answers to each prompt; per_device_train_batch_size counts prompts"),
  num_iterations: z.int().min(1).max(100).default(1).describe("optimizer steps made of each roll-out"),
  loss_type: z
    .enum(grpoLosses)
    .default("dapo")
    .describe(
      "how tokens are weighed: grpo, gspo and sapo by the mean of each answer, dapo, bnpo and cispo by the step's tokens, dr_grpo by the longest answer that may be; gspo has one ratio for each answer, cispo clips weights instead of losses, sapo gates softly",
    ),
  scale_rewards: z
    .enum(rewardScales)
    .default("group")
    .describe(
      "what rewards, less the mean of their group, are divided by: the deviation of the group, that of the round, or nothing (Dr. GRPO)",
    ),
  multi_objective_aggregation: z
    .enum(["sum_then_normalize", "normalize_then_sum"])
    .default("sum_then_normalize")
    .describe(
      "how several rewards become one advantage: summed and then normalized as `scale_rewards` says; or each normalized within its group, summed, and normalized over the round (GDPO), so that none drowns the others by its range",
    ),
  epsilon: z
    .number()
    .gt(0)
    .max(1)
    .default(0.2)
    .describe("how far below 1 the ratio to the policy that answered counts (gspo's paper: 3e-4)"),
  epsilon_high: z
    .number()
    .gt(0)
    .nullable()
    .default(null)
    .describe(
      "how far above 1; not set: `epsilon`, and 5 with cispo, where it is the largest weight (DAPO: 0.28, gspo's paper: 4e-4)",
    ),
  delta: z
    .number()
    .gt(1)
    .nullable()
    .default(null)
    .describe("the largest ratio where clipping does not reach: of answers worse than their group"),
  beta: z
    .number()
    .min(0)
    .default(0)
    .describe("weight of the KL divergence from the reference, per token (k3); 0: no reference is kept"),
  use_bias_correction_kl: z
    .boolean()
    .default(true)
    .describe(
      "multiply the KL term by the ratio, so that its gradient is that of the divergence (TRL's since 1.16; before, there was none)",
    ),
  mask_truncated_completions: z
    .boolean()
    .default(false)
    .describe("leave answers that were cut at `max_new_tokens` out of the loss; they still count in the mean of their group"),
  drop_flat_groups: z
    .boolean()
    .default(false)
    .describe(
      "leave groups whose rewards are all the same out of the loss; false: their KL term counts, as in TRL (attune's own)",
    ),
  sapo_temperature_pos: z.number().gt(0).default(1).describe("sapo: τ of answers better than their group"),
  sapo_temperature_neg: z.number().gt(0).default(1.05).describe("sapo: τ of the others"),
});
export type GrpoConfig = z.output<typeof GrpoConfig>;

type GroupRow = PolicyRow<GroupTrajectory>;
type GroupBatch = PolicyBatch<GroupTrajectory>;

/**
 * Group relative policy optimization: the policy answers each prompt several times, rewards judge the answers, and those better than their group become
 * likelier.
 */
export const grpo = definePolicyStage<GroupTrajectory, GrpoConfig>({
  name: "grpo",
  summary: "makes answers likelier that rewards prefer to the others to the same prompt",
  config: GrpoConfig,
  taskOf: grpoTask,
});

export function grpoTask(config: GrpoConfig & SamplingSettings, judges: Judges): Task<GroupRow, GroupBatch> {
  const { beta, num_generations: count, num_iterations: iterations, multi_objective_aggregation: aggregation } = config;
  if (aggregation === "normalize_then_sum" && config.scale_rewards !== "group")
    judges.warn("scale_rewards changes nothing: multi_objective_aggregation: normalize_then_sum scales each reward by itself");
  const rounds = new PolicyRounds(config, judges, { count, hasReference: beta > 0 });
  const longest = { ...longestAnswer(config.max_new_tokens), advantage: 1 };
  const collate = (rows: readonly GroupRow[]) =>
    collatePolicy(
      rows,
      () => Array<GroupTrajectory>(count).fill(longest),
      (answers) => ({ loss: grpoCount(answers, config) }),
    );

  return {
    ...rounds.task,
    stepsPerRound: iterations,
    collate,

    async rollOut(rows, at, base) {
      const answered = await rounds.answer(rows, at, base);
      const { advantages, isFlat } =
        aggregation === "normalize_then_sum"
          ? rewardwiseAdvantages(answered, judges.rewards)
          : groupAdvantages(
              answered.map(({ answers }) => answers.map(({ reward }) => reward)),
              config.scale_rewards,
            );
      const groups = answered.map(({ row, answers }, i): GroupRow => {
        const isMasked = config.drop_flat_groups && isFlat[i]!;
        const isLearned = (isFinished: boolean) => !isMasked && (isFinished || !config.mask_truncated_completions);
        const learned = answers.map(({ ids, isFinished }, j) => {
          return { ids, advantage: advantages[i]![j]!, counts: isLearned(isFinished) };
        });
        return { ...row, answers: learned };
      });
      // Of a policy that takes one step only, what it says in that step is what it said before.
      const batches = await rounds.score(groups, at, base, { asksPolicy: iterations > 1, collate });
      const flat = { sum: isFlat.filter(Boolean).length, count: isFlat.length };
      return rounds.experience(answered, Array<GroupRow[][]>(iterations).fill(batches), { frac_reward_zero_std: flat });
    },

    terms(model, { branches, answers }) {
      const settings = () => ({ ...config, beta: beta * rounds.watch.health.factor });
      return {
        loss: rounds.term(model, hiddenOf(model, branches), branches, (logProbs) => grpoLoss(logProbs, answers, settings())),
      };
    },
  };
}
