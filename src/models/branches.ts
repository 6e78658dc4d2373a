import { packSequences, type TokenBatch } from "./token-batch.js";

/** A prompt, and answers to it. */
export interface Family {
  /** Not empty. */
  readonly prompt: Int32Array;
  /** Each not empty. */
  readonly answers: readonly Int32Array[];
}

/** Families in one row of T tokens, and where their answers lie. Answers are counted over all families, in their order. */
export interface BranchBatch {
  readonly input: TokenBatch;
  /** (N) The rows of hidden states that predict the tokens of answers, in the order of answers and tokens. */
  readonly rows: Int32Array;
  /** (N) These tokens. */
  readonly targets: Int32Array;
  /** (N) Which answer each belongs to. */
  readonly answers: Int32Array;
  /** The row of the last token of each answer. */
  readonly ends: Int32Array;
}

/** Lays families one behind the other. An answer attends to its prompt and to itself. */
export function packFamilies(families: readonly Family[]): BranchBatch {
  const sequences: Int32Array[] = [];
  const [rows, targets, answers, ends]: [number[], number[], number[], number[]] = [[], [], [], []];
  let start = 0;
  for (const { prompt, answers: given } of families)
    for (const answer of given) {
      for (const [t, id] of answer.entries()) {
        rows.push(start + prompt.length + t - 1);
        targets.push(id);
        answers.push(sequences.length);
      }
      sequences.push(Int32Array.of(...prompt, ...answer));
      start += prompt.length + answer.length;
      ends.push(start - 1);
    }
  const [r, t, a, e] = [rows, targets, answers, ends].map((numbers) => Int32Array.from(numbers)) as [
    Int32Array,
    Int32Array,
    Int32Array,
    Int32Array,
  ];
  return { input: packSequences(sequences), rows: r, targets: t, answers: a, ends: e };
}
