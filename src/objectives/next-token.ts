import { z } from "zod";
import { gatherRows } from "../core/ops/rows.js";
import type { Example } from "../data/example.js";
import { asCausalLM } from "../models/causal-lm.js";
import { packSequences, type TokenBatch } from "../models/token-batch.js";
import { smoothingKeys } from "./label-smoothing.js";
import type { Batch, Task } from "./objective.js";
import { tokenAccuracy } from "./token-accuracy.js";

/** Settings of every objective that predicts the next token. */
export const NextTokenConfig = z.strictObject({
  ...smoothingKeys,
  compute_accuracy: z
    .boolean()
    .default(false)
    .describe("tell of held-out rows how many supervised tokens the model finds likeliest: `eval_accuracy`, the mean over rows"),
});
export type NextTokenConfig = z.output<typeof NextTokenConfig>;

export interface NextTokenBatch extends Batch {
  readonly input: TokenBatch;
  /** Rows whose next token is supervised, and these next tokens. */
  readonly rows: Int32Array;
  readonly targets: Int32Array;
}

/** −Σ log p(token | tokens before it) over the supervised tokens, smoothed as the settings say. The output projection runs at their rows only. */
export function nextTokenTask({
  label_smoothing_factor: smoothing,
  compute_accuracy,
}: NextTokenConfig): Task<Example, NextTokenBatch> {
  return {
    /** `supervised` may go on for longer: `collate` reads it where there are ids. */
    shorten: (row, tokens) => ({ ...row, ids: row.ids.subarray(0, tokens), tokens }),

    collate(examples) {
      const input = packSequences(examples.map(({ ids }) => ids));
      const rows: number[] = [];
      const targets: number[] = [];
      let start = 0;
      for (const { ids, supervised } of examples) {
        for (let t = 1; t < ids.length; t++) {
          if (supervised[t] !== 1) continue;
          rows.push(start + t - 1);
          targets.push(ids[t]!);
        }
        start += ids.length;
      }
      const count = rows.length;
      return {
        input,
        rows: Int32Array.from(rows),
        targets: Int32Array.from(targets),
        tokens: start,
        counts: { loss: count },
        supervisedTokens: count,
      };
    },

    ...(compute_accuracy && { evaluation: () => tokenAccuracy(smoothing) }),

    terms(model, { input, rows, targets }) {
      const { lm_head } = asCausalLM(model, "predicting tokens");
      return { loss: { sum: lm_head.crossEntropy(gatherRows(model.hidden(input), rows), targets, { smoothing }) } };
    },
  };
}

/** The task without any setting: what a loss is where nothing else is said. */
export const nextToken = nextTokenTask(NextTokenConfig.parse({}));
