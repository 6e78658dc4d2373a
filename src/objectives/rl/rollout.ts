import type { Rng } from "../../core/rng.js";
import type { PromptRow } from "../../data/prompt-rows.js";
import { decodeAll, type Request } from "../../generate/decoder.js";
import { type Judge, rewardMetrics, sumOf } from "../../rewards/judge.js";
import type { Reward, RewardSample } from "../../rewards/reward.js";
import type { Tokenizer } from "../../text/tokenizer/tokenizer.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import type { Task, Total } from "../objective.js";
import type { SamplingSettings } from "./settings.js";

/** An answer that a policy gave, with what the rewards make of it. */
export interface Answer {
  /** Tokens, with the one that ended it. */
  readonly ids: Int32Array;
  /** In words, without what ended it. */
  readonly text: string;
  /** Whether it ended by itself; false if it was cut at the longest that is allowed. */
  readonly isFinished: boolean;
  /** Σ weight · score; null if no reward had anything to say. */
  readonly reward: number | null;
  /** What each reward said, in their order. */
  readonly scores: readonly (number | null)[];
  /** What those say from whom the policy does not learn. */
  readonly gold?: { readonly sum: number | null; readonly scores: readonly (number | null)[] };
}

/** A prompt and the answers to it. */
export interface Answered {
  readonly row: PromptRow;
  readonly answers: readonly Answer[];
}

export interface RolloutOptions extends SamplingSettings {
  readonly tokenizer: Tokenizer;
  readonly judge: Judge;
  /** Judges beside it. */
  readonly gold?: Judge | null;
  /** Answers to each prompt. */
  readonly count: number;
  /** Who answers: null for the base alone. */
  readonly policy: string | null;
  /** Seeds the answers. */
  readonly rng: Rng;
  readonly signal: AbortSignal;
}

/** Answers that are decoded at once. */
const slots = 32;

/** `Task.decodes` of a task that rolls out so many answers to each prompt. */
export function decodes(
  count: number,
  { max_new_tokens: maxNewTokens }: SamplingSettings,
): NonNullable<Task<PromptRow>["decodes"]> {
  return { promptOf: ({ prompt }) => prompt, count, maxNewTokens, slots };
}

/**
 * Lets the policy answer prompts, and the rewards judge it. Answers depend on weights, prompts and `rng` alone. The decoder lives no longer than this:
 * weights change before the next roll-out, so nothing it computed could be used again, and its cache would lie beside the update.
 * Throws the signal's reason, RewardError, and ConfigError for a prompt that leaves no room for an answer.
 */
export async function rollOut(base: SharedBase, rows: readonly PromptRow[], options: RolloutOptions): Promise<Answered[]> {
  const { tokenizer, count, rng, temperature, max_new_tokens: maxNewTokens, policy, judge, gold, signal } = options;
  const sampling = { temperature, topP: 1, topK: 0, repetitionPenalty: 1 };
  const requests = rows.flatMap(({ prompt }) =>
    Array.from({ length: count }, (): Request => {
      return { prompt, adapter: policy, maxNewTokens, stopIds: tokenizer.stopIds, sampling, seed: rng.uint32() };
    }),
  );
  const completions = await decodeAll(base, requests, slots, signal);
  const samples = completions.map(({ ids, stopId }, i): RewardSample => {
    const { prompt, messages, columns, where } = rows[Math.floor(i / count)]!;
    const answerIds = stopId === null ? ids : Int32Array.of(...ids, stopId);
    return { messages, answer: tokenizer.decode(ids), prompt, answerIds, isFinished: stopId !== null, columns, where };
  });
  const { scores, sums } = await judge.judge(samples, { base, signal });
  const ofGold = gold ? await gold.judge(samples, { base, signal }) : null;
  const answers = samples.map(({ answerIds, answer, isFinished }, i): Answer => {
    return {
      ids: answerIds,
      text: answer,
      isFinished,
      reward: sums[i]!,
      scores: scores.map((of) => of[i]!),
      ...(ofGold && { gold: { sum: ofGold.sums[i]!, scores: ofGold.scores.map((of) => of[i]!) } }),
    };
  });
  return rows.map((row, i) => ({ row, answers: answers.slice(i * count, (i + 1) * count) }));
}

/** What a roll-out tells of answers and rewards, under TRL's names. Lengths are in tokens. */
export function rolloutMetrics(answered: readonly Answered[], rewards: readonly Reward[]): Record<string, Total> {
  const all = answered.flatMap(({ answers }) => answers);
  const lengths = (answers: readonly Answer[], name: string): Record<string, Total> => {
    if (answers.length === 0) return {};
    const tokens = answers.map(({ ids }) => ids.length);
    const [least, most] = [Math.min(...tokens), Math.max(...tokens)];
    return {
      [`completions/mean_${name}`]: { sum: sumOf(tokens), count: tokens.length },
      [`completions/min_${name}`]: { sum: least, count: 1 },
      [`completions/max_${name}`]: { sum: most, count: 1 },
    };
  };
  const finished = all.filter(({ isFinished }) => isFinished);
  const scores = rewards.map((_, i) => all.map((answer) => answer.scores[i]!));
  return {
    ...rewardMetrics(rewards, { scores, sums: all.map(({ reward }) => reward) }),
    ...lengths(all, "length"),
    ...lengths(finished, "terminated_length"),
    "completions/clipped_ratio": { sum: all.length - finished.length, count: all.length },
  };
}
