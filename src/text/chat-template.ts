import { ModelError } from "../errors.js";
import { OverBudget, TemplateError, Work } from "./jinja/errors.js";
import { Refusal, raiseException, strftime } from "./jinja/globals.js";
import { renderTemplate } from "./jinja/interpreter.js";
import type { Statement } from "./jinja/nodes.js";
import { parseTemplate } from "./jinja/parser.js";
import { Callable, fromJson, type Value } from "./jinja/values.js";
import type { RoleTokens } from "./tokenizer/tokenizer.js";

/** One message of a chat. Roles are those that templates know: system, user, assistant, tool; keys have OpenAI's and transformers' names. */
export interface Message {
  readonly role: string;
  readonly content: string;
  /** What the assistant thought before it answered. */
  readonly reasoning_content?: string;
  /** What the assistant calls, beside or instead of text. */
  readonly tool_calls?: readonly ToolCall[];
  /** In a tool's message: the function, and the call that it answers. */
  readonly name?: string;
  readonly tool_call_id?: string;
  /** false: an assistant's turn that is read, but not learned. Templates do not see it. */
  readonly isLearned?: boolean;
}

/** A call of a function, in the form of OpenAI's API but for the arguments, which are an object here, as templates expect them. */
export interface ToolCall {
  readonly id?: string;
  readonly type: "function";
  readonly function: { readonly name: string; readonly arguments: Readonly<Record<string, unknown>> };
}

/** What a model may call: `{"type": "function", "function": {"name", "description", "parameters"}}`, as OpenAI's API has it. */
export type Tool = Readonly<Record<string, unknown>>;

/**
 * A message as a template may see it: some templates write tool calls only for a message whose content is null, others for one
 * without content.
 */
export type TemplateMessage = Omit<Message, "content"> & { readonly content?: string | null };

/** The messages in order, and the tools that the assistant could have called. */
export interface Dialogue {
  readonly messages: readonly Message[];
  readonly tools?: readonly Tool[];
}

export interface TemplateDialogue extends Omit<Dialogue, "messages"> {
  readonly messages: readonly TemplateMessage[];
}

const maxTemplateChars = 2 ** 20; // the longest in use, with tools and images, have about 20,000

/**
 * Limits for a template: steps of evaluation, and characters of any text that it makes. Templates in use take 50 to 500 steps a
 * message, and some take that again for each message before it.
 */
function budgetOf(dialogue: TemplateDialogue): { steps: number; chars: number } {
  const chars = charsIn(dialogue);
  const { length } = dialogue.messages;
  return { steps: 400_000 + 10_000 * length + 20 * length * length + 10 * chars, chars: 2 ** 20 + 4 * chars };
}

function charsIn(value: unknown): number {
  if (typeof value === "string") return value.length;
  if (typeof value !== "object" || value === null) return 1;
  return Object.entries(value).reduce((total: number, [key, item]) => total + key.length + charsIn(item), 0);
}

/** How long rendering and encoding a chat may take on a busy machine: regular expressions of a tokenizer may never end. */
export function chatTimeLimitMs(messages: readonly TemplateMessage[]): number {
  return 250 + 5 * messages.length + charsIn(messages) / 50;
}

/**
 * A chat template: Jinja, from the model or from the list of named ones, that turns messages into text.
 * Variables and settings as transformers offers them (utils/chat_template_utils.py, render_jinja_template), with no documents.
 * Templates come from strangers: they reach nothing but these values, and their work is counted.
 */
export class ChatTemplate {
  readonly source: string;
  /** Where the template comes from, as error messages name it. */
  readonly origin: string;
  readonly #body: readonly Statement[];
  readonly #roles: RoleTokens;
  readonly #now: Date;

  /**
   * `now` is what the template sees as today: some models put the date into their system message, so a run that is to be repeated
   * exactly has to pass the same. Throws ModelError when the template is not valid Jinja.
   */
  constructor(source: string, { roles, origin, now = new Date() }: { roles: RoleTokens; origin: string; now?: Date }) {
    this.source = source;
    this.origin = origin;
    this.#roles = roles;
    this.#now = now;
    if (source.length > maxTemplateChars)
      throw new ModelError(
        `${origin}: the chat template has ${source.length} characters, more than the ${maxTemplateChars} allowed.`,
      );
    try {
      this.#body = parseTemplate(source);
    } catch (error) {
      throw new ModelError(`${origin}: the chat template cannot be read: ${reasonOf(error)}`, { cause: error });
    }
  }

  /**
   * The chat as text; `addGenerationPrompt` ends it where the assistant's answer begins.
   * Throws ModelError with the template's own words when it refuses the messages, when it uses what attune does not know, and when it works
   * too long.
   */
  render(dialogue: TemplateDialogue, { addGenerationPrompt }: { addGenerationPrompt: boolean }): string {
    const work = new Work(budgetOf(dialogue));
    const { messages, tools } = dialogue;
    try {
      const variables: [string, Value][] = [
        ["raise_exception", new Callable("raise_exception", ([message = null]) => raiseException(message, work))],
        ["strftime_now", new Callable("strftime_now", ([pattern = null]) => strftime(this.#now, pattern, work))],
        ...Object.entries(this.#roles).map(([name, token]): [string, Value] => [name, fromJson(token)]),
        ["messages", messages.map((message) => fromJson(seenByTemplate(message)))],
        ["tools", fromJson(tools)],
        ["documents", null],
        ["add_generation_prompt", addGenerationPrompt],
      ];
      return renderTemplate(this.#body, variables, work);
    } catch (error) {
      if (error instanceof Refusal)
        throw new ModelError(`${this.origin}: the chat template refuses these messages: ${error.message}`, { cause: error });
      if (error instanceof OverBudget)
        throw new ModelError(
          `${this.origin}: the chat template was stopped: it took ${error.message}. Choose another with \`template:\`.`,
          { cause: error },
        );
      throw new ModelError(`${this.origin}: the chat template failed: ${reasonOf(error)}`, { cause: error });
    }
  }
}

/** A message with the keys that it has, as transformers gives it to templates (_alias_reasoning_fields): thoughts under both names. */
function seenByTemplate({ isLearned: _, ...message }: TemplateMessage): Record<string, unknown> {
  const { reasoning_content: thoughts } = message;
  const seen = thoughts === undefined ? message : { thinking: thoughts, ...message };
  return Object.fromEntries(Object.entries(seen).filter(([, value]) => value !== undefined));
}

/** RangeError: nested deeper than the stack. Other errors are faults of attune's, and say so themselves. */
function reasonOf(error: unknown): string {
  if (error instanceof TemplateError) return error.message;
  if (error instanceof RangeError) return "it is nested too deeply";
  throw error;
}
