import { createHash } from "node:crypto";
import { z } from "zod";
import { scope } from "../../core/tensor.js";
import { type PairRow, readPairs } from "../../data/preference-rows.js";
import { requireFinite } from "../../generate/sampling.js";
import { writeValueHead } from "../../io/adapters/value-head.js";
import { type BranchBatch, packFamilies } from "../../models/branches.js";
import { classesFile, rewardConfig } from "../../models/classes.js";
import { sourceOf } from "../../models/load.js";
import { requireDecoder, scoresOf } from "../../models/reward-head.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import { type Batch, defineObjective, type Evaluation, type ReportSettings, type Task } from "../objective.js";
import { shortenPair } from "../preference/pair-batch.js";
import { preferenceKeys } from "../preference/settings.js";
import { Sums } from "../sums.js";
import { bradleyTerry } from "./bradley-terry.js";
import { formattingOf, gateFile, judgeRewards, type PairLooks, type Sides } from "./gate.js";

export const RmConfig = z.strictObject({
  center_rewards_coefficient: z
    .number()
    .min(0)
    .nullable()
    .default(null)
    .describe(
      "weight of (chosen + rejected score)², which keeps a reward model's scores near 0; not set: 0; its paper: 0.01 (TRL's)",
    ),
  ...preferenceKeys,
});
export type RmConfig = z.output<typeof RmConfig>;

/** A pair, and how much Markdown each answer has. */
export interface RmRow extends PairRow {
  readonly formatting: Sides;
}

export interface RmBatch extends Batch, BranchBatch {
  readonly tokens: number;
  /** Of each pair; 0 where the data says none. */
  readonly margins: readonly number[];
}

/**
 * Reward models: a decoder with a head of one output, that learns of pairs which answer people like better (`bradleyTerry`). The score is read at the token
 * that ends the answer (`scoresOf`). The head begins normal with deviation 1/√(d + 1) (Stiennon et al. 2020, as Huang et al. 2024, arXiv:2403.17031, tell it).
 * Saved as transformers' sequence classifier of one output, of which PEFT keeps the head `score`, and as LLaMA-Factory's value_head.safetensors.
 * Training ends with a verdict on held-out pairs: `judgeRewards`.
 *
 * Source: TRL 1.16, trainer/reward_trainer.py; LLaMA-Factory 0.9.5, train/rm, whose head begins otherwise, has a bias (which comparing two answers does not
 * see) and a dropout of 0.1 before it. TRL leaves out pairs that are too long; here they are cut.
 */
export const rm = defineObjective<RmRow, RmConfig>({
  name: "rm",
  summary: "learns which of two answers people like better: a reward model, for ppo, grpo and rloo",
  config: RmConfig,
  usedBy: "score",
  handsOver: (folder, result) => ({ reward_model: folder, reward_model_type: result === "adapter" ? "lora" : "full" }),

  check: (model) => requireDecoder(model, "stage rm"),

  async read(dataset, source, { truncation }) {
    const { tokenizer } = source;
    const looks = (answer: Int32Array) => formattingOf(tokenizer.decode([...answer]));
    return (await readPairs(dataset, source, truncation)).map(
      (row): RmRow => ({ ...row, formatting: [looks(row.chosen), looks(row.rejected)] }),
    );
  },

  task: (examples, config, { base }) => rmTask(config, rewardConfig(base), examples),
});

/** The task of learning from pairs, on the model that `modelConfig` describes. `trained` are the rows that train. */
export function rmTask(
  { center_rewards_coefficient, truncation }: RmConfig,
  modelConfig: Readonly<Record<string, unknown>>,
  trained: readonly RmRow[] = [],
): Task<RmRow, RmBatch> {
  const centering = center_rewards_coefficient ?? 0;
  const lossOf = (values: Float32Array, { margins }: RmBatch) => bradleyTerry(values, margins, centering);
  return {
    modelConfig,
    taskType: "SEQ_CLS",
    files: [classesFile(modelConfig)],

    shorten: (row, tokens) => ({ ...row, ...shortenPair(row, tokens, truncation) }),

    collate(rows) {
      const packed = packFamilies(rows.map(({ prompt, chosen, rejected }) => ({ prompt, answers: [chosen, rejected] })));
      const margins = rows.map(({ margin = 0 }) => margin);
      return { ...packed, margins, tokens: packed.input.ids.length, counts: { loss: rows.length } };
    },

    terms: (model, batch) => ({
      loss: { of: scoresOf(model, batch), loss: (values) => lossOf(values, batch) },
    }),

    /** As in training, but for the least and the largest reward, which are those of all held-out answers. */
    evaluation(): Evaluation<RmBatch> {
      const sums = new Sums();
      const range = { min_reward: Number.POSITIVE_INFINITY, max_reward: Number.NEGATIVE_INFINITY };
      return {
        add(model, batch) {
          const scores = scope(() => scoresOf(model, batch));
          return async () => {
            try {
              const { sum, metrics } = lossOf(await scores.read(), batch);
              const { min_reward, max_reward, ...means } = metrics;
              sums.addMetrics(means);
              range.min_reward = Math.min(range.min_reward, min_reward.sum);
              range.max_reward = Math.max(range.max_reward, max_reward.sum);
              return { loss: { sum } };
            } finally {
              scores.dispose();
            }
          };
        },
        metrics: () => ({ ...sums.metrics, ...range }),
      };
    },

    weightFiles({ head }) {
      const weight = sourceOf("weight", head!.weight.value);
      return (folder) => writeValueHead(folder, weight);
    },

    async report(base, name, heldOut, settings) {
      const seen = new Set(trained.map(identityOf));
      const fresh = heldOut.filter((row) => !seen.has(identityOf(row)));
      const scores = await scorePairs(base, name, fresh, settings);
      if (scores === null) return null;
      const pairs = fresh.map((row, i) => ({ ...looksOf(row), scores: scores[i]! }));
      const gate = judgeRewards(pairs, trained.map(looksOf), heldOut.length - fresh.length);
      const level = gate.verdict === "passed" ? "info" : "warning";
      const advice =
        gate.verdict === "passed" ? "" : ". Reinforcement learning does not start on it, unless ignore_reward_gate: true";
      return {
        files: [gateFile(gate)],
        notices: [{ level, message: `reward model ${gate.verdict}: ${gate.reason}${advice}` }],
      };
    },
  };
}

function looksOf({ chosen, rejected, formatting }: RmRow): PairLooks {
  return { lengths: [chosen.length, rejected.length], formatting };
}

/** The same for two rows that hold the same pair. */
function identityOf({ prompt, chosen, rejected }: PairRow): string {
  const hash = createHash("sha256");
  for (const ids of [prompt, chosen, rejected]) hash.update(`${ids.length} `).update(ids);
  return hash.digest("base64");
}

/** The scores of pairs; null if the signal ended it. Throws DivergedError for one that is not finite. */
async function scorePairs(
  base: SharedBase,
  name: string,
  rows: readonly PairRow[],
  { batchSize, signal }: ReportSettings,
): Promise<Sides[] | null> {
  const found: Sides[] = [];
  for (let from = 0; from < rows.length; from += batchSize) {
    if (signal.aborted) return null;
    const families = rows
      .slice(from, from + batchSize)
      .map(({ prompt, chosen, rejected }) => ({ prompt, answers: [chosen, rejected] }));
    const scores = base.with(name, (model) => scope(() => scoresOf(model, packFamilies(families))));
    const values = await scores.read();
    scores.dispose();
    for (const value of values) requireFinite(value);
    for (const i of families.keys()) found.push([values[2 * i]!, values[2 * i + 1]!]);
  }
  return found;
}
