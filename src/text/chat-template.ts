import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { ModelError } from "../errors.js";
import type { RoleTokens } from "./tokenizer.js";
import { withTimeLimit } from "./work-limit.js";

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

/** A message as a template may see it: content that is null, or no content at all, are what some write tool calls for. */
export type TemplateMessage = Omit<Message, "content"> & { readonly content?: string | null };

/** What is said, in order, and what could have been called. */
export interface Dialogue {
  readonly messages: readonly Message[];
  readonly tools?: readonly Tool[];
}

export interface TemplateDialogue extends Omit<Dialogue, "messages"> {
  readonly messages: readonly TemplateMessage[];
}

const maxTemplateChars = 2 ** 20; // the longest in use, with tools and images, have about 20,000
const maxSteps = 400_000; // tree nodes evaluated
const maxStepsPerMessage = 500; // the templates in use take about 50
const maxOutputChars = 2 ** 20; // beyond the length of the messages
const maxItems = 100_000; // in a list that the template makes
const timeLimitMs = 250; // for what counting nodes does not see: one filter applied to a great deal of data

/** What a template, or rendering and encoding together, may take for a chat: far over what one in use needs on a busy machine. */
export function chatTimeLimitMs(messages: readonly TemplateMessage[]): number {
  return timeLimitMs + messages.length + charsOf(messages) / 100;
}

function charsOf(messages: readonly TemplateMessage[]): number {
  return messages.reduce((total, message) => total + charsIn(message), 0);
}

function charsIn(value: unknown): number {
  if (typeof value === "string") return value.length;
  if (typeof value !== "object" || value === null) return 1;
  return Object.values(value).reduce((total: number, item) => total + 1 + charsIn(item), 0);
}

/** The evaluator of @huggingface/jinja, whose own types do not resolve under Node's module rules. */
interface JinjaInterpreter {
  evaluate(node: unknown, scope: unknown): { readonly value: unknown };
  run(program: unknown): { readonly value: unknown };
}

/**
 * A chat template: Jinja, from the model or from the list of named ones, that turns messages into text.
 * Variables and settings as transformers offers them (utils/chat_template_utils.py, render_jinja_template), with no documents. Templates come from strangers, so work is bounded: nodes evaluated, length of every value, and time.
 */
export class ChatTemplate {
  readonly source: string;
  /** For messages: where the template comes from. */
  readonly origin: string;
  readonly #program: unknown;
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
      this.#program = this.#limited(timeLimitMs, () => parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true })));
    } catch (error) {
      if (error instanceof ModelError) throw error;
      throw new ModelError(`${origin}: the chat template is not valid Jinja: ${reasonOf(error)}`, { cause: error });
    }
  }

  /**
   * The chat as text; `addGenerationPrompt` ends it where the assistant's answer begins.
   * Throws ModelError with the template's own words when it refuses the messages, and when it works too long.
   */
  render(dialogue: TemplateDialogue, { addGenerationPrompt }: { addGenerationPrompt: boolean }): string {
    try {
      return this.#limited(chatTimeLimitMs(dialogue.messages), () => this.#run(dialogue, addGenerationPrompt));
    } catch (error) {
      if (error instanceof ModelError) throw error;
      if (error instanceof Refusal)
        throw new ModelError(`${this.origin}: the chat template refuses these messages: ${error.message}`, { cause: error });
      throw new ModelError(`${this.origin}: the chat template failed: ${reasonOf(error)}`, { cause: error });
    }
  }

  #run({ messages, tools }: TemplateDialogue, addGenerationPrompt: boolean): string {
    const scope = new Environment();
    const globals: Record<string, unknown> = {
      ...this.#roles,
      messages: messages.map(seenByTemplate),
      tools: tools ?? null,
      documents: null,
      add_generation_prompt: addGenerationPrompt,
      true: true,
      false: false,
      none: null,
      True: true,
      False: false,
      None: null,
      range: boundedRange,
      strftime_now: (format: unknown) => strftime(this.#now, String(format)),
      raise_exception: (message: unknown) => {
        throw new Refusal(String(message));
      },
    };
    for (const [name, value] of Object.entries(globals)) scope.set(name, value);

    const interpreter: JinjaInterpreter = new Interpreter(scope);
    const evaluate = interpreter.evaluate.bind(interpreter);
    const mostSteps = maxSteps + maxStepsPerMessage * messages.length;
    const maxChars = maxOutputChars + 2 * charsOf(messages);
    let steps = 0;
    interpreter.evaluate = (node, environment) => {
      if (++steps > mostSteps) throw this.#tooMuch(`over ${mostSteps} steps`);
      const result = evaluate(node, environment);
      const { value } = result;
      if (typeof value === "string" && value.length > maxChars) throw this.#tooMuch(`a text of over ${maxChars} characters`);
      if (Array.isArray(value) && value.length > maxItems) throw this.#tooMuch(`a list of over ${maxItems} items`);
      return result;
    };
    return String(interpreter.run(this.#program).value);
  }

  #limited<T>(limitMs: number, work: () => T): T {
    return withTimeLimit(limitMs, work, () => this.#tooMuch(`over ${Math.round(limitMs)} ms`));
  }

  #tooMuch(what: string): ModelError {
    return new ModelError(`${this.origin}: the chat template was stopped: it took ${what}. Choose another with \`template:\`.`);
  }
}

/** A message with the keys that it has, as transformers gives it to templates (_alias_reasoning_fields): thoughts under both names. */
function seenByTemplate({ isLearned: _, ...message }: TemplateMessage): Record<string, unknown> {
  const { reasoning_content: thoughts } = message;
  const seen = thoughts === undefined ? message : { thinking: thoughts, ...message };
  return Object.fromEntries(Object.entries(seen).filter(([, value]) => value !== undefined));
}

/** `raise_exception` in a template: its author's words on what the messages lack. */
class Refusal extends Error {}

function boundedRange(first: unknown, second?: unknown, third?: unknown): number[] {
  const isEndOnly = typeof second !== "number";
  const start = isEndOnly ? 0 : Number(first);
  const stop = isEndOnly ? Number(first) : second;
  const step = typeof third === "number" ? third : 1;
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= maxItems)) throw new Error(`range() of ${length} items: at most ${maxItems} are allowed`);
  return Array.from({ length }, (_, i) => start + i * step);
}

const months = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];
const days = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/** Python's strftime in the C locale, for the codes that dates in templates use. */
function strftime(date: Date, format: string): string {
  const pad = (value: number) => String(value).padStart(2, "0");
  const codes: Record<string, string> = {
    Y: String(date.getFullYear()),
    y: pad(date.getFullYear() % 100),
    m: pad(date.getMonth() + 1),
    B: months[date.getMonth()]!,
    b: months[date.getMonth()]!.slice(0, 3),
    d: pad(date.getDate()),
    A: days[date.getDay()]!,
    a: days[date.getDay()]!.slice(0, 3),
    H: pad(date.getHours()),
    M: pad(date.getMinutes()),
    S: pad(date.getSeconds()),
    "%": "%",
  };
  return format.replace(/%(.)/g, (code, letter: string) => codes[letter] ?? code);
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
