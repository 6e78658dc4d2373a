import { ConfigError, DataError, ModelError } from "../errors.js";
import { type Drawing, drawnItem } from "../preference/label-items.js";
import type { LabelItem } from "../preference/label-store.js";
import type { Message } from "../text/chat-template.js";
import { ThoughtSplitter } from "../text/thoughts.js";
import type { Chat, ReplyEnd, ReplyOptions } from "./chat.js";

/** A prompt that is to be answered twice. */
export interface PairToDraw extends Drawing {
  readonly prompt: readonly Message[];
  /** Which adapters of the chat answer; null: the base. */
  readonly adapters: { readonly a: string | null; readonly b: string | null };
}

/** How pairs are drawn. */
export interface DrawOptions {
  /** How answers are drawn; the seeds are the pairs'. */
  readonly reply: Omit<ReplyOptions, "seed" | "signal">;
  readonly signal?: AbortSignal | undefined;
}

/** An item, and how many of its answers did not come to an end of themselves; or why a prompt cannot be answered: it may be too long. */
export type DrawnPair =
  | { readonly item: LabelItem; readonly cut: number }
  | { readonly prompt: readonly Message[]; readonly fault: string };

/** Prompts that are answered at once: with two answers each, half of what a chat decodes at once. */
const promptsAtOnce = 4;

/**
 * Two answers to each prompt, in their order, for somebody to say which is better: of two adapters on one base, or two samples of one model. Both sides'
 * answers are decoded together over the same base. Ends early, without a half pair, when `signal` aborts. A prompt that cannot be answered is told in its place;
 * throws what is wrong with more than a prompt: ClosedError, EngineError.
 */
export async function* drawPairs(
  chat: Pick<Chat, "reply" | "useAdapter" | "thoughts">,
  pairs: readonly PairToDraw[],
  { reply, signal }: DrawOptions,
): AsyncGenerator<DrawnPair> {
  const answer = (prompt: readonly Message[], adapter: string | null, seed: number) => {
    chat.useAdapter(adapter);
    const { thoughts } = chat;
    return collect(chat.reply(prompt, { ...reply, seed, signal }), thoughts);
  };
  const draw = async ({ prompt, adapters, models, sampling, seed }: PairToDraw): Promise<DrawnPair> => {
    const sides = [answer(prompt, adapters.a, seed.a), answer(prompt, adapters.b, seed.b)] as const;
    const [first, second] = await Promise.allSettled(sides);
    const failed = [first, second].find((side) => side.status === "rejected");
    if (failed?.status === "rejected") {
      const error: unknown = failed.reason;
      if (error instanceof ConfigError || error instanceof DataError || error instanceof ModelError)
        return { prompt, fault: error.message };
      throw error;
    }
    const [a, b] = await Promise.all(sides);
    const item = drawnItem(prompt, { a: [a.message], b: [b.message] }, { models, sampling, seed });
    return { item, cut: [a, b].filter(({ finished }) => finished !== "stop").length };
  };
  const underway: Promise<DrawnPair>[] = [];
  try {
    for (let next = 0; next < pairs.length || underway.length > 0; ) {
      while (next < pairs.length && underway.length < promptsAtOnce) {
        const drawing = draw(pairs[next++]!);
        drawing.catch(() => {}); // told when its turn comes
        underway.push(drawing);
      }
      const drawn = await underway.shift()!;
      if (signal?.aborted) return;
      yield drawn;
    }
  } finally {
    await Promise.allSettled(underway);
  }
}

/** A whole answer, with its thoughts apart where the chat template knows them. */
async function collect(
  pieces: AsyncGenerator<string, ReplyEnd>,
  known: Chat["thoughts"],
): Promise<{ message: Message; finished: ReplyEnd["finished"] }> {
  const said = { raw: "", thoughts: "", words: "" };
  const splitter = new ThoughtSplitter(known.areOpen);
  const take = (parts: ReturnType<ThoughtSplitter["push"]>) => {
    for (const { kind, text } of parts) said[kind] += text;
  };
  for (;;) {
    const next = await pieces.next();
    if (next.done === true) {
      take(splitter.end());
      const isApart = known.areKnown && said.thoughts !== "";
      const content = isApart ? said.words : said.raw;
      const thoughts = isApart ? { reasoning_content: said.thoughts.trim() } : {};
      return { message: { role: "assistant", content, ...thoughts }, finished: next.value.finished };
    }
    said.raw += next.value;
    take(splitter.push(next.value));
  }
}
