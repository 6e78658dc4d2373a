import { z } from "zod";
import { readUnpaired, type UnpairedRow } from "../../data/preference-rows.js";
import { asCausalLM } from "../../models/causal-lm.js";
import { defineObjective, type Task } from "../objective.js";
import { logSigmoid, sigmoid } from "./math.js";
import { referenceKeys, referenceOf } from "./reference-keys.js";
import { RunningDelta, type WithDelta } from "./running-delta.js";
import { answerLogProbs, referenceKeeper, sumsOf } from "./scoring.js";
import { betaKey, namesInTrl, preferenceKeys, preferenceRateFactor } from "./settings.js";
import {
  collateUnpaired,
  familyOf,
  questionOfUnpaired,
  shortenUnpaired,
  type UnpairedBatch,
  unpairedMetrics,
} from "./unpaired-batch.js";

export const BcoConfig = z.strictObject({ ...betaKey, ...preferenceKeys, ...referenceKeys });
export type BcoConfig = z.output<typeof BcoConfig>;

interface BcoBatch extends UnpairedBatch {
  /** δ while a step is taken. */
  readonly delta: number | undefined;
}

/**
 * Binary classifier optimization: answers that are good or bad by themselves, told apart by their reward r = β (log π(y|x) − log π_ref(y|x)):
 * −log σ(r − δ) for a good answer, −log σ(δ − r) for a bad one, with δ the mean of all rewards of the steps before (`RunningDelta`).
 *
 * Source: Jung et al. 2024, arXiv:2404.04656, eq. 8 and 9; TRL 0.24, trainer/bco_trainer.py (TRL has dropped it since), without its density ratios of prompts.
 */
export const bco = defineObjective<UnpairedRow, BcoConfig>({
  name: "bco",
  summary: "learns to tell good answers from bad ones, each by itself, by their reward",
  config: BcoConfig,
  otherNames: namesInTrl,
  usedBy: "chat",
  rateFactor: preferenceRateFactor,
  packs: false,

  check(model) {
    asCausalLM(model, `stage ${this.name}`);
  },

  read: (dataset, source, { truncation }) => readUnpaired(dataset, source, truncation),

  task: (_rows, config) => bcoTask(config),
});

/** The task of telling good answers from bad ones, as the settings say. */
export function bcoTask(config: BcoConfig): Task<UnpairedRow, BcoBatch> {
  const { pref_beta: beta, truncation } = config;
  const delta = new RunningDelta();
  return {
    ...referenceOf(config),
    collate: (rows: readonly WithDelta<UnpairedRow>[]) => ({ ...collateUnpaired(rows), delta: rows[0]?.delta }),
    shorten: (row, tokens) => shortenUnpaired(row, tokens, truncation),
    question: questionOfUnpaired,
    keepReference: referenceKeeper(familyOf),
    rollOut: async (rows, at) => delta.step(rows, at),
    state: delta,

    terms(model, batch, base) {
      const { branches, isGood } = batch;
      const asked = batch.reference === null ? [base.withReference((reference) => answerLogProbs(reference, branches))] : [];
      return {
        preference: {
          of: answerLogProbs(model, branches),
          given: asked,
          loss(policy, reference = batch.reference!) {
            const logps = sumsOf(policy, branches);
            const other = sumsOf(reference, branches);
            const rewards = logps.map((value, i) => beta * (value - other[i]!));
            const now = batch.delta ?? delta.mean;
            if (batch.delta !== undefined) delta.add(rewards);
            const signs = Float64Array.from(isGood, (good) => (good ? 1 : -1));
            const slopes = rewards.map((reward, i) => -signs[i]! * beta * sigmoid(-signs[i]! * (reward - now)));
            return {
              sum: rewards.reduce((sum, reward, i) => sum - logSigmoid(signs[i]! * (reward - now)), 0),
              gradient: Float32Array.from(branches.answers, (answer) => slopes[answer]!),
              metrics: unpairedMetrics(rewards, logps, isGood),
            };
          },
        },
      };
    },
  };
}
