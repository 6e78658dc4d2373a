import type { Segment } from "../core/ops/attention.js";
import type { TokenBatch } from "./token-batch.js";

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

/**
 * Lays families one behind the other, each as prompt | answer | answer | …: the prompt is computed once for all its answers. An answer attends to
 * its prompt and to itself, and its positions go on from the prompt's, so hidden states and gradients are those of each pair of prompt and answer
 * alone.
 *
 * Source: Wang & Hegde 2024, arXiv:2410.20305 (pairs); Liu et al. 2025, arXiv:2506.05433 (groups).
 */
export function packFamilies(families: readonly Family[]): BranchBatch {
  const total = families.reduce(
    (sum, { prompt, answers }) => answers.reduce((all, { length }) => all + length, sum + prompt.length),
    0,
  );
  const ids = new Int32Array(total);
  const positions = new Int32Array(total);
  const segments: Segment[] = [];
  const answered = families.flatMap(({ answers }) => answers);
  const count = answered.reduce((sum, { length }) => sum + length, 0);
  const [rows, targets, answers] = [new Int32Array(count), new Int32Array(count), new Int32Array(count)];
  const ends = new Int32Array(answered.length);

  let [row, token, answer] = [0, 0, 0];
  /** Returns the row of the first token. */
  const lay = (sequence: Int32Array, position: number): number => {
    ids.set(sequence, row);
    for (let t = 0; t < sequence.length; t++) positions[row + t] = position + t;
    row += sequence.length;
    return row - sequence.length;
  };
  for (const family of families) {
    const kLength = family.prompt.length;
    const kStart = lay(family.prompt, 0);
    segments.push({ qStart: kStart, qLength: kLength, kStart, kLength });
    for (const given of family.answers) {
      const start = lay(given, kLength);
      segments.push({ qStart: start, qLength: given.length, kStart: start, kLength: given.length, prefix: { kStart, kLength } });
      for (const [t, id] of given.entries()) {
        rows[token] = t === 0 ? kStart + kLength - 1 : start + t - 1;
        targets[token] = id;
        answers[token++] = answer;
      }
      ends[answer++] = row - 1;
    }
  }
  return { input: { ids, positions, segments }, rows, targets, answers, ends };
}
