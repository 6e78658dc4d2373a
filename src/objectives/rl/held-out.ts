import { Rng } from "../../core/rng.js";
import { packFamilies } from "../../models/branches.js";
import type { Judge } from "../../rewards/judge.js";
import type { Tokenizer } from "../../text/tokenizer/tokenizer.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import type { EvaluatedAt, Evaluation } from "../objective.js";
import { Sums } from "../sums.js";
import { type PolicyBatch, type PolicyRow, scoreAnswers } from "./policy.js";
import { type Answer, type Answered, rollOut, rolloutMetrics, sumOf } from "./rollout.js";
import type { SamplingSettings } from "./settings.js";

export interface HeldOutOptions extends SamplingSettings {
  readonly tokenizer: Tokenizer;
  readonly judge: Judge;
  /** Whether the base can say how far the policy has gone from it. */
  readonly hasReference: boolean;
}

/**
 * Answers held-out prompts, one each, with the same dice in every evaluation. The loss is minus the mean reward, so the best evaluation is the one whose
 * answers were judged best. Metrics are those of a roll-out and, where there is a reference, the KL divergence from it in nats per token (`kl`) and per
 * answer (`kl_per_answer`): the mean of log π − log π_ref over what was drawn.
 */
export function heldOutAnswers(options: HeldOutOptions): Evaluation<PolicyBatch> {
  const answered: Answered[] = [];
  const divergences: number[] = [];
  return {
    add:
      (_model, { rows }, base, at) =>
      async () => {
        const seeds = Rng.for(0, `held out ${answered.length}`);
        const part = await answersOf(rows, base, at, seeds, options);
        const rewards = part.flatMap(({ answers }) => answers.flatMap(({ reward }) => reward ?? []));
        answered.push(...part);
        if (options.hasReference) divergences.push(...(await divergencesOf(part, base, at, options)));
        return { heldOut: { sum: rewards.length === 0 ? 0 : (-sumOf(rewards) / rewards.length) * rows.length } };
      },

    metrics() {
      const sums = new Sums();
      sums.addMetrics(rolloutMetrics(answered, options.judge.rewards));
      if (options.hasReference) {
        const tokens = sumOf(answered.flatMap(({ answers }) => answers.map(({ ids }) => ids.length)));
        const sum = sumOf(divergences);
        sums.addMetrics({ kl: { sum, count: tokens }, kl_per_answer: { sum, count: divergences.length } });
      }
      return sums.metrics!;
    },
  };
}

/** On shapes alone nothing is drawn: the longest answers stand for all. */
function answersOf(
  rows: readonly PolicyRow[],
  base: SharedBase,
  { policy, signal }: EvaluatedAt,
  rng: Rng,
  { tokenizer, judge, temperature, max_new_tokens }: HeldOutOptions,
): Promise<Answered[]> | Answered[] {
  if (base.device.isSymbolic !== true)
    return rollOut(base, rows, { tokenizer, judge, temperature, max_new_tokens, count: 1, policy, rng, signal });
  const longest: Answer = {
    ...{ ids: new Int32Array(max_new_tokens), text: "", isFinished: true, reward: 0 },
    scores: judge.rewards.map(() => 0),
  };
  return rows.map((row) => ({ row, answers: [longest] }));
}

/** Of each answer Σ log π − log π_ref over its tokens. */
async function divergencesOf(
  answered: readonly Answered[],
  base: SharedBase,
  { policy }: EvaluatedAt,
  { temperature }: HeldOutOptions,
): Promise<number[]> {
  const answers = answered.flatMap((one) => one.answers.map(({ ids }) => ({ ids, counts: true })));
  const branches = packFamilies(
    answered.map(({ row: { prompt }, answers }) => ({ prompt, answers: answers.map(({ ids }) => ids) })),
  );
  const own = await scoreAnswers({ branches, answers }, (body) => base.with(policy, body), temperature);
  const reference = await scoreAnswers({ branches, answers }, (body) => base.withReference(body), temperature);
  return own.map((values, i) => values.reduce((sum, value, t) => sum + (value - reference[i]![t]!), 0));
}
