import { Rng } from "../../core/rng.js";
import { packFamilies } from "../../models/branches.js";
import { rewardMetrics, sumOf } from "../../rewards/judge.js";
import type { Reward } from "../../rewards/reward.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import type { EvaluatedAt, Evaluation, Total } from "../objective.js";
import { Sums } from "../sums.js";
import { type PolicyBatch, type PolicyRow, scoreAnswers } from "./policy.js";
import { type Answer, type Answered, rollOut, rolloutMetrics } from "./rollout.js";
import { writeSamples } from "./samples.js";
import type { SamplingSettings } from "./settings.js";
import type { Watch } from "./watch.js";

/**
 * Answers held-out prompts, one each, with the same dice in every evaluation. The loss is minus the mean reward, so the best evaluation is the one whose
 * answers were judged best. Metrics are those of a roll-out and, where there is a reference, the KL divergence from it in nats per token (`kl`) and per
 * answer (`kl_per_answer`): the mean of log π − log π_ref over what was drawn.
 */
export function heldOutAnswers(watch: Watch): Evaluation<PolicyBatch> {
  const answered: Answered[] = [];
  let isReal = false;
  const divergences: number[] = [];
  return {
    add:
      (_model, { rows }, base, at) =>
      async () => {
        const seeds = Rng.for(0, `held out ${answered.length}`);
        isReal = base.device.isSymbolic !== true;
        const part = await answersOf(rows, base, at, seeds, watch);
        if (isReal && answered.length === 0 && at.step !== undefined)
          await writeSamples(watch.outputDir, at.step, part, watch.judges);
        const rewards = part.flatMap(({ answers }) => answers.flatMap(({ reward }) => reward ?? []));
        answered.push(...part);
        if (watch.hasReference) divergences.push(...(await divergencesOf(part, base, at, watch.sampling)));
        return { heldOut: { sum: rewards.length === 0 ? 0 : (-sumOf(rewards) / rewards.length) * rows.length } };
      },

    metrics() {
      const answers = answered.flatMap((one) => one.answers);
      const sums = new Sums();
      sums.addMetrics(rolloutMetrics(answered, watch.judges.rewards));
      if (watch.hasReference) {
        const tokens = sumOf(answers.map(({ ids }) => ids.length));
        const sum = sumOf(divergences);
        sums.addMetrics({ kl: { sum, count: tokens }, kl_per_answer: { sum, count: divergences.length } });
      }
      if (watch.gold !== null) sums.addMetrics(goldMetrics(answers, watch.gold.rewards));
      if (isReal) watch.health.evaluated(answers, watch.gold && answers.map(({ gold }) => gold!.sum));
      return sums.metrics!;
    },
  };
}

/** What those say of answers from whom the policy does not learn, under names of their own. */
function goldMetrics(answers: readonly Answer[], rewards: readonly Reward[]): Record<string, Total> {
  const scores = rewards.map((_, i) => answers.map(({ gold }) => gold!.scores[i]!));
  const metrics = rewardMetrics(rewards, { scores, sums: answers.map(({ gold }) => gold!.sum) });
  return Object.fromEntries(Object.entries(metrics).map(([name, total]) => [name.replace(/^rewards?/, "gold"), total]));
}

/** On shapes alone nothing is drawn: the longest answers stand for all. */
function answersOf(
  rows: readonly PolicyRow[],
  base: SharedBase,
  { policy, signal }: EvaluatedAt,
  rng: Rng,
  { judges, sampling, gold }: Watch,
): Promise<Answered[]> | Answered[] {
  if (base.device.isSymbolic !== true)
    return rollOut(base, rows, { ...sampling, gold, tokenizer: judges.tokenizer, count: 1, policy, rng, signal });
  const longest: Answer = {
    ...{ ids: new Int32Array(sampling.max_new_tokens), text: "", isFinished: true, reward: 0 },
    ...{ scores: judges.rewards.map(() => 0), gold: { sum: 0, scores: (gold?.rewards ?? []).map(() => 0) } },
  };
  return rows.map((row) => ({ row, answers: [longest] }));
}

/** Of each answer Σ log π − log π_ref over its tokens. */
async function divergencesOf(
  answered: readonly Answered[],
  base: SharedBase,
  { policy }: EvaluatedAt,
  { temperature }: SamplingSettings,
): Promise<number[]> {
  const answers = answered.flatMap((one) => one.answers.map(({ ids }) => ({ ids, counts: true })));
  const branches = packFamilies(
    answered.map(({ row: { prompt }, answers }) => ({ prompt, answers: answers.map(({ ids }) => ids) })),
  );
  const own = await scoreAnswers({ branches, answers }, (body) => base.with(policy, body), temperature);
  const reference = await scoreAnswers({ branches, answers }, (body) => base.withReference(body), temperature);
  return own.map((values, i) => values.reduce((sum, value, t) => sum + (value - reference[i]![t]!), 0));
}
