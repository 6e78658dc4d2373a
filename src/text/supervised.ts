import { DataError, ModelError } from "../errors.js";
import { type ChatTemplate, chatTimeLimitMs, type Dialogue, type Message } from "./chat-template.js";
import type { Piece, Tokenizer } from "./tokenizer/tokenizer.js";
import { indexFrom, type Span } from "./turns.js";
import { withTimeLimit } from "./work-limit.js";
import { type WrittenChat, writeChat } from "./written-chat.js";

/** What a chat needs to become token ids: training, chat, server and evaluation all use one of these and the functions below. */
export interface ChatFormat {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
}

export interface RenderedConversation {
  /** (T) token ids. */
  readonly ids: Int32Array;
  /** (T) 1 where the token is a label. */
  readonly supervised: Uint8Array;
  /** Whether the last supervised turn ends with a token at which generation stops; if not, the model cannot learn to stop. */
  readonly endsTurn: boolean;
  /** Sentences for the user: what of the chat the template leaves out or rewrites. The same sentence may come from many rows. */
  readonly remarks: readonly string[];
}

export interface SupervisionOptions {
  /** Every token is a label, the prompt's too. */
  readonly trainOnPrompt?: boolean;
  /** Only the last assistant turn is a label. */
  readonly maskHistory?: boolean;
}

/**
 * A conversation as token ids, with the assistant's turns as labels: from where the generation prompt ends up to the token that
 * ends the turn, that one included, thoughts and tool calls as much as words. Turns with `isLearned: false` are no labels.
 *
 * Ids are those of transformers' apply_chat_template(tokenize=True), with three differences. Text that looks like a control token
 * inside a chat stays plain text. A token never reaches across the beginning of an assistant turn, as it cannot when the
 * model generates: the ids up to a turn are exactly what `renderPrompt` gives for the messages before it. And thoughts of the last answer
 * stay where a template would cut them out.
 *
 * Throws DataError when there is nothing to supervise, when the template has no place for tools, calls or thoughts, or when it rewrites the
 * assistant's words so that they cannot be found in its output; ModelError when the template refuses the messages.
 */
export function renderConversation(
  chat: ChatFormat,
  dialogue: Dialogue,
  { trainOnPrompt = false, maskHistory = false }: SupervisionOptions = {},
): RenderedConversation {
  const { messages } = dialogue;
  const answers = messages.flatMap(({ role }, index) => (role === "assistant" ? [index] : []));
  if (answers.length === 0) throw new DataError("there is no assistant message, so there is nothing to learn from.");
  const learned = (maskHistory ? answers.slice(-1) : answers).filter((index) => messages[index]!.isLearned !== false);
  if (learned.length === 0) throw new DataError("no assistant message is to be learned, so there is nothing to learn from.");
  if (learned.every((index) => saysNothing(messages[index]!)))
    throw new DataError("the assistant says nothing, so there is nothing to learn from.");
  const { ids, turns, remarks } = layOut(chat, dialogue, { addGenerationPrompt: false, learned: new Set(learned) });

  const supervised = new Uint8Array(ids.length);
  if (trainOnPrompt) supervised.fill(1, 1);
  for (const [index, [from, to]] of turns)
    if (learned.includes(index)) supervised.fill(1, Math.max(1, from), to);
    else if (messages[index]!.isLearned === false) supervised.fill(0, from, to);
  if (!supervised.includes(1)) throw new DataError("the chat template leaves out what the assistant says.");
  const lastEnd = turns.get(learned.at(-1)!)?.[1] ?? 0;
  return { ids, supervised, endsTurn: chat.tokenizer.stopIds.has(ids[lastEnd - 1] ?? -1), remarks };
}

function saysNothing({ content, reasoning_content: thoughts = "", tool_calls: calls = [] }: Message): boolean {
  return content.trim() === "" && thoughts.trim() === "" && calls.length === 0;
}

/** The token ids after which the assistant answers. */
export function renderPrompt(chat: ChatFormat, dialogue: Dialogue): Int32Array {
  return layOut(chat, dialogue, { addGenerationPrompt: true, learned: new Set() }).ids;
}

interface LayoutOptions {
  readonly addGenerationPrompt: boolean;
  /** Indices of the messages that are to be learned. */
  readonly learned: ReadonlySet<number>;
}

interface Layout {
  readonly ids: Int32Array;
  /** For each assistant message, by its index, its range of `ids`. */
  readonly turns: ReadonlyMap<number, readonly [from: number, to: number]>;
  readonly remarks: readonly string[];
}

/** One time limit for all renderings and encodings of a chat, in place of one for each. */
function layOut(chat: ChatFormat, dialogue: Dialogue, options: LayoutOptions): Layout {
  const limitMs = chatTimeLimitMs(dialogue.messages);
  return withTimeLimit(
    limitMs,
    () => layOutUnlimited(chat, dialogue, options),
    () =>
      new ModelError(
        `${chat.template.origin}: a chat took over ${Math.round(limitMs)} ms; the chat template or the tokenizer never ends.`,
      ),
  );
}

function layOutUnlimited({ tokenizer, template }: ChatFormat, dialogue: Dialogue, options: LayoutOptions): Layout {
  const written = writeChat(template, tokenizer, dialogue, options);
  const { text, shield, pieces, turns: spans, remarks } = written;

  const cuts = [...new Set([...spans.values()].flat())].sort((a, b) => a - b);
  const ids: number[] = [];
  const indexAt = new Map<number, number>(); // position in the text → index in ids
  for (const piece of pieces) {
    indexAt.set(piece.start, ids.length);
    if (piece.id === undefined) encodePlain(tokenizer, shield, piece, cuts, ids, indexAt);
    else ids.push(piece.id);
    indexAt.set(piece.start + piece.text.length, ids.length);
  }
  // A template that writes the token, for a tokenizer that already had: never two.
  const doubled = tokenizer.bosId !== undefined && ids[0] === tokenizer.bosId && ids[1] === tokenizer.bosId ? 1 : 0;

  // Whitespace that a control token takes with it (rstrip) belongs to no piece: such a position is where the next piece begins.
  const starts = [...indexAt.keys()].sort((a, b) => a - b);
  const indexOf = (at: number) => indexAt.get(starts[indexFrom(starts, at)] ?? text.length) ?? ids.length;
  const turns = new Map<number, Span>();
  for (const [index, [from, to]] of spans) turns.set(index, [indexOf(from) - doubled, indexOf(to) - doubled]);
  return { ids: Int32Array.from(ids.slice(doubled)), turns, remarks };
}

/** Encodes a stretch without control tokens, so that no token reaches across a cut. */
function encodePlain(
  tokenizer: Tokenizer,
  shield: WrittenChat["shield"],
  { text, start }: Piece,
  cuts: readonly number[],
  ids: number[],
  indexAt: Map<number, number>,
): void {
  const inside = cuts.slice(indexFrom(cuts, start + 1), indexFrom(cuts, start + text.length));
  const encode = (from: number, to: number) =>
    tokenizer.encode(shield.show(text.slice(from - start, to - start)), { special: false, atStart: from === 0 });
  const end = start + text.length;

  if (!tokenizer.prefixesSpace) {
    let from = start;
    for (const cut of [...inside, end]) {
      for (const id of encode(from, cut)) ids.push(id);
      indexAt.set(cut, ids.length);
      from = cut;
    }
    return;
  }
  // A half encoded alone would get a space in front: the whole is encoded, and a cut lies where the first half's ids end.
  const whole = encode(start, end);
  for (const cut of inside) {
    const half = encode(start, cut);
    let shared = 0;
    while (shared < half.length && half[shared] === whole[shared]) shared++;
    indexAt.set(cut, ids.length + shared);
  }
  for (const id of whole) ids.push(id);
}
