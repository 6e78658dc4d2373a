import { DataError, ModelError } from "../errors.js";
import { type ChatTemplate, chatTimeLimitMs, type Dialogue, type Message } from "./chat-template.js";
import type { Piece, Tokenizer } from "./tokenizer.js";
import { withTimeLimit } from "./work-limit.js";

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
}

export interface SupervisionOptions {
  /** Every token is a label, the prompt's too. */
  readonly trainOnPrompt?: boolean;
  /** Only the last assistant turn is a label. */
  readonly maskHistory?: boolean;
}

/**
 * A conversation as token ids, with the assistant's turns as labels: from where the generation prompt ends up to the token that
 * ends the turn, that one included.
 *
 * Ids are those of transformers' apply_chat_template(tokenize=True), with two differences. Text that looks like a control token
 * inside a message stays plain text. And a token never reaches across the beginning of an assistant turn, as it cannot when the
 * model generates: the ids up to a turn are exactly what `renderPrompt` gives for the messages before it.
 *
 * Throws DataError when there is nothing to supervise, or when the template rewrites the assistant's words so that they cannot be
 * found in its output; ModelError when the template refuses the messages.
 */
export function renderConversation(
  chat: ChatFormat,
  { messages }: Dialogue,
  { trainOnPrompt = false, maskHistory = false }: SupervisionOptions = {},
): RenderedConversation {
  const answers = messages.filter(({ role }) => role === "assistant");
  if (answers.length === 0) throw new DataError("there is no assistant message, so there is nothing to learn from.");
  if ((maskHistory ? answers.slice(-1) : answers).every(({ content }) => content.trim() === ""))
    throw new DataError("the assistant says nothing, so there is nothing to learn from.");
  const { ids, turns, endsTurn } = layOut(chat, messages, false);

  const supervised = new Uint8Array(ids.length);
  if (trainOnPrompt) supervised.fill(1, 1);
  else for (const [from, to] of maskHistory ? turns.slice(-1) : turns) supervised.fill(1, Math.max(1, from), to);
  if (!supervised.includes(1)) throw new DataError("the chat template leaves out what the assistant says.");
  return { ids, supervised, endsTurn };
}

/** The token ids after which the assistant answers. */
export function renderPrompt(chat: ChatFormat, { messages }: Dialogue): Int32Array {
  return layOut(chat, messages, true).ids;
}

interface Layout {
  readonly ids: Int32Array;
  /** Ranges of `ids`, one for each assistant message in order. */
  readonly turns: readonly (readonly [from: number, to: number])[];
  readonly endsTurn: boolean;
}

/** One time limit for all renderings and encodings of a chat, in place of one for each. */
function layOut(chat: ChatFormat, messages: readonly Message[], addGenerationPrompt: boolean): Layout {
  const limitMs = chatTimeLimitMs(messages);
  return withTimeLimit(
    limitMs,
    () => layOutUnlimited(chat, messages, addGenerationPrompt),
    () =>
      new ModelError(
        `${chat.template.origin}: a chat took over ${Math.round(limitMs)} ms; the chat template or the tokenizer never ends.`,
      ),
  );
}

function layOutUnlimited(
  { tokenizer, template }: ChatFormat,
  messages: readonly Message[],
  addGenerationPrompt: boolean,
): Layout {
  const shield = new Shield(tokenizer);
  const safe = messages.map(({ role, content }) => ({ role, content: shield.hide(content) }));
  const text = template.render(safe, { addGenerationPrompt });
  const pieces = tokenizer.split(text);
  const rendering: Rendering = { template, messages: safe, addGenerationPrompt, text };
  const spans = assistantSpans(rendering).map((span) => cutAfterEnd(span, text, pieces, tokenizer));

  const cuts = new Set(spans.flat());
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
  const indexOf = (at: number) => indexAt.get(starts.find((start) => start >= at) ?? text.length) ?? ids.length;
  const turns = spans.map(([from, to]) => [indexOf(from) - doubled, indexOf(to) - doubled] as const);
  const lastEnd = spans.length === 0 ? 0 : indexOf(spans.at(-1)![1]);
  return { ids: Int32Array.from(ids.slice(doubled)), turns, endsTurn: tokenizer.stopIds.has(ids[lastEnd - 1] ?? -1) };
}

/** Encodes a stretch without control tokens, so that no token reaches across a cut. */
function encodePlain(
  tokenizer: Tokenizer,
  shield: Shield,
  { text, start }: Piece,
  cuts: ReadonlySet<number>,
  ids: number[],
  indexAt: Map<number, number>,
): void {
  const inside = [...cuts].filter((cut) => cut > start && cut < start + text.length).sort((a, b) => a - b);
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

type Span = readonly [from: number, to: number];

interface Rendering {
  readonly template: ChatTemplate;
  readonly messages: readonly Message[];
  readonly addGenerationPrompt: boolean;
  readonly text: string;
}

/** Where the assistant's turns lie in the rendered text, one for each assistant message. */
function assistantSpans(rendering: Rendering): Span[] {
  return rendering.messages.flatMap(({ role }, index) => {
    if (role !== "assistant") return [];
    return [spanByPrefix(rendering, index) ?? spanByProbe(rendering, index)];
  });
}

/**
 * The turn as the text between two renderings: of the messages before it with the generation prompt, and of those up to it.
 * Undefined when the template writes a chat differently as it goes on (Qwen 3 drops old thoughts) or refuses a part of it.
 */
function spanByPrefix({ template, messages, addGenerationPrompt, text }: Rendering, index: number): Span | undefined {
  try {
    const before = template.render(messages.slice(0, index), { addGenerationPrompt: true });
    if (!text.startsWith(before)) return undefined;
    const isWhole = index === messages.length - 1 && !addGenerationPrompt;
    const upTo = isWhole ? text : template.render(messages.slice(0, index + 1), { addGenerationPrompt: false });
    return upTo.startsWith(before) && text.startsWith(upTo) ? [before.length, upTo.length] : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The turn as what changes when other words are put in its place, with the blanks that the template writes between the generation
 * prompt and them. Throws DataError when what changes is not the words of the message.
 */
function spanByProbe({ template, messages, addGenerationPrompt, text }: Rendering, index: number): Span {
  const { role, content } = messages[index]!;
  const words = content.trim();
  const unlike = (character: string | undefined) => (character === "x" ? "y" : "x");
  const probe = `${unlike(words.at(0))}probe${unlike(words.at(-1))}`;
  const probed = template.render(
    messages.map((message, i) => (i === index ? { role, content: probe } : message)),
    { addGenerationPrompt },
  );

  const shorter = Math.min(text.length, probed.length);
  let head = 0;
  while (head < shorter && text[head] === probed[head]) head++;
  let tail = 0;
  while (tail < shorter - head && text[text.length - 1 - tail] === probed[probed.length - 1 - tail]) tail++;

  const found = text.slice(head, text.length - tail);
  const isVerbatim = content.includes(found.trim()) && (found === "") === (words === "");
  if (!isVerbatim || probed.slice(head, probed.length - tail) !== probe)
    throw new DataError(
      `${template.origin}: this chat template rewrites what the assistant says (message ${index + 1}), so it is not known which tokens to learn. Set another with \`template:\`.`,
    );
  return [promptEnd(template, messages.slice(0, index), text, head), text.length - tail];
}

/**
 * Where the generation prompt ends: at `head` or before some of the blanks in front of it, wherever the text so far ends most like
 * the prompt that the template writes for the messages before.
 */
function promptEnd(template: ChatTemplate, before: readonly Message[], text: string, head: number): number {
  let prompt: string;
  try {
    prompt = template.render(before, { addGenerationPrompt: true });
  } catch {
    return head; // messages that the template takes only with the answer
  }
  let [best, mostShared] = [head, 0];
  for (let end = head; end > 0; end--) {
    let shared = 0;
    while (shared < Math.min(end, prompt.length) && text[end - 1 - shared] === prompt[prompt.length - 1 - shared]) shared++;
    if (shared > mostShared) [best, mostShared] = [end, shared];
    if (text[end - 1]!.trim() !== "") break;
  }
  return best;
}

/**
 * Ends a turn right after its first end-of-turn token: generation stops there, so what follows (ChatML's line break) is never
 * generated. Spans found by a probe stop before that token.
 */
function cutAfterEnd([from, to]: Span, text: string, pieces: readonly Piece[], tokenizer: Tokenizer): Span {
  const end = pieces.find(({ id, start }) => id !== undefined && start >= from && tokenizer.stopIds.has(id));
  if (end === undefined || text.slice(to, end.start).trim() !== "") return [from, to];
  return [from, end.start + end.text.length];
}

/**
 * Hides the control tokens that occur in a message from the template and the tokenizer, and shows them again as plain text. Each
 * becomes a number between two noncharacters, which Unicode reserves for inside programs; those are hidden in the same way.
 * Templates may trim and search messages: all other text stays as it is.
 */
class Shield {
  readonly #hidden: string[] = [];
  readonly #tokenizer: Tokenizer;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  hide(content: string): string {
    const escaped = content.replace(/[\uFDD0\uFDD1]/g, (mark) => this.#mark(mark));
    let safe = "";
    let from = 0;
    for (const { id, text, start } of this.#tokenizer.split(escaped)) {
      if (id === undefined) continue;
      safe += escaped.slice(from, start) + this.#mark(text);
      from = start + text.length;
    }
    return safe + escaped.slice(from);
  }

  show(text: string): string {
    return text.replace(/\uFDD0(\d+)\uFDD1/g, (_, index) => this.#hidden[Number(index)] ?? "");
  }

  #mark(text: string): string {
    return `\uFDD0${this.#hidden.push(text) - 1}\uFDD1`;
  }
}
