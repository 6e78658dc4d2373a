import { gatherRows } from "../../core/ops/rows.js";
import { withoutDropout } from "../../core/tape.js";
import { owned, type Tensor } from "../../core/tensor.js";
import type { PromptRow } from "../../data/prompt-rows.js";
import { type BranchBatch, packFamilies } from "../../models/branches.js";
import { asCausalLM } from "../../models/causal-lm.js";
import type { LanguageModel } from "../../models/language-model.js";
import type { Batch } from "../objective.js";

/** An answer to learn from, with what was found out of it when it was given. */
export interface Trajectory {
  /** Tokens, with the one that ended it. */
  readonly ids: Int32Array;
  /** False where it takes no part in the loss: it was cut, and the recipe masks such answers. */
  readonly counts: boolean;
  /** Log-probabilities of its tokens under the policy that gave it; absent where that is the policy that trains. */
  readonly old?: Float32Array;
  /** The same under the reference. */
  readonly reference?: Float32Array;
}

/** A prompt and, once the policy has answered it, what is learned from the answers. */
export interface PolicyRow<T extends Trajectory = Trajectory> extends PromptRow {
  readonly answers?: readonly T[];
}

export interface PolicyBatch<T extends Trajectory = Trajectory> extends Batch {
  readonly branches: BranchBatch;
  readonly answers: readonly T[];
  readonly rows: readonly PolicyRow<T>[];
}

/**
 * Lays prompts with their answers in one row; a prompt that has none yet gets stand-ins, for an estimate of memory.
 * Terms are counted as `countsOf` says, held-out prompts by themselves.
 */
export function collatePolicy<T extends Trajectory>(
  rows: readonly PolicyRow<T>[],
  standIns: () => readonly T[],
  countsOf: (answers: readonly T[]) => Readonly<Record<string, number>>,
): PolicyBatch<T> {
  const families = rows.map((row) => ({ prompt: row.prompt, answers: row.answers ?? standIns() }));
  const branches = packFamilies(families.map(({ prompt, answers }) => ({ prompt, answers: answers.map(({ ids }) => ids) })));
  const answers = families.flatMap(({ answers }) => answers);
  return {
    ...{ branches, answers, rows },
    tokens: branches.input.ids.length,
    counts: { ...countsOf(answers), heldOut: rows.length },
    supervisedTokens: branches.targets.length,
  };
}

/**
 * Hidden states (T, C) of a batch, without dropout: the ratio of a policy to itself is 1 only if nothing is drawn in between. TRL switches the
 * dropout of PPO's policy off as well, not that of GRPO's.
 */
export function hiddenOf(model: LanguageModel, { input }: BranchBatch): Tensor {
  return withoutDropout(() => model.hidden(input));
}

/** log softmax(logits / temperature) of the answers' tokens, (N), given hidden states (T, C). */
export function answerLogProbs(model: LanguageModel, hidden: Tensor, branches: BranchBatch, temperature: number): Tensor {
  const { lm_head } = asCausalLM(model, "learning from own answers");
  return withoutDropout(() => lm_head.logProbs(gatherRows(hidden, branches.rows), branches.targets, temperature));
}

export type Body = (model: LanguageModel) => Tensor;

/** Runs a body with a model in its places. */
export type Within = (body: Body) => Tensor;

/** What a model says of the answers of a batch, read: log-probabilities, one array for each answer. */
export async function scoreAnswers(
  { branches, answers }: Pick<PolicyBatch, "branches" | "answers">,
  within: Within,
  temperature: number,
): Promise<Float32Array[]> {
  const { result, free } = owned(() =>
    within((model) => answerLogProbs(model, hiddenOf(model, branches), branches, temperature)),
  );
  try {
    return split(await result.read(), answers);
  } finally {
    free();
  }
}

/**
 * The rows of a micro-batch with what the policy that gave the answers, and the reference, say of them; of null, nothing. They are laid out as the update
 * lays them out, so that the first ratio is 1: what the decoder says of its own tokens differs by its rounding.
 */
export async function scored<T extends Trajectory>(
  rows: readonly PolicyRow<T>[],
  { old, reference }: { readonly old: Within | null; readonly reference: Within | null },
  { collate, temperature }: { collate(rows: readonly PolicyRow<T>[]): PolicyBatch<T>; readonly temperature: number },
): Promise<PolicyRow<T>[]> {
  const batch = collate(rows);
  const [before, ofReference] = [
    old && (await scoreAnswers(batch, old, temperature)),
    reference && (await scoreAnswers(batch, reference, temperature)),
  ];
  let next = 0;
  const add = (answer: T): T => {
    const i = next++;
    return { ...answer, ...(before && { old: before[i]! }), ...(ofReference && { reference: ofReference[i]! }) };
  };
  return rows.map((row) => ({ ...row, answers: row.answers!.map(add) }));
}

/** What stands for an answer where memory is estimated. */
export function longestAnswer(tokens: number): Trajectory {
  return { ids: new Int32Array(tokens), counts: true, reference: new Float32Array(tokens) };
}

/** Numbers of tokens as those of answers. */
export function split(values: Float32Array, answers: readonly { readonly ids: Int32Array }[]): Float32Array[] {
  return spans(answers.map(({ ids }) => ids.length)).map(([start, end]) => values.subarray(start, end));
}

/** Rows in the micro-batches that the plan has. */
export function cut<T>(rows: readonly T[], sizes: readonly number[]): T[][] {
  return spans(sizes).map(([start, end]) => rows.slice(start, end));
}

/** Where things of these lengths begin and end, one behind the other. */
export function spans(lengths: readonly number[]): [start: number, end: number][] {
  let end = 0;
  return lengths.map((length) => {
    const start = end;
    end += length;
    return [start, end];
  });
}
