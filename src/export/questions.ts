import type { Example } from "../data/example.js";
import { Decoder } from "../generate/decoder.js";
import { greedy } from "../generate/sampling.js";
import type { CausalLM } from "../models/causal-lm.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import { SharedBase } from "../tuners/shared-base.js";

/** What a model is asked to go on with, and what a row of data says there. */
export interface Question {
  readonly prompt: Int32Array;
  /** The row's answer; null where the row is text without questions, so that nothing is right or wrong. */
  readonly answer: string | null;
  readonly newTokens: number;
}

/** An answer is compared up to here: a longer one is hardly ever given word for word. */
export const mostAnswerTokens = 96;
/** A model gets this many tokens more than the answer has: to see that it stops. */
const tokensBeyond = 8;
/** Of a text without questions: what is given of it, and how far the model goes on. */
const [textPrompt, textTokens] = [64, 32];

/** The last answer of each row as a question, of at most `count` rows spread evenly over all. */
export function questionsOf(rows: readonly Example[], tokenizer: Tokenizer, count: number): Question[] {
  return spread(rows, count).flatMap((row) => questionOf(row, tokenizer) ?? []);
}

/** At most `count` items, spread evenly. */
export function spread<T>(items: readonly T[], count: number): T[] {
  const step = Math.max(1, items.length / count);
  return Array.from({ length: Math.min(count, items.length) }, (_, i) => items[Math.floor(i * step)]!);
}

function questionOf({ ids, supervised }: Example, tokenizer: Tokenizer): Question | null {
  const end = supervised.subarray(0, ids.length).lastIndexOf(1) + 1;
  const start = supervised.subarray(0, end).lastIndexOf(0) + 1;
  if (start > 1) {
    const answer = ids.subarray(start, tokenizer.stopIds.has(ids[end - 1]!) ? end - 1 : end);
    if (answer.length === 0) return null;
    const text = tokenizer.decode(answer.subarray(0, mostAnswerTokens));
    const newTokens = Math.min(answer.length + tokensBeyond, mostAnswerTokens);
    return { prompt: ids.subarray(0, start), answer: text, newTokens };
  }
  const given = Math.min(textPrompt, Math.floor(ids.length / 2));
  return given === 0 ? null : { prompt: ids.subarray(0, given), answer: null, newTokens: textTokens };
}

/** Rows that are decoded at once. */
const slots = 16;

/** What a model says to each question, taking the likeliest token each time. `onAnswer` hears how many are done. */
export async function answersOf(
  model: CausalLM,
  questions: readonly Question[],
  tokenizer: Tokenizer,
  onAnswer: (done: number) => void = () => {},
): Promise<string[]> {
  if (questions.length === 0) return [];
  const decoder = new Decoder(new SharedBase(model), { slots: Math.min(slots, questions.length) });
  const requests = questions.map(({ prompt, newTokens }) => ({
    ...{ prompt, maxNewTokens: newTokens, stopIds: tokenizer.stopIds, sampling: greedy, seed: 0 },
  }));
  const answers = new Map(requests.map((request) => [request, [] as number[]]));
  try {
    let done = 0;
    for (const request of requests) decoder.add(request);
    while (!decoder.isIdle)
      for (const result of await decoder.step()) {
        if ("error" in result) throw result.error;
        if (!result.isStop) answers.get(result.request as (typeof requests)[number])!.push(result.id);
        if (result.finished !== null) onAnswer(++done);
      }
  } finally {
    decoder.dispose();
  }
  return requests.map((request) => tokenizer.decode(answers.get(request)!.slice(0, mostAnswerTokens)));
}

/** Whether an answer is the row's, word for word. */
export const isRight = ({ answer }: Question, said: string): boolean => answer !== null && said.trim() === answer.trim();
