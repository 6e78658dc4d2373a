import { cutFamily, type Truncation, type UnpairedRow } from "../../data/preference-rows.js";
import { type BranchBatch, type Family, packFamilies } from "../../models/branches.js";
import type { Batch, Question, Total } from "../objective.js";
import { keptReference, lengthsOf } from "./scoring.js";

/** Answers that are good or bad, each with its prompt. */
export interface UnpairedBatch extends Batch {
  readonly branches: BranchBatch;
  readonly isGood: readonly boolean[];
  /** (N) What the reference says of each token, where it was computed once. */
  readonly reference: Float32Array | null;
}

export const familyOf = ({ prompt, answer }: UnpairedRow): Family => ({ prompt, answers: [answer] });

export function collateUnpaired(rows: readonly UnpairedRow[]): UnpairedBatch {
  const branches = packFamilies(rows.map(familyOf));
  const isGood = rows.map((row) => row.isGood);
  return {
    branches,
    isGood,
    reference: keptReference(rows),
    tokens: branches.input.ids.length,
    counts: { preference: rows.length, sft_loss: isGood.filter((good) => good).length },
    supervisedTokens: branches.targets.length,
  };
}

/** For an estimate of memory: no answer becomes empty. */
export function shortenUnpaired(row: UnpairedRow, tokens: number, truncation: Truncation): UnpairedRow {
  const { reference, ...rest } = row;
  const cut = cutFamily({ prompt: row.prompt, answers: [row.answer] }, tokens, truncation);
  const answer = cut.answers[0]!.length > 0 ? cut.answers[0]! : row.answer.subarray(0, 1);
  return {
    ...rest,
    ...{ prompt: cut.prompt, answer, tokens: cut.prompt.length + answer.length },
    ...(reference && { reference: [reference[0]!.subarray(0, answer.length)] }),
  };
}

export function questionOfUnpaired({ prompt, answer, isGood }: UnpairedRow): Question | null {
  return isGood ? { prompt, label: answer } : null;
}

/** −(mean log p) of the good answers, summed over them: `pref_ftx`. */
export function likelihoodOfGood(logProbs: Float32Array, { branches, isGood }: UnpairedBatch) {
  const lengths = lengthsOf(branches);
  let sum = 0;
  const gradient = logProbs.map((value, i) => {
    const answer = branches.answers[i]!;
    if (!isGood[answer]) return 0;
    sum -= value / lengths[answer]!;
    return -1 / lengths[answer]!;
  });
  return { sum, gradient };
}

/** TRL's metrics of rewards and log-probabilities, each over the answers of one kind. */
export function unpairedMetrics(rewards: Float64Array, logps: Float64Array, isGood: readonly boolean[]): Record<string, Total> {
  const over = (values: Float64Array, good: boolean): Total => {
    const own = values.filter((_, i) => isGood[i] === good);
    return { sum: own.reduce((sum, value) => sum + value, 0), count: own.length };
  };
  const all = {
    "rewards/chosen": over(rewards, true),
    "rewards/rejected": over(rewards, false),
    "logps/chosen": over(logps, true),
    "logps/rejected": over(logps, false),
  };
  return Object.fromEntries(Object.entries(all).filter(([, { count }]) => count > 0));
}
