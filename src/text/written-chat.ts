import { DataError } from "../errors.js";
import type { ChatTemplate, Dialogue, TemplateDialogue, TemplateMessage, ToolCall } from "./chat-template.js";
import { jsonOf } from "./jinja/json.js";
import { markChat, type Part, type Place, readMarks } from "./marked-chat.js";
import { Shield } from "./shield.js";
import type { Piece, Tokenizer } from "./tokenizer/tokenizer.js";
import { findTurns, type Span, withoutError } from "./turns.js";

export interface WritingOptions {
  readonly addGenerationPrompt: boolean;
  /** Indices of the messages that are to be learned. */
  readonly learned: ReadonlySet<number>;
}

/** A chat as its template writes it. */
export interface WrittenChat {
  readonly text: string;
  /** Shows what stands hidden in `text`. */
  readonly shield: Shield;
  /** `text`, cut at its control tokens. */
  readonly pieces: readonly Piece[];
  /** Where the assistant's turns lie in `text`, by the index of the message. */
  readonly turns: ReadonlyMap<number, Span>;
  readonly remarks: readonly string[];
}

/**
 * Writes a chat and finds the assistant's turns in it. What a chat says is not lost on the way: where a template leaves out tool calls or the
 * thoughts of the last answer, forms that it may know them in are tried. Throws DataError when none helps.
 */
export function writeChat(template: ChatTemplate, tokenizer: Tokenizer, chat: Dialogue, options: WritingOptions): WrittenChat {
  const shield = new Shield(tokenizer);
  const safe = shield.hideAll(chat);
  const draft = bestDraft(template, shield, safe, options);
  const pieces = tokenizer.split(draft.text);
  const { turns, remarks } = findTurns({ ...draft, pieces, stopIds: tokenizer.stopIds, ...options });
  return { text: draft.text, shield, pieces, turns, remarks: [...draft.remarks(options), ...remarks] };
}

/** A chat in one of the forms that a template may know, and what came of it. */
class Draft {
  readonly template: ChatTemplate;
  readonly dialogue: TemplateDialogue;
  readonly text: string;
  readonly parts: readonly Part[];
  /** Where the parts stand; undefined if the marks disturb the template. */
  readonly places: readonly Place[] | undefined;
  readonly #lost: readonly Part[];
  readonly #notes: readonly string[];

  constructor(
    template: ChatTemplate,
    shield: Shield,
    dialogue: TemplateDialogue,
    addGenerationPrompt: boolean,
    notes: readonly string[],
  ) {
    this.template = template;
    this.dialogue = dialogue;
    this.#notes = notes;
    const render = (shown: TemplateDialogue) => shield.showTags(template.render(shown, { addGenerationPrompt }));
    this.text = render(dialogue);
    const marked = markChat(dialogue);
    this.parts = marked.parts;
    const read = withoutError(() => readMarks(render(marked.dialogue)));
    this.places = read?.text === this.text ? read.places : undefined;
    const found = new Set(this.places?.map(({ part }) => part));
    const isThere = (text: string) => this.text.includes(text) || this.text.includes(JSON.stringify(text).slice(1, -1));
    this.#lost = this.parts.filter(({ text, isUnmarked }, part) =>
      this.places === undefined || isUnmarked ? !isThere(text) : !found.has(part),
    );
  }

  get lostCalls(): Part[] {
    return this.#lost.filter(({ kind }) => kind === "call");
  }

  /** The thoughts before the last answer, where it is to be learned. */
  lostThoughts({ addGenerationPrompt, learned }: WritingOptions): Part[] {
    const last = this.dialogue.messages.length - 1;
    if (addGenerationPrompt || !learned.has(last)) return [];
    return this.#lost.filter(({ kind, message }) => kind === "thoughts" && message === last);
  }

  /** Throws DataError if something is lost that has to be there. */
  check(options: WritingOptions): void {
    const { origin } = this.template;
    const [call] = this.lostCalls;
    if (call !== undefined)
      throw new DataError(
        `${origin}: the chat template has no place for tool calls (message ${call.message! + 1}). ${toolFormatAdvice}`,
      );
    const tools = this.#lost.filter(({ kind }) => kind === "tool");
    if (tools.length > 0)
      throw new DataError(
        `${origin}: the chat template has no place for the tools that are offered (${tools.map(({ text }) => text).join(", ")}). ${toolFormatAdvice}`,
      );
    if (this.lostThoughts(options).length > 0)
      throw new DataError(
        `${origin}: the chat template leaves out the thoughts of the last answer. Write them into the answer, or set a \`template:\` that has a place for them, such as qwen3.`,
      );
    for (const index of options.learned) {
      const parts = this.parts.filter(({ message }) => message === index);
      if (parts.length > 0 && parts.every((part) => this.#lost.includes(part)))
        throw new DataError(`${origin}: the chat template leaves out what the assistant says (message ${index + 1}).`);
    }
  }

  remarks({ learned }: WritingOptions): string[] {
    const remarks = new Set(this.#notes);
    for (const { message, kind } of this.#lost) {
      if (message === undefined) continue;
      const { role, tool_calls: calls } = this.dialogue.messages[message]!;
      if (kind === "thoughts") remarks.add("the chat template leaves out the thoughts of earlier answers.");
      else if (role === "assistant" && calls !== undefined)
        remarks.add("the chat template leaves out what the assistant says beside tool calls.");
      else if (role === "assistant" && !learned.has(message))
        remarks.add("the chat template leaves out answers that are not learned.");
      else remarks.add(`the chat template leaves out what the ${role} says.`);
    }
    return [...remarks];
  }
}

const toolFormatAdvice =
  "Set `tool_format:` (default, qwen, llama3 or mistral) to write them as LLaMA-Factory does, or another `template:`.";

function bestDraft(template: ChatTemplate, shield: Shield, dialogue: TemplateDialogue, options: WritingOptions): Draft {
  const draftOf = (form: TemplateDialogue, notes: readonly string[] = []) =>
    new Draft(template, shield, form, options.addGenerationPrompt, notes);
  const firstGood = (forms: Iterable<TemplateDialogue>, isGood: (draft: Draft) => boolean, notes: readonly string[] = []) => {
    for (const form of forms) {
      const draft = withoutError(() => draftOf(form, notes));
      if (draft !== undefined && isGood(draft)) return draft;
    }
    return undefined;
  };

  let refusal: unknown;
  let draft: Draft | undefined;
  try {
    draft = draftOf(dialogue);
  } catch (error) {
    refusal = error;
  }
  if (draft === undefined || draft.lostCalls.length > 0)
    draft = firstGood(callForms(dialogue), ({ lostCalls }) => lostCalls.length === 0) ?? draft;
  if (draft === undefined) throw refusal;
  if (draft.lostThoughts(options).length > 0)
    draft =
      firstGood(thoughtfulForms(draft.dialogue, template, shield), (form) => form.lostThoughts(options).length === 0, [
        "the chat template cuts the thoughts out of the last answer; they are kept, as they are to be learned.",
      ]) ?? draft;
  draft.check(options);
  return draft;
}

/** Some templates write tool calls only where the content is null, or only where there is none; some only with arguments that are JSON already. */
function* callForms({ messages, ...rest }: TemplateDialogue): Iterable<TemplateDialogue> {
  const isSilent = ({ tool_calls: calls, content }: TemplateMessage) => calls !== undefined && content?.trim() === "";
  const asGiven = (message: TemplateMessage): TemplateMessage => message;
  const without = ({ content, ...message }: TemplateMessage): TemplateMessage => message;
  const withNull = (message: TemplateMessage): TemplateMessage => ({ ...message, content: null });
  const contents = messages.some(isSilent) ? [asGiven, without, withNull] : [asGiven];
  for (const writeCalls of [asGiven, withArgumentsAsText])
    for (const change of contents) {
      if (change === asGiven && writeCalls === asGiven) continue;
      yield { ...rest, messages: messages.map((message) => writeCalls(isSilent(message) ? change(message) : message)) };
    }
}

function withArgumentsAsText(message: TemplateMessage): TemplateMessage {
  if (message.tool_calls === undefined) return message;
  const asText = ({ function: called, ...call }: ToolCall) => ({
    ...call,
    function: { ...called, arguments: jsonOf(called.arguments) as unknown as typeof called.arguments },
  });
  return { ...message, tool_calls: message.tool_calls.map(asText) };
}

/** Thoughts as a part of the content, for templates that know their tags there; and with tags that the template does not see. */
function* thoughtfulForms(
  { messages, ...rest }: TemplateDialogue,
  template: ChatTemplate,
  shield: Shield,
): Iterable<TemplateDialogue> {
  const { reasoning_content: thoughts, ...last } = messages.at(-1)!;
  if (thoughts !== undefined && !template.source.includes("</think>")) return;
  const content = thoughts === undefined ? last.content! : `<think>\n${thoughts}\n</think>\n\n${last.content ?? ""}`;
  const withLast = (text: string): TemplateDialogue => ({
    ...rest,
    messages: [...messages.slice(0, -1), { ...last, content: text }],
  });
  if (thoughts !== undefined) yield withLast(content);
  yield withLast(shield.hideTags(content));
}
