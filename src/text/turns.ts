import { AttuneError, DataError } from "../errors.js";
import type { ChatTemplate, TemplateDialogue, TemplateMessage } from "./chat-template.js";
import type { Part, Place } from "./marked-chat.js";
import type { Piece } from "./tokenizer/tokenizer.js";

/** Positions in a text. */
export type Span = readonly [from: number, to: number];

/** A rendered chat with what is needed to find its turns. */
export interface Rendering {
  readonly template: ChatTemplate;
  readonly dialogue: TemplateDialogue;
  readonly addGenerationPrompt: boolean;
  /** Indices of the messages that are to be learned. */
  readonly learned: ReadonlySet<number>;
  readonly text: string;
  readonly pieces: readonly Piece[];
  readonly stopIds: ReadonlySet<number>;
  readonly parts: readonly Part[];
  /** Where the parts stand; undefined if that is not known. */
  readonly places: readonly Place[] | undefined;
}

export interface Turns {
  /** By the index of the message: from where the generation prompt ends, up to the token that ends the turn, that one included. */
  readonly turns: ReadonlyMap<number, Span>;
  readonly remarks: readonly string[];
}

/**
 * Finds the assistant's turns in a written chat. A turn is the text between two renderings: of the messages before it with the generation
 * prompt, and of those up to it. As each costs as much as the chat is long, that is done for one of the turns that look alike only: those with the
 * same text before and behind their words.
 *
 * Throws DataError for a turn to be learned that the template rewrites so that it cannot be found.
 */
export function findTurns(rendering: Rendering): Turns {
  const finder = new TurnFinder(rendering);
  const turns = new Map<number, Span>();
  for (const [index, { role }] of rendering.dialogue.messages.entries()) {
    if (role !== "assistant") continue;
    try {
      turns.set(index, finder.find(index));
    } catch (error) {
      if (rendering.learned.has(index) || !(error instanceof DataError)) throw error;
    }
  }
  return { turns, remarks: [...finder.remarks] };
}

/** Where the words of a message stand, and what stands around them up to those of other messages. */
interface Surroundings {
  readonly head: number;
  readonly tail: number;
  readonly before: number;
  readonly after: number;
}

/** How a turn lies around its words. */
interface Shape {
  /** From the first word back to where the turn begins. */
  readonly back: number;
  /** From the last word on to where it ends; undefined: at the first token that ends a generation. */
  readonly on: number | undefined;
}

class TurnFinder {
  readonly remarks = new Set<string>();
  readonly #rendering: Rendering;
  readonly #surroundings: ReadonlyMap<number, Surroundings>;
  readonly #shapes = new Map<string, Shape>();
  /** The tokens that end a generation, and where they begin. */
  readonly #stops: readonly Span[];
  readonly #stopStarts: readonly number[];

  constructor(rendering: Rendering) {
    this.#rendering = rendering;
    this.#surroundings = surroundingsOf(rendering);
    this.#stops = rendering.pieces.flatMap(({ id, start, text }): Span[] =>
      id !== undefined && rendering.stopIds.has(id) ? [[start, start + text.length]] : [],
    );
    this.#stopStarts = this.#stops.map(([start]) => start);
  }

  find(index: number): Span {
    const { text, dialogue } = this.#rendering;
    const around = this.#surroundings.get(index);
    if (around === undefined || index === dialogue.messages.length - 1) return this.#exactly(index);
    const { head, tail, before, after } = around;
    const stop = this.#stopIn(tail, after);
    const key = JSON.stringify([text.slice(before, head), stop === undefined ? text.slice(tail, after) : null]);
    const shape = this.#shapes.get(key);
    if (shape !== undefined && head - shape.back >= before) {
      const from = head - shape.back;
      if (shape.on !== undefined) return [from, tail + shape.on];
      const end = this.#stopIn(from, after);
      if (end !== undefined) return [from, end];
    }
    const [from, to] = this.#exactly(index);
    const isAtStop = stop !== undefined && to === this.#stopIn(from, after);
    if (isAtStop || stop === undefined) this.#shapes.set(key, { back: head - from, on: isAtStop ? undefined : to - tail });
    return [from, to];
  }

  /** The end of the first token between two positions that ends a generation. */
  #stopIn(from: number, to: number): number | undefined {
    const stop = this.#firstStop(from);
    return stop !== undefined && stop[1] <= to ? stop[1] : undefined;
  }

  #firstStop(from: number): Span | undefined {
    return this.#stops[indexFrom(this.#stopStarts, from)];
  }

  #exactly(index: number): Span {
    return this.#cut(this.#byPrefix(index) ?? this.#byPlaces(index) ?? this.#byProbe(index));
  }

  /**
   * Ends a turn right after its first end-of-turn token: generation stops there, so what follows (ChatML's line break) is never
   * generated. Spans that end with the words stop before that token.
   */
  #cut([from, to]: Span): Span {
    const stop = this.#firstStop(from);
    if (stop === undefined || this.#rendering.text.slice(to, stop[0]).trim() !== "") return [from, to];
    return [from, stop[1]];
  }

  #render(messages: readonly TemplateMessage[], addGenerationPrompt: boolean): string {
    const { template, dialogue } = this.#rendering;
    return template.render({ ...dialogue, messages }, { addGenerationPrompt });
  }

  /**
   * The turn as the text between two renderings: of the messages before it with the generation prompt, and of those up to it.
   * Undefined when the template writes a chat differently as it goes on (Qwen 3 drops old thoughts) or refuses a part of it.
   */
  #byPrefix(index: number): Span | undefined {
    const { text, dialogue } = this.#rendering;
    const { messages } = dialogue;
    return withoutError(() => {
      const before = this.#render(messages.slice(0, index), true);
      if (!text.startsWith(before)) {
        if (index === messages.length - 1 && before.trimEnd().endsWith("<think>") && !text.trimEnd().endsWith("<think>"))
          this.remarks.add(
            "the last answer has no thoughts, while the chat template's generation prompt opens them with <think>.",
          );
        return undefined;
      }
      const isWhole = index === messages.length - 1 && !this.#rendering.addGenerationPrompt;
      const upTo = isWhole ? text : this.#render(messages.slice(0, index + 1), false);
      return upTo.startsWith(before) && text.startsWith(upTo) ? ([before.length, upTo.length] as const) : undefined;
    });
  }

  /** The turn as its words, with what the template writes between the generation prompt and them. */
  #byPlaces(index: number): Span | undefined {
    const { places, parts, text } = this.#rendering;
    const around = this.#surroundings.get(index);
    if (around === undefined) return undefined;
    const isAltered = ({ part, from, to }: Place) =>
      parts[part]!.message === index && parts[part]!.kind !== "call" && text.slice(from, to) !== parts[part]!.text;
    if (places?.some(isAltered)) throw this.#rewritten(index);
    return [this.#promptEnd(index, around.before, around.head), this.#endOfWords(index, around)];
  }

  /**
   * Calls end with what the template closes them with, which is nobody's words: with the token that ends the turn, before anything else is said, or
   * where the chat goes on otherwise than it would end.
   */
  #endOfWords(index: number, { tail, after }: Surroundings): number {
    const { places = [], parts, text, dialogue } = this.#rendering;
    const isCall = places.some(({ part, to }) => to === tail && parts[part]!.message === index && parts[part]!.kind === "call");
    if (!isCall) return tail;
    const stop = this.#stopIn(tail, after);
    if (stop !== undefined) return stop;
    const upTo = withoutError(() => this.#render(dialogue.messages.slice(0, index + 1), false)) ?? "";
    let end = 0;
    while (end < after && text[end] === upTo[end]) end++;
    if (end < tail) throw this.#rewritten(index);
    return end;
  }

  /**
   * The turn as what changes when other words are put in its place, with the blanks that the template writes between the generation
   * prompt and them. Throws DataError when what changes is not the words of the message.
   */
  #byProbe(index: number): Span {
    const { text, dialogue } = this.#rendering;
    const { messages } = dialogue;
    const content = messages[index]!.content ?? "";
    const words = content.trim();
    const unlike = (character: string | undefined) => (character === "x" ? "y" : "x");
    const probe = `${unlike(words.at(0))}probe${unlike(words.at(-1))}`;
    const probed = this.#render(
      messages.map((message, i) => (i === index ? { ...message, content: probe } : message)),
      this.#rendering.addGenerationPrompt,
    );

    const shorter = Math.min(text.length, probed.length);
    let head = 0;
    while (head < shorter && text[head] === probed[head]) head++;
    let tail = 0;
    while (tail < shorter - head && text[text.length - 1 - tail] === probed[probed.length - 1 - tail]) tail++;

    const found = text.slice(head, text.length - tail);
    const isVerbatim = content.includes(found.trim()) && (found === "") === (words === "");
    if (!isVerbatim || probed.slice(head, probed.length - tail) !== probe) throw this.#rewritten(index);
    return [this.#promptEnd(index, head - (/\s*$/.exec(text.slice(0, head))?.[0].length ?? 0), head), text.length - tail];
  }

  /**
   * Where the generation prompt ends, between `from` and `head`: wherever the text so far ends most like the prompt that the template writes
   * for the messages before; or where the text leaves the prompt, before the bracket that both may open next.
   */
  #promptEnd(index: number, from: number, head: number): number {
    const { text, dialogue } = this.#rendering;
    const prompt = withoutError(() => this.#render(dialogue.messages.slice(0, index), true));
    if (prompt === undefined) return head; // messages that the template takes only with the answer
    let [best, mostShared] = [head, 0];
    for (let end = head; end >= from; end--) {
      let shared = 0;
      while (shared < Math.min(end, prompt.length) && text[end - 1 - shared] === prompt[prompt.length - 1 - shared]) shared++;
      if (shared > mostShared) [best, mostShared] = [end, shared];
    }
    if (mostShared > 0) return best;
    let common = 0;
    while (common < head && text[common] === prompt[common]) common++;
    while ("<[{".includes(text[common - 1] ?? " ")) common--;
    return common < from ? head : common;
  }

  #rewritten(index: number): DataError {
    return new DataError(
      `${this.#rendering.template.origin}: this chat template rewrites what the assistant says (message ${index + 1}), so it is not known which tokens to learn. Set another with \`template:\`.`,
    );
  }
}

function surroundingsOf({ places = [], parts, text }: Rendering): Map<number, Surroundings> {
  const byMessage = new Map<number, { head: number; tail: number }>();
  for (const { part, from, to } of places) {
    const { message } = parts[part]!;
    if (message === undefined) continue;
    const known = byMessage.get(message);
    byMessage.set(message, { head: Math.min(known?.head ?? from, from), tail: Math.max(known?.tail ?? to, to) });
  }
  const heads = places.map(({ from }) => from).sort((a, b) => a - b);
  const tails = places.map(({ to }) => to).sort((a, b) => a - b);
  const surroundings = new Map<number, Surroundings>();
  for (const [message, { head, tail }] of byMessage) {
    const before = tails[indexFrom(tails, head + 1) - 1] ?? 0;
    const after = heads[indexFrom(heads, tail)] ?? text.length;
    surroundings.set(message, { head, tail, before, after });
  }
  return surroundings;
}

/** The index of the first of ascending numbers that is at least `from`. */
export function indexFrom(numbers: readonly number[], from: number): number {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle]! < from) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function withoutError<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (error instanceof AttuneError) return undefined;
    throw error;
  }
}
