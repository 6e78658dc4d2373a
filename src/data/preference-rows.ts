import { DataError } from "../errors.js";
import type { Dialogue } from "../text/chat-template.js";
import { type ChatFormat, renderConversation } from "../text/supervised.js";
import { type DatasetOptions, leftOutThoughts, loadRows, silenced, type TokenizeOptions, tokenizeRows } from "./dataset.js";
import type { Row } from "./example.js";
import { type JudgedAnswer, type Preference, preferences } from "./preferences.js";

/** A prompt with a better and a worse answer to it. */
export interface PairRow extends Row {
  /** All before the answers, the same for both; never empty. */
  readonly prompt: Int32Array;
  /** Answers, with the tokens that end their turns; never empty, never equal. */
  readonly chosen: Int32Array;
  readonly rejected: Int32Array;
  /** By how much the chosen answer is better, where the data says it. */
  readonly margin?: number;
  /** What the reference says of each token of both answers, where it was computed once. */
  readonly reference?: readonly Float32Array[];
}

/** A prompt with an answer that is good or bad. */
export interface UnpairedRow extends Row {
  readonly prompt: Int32Array;
  readonly answer: Int32Array;
  readonly isGood: boolean;
  /** What the reference says of each token of the answer, and of the partner if there is one. */
  readonly reference?: readonly Float32Array[];
}

/**
 * How rows longer than `cutoff_len` are cut; always at the end, of the prompt as of the answers.
 * `infer_seqlen`: LLaMA-Factory's (data/processor/processor_utils.py). A short answer stays whole and the prompt is cut; else a short prompt stays whole; else
 * both are cut in proportion. Of a pair, the longer answer counts.
 * `keep_start`: TRL's. What comes first stays: a prompt that fills `cutoff_len` leaves nothing of its answer.
 */
export const truncations = ["infer_seqlen", "keep_start"] as const;
export type Truncation = (typeof truncations)[number];

/** What preference rows are read with: a part of an objective's `DataSource`. */
export interface PreferenceSource {
  readonly files: Omit<DatasetOptions, "dataset">;
  readonly tokenize: TokenizeOptions;
  chat(): ChatFormat;
  warn(message: string): void;
}

/**
 * Pairs of answers. Rows in which nothing is preferred, and pairs that the cut leaves without a token of an answer or without a difference, are left out;
 * `warn` hears how many and which. Throws DataError, also if none is left, ConfigError.
 */
export async function readPairs(
  dataset: readonly string[],
  source: PreferenceSource,
  truncation: Truncation,
): Promise<PairRow[]> {
  return readWith(dataset, source, truncation, ({ answers, margin, where }, tokenized) => {
    if (answers.length < 2)
      throw new DataError(
        "the row has one answer, that is good or bad: stages kto and bco learn from it; this one compares two.",
      );
    if (answers.every(({ judgement }) => judgement === "bad")) return { leftOut: "with two bad answers" };
    const { prompt, answers: both } = tokenized;
    const [chosen, rejected] = both as [Int32Array, Int32Array];
    if (sameIds(chosen, rejected)) return { leftOut: "whose answers are equal where the cut leaves them" };
    const tokens = prompt.length + chosen.length + rejected.length;
    return { rows: [{ where, tokens, prompt, chosen, rejected, ...(margin !== undefined && { margin }) }] };
  });
}

/** Answers that are good or bad each by itself; a pair is two of them. Throws and tells as `readPairs`. */
export async function readUnpaired(
  dataset: readonly string[],
  source: PreferenceSource,
  truncation: Truncation,
): Promise<UnpairedRow[]> {
  return readWith(dataset, source, truncation, ({ answers, where }, { prompt, answers: ids }) => ({
    rows: answers.map(({ judgement }, i) => ({
      where,
      tokens: prompt.length + ids[i]!.length,
      prompt,
      answer: ids[i]!,
      isGood: judgement === "good" || judgement === "chosen",
    })),
  }));
}

/** A prompt and its answers as token ids, cut. */
interface Tokenized {
  readonly prompt: Int32Array;
  readonly answers: readonly Int32Array[];
}

type Made<R> = { readonly rows: readonly R[] } | { readonly leftOut: string };

async function readWith<R extends Row>(
  dataset: readonly string[],
  { files, tokenize: { cutoffLen, withoutThoughts = false, onBadRow = "error" }, chat, warn }: PreferenceSource,
  truncation: Truncation,
  make: (row: Preference, tokenized: Tokenized) => Made<R>,
): Promise<R[]> {
  const { rows, notices } = await loadRows({ dataset, ...files }, preferences);
  for (const message of notices) warn(message);
  const leftOut = new LeftOut();
  const remarks = new Map<string, number>();
  let [cut, longest, withoutEnd] = [0, 0, 0];
  const tokenized = await tokenizeRows(rows, onBadRow, (row): readonly R[] => {
    if (row.leftOut !== undefined) {
      leftOut.add(row.leftOut, row.where);
      return [];
    }
    const whole = tokenizeAnswers(chat(), row.answers, withoutThoughts);
    for (const remark of whole.remarks) remarks.set(remark, (remarks.get(remark) ?? 0) + 1);
    if (!whole.endsTurn) withoutEnd++;
    const most = whole.prompt.length + Math.max(...whole.answers.map(({ length }) => length));
    longest = Math.max(longest, most);
    const kept = cutFamily(whole, cutoffLen, truncation);
    if (most > cutoffLen) cut++;
    const made: Made<R> = kept.answers.some(({ length }) => length === 0)
      ? { leftOut: `of which ${truncation} at cutoff_len = ${cutoffLen} leaves no token of an answer` }
      : make(row, kept);
    if ("rows" in made) return made.rows;
    leftOut.add(made.leftOut, row.where);
    return [];
  });
  for (const message of tokenized.notices) warn(message);
  for (const [remark, count] of remarks) warn(`In ${count} of ${rows.length} rows ${remark}`);
  if (cut > 0)
    warn(
      `${cut} of ${rows.length} rows are longer than cutoff_len = ${cutoffLen} and are cut (the longest has ${longest} tokens), as truncation: ${truncation} says.`,
    );
  if (withoutEnd > 0)
    warn(
      `In ${withoutEnd} of ${rows.length} rows an answer has no end-of-turn token: a model trained on them does not learn to stop. Check \`template:\`.`,
    );
  const told = leftOut.notice(rows.length);
  if (tokenized.examples.length === 0) throw new DataError(`No row is left to train on. ${told ?? "The data set has no rows."}`);
  if (told !== null) warn(told);
  return tokenized.examples;
}

/** Rows from which nothing can be learned, by reason. */
class LeftOut {
  readonly #places = new Map<string, string[]>();

  add(reason: string, where: string): void {
    const places = this.#places.get(reason);
    if (places === undefined) this.#places.set(reason, [where]);
    else places.push(where);
  }

  notice(rows: number): string | null {
    if (this.#places.size === 0) return null;
    const count = [...this.#places.values()].reduce((sum, { length }) => sum + length, 0);
    const reasons = [...this.#places].map(([reason, places]) => {
      const more = places.length > mostListed ? `, … and ${places.length - mostListed} more` : "";
      return `${places.length} ${reason} (${places.slice(0, mostListed).join(", ")}${more})`;
    });
    return `${count} of ${rows} rows are left out, as nothing can be learned from them: ${reasons.join("; ")}.`;
  }
}

const mostListed = 20; // places in a notice, for each reason

/** What rows without a preference come to, for who reads rows but does not tokenize them; null if there are none. */
export function notPreferred(rows: readonly Preference[]): string | null {
  const leftOut = new LeftOut();
  for (const { leftOut: reason, where } of rows) if (reason !== undefined) leftOut.add(reason, where);
  return leftOut.notice(rows.length);
}

/**
 * The prompt, and each answer up to the token that ends its turn. Every token belongs to one of them: where a tokenizer joins the end of the prompt with
 * the beginning of an answer, the prompt ends before that token, for all answers alike. (TRL 1.16 gives the rest of such a prompt to neither.)
 */
function tokenizeAnswers(
  chat: ChatFormat,
  dialogues: readonly JudgedAnswer[],
  withoutThoughts: boolean,
): Tokenized & { remarks: ReadonlySet<string>; endsTurn: boolean } {
  const rendered = dialogues.map((dialogue) => {
    const said: Dialogue = withoutThoughts ? silenced(dialogue) : dialogue;
    const { ids, supervised, endsTurn, remarks } = renderConversation(chat, said, { maskHistory: true });
    const told = said === dialogue ? remarks : [...remarks, leftOutThoughts];
    return { ids, begin: supervised.indexOf(1), end: supervised.lastIndexOf(1) + 1, endsTurn, remarks: told };
  });
  const [first] = rendered;
  let begin = Math.min(...rendered.map((row) => row.begin));
  for (let t = 0; t < begin; t++) if (rendered.some(({ ids }) => ids[t] !== first!.ids[t])) begin = t;
  if (begin === 0) throw new DataError("there is nothing before the answer.");
  return {
    prompt: first!.ids.slice(0, begin),
    answers: rendered.map(({ ids, end }) => ids.slice(begin, end)),
    remarks: new Set(rendered.flatMap(({ remarks }) => remarks)),
    endsTurn: rendered.every(({ endsTurn }) => endsTurn),
  };
}

/** The first tokens of the prompt and of each answer, at most `cutoffLen` of both together; of an answer it may leave none. */
export function cutFamily<F extends Tokenized>({ prompt, answers }: F, cutoffLen: number, truncation: Truncation): Tokenized {
  const longest = Math.max(...answers.map(({ length }) => length));
  const kept = cutLengths(prompt.length, longest, cutoffLen, truncation);
  return {
    prompt: prompt.subarray(0, kept.prompt),
    answers: answers.map((answer) => answer.subarray(0, kept.answer)),
  };
}

/** How many tokens of a prompt and an answer are kept: `truncations` says how. */
export function cutLengths(
  prompt: number,
  answer: number,
  cutoffLen: number,
  truncation: Truncation,
): { prompt: number; answer: number } {
  if (truncation === "keep_start") {
    const kept = Math.min(prompt, cutoffLen);
    return { prompt: kept, answer: Math.min(answer, cutoffLen - kept) };
  }
  let mostAnswer: number;
  if (2 * answer < cutoffLen) mostAnswer = cutoffLen;
  else if (2 * prompt < cutoffLen) mostAnswer = cutoffLen - prompt;
  else mostAnswer = Math.floor(cutoffLen * (answer / (prompt + answer)));
  const kept = Math.min(mostAnswer, answer);
  return { prompt: Math.min(prompt, cutoffLen - kept), answer: kept };
}

function sameIds(a: Int32Array, b: Int32Array): boolean {
  return a.length === b.length && a.every((id, i) => id === b[i]);
}
