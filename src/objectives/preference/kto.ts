import { z } from "zod";
import { owned, type Tensor } from "../../core/tensor.js";
import { readUnpaired, type UnpairedRow } from "../../data/preference-rows.js";
import { packFamilies } from "../../models/branches.js";
import { asCausalLM } from "../../models/causal-lm.js";
import type { LanguageModel } from "../../models/language-model.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import { defineObjective, type Evaluation, type Task, type Term } from "../objective.js";
import { readTerms } from "../sums.js";
import { sigmoid } from "./math.js";
import { referenceKeys, referenceOf } from "./reference-keys.js";
import { inMicroBatches } from "./running-delta.js";
import { answerLogProbs, referenceKeeper, sumsOf } from "./scoring.js";
import { betaKey, namesInTrl, preferenceKeys, preferenceRateFactor } from "./settings.js";
import {
  collateUnpaired,
  familyOf,
  likelihoodOfGood,
  questionOfUnpaired,
  shortenUnpaired,
  type UnpairedBatch,
  unpairedMetrics,
} from "./unpaired-batch.js";

export const KtoConfig = z.strictObject({
  ...betaKey,
  kto_loss: z
    .enum(["kto", "apo_zero_unpaired"])
    .default("kto")
    .describe(
      "of an answer with log-ratio h: `kto` 1 − σ(β(h − KL)) if it is good and 1 − σ(β(KL − h)) if not; `apo_zero_unpaired` the same without a KL (TRL's names)",
    ),
  kto_chosen_weight: z.number().min(0).default(1).describe("weight of good answers; TRL's desirable_weight"),
  kto_rejected_weight: z
    .number()
    .min(0)
    .default(1)
    .describe(
      "weight of bad answers; TRL's undesirable_weight. Weight times number of good answers should be 1 to 4/3 times that of bad ones",
    ),
  pref_ftx: z.number().min(0).default(0).describe("weight of −(mean log π of the answer), the mean over good answers"),
  ...preferenceKeys,
  ...referenceKeys,
});
export type KtoConfig = z.output<typeof KtoConfig>;

/** A row of a training step, with the KL that was estimated on all of the step's rows. */
interface KtoRow extends UnpairedRow {
  readonly kl?: number;
}

interface KtoBatch extends UnpairedBatch {
  readonly rows: readonly KtoRow[];
}

/**
 * Kahneman–Tversky optimization: answers that are good or bad by themselves. h = log π(y|x) − log π_ref(y|x), λ the weights:
 *
 *     λ_D (1 − σ(β (h − KL)))  for a good answer,   λ_U (1 − σ(β (KL − h)))  for a bad one
 *
 * KL, in nats an answer, is max(0, mean of h over the prompts of an optimizer step, each with the answer of the row before it, the first with the last's). It is not
 * differentiated, and of one row it is 0, for nobody is his own partner. It belongs to the whole step, so rows may be shuffled, and micro-batches of any
 * size give the same gradient. In TRL it belongs to a micro-batch, whose rows must not be shuffled; in LLaMA-Factory partners are found among 1,000 rows
 * before shuffling, so that those of a step are not its own answers.
 *
 * Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8; TRL 1.16, trainer/kto_trainer.py. apo_zero_unpaired: D'Oosterlinck et al. 2024, arXiv:2408.06266.
 */
export const kto = defineObjective<UnpairedRow, KtoConfig>({
  name: "kto",
  summary: "learns from answers that are good or bad, each by itself",
  config: KtoConfig,
  otherNames: {
    ...namesInTrl,
    loss_type: "kto_loss",
    desirable_weight: "kto_chosen_weight",
    undesirable_weight: "kto_rejected_weight",
  },
  usedBy: "chat",
  rateFactor: preferenceRateFactor,
  packs: false,

  check(model) {
    asCausalLM(model, `stage ${this.name}`);
  },

  read: (dataset, source, { truncation }) => readUnpaired(dataset, source, truncation),

  task(examples, config, { warn }) {
    const good = examples.filter(({ isGood }) => isGood).length;
    if (good === 0 || good === examples.length)
      warn(
        `all ${examples.length} answers to train on are ${good === 0 ? "bad" : "good"}: nothing says what the others would be`,
      );
    return ktoTask(config);
  },
});

/** The task of learning from answers that are good or bad, as the settings say. */
export function ktoTask(config: KtoConfig): Task<UnpairedRow, KtoBatch> {
  const { pref_beta: beta, kto_loss, kto_chosen_weight, kto_rejected_weight, pref_ftx: ftx, truncation } = config;
  const hasPartners = kto_loss === "kto";

  /** `klOf` is asked when the numbers are there. */
  const termsWith = (
    model: LanguageModel,
    batch: KtoBatch,
    base: SharedBase,
    klOf: () => number,
  ): Readonly<Record<string, Term>> => {
    const { branches, isGood } = batch;
    const of = answerLogProbs(model, branches);
    const asked = batch.reference === null ? [base.withReference((reference) => answerLogProbs(reference, branches))] : [];
    return {
      preference: {
        of,
        given: asked,
        loss(policy, reference = batch.reference!) {
          const kl = klOf();
          const logps = sumsOf(policy, branches);
          const ratios = ratiosOf(logps, sumsOf(reference, branches));
          const slopes = new Float64Array(ratios.length);
          let sum = 0;
          for (const [i, h] of ratios.entries()) {
            const weight = isGood[i] ? kto_chosen_weight : kto_rejected_weight;
            const value = sigmoid(beta * (isGood[i] ? h - kl : kl - h));
            sum += weight * (1 - value);
            slopes[i] = (isGood[i] ? -1 : 1) * weight * beta * value * (1 - value);
          }
          const rewards = ratios.map((h) => beta * h);
          return {
            sum,
            gradient: Float32Array.from(branches.answers, (answer) => slopes[answer]!),
            metrics: unpairedMetrics(rewards, logps, isGood),
          };
        },
      },
      ...(ftx > 0 && { sft_loss: { of, weight: ftx, loss: (logProbs) => likelihoodOfGood(logProbs, batch) } }),
    };
  };

  return {
    ...referenceOf(config),
    collate: (rows) => ({ ...collateUnpaired(rows), rows }),
    shorten: (row, tokens) => shortenUnpaired(row, tokens, truncation),
    question: questionOfUnpaired,
    terms: (model, batch, base) => termsWith(model, batch, base, () => (hasPartners ? (batch.rows[0]?.kl ?? 0) : 0)),

    // Who is whose partner is known only in a step: the reference cannot be asked about them before.
    ...(!hasPartners && { keepReference: referenceKeeper(familyOf) }),

    ...(hasPartners && {
      async rollOut(rows, at, base) {
        const ratios: number[] = [];
        for (const partners of inMicroBatches(withPartners(rows), at)) {
          at.signal.throwIfAborted();
          ratios.push(...(await queueRatios(partners, base, (score) => base.with(at.policy, score))()));
        }
        const kl = positiveMean(ratios);
        return { steps: [inMicroBatches(withKl(rows, kl), at)], metrics: { kl: { sum: kl, count: 1 } } };
      },

      /** Of held-out rows, the KL belongs to a batch. */
      evaluation(): Evaluation<KtoBatch> {
        const total = { kl: 0, batches: 0 };
        return {
          add(model, batch, base) {
            const readRatios = queueRatios(withPartners(batch.rows), base, (score) => score(model));
            let kl = 0;
            const { result, free } = owned(() => termsWith(model, batch, base, () => kl));
            return async () => {
              try {
                kl = positiveMean(await readRatios());
                total.kl += kl;
                total.batches++;
                return await readTerms(result);
              } finally {
                free();
              }
            };
          },
          metrics: () => ({ kl: total.batches === 0 ? 0 : total.kl / total.batches }),
        };
      },
    }),
  };
}

const withKl = (rows: readonly UnpairedRow[], kl: number): KtoRow[] => rows.map((row) => ({ ...row, kl }));

/** Each prompt with the answer of the row before it, the first with the last's; none of a single row. */
export function withPartners(rows: readonly UnpairedRow[]): UnpairedRow[] {
  if (rows.length < 2) return [];
  return rows.map((row, i) => ({ ...row, answer: rows.at(i - 1)!.answer }));
}

/** Queues the log-ratios of answers; what it returns reads them, and gives their memory back. */
function queueRatios(
  rows: readonly UnpairedRow[],
  base: SharedBase,
  withPolicy: (score: (model: LanguageModel) => Tensor) => Tensor,
): () => Promise<Iterable<number>> {
  if (rows.length === 0) return async () => [];
  const branches = packFamilies(rows.map(familyOf));
  const score = (model: LanguageModel) => answerLogProbs(model, branches);
  const { result, free } = owned(() => ({ policy: withPolicy(score), reference: base.withReference(score) }));
  return async () => {
    try {
      return ratiosOf(sumsOf(await result.policy.read(), branches), sumsOf(await result.reference.read(), branches));
    } finally {
      free();
    }
  };
}

function ratiosOf(policy: Float64Array, reference: Float64Array): Float64Array {
  return policy.map((value, i) => value - reference[i]!);
}

function positiveMean(values: readonly number[] | Iterable<number>): number {
  const all = [...values];
  return all.length === 0 ? 0 : Math.max(0, all.reduce((sum, value) => sum + value, 0) / all.length);
}
