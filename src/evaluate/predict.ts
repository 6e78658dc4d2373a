import type { Decoding } from "../generate/decode-on-shapes.js";
import { decodeAll, type Request } from "../generate/decoder.js";
import type { SamplingOptions } from "../generate/sampling.js";
import type { Question } from "../objectives/objective.js";
import type { Tokenizer } from "../text/tokenizer/tokenizer.js";
import type { SharedBase } from "../tuners/shared-base.js";

export interface PredictOptions {
  readonly maxNewTokens: number;
  readonly sampling: SamplingOptions;
  /** Of the first answer; each next one has the next number. */
  readonly seed: number;
  readonly signal: AbortSignal;
  /** Called with how many answers are there. */
  readonly onProgress?: (answers: number) => void;
}

/** A line of generated_predictions.jsonl: the prompt as the model sees it, what it answers, and what it should. */
export interface Prediction {
  readonly prompt: string;
  readonly predict: string;
  readonly label: string;
}

/** What `predict` decodes at once, of the longest questions. */
export function predictionsAtOnce(questions: readonly Question[], maxNewTokens: number): Decoding {
  const prompts = questions.map(({ prompt }) => prompt).sort((a, b) => b.length - a.length);
  return { prompts: prompts.slice(0, slots), count: 1, maxNewTokens, slots };
}

/** Answers that are decoded at once, and between two looks at the signal. */
const slots = 16;
const group = 4 * slots;

/**
 * The answers to questions by what sits on a base under a name, or by the base alone (null). Null if `signal` ended it. Throws ConfigError if a prompt
 * leaves no room for an answer.
 */
export async function predict(
  base: SharedBase,
  name: string | null,
  tokenizer: Tokenizer,
  questions: readonly Question[],
  { maxNewTokens, sampling, seed, signal, onProgress }: PredictOptions,
): Promise<Prediction[] | null> {
  const predictions: Prediction[] = [];
  for (let start = 0; start < questions.length; start += group) {
    if (signal.aborted) return null;
    const part = questions.slice(start, start + group);
    const requests = part.map(
      ({ prompt }, i): Request => ({
        ...{ prompt, adapter: name, maxNewTokens, sampling, seed: seed + start + i },
        stopIds: tokenizer.stopIds,
      }),
    );
    const answers = await decodeAll(base, requests, slots);
    for (const [i, { prompt, label }] of part.entries())
      predictions.push({
        prompt: tokenizer.decode(prompt, { special: true }),
        predict: tokenizer.decode(answers[i]!.ids),
        label: tokenizer.decode(label.filter((id) => !tokenizer.stopIds.has(id))),
      });
    onProgress?.(predictions.length);
  }
  return predictions;
}
