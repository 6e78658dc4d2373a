import { cutFamily, type PairRow, type Truncation } from "../../data/preference-rows.js";
import { type BranchBatch, packFamilies } from "../../models/branches.js";
import type { Batch, Question } from "../objective.js";
import type { PairScores } from "./pair-losses.js";
import type { WithDelta } from "./running-delta.js";
import { keptReference, lengthsOf, sumsOf } from "./scoring.js";

/** P pairs in one row of tokens: answer 2i is the chosen one of pair i, 2i + 1 the rejected one. */
export interface PairBatch extends Batch {
  readonly branches: BranchBatch;
  readonly pairs: number;
  /** (N) What the reference says of each token, where it was computed once. */
  readonly reference: Float32Array | null;
  /** (M) Where the prompts' tokens are predicted, and these: all but the first of each. */
  readonly promptRows: Int32Array;
  readonly promptTargets: Int32Array;
  /** δ of BCO while a step is taken. */
  readonly delta: number | undefined;
}

export function collatePairs(rows: readonly WithDelta<PairRow>[]): PairBatch {
  const branches = packFamilies(rows.map(({ prompt, chosen, rejected }) => ({ prompt, answers: [chosen, rejected] })));
  const prompts = promptsOf(rows, branches);
  const chosenTokens = rows.reduce((sum, { chosen }) => sum + chosen.length, 0);
  return {
    branches,
    pairs: rows.length,
    reference: keptReference(rows),
    ...prompts,
    delta: rows[0]?.delta,
    tokens: branches.input.ids.length,
    counts: {
      preference: rows.length,
      nll_loss: chosenTokens,
      "nll_loss/all_tokens": chosenTokens + prompts.promptTargets.length,
    },
    supervisedTokens: branches.targets.length,
  };
}

/** A prompt lies in front of its first answer, whose first token is predicted from its last. */
function promptsOf(
  rows: readonly PairRow[],
  { rows: predicted, input }: BranchBatch,
): Pick<PairBatch, "promptRows" | "promptTargets"> {
  const [promptRows, promptTargets]: [number[], number[]] = [[], []];
  let answer = 0;
  for (const { prompt, chosen, rejected } of rows) {
    const first = predicted[answer]! - prompt.length + 1;
    for (let t = 1; t < prompt.length; t++) {
      if (input.ids[first + t] !== prompt[t]) throw new RangeError("a prompt does not lie in front of its first answer");
      promptRows.push(first + t - 1);
      promptTargets.push(prompt[t]!);
    }
    answer += chosen.length + rejected.length;
  }
  return { promptRows: Int32Array.from(promptRows), promptTargets: Int32Array.from(promptTargets) };
}

/**
 * How much each token counts under LD-DPO (Liu et al. 2024, arXiv:2409.06411): α behind the length that both answers of a pair have, else 1. (N); undefined
 * where all count alike.
 */
export function lengthDesensitized({ branches }: PairBatch, alpha: number | null): Float64Array | undefined {
  if (alpha === null) return undefined;
  const lengths = lengthsOf(branches);
  const seen = new Float64Array(lengths.length);
  return Float64Array.from(branches.answers, (answer) => {
    const shared = Math.min(lengths[answer]!, lengths[answer ^ 1]!);
    return seen[answer]!++ < shared ? 1 : alpha;
  });
}

/** The scores of pairs, of log-probabilities of tokens. */
export function scoresOf(
  { branches }: PairBatch,
  policy: Float32Array,
  reference: Float32Array | null,
  weights: { readonly policy: Float64Array | undefined; readonly reference: Float64Array | undefined },
): PairScores {
  const lengths = lengthsOf(branches);
  const own = sumsOf(policy, branches, weights.policy);
  const other = reference === null ? own.map(() => 0) : sumsOf(reference, branches, weights.reference);
  const side = (values: Float64Array, rejected: 0 | 1) => values.filter((_, answer) => answer % 2 === rejected);
  return {
    ...{ chosen: side(own, 0), rejected: side(own, 1), referenceChosen: side(other, 0), referenceRejected: side(other, 1) },
    ...{ chosenTokens: side(lengths, 0), rejectedTokens: side(lengths, 1) },
  };
}

/** For an estimate of memory: no answer becomes empty. */
export function shortenPair(row: PairRow, tokens: number, truncation: Truncation): PairRow {
  const { prompt, chosen, rejected, reference, ...rest } = row;
  const cut = cutFamily({ prompt, answers: [chosen, rejected] }, tokens, truncation);
  const [c, r] = cut.answers.map((answer, i) => (answer.length > 0 ? answer : [chosen, rejected][i]!.subarray(0, 1)));
  return {
    ...rest,
    ...{ prompt: cut.prompt, chosen: c!, rejected: r!, tokens: cut.prompt.length + c!.length + r!.length },
    ...(reference && { reference: [reference[0]!.subarray(0, c!.length), reference[1]!.subarray(0, r!.length)] }),
  };
}

export function questionOfPair({ prompt, chosen }: PairRow): Question {
  return { prompt, label: chosen };
}
