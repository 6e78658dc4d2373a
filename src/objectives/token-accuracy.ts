import { gatherRows } from "../core/ops/rows.js";
import { owned, Tensor } from "../core/tensor.js";
import { asCausalLM } from "../models/causal-lm.js";
import type { NextTokenBatch } from "./next-token.js";
import type { Evaluation } from "./objective.js";

/**
 * The held-out loss, and with it how many of a row's supervised tokens the model finds likeliest, given those before them: the mean over rows of each
 * row's share. The logits are those of the loss, and never whole in memory.
 *
 * Source: LLaMA-Factory src/llamafactory/train/sft/metric.py (ComputeAccuracy). It takes a pack for a row where it packs, and has no number at all where
 * one row has no supervised token; here rows are evaluated as they are, and such a row counts for nothing.
 */
export function tokenAccuracy(smoothing: number): Evaluation<NextTokenBatch> {
  const total = { share: 0, rows: 0 };
  return {
    add(model, { input, rows, targets }) {
      const { lm_head } = asCausalLM(model, "predicting tokens");
      const { result, free } = owned(() => {
        const likeliest = Tensor.empty(model.device, [targets.length, 2]);
        const loss = lm_head.crossEntropy(gatherRows(model.hidden(input), rows), targets, { smoothing, likeliest });
        return { likeliest, loss };
      });
      return async () => {
        try {
          const tokens = await result.likeliest.read();
          let at = 0;
          for (const { qStart, qLength } of input.segments) {
            const first = at;
            let right = 0;
            for (; at < rows.length && rows[at]! < qStart + qLength; at++) if (tokens[2 * at] === targets[at]) right++;
            if (at === first) continue;
            total.share += right / (at - first);
            total.rows++;
          }
          return { loss: { sum: await result.loss.item() } };
        } finally {
          free();
        }
      };
    },
    metrics: () => ({ accuracy: total.rows === 0 ? 0 : total.share / total.rows }),
  };
}
