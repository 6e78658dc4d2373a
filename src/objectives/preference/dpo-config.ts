import { z } from "zod";
import { divergences } from "./divergences.js";
import { type PairLoss, type PairLossName, pairLosses } from "./pair-losses.js";
import { referenceKeys } from "./reference-keys.js";
import { betaKey, preferenceKeys } from "./settings.js";

/** `sft` is the likelihood of the chosen answer, TRL's name for it in a list. */
const lossNames = [...(Object.keys(pairLosses) as PairLossName[]), "sft"] as const;
export type LossName = (typeof lossNames)[number];

/** The losses with their formulas, for docs/recipe.md. */
export const aboutLosses = [
  "With z = β (h_c − h_r), h = log π − log π_ref of an answer, |y| its tokens and ε = `dpo_label_smoothing`, `pref_loss` is the sum of:",
  [
    "| Loss | Of a pair | ε |",
    "| --- | --- | --- |",
    ...Object.entries(pairLosses as Readonly<Record<string, PairLoss>>).map(
      ([name, { summary, smoothing }]) =>
        `| \`${name}\` | ${summary.replaceAll("|", "\\|")} | ${{ no: "", may: "is read", must: "is needed" }[smoothing]} |`,
    ),
    "| `sft` | the mean NLL of the chosen answers' tokens, beside other losses |  |",
  ].join("\n"),
].join("\n\n");

export const DpoConfig = z.strictObject({
  ...betaKey,
  pref_loss: z
    .union([z.enum(lossNames), z.array(z.enum(lossNames)).min(1)])
    .default("sigmoid")
    .transform((names): LossName[] => (Array.isArray(names) ? names : [names]))
    .describe("the loss, or a list of losses whose sum is taken; the table below has their formulas"),
  loss_weights: z
    .array(z.number().positive())
    .nullable()
    .default(null)
    .describe("one weight for each loss of `pref_loss`; not set: 1 each"),
  dpo_label_smoothing: z
    .number()
    .min(0)
    .lt(0.5)
    .default(0)
    .describe(
      "ε, the share of pairs that are taken to be the wrong way round: of sigmoid (which is then cdpo, as in LLaMA-Factory; TRL leaves it out there), cdpo, robust, exo_pair, aot, aot_unpaired, simpo and cpo",
    ),
  pref_ftx: z
    .number()
    .min(0)
    .default(0)
    .describe(
      "weight of −(mean log π of the chosen answer), the mean over pairs; TRL's `sft` in `pref_loss` is the mean over tokens",
    ),
  pref_bco_weight: z
    .number()
    .min(0)
    .default(0)
    .describe(
      "w of (L + w · BCO) / (1 + w), with BCO = −log σ(βh_c − δ) − log σ(δ − βh_r) and δ the mean of all rewards βh of the steps before",
    ),
  simpo_gamma: z.number().min(0).default(0.5).describe("the margin that SimPO wants between rewards"),
  cpo_alpha: z
    .number()
    .min(0)
    .nullable()
    .default(null)
    .describe(
      "weight of the NLL of the chosen answers' tokens beside cpo and simpo; not set: 1 for cpo, and 0 for simpo, as in LLaMA-Factory (TRL: 1 for both)",
    ),
  orpo_nll: z
    .enum(["answer", "all_tokens"])
    .default("answer")
    .describe(
      "the likelihood beside ORPO's odds: `answer`, LLaMA-Factory's, −(mean log π of the chosen answer), the mean over pairs; `all_tokens`, TRL's, the mean NLL of all tokens of prompts and chosen answers",
    ),
  ld_alpha: z
    .number()
    .min(0)
    .max(1)
    .nullable()
    .default(null)
    .describe("LD-DPO: how much tokens count that lie behind the length of the shorter answer; not set: as all others"),
  ld_alpha_reference: z
    .boolean()
    .default(true)
    .describe("whether `ld_alpha` weighs the reference's log-probabilities too, as in the paper and TRL; LLaMA-Factory: false"),
  discopop_tau: z.number().positive().default(0.05).describe("τ of discopop"),
  f_divergence_type: z
    .enum(divergences)
    .default("reverse_kl")
    .describe("the divergence that keeps the model near the reference (TRL's name), for losses of a difference of scores"),
  f_alpha_divergence_coef: z.number().default(0.5).describe("α of alpha_divergence"),
  ...preferenceKeys,
  ...referenceKeys,
});
export type DpoConfig = z.output<typeof DpoConfig>;
