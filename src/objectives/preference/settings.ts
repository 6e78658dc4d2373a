import { z } from "zod";
import { truncations } from "../../data/preference-rows.js";

/** Settings of everything that learns from judged answers. */
export const preferenceKeys = {
  truncation: z
    .enum(truncations)
    .default("infer_seqlen")
    .describe(
      "how rows longer than `cutoff_len` are cut: `infer_seqlen`, LLaMA-Factory's, keeps the shorter of prompt and answer whole and else cuts both in proportion; `keep_start`, TRL's, keeps what comes first. A row that would lose all of an answer is left out and counted",
    ),
};

/** β of everything that compares with a reference. */
export const betaKey = {
  pref_beta: z
    .number()
    .positive()
    .default(0.1)
    .describe(
      "β: the larger, the nearer the model stays to the reference; λ of ORPO, and the scale of SimPO's and CPO's rewards",
    ),
};

/**
 * The rate of a tuner is for learning texts by heart; preferences are learned with a part of it. Measured: SmolLM2-135M-Instruct under LoRA, 48 pairs of dpo_en_demo at
 * cutoff_len 128, two epochs of 12 steps; held-out loss 0.688 at 2.5e-5, 0.639 at 2e-4, and 0.843 at LoRA's own 1e-3, which learns the pairs by heart. Recipes
 * for thousands of pairs go lower: LLaMA-Factory's and the Alignment Handbook's take 5e-6 for LoRA, TRL 1e-6.
 */
export const preferenceRateFactor = 0.1;

/** What TRL calls settings that all preference stages have. */
export const namesInTrl = { beta: "pref_beta", truncation_mode: "truncation" };
