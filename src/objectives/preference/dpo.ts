import { gatherRows } from "../../core/ops/rows.js";
import { type PairRow, readPairs } from "../../data/preference-rows.js";
import { asCausalLM } from "../../models/causal-lm.js";
import { type ComputedTerm, defineObjective, type Task } from "../objective.js";
import { aboutLosses, DpoConfig } from "./dpo-config.js";
import { collatePairs, type PairBatch, questionOfPair, shortenPair } from "./pair-batch.js";
import { lossesOf, preferenceLoss } from "./preference-loss.js";
import { referenceOf } from "./reference-keys.js";
import { RunningDelta } from "./running-delta.js";
import { answerLogProbs, referenceKeeper } from "./scoring.js";
import { namesInTrl, preferenceRateFactor } from "./settings.js";

/**
 * Direct preference optimization and its kin: pairs of answers, of which the model learns to prefer the chosen one. The loss is a function of the log-probabilities of both
 * answers under the model and under the reference, which is what training began from.
 *
 * Source: Rafailov et al. 2023, arXiv:2305.18290; `pairLosses` names the others.
 */
export const dpo = defineObjective<PairRow, DpoConfig>({
  name: "dpo",
  summary: "learns to prefer the chosen answer of each pair: DPO, IPO, ORPO, SimPO and others by `pref_loss`",
  config: DpoConfig,
  otherNames: { ...namesInTrl, loss_type: "pref_loss", label_smoothing: "dpo_label_smoothing" },
  notes: aboutLosses,
  usedBy: "chat",
  rateFactor: preferenceRateFactor,
  packs: false,

  check(model) {
    asCausalLM(model, `stage ${this.name}`);
  },

  read: (dataset, source, { truncation }) => readPairs(dataset, source, truncation),

  task: (_rows, config) => dpoTask(config),
});

/** The task of preferring chosen answers, as the settings say. */
export function dpoTask(config: DpoConfig): Task<PairRow, PairBatch> {
  const { pairs, nllWeight, allTokensWeight } = lossesOf(config);
  const usesReference = pairs.some(({ loss }) => loss.usesReference);
  const withPrompts = allTokensWeight > 0;
  const delta = new RunningDelta();
  const preference = preferenceLoss(config, delta);

  return {
    ...(usesReference && referenceOf(config)),
    collate: collatePairs,
    shorten: (row, tokens) => shortenPair(row, tokens, config.truncation),
    question: questionOfPair,
    ...(usesReference && {
      keepReference: referenceKeeper<PairRow>(({ prompt, chosen, rejected }) => ({ prompt, answers: [chosen, rejected] })),
    }),
    ...(config.pref_bco_weight > 0 && { rollOut: async (rows, at) => delta.step(rows, at), state: delta }),

    terms(model, batch, base) {
      const { branches, promptRows, promptTargets } = batch;
      const { lm_head } = asCausalLM(model, "a preference");
      const rows = withPrompts ? joined(branches.rows, promptRows) : branches.rows;
      const targets = withPrompts ? joined(branches.targets, promptTargets) : branches.targets;
      const of = lm_head.logProbs(gatherRows(model.hidden(branches.input), rows), targets);
      const asked =
        usesReference && batch.reference === null
          ? [base.withReference((reference) => answerLogProbs(reference, batch.branches))]
          : [];
      const isChosen = (i: number) => (branches.answers[i] ?? 0) % 2 === 0; // prompts lie behind all answers
      return {
        preference: {
          of,
          given: asked,
          loss: (policy, reference) => {
            const { gradient, ...value } = preference(
              batch,
              policy.subarray(0, branches.rows.length),
              usesReference ? (reference ?? batch.reference) : null,
            );
            if (!withPrompts) return { ...value, gradient };
            const padded = new Float32Array(policy.length);
            padded.set(gradient);
            return { ...value, gradient: padded };
          },
        },
        ...(nllWeight > 0 && {
          nll_loss: { of, weight: nllWeight, loss: (policy) => nll(policy, (i) => i < branches.rows.length && isChosen(i)) },
        }),
        ...(withPrompts && { "nll_loss/all_tokens": { of, weight: allTokensWeight, loss: (policy) => nll(policy, isChosen) } }),
      };
    },
  };
}

/** −Σ log p of some tokens. */
function nll(logProbs: Float32Array, counts: (i: number) => boolean): ReturnType<ComputedTerm["loss"]> {
  let sum = 0;
  const gradient = logProbs.map((value, i) => {
    if (!counts(i)) return 0;
    sum -= value;
    return -1;
  });
  return { sum, gradient };
}

function joined(a: Int32Array, b: Int32Array): Int32Array {
  const both = new Int32Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
