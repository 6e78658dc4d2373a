import { z } from "zod";
import { gatherRows } from "../../src/core/ops/rows.js";
import { scope } from "../../src/core/tensor.js";
import { type PairRow, readPairs } from "../../src/data/preference-rows.js";
import { type BranchBatch, packFamilies } from "../../src/models/branches.js";
import { asCausalLM } from "../../src/models/causal-lm.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import { type Batch, defineObjective, type Task } from "../../src/objectives/objective.js";
import { referenceKeys, referenceOf } from "../../src/objectives/preference/reference-keys.js";

interface PairBatch extends Batch, BranchBatch {
  readonly pairs: readonly PairRow[];
}

const ToyConfig = z.strictObject({ toy_beta: z.number().positive().default(0.5).describe("β"), ...referenceKeys });
type ToyConfig = z.output<typeof ToyConfig>;

const logProbsOf = (model: LanguageModel, { input, rows, targets }: BranchBatch) =>
  asCausalLM(model, "a preference").lm_head.logProbs(gatherRows(model.hidden(input), rows), targets);

/** −log σ(β (log-ratio of the chosen answer − that of the rejected one)), and nothing else: what a reference is good for, in the fewest lines. */
export function toyTask(config: ToyConfig): Task<PairRow, PairBatch> {
  const { toy_beta: beta } = config;
  const collate = (pairs: readonly PairRow[]): PairBatch => {
    const families = packFamilies(pairs.map(({ prompt, chosen, rejected }) => ({ prompt, answers: [chosen, rejected] })));
    return { ...families, pairs, tokens: families.input.ids.length, counts: { preference: pairs.length } };
  };
  const marginsOf = (policy: Float32Array, reference: Float32Array, { answers, pairs }: PairBatch) => {
    const margins = new Float64Array(pairs.length);
    for (const [i, answer] of answers.entries())
      margins[answer >> 1]! += (answer % 2 === 0 ? beta : -beta) * (policy[i]! - reference[i]!);
    return margins;
  };
  return {
    ...referenceOf(config),
    collate,
    shorten: (row, tokens) => ({
      ...row,
      ...{ prompt: row.prompt.subarray(0, Math.max(1, tokens - 2)), chosen: row.chosen.subarray(0, 1) },
      ...{ rejected: row.rejected.subarray(0, 1), tokens },
    }),
    terms(model, batch, base) {
      const known = batch.pairs.every(({ reference }) => reference !== undefined);
      const kept = Float32Array.from(batch.pairs.flatMap(({ reference = [] }) => reference.flatMap((values) => [...values])));
      return {
        preference: {
          of: logProbsOf(model, batch),
          given: known ? [] : [base.withReference((reference) => logProbsOf(reference, batch))],
          loss(policy, reference = kept) {
            const margins = marginsOf(policy, reference, batch);
            const slopes = margins.map((margin) => 1 / (1 + Math.exp(margin)));
            return {
              sum: margins.reduce((sum, margin) => sum + Math.log1p(Math.exp(-margin)), 0),
              gradient: Float32Array.from(batch.answers, (answer) => (answer % 2 === 0 ? -beta : beta) * slopes[answer >> 1]!),
              metrics: {
                "rewards/margins": { sum: margins.reduce((a, b) => a + b, 0), count: margins.length },
                "logps/reference": { sum: reference.reduce((a, b) => a + b, 0), count: margins.length },
              },
            };
          },
        },
      };
    },
    async keepReference(rows, withReference, { signal, onRows }) {
      const kept: PairRow[] = [];
      for (const row of rows) {
        signal.throwIfAborted();
        const batch = collate([row]);
        const logProbs = withReference((model) => scope(() => logProbsOf(model, batch)));
        const values = await logProbs.read();
        logProbs.dispose();
        kept.push({ ...row, reference: [values.slice(0, row.chosen.length), values.slice(row.chosen.length)] });
        onRows(kept.length);
      }
      return kept;
    },
  };
}

export const toyDpo = defineObjective<PairRow, ToyConfig>({
  name: "toy-dpo",
  summary: "prefers the chosen answers",
  config: ToyConfig,
  usedBy: "chat",
  read: (dataset, source) => readPairs(dataset, source, "infer_seqlen"),
  task: (_rows, config) => toyTask(config),
});
