import { gatherRows } from "../../core/ops/rows.js";
import { owned, type Tensor } from "../../core/tensor.js";
import type { Row } from "../../data/example.js";
import { type BranchBatch, type Family, packFamilies } from "../../models/branches.js";
import { asCausalLM } from "../../models/causal-lm.js";
import type { LanguageModel } from "../../models/language-model.js";
import type { Task } from "../objective.js";

/** log p of each token of the answers, given its prompt and the tokens before it: (N), in the order of `branches.targets`. */
export function answerLogProbs(model: LanguageModel, { input, rows, targets }: BranchBatch): Tensor {
  const { lm_head } = asCausalLM(model, "a preference");
  return lm_head.logProbs(gatherRows(model.hidden(input), rows), targets);
}

/** Σ of the tokens' values of each of A answers. */
export function sumsOf(values: Float32Array, { answers, ends }: BranchBatch, weights?: Float64Array): Float64Array {
  const sums = new Float64Array(ends.length);
  for (const [i, answer] of answers.entries()) sums[answer]! += values[i]! * (weights?.[i] ?? 1);
  return sums;
}

/** Tokens of each of A answers. */
export function lengthsOf({ answers, ends }: BranchBatch): Float64Array {
  const lengths = new Float64Array(ends.length);
  for (const answer of answers) lengths[answer]!++;
  return lengths;
}

/** What the reference says of the tokens of a batch, if all of its rows keep it: (N). */
export function keptReference(rows: readonly { readonly reference?: readonly Float32Array[] }[]): Float32Array | null {
  const kept = rows.flatMap(({ reference }) => reference ?? []);
  if (rows.some(({ reference }) => reference === undefined)) return null;
  const all = new Float32Array(kept.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of kept) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

const tokensAtOnce = 2048;

/** `Task.keepReference` of rows that are families of answers: one forward pass for about `tokensAtOnce` tokens. */
export function referenceKeeper<R extends Row & { readonly reference?: readonly Float32Array[] }>(
  familyOf: (row: R) => Family,
): NonNullable<Task<R>["keepReference"]> {
  return async (rows, withReference, { signal, onRows }) => {
    const kept: R[] = [];
    for (let from = 0; from < rows.length; ) {
      signal.throwIfAborted();
      let to = from;
      for (let tokens = 0; to < rows.length && (to === from || tokens + rows[to]!.tokens <= tokensAtOnce); to++)
        tokens += rows[to]!.tokens;
      const part = rows.slice(from, to);
      const families = part.map(familyOf);
      const batch = packFamilies(families);
      const { result, free } = owned(() => withReference((model) => answerLogProbs(model, batch)));
      try {
        const values = await result.read();
        let at = 0;
        for (const [i, row] of part.entries()) {
          const reference = families[i]!.answers.map(({ length }) => {
            at += length;
            return values.slice(at - length, at);
          });
          kept.push({ ...row, reference });
        }
      } finally {
        free();
      }
      from = to;
      onRows(to);
    }
    return kept;
  };
}
