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
 * The rate of a tuner is for learning texts by heart; preferences are learned with a small part of it. LLaMA-Factory's and the Alignment Handbook's recipes use 5e-6
 * for LoRA where their sft has 1e-4 to 2e-4, TRL 1e-6 where its sft has 2e-5: 1/20 to 1/40.
 */
export const preferenceRateFactor = 0.025;

/** What TRL calls settings that all preference stages have. */
export const namesInTrl = { beta: "pref_beta", truncation_mode: "truncation" };
