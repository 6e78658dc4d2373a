import { z } from "zod";
import { asCausalLM } from "../../../models/causal-lm.js";
import { Judge } from "../../../rewards/judge.js";
import { rewardKeys } from "../../../rewards/rewards.js";
import { defineObjective, type Task } from "../../objective.js";
import { healthNotes } from "../health.js";
import { heldOutAnswers } from "../held-out.js";
import { type Judges, judgesOf, readPrompts } from "../judges.js";
import {
  answerLogProbs,
  type Body,
  collatePolicy,
  cut,
  hiddenOf,
  longestAnswer,
  type PolicyBatch,
  type PolicyRow,
  scored,
} from "../policy.js";
import { policyReference, policyReferenceKeys } from "../reference.js";
import { decodes, rollOut, rolloutMetrics } from "../rollout.js";
import { policyRateFactor, Sampling, type SamplingSettings, samplingNames, samplingNotes } from "../settings.js";
import { watchedBy, watchKeys, watchOf } from "../watch.js";
import { groupAdvantages, rewardScales, rewardwiseAdvantages } from "./group-advantages.js";
import { type GroupTrajectory, grpoCount, grpoLoss, grpoLosses } from "./grpo-loss.js";

export const GrpoConfig = z.strictObject({
  ...rewardKeys,
  ...policyReferenceKeys,
  ...watchKeys,
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
export const grpo = defineObjective<GroupRow, GrpoConfig>({
  name: "grpo",
  summary: "makes answers likelier that rewards prefer to the others to the same prompt",
  config: GrpoConfig,
  narrows: Sampling,
  otherNames: samplingNames,
  notes: `${samplingNotes}\n\n${healthNotes}`,
  rateFactor: policyRateFactor,
  usedBy: "chat",

  check(model) {
    asCausalLM(model, `stage ${this.name}`);
  },

  read: readPrompts,

  task(_rows, config, circumstances) {
    const sampling = Sampling.parse(circumstances.common ?? {});
    if (config.multi_objective_aggregation === "normalize_then_sum" && config.scale_rewards !== "group")
      circumstances.warn(
        "scale_rewards changes nothing: multi_objective_aggregation: normalize_then_sum scales each reward by itself",
      );
    return grpoTask({ ...config, ...sampling }, watchedBy(judgesOf("grpo", config, circumstances), config, circumstances));
  },
});

export function grpoTask(config: GrpoConfig & SamplingSettings, judges: Judges): Task<GroupRow, GroupBatch> {
  const { temperature, beta, num_generations: count, num_iterations: iterations } = config;
  const { max_new_tokens } = config;
  const { tokenizer, rewards, usesBase = false, warn } = judges;
  const sampling = { temperature, max_new_tokens, judge: new Judge(rewards, warn) };
  const watch = watchOf(config, judges, { sampling, hasReference: beta > 0 });

  const longest = { ...longestAnswer(max_new_tokens), advantage: 1 };
  const collate = (rows: readonly GroupRow[]) =>
    collatePolicy(
      rows,
      () => Array<GroupTrajectory>(count).fill(longest),
      (answers) => ({ loss: grpoCount(answers, config) }),
    );

  return {
    ...policyReference(config, { hasReference: beta > 0, usesBase, warn }),
    identity: { temperature, max_new_tokens },
    stepsPerRound: iterations,
    shorten: (row, tokens) => ({ ...row, prompt: row.prompt.subarray(0, tokens), tokens }),
    collate,
    decodes: decodes(count, config),

    async rollOut(rows, at, base) {
      const { batchSizes, policy, rng, signal } = at;
      await watch.before(at, base);
      const answered = await rollOut(base, rows, { ...sampling, tokenizer, count, policy, rng, signal });
      const { advantages, isFlat } =
        config.multi_objective_aggregation === "normalize_then_sum"
          ? rewardwiseAdvantages(answered, rewards)
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
      const batches: GroupRow[][] = [];
      for (const batch of cut(groups, batchSizes)) {
        signal.throwIfAborted();
        // Of a policy that takes one step only, what it says in that step is what it said before.
        const old = iterations > 1 ? (body: Body) => base.with(policy, body) : null;
        const reference = beta > 0 ? (body: Body) => base.withReference(body) : null;
        batches.push(await scored(batch, { old, reference }, { collate, temperature }));
      }
      const flat = { sum: isFlat.filter(Boolean).length, count: isFlat.length };
      const metrics = { ...rolloutMetrics(answered, rewards), frac_reward_zero_std: flat };
      const look = watch.health.round({ answered, metrics });
      return {
        steps: Array<GroupRow[][]>(iterations).fill(batches),
        metrics: { ...metrics, ...look.metrics },
        taken: look.taken,
      };
    },

    terms(model, { branches, answers }) {
      return {
        loss: {
          of: answerLogProbs(model, hiddenOf(model, branches), branches, temperature),
          loss(logProbs) {
            const result = grpoLoss(logProbs, answers, { ...config, beta: beta * watch.health.factor });
            watch.health.step(result.metrics);
            return result;
          },
        },
      };
    },

    state: watch.health.state,
    whyStop: () => watch.health.whyStop(),
    evaluation: () => heldOutAnswers(watch),
  };
}
