import { linearCrossEntropy } from "../../core/ops/linear-cross-entropy.js";
import { gatherRows } from "../../core/ops/rows.js";
import { packSequences, type TokenBatch } from "../../models/token-batch.js";
import type { Batch, Objective } from "../objective.js";

export interface SftBatch extends Batch {
  readonly input: TokenBatch;
  /** Rows whose next token is supervised, and these next tokens. */
  readonly rows: Int32Array;
  readonly targets: Int32Array;
}

/**
 * Supervised fine-tuning: −Σ log p(token | tokens before it) over the supervised tokens. The output projection runs at their rows only.
 */
export const sft: Objective<SftBatch> = {
  name: "sft",

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
    return { input, rows: Int32Array.from(rows), targets: Int32Array.from(targets), tokens: start, count: rows.length };
  },

  loss(model, { input, rows, targets }) {
    return linearCrossEntropy(gatherRows(model.hidden(input), rows), model.lm_head.weight.value, targets);
  },
};
