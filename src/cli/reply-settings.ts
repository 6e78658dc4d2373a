import type { ReplyOptions } from "../generate/chat.js";
import type { Range } from "./options.js";

/** How answers are made: a number for each, under the names that recipes, and `/set` in a chat, have for them. */
export type ReplySettings = Readonly<Record<keyof typeof replyRanges, number>>;

export const replyRanges = {
  temperature: { from: 0 },
  top_p: { above: 0, to: 1 },
  top_k: { from: 0, whole: true },
  repetition_penalty: { above: 0 },
  max_new_tokens: { from: 1, whole: true },
  seed: { from: 0, whole: true },
} as const satisfies Readonly<Record<string, Range>>;

/** Always the likeliest token. */
export const defaultReply: ReplySettings = {
  temperature: 0,
  top_p: 1,
  top_k: 0,
  repetition_penalty: 1,
  max_new_tokens: 512,
  seed: 0,
};

/** What LLaMA-Factory's GeneratingArguments draw with where a recipe says nothing (hparams/generating_args.py); answers as long as ours. */
export const llamaFactoryReply: ReplySettings = { ...defaultReply, temperature: 0.95, top_p: 0.7, top_k: 50 };

export function replyOptionsOf(settings: ReplySettings): Required<Omit<ReplyOptions, "signal">> {
  const { temperature, seed } = settings;
  const { top_p: topP, top_k: topK, repetition_penalty: repetitionPenalty, max_new_tokens: maxNewTokens } = settings;
  return { temperature, topP, topK, repetitionPenalty, maxNewTokens, seed };
}
