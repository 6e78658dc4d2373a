import { writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { AttuneError, ConfigError } from "../errors.js";
import type { ReplyEnd } from "../generate/chat.js";
import { systemErrorCode } from "../io/disk.js";
import type { Message } from "../text/chat-template.js";
import { closest } from "../text/closest.js";
import { ThoughtSplitter } from "../text/thoughts.js";
import { LineEditor } from "./line-editor.js";
import { numberOf } from "./options.js";
import type { Parts } from "./parts.js";
import { type ReplySettings, replyOptionsOf, replyRanges } from "./reply-settings.js";
import { escapeControls, hasColours, hasUnicode, type Io, isInteractive, styleFor } from "./terminal.js";
import { type Words, wordsFor } from "./words/index.js";

type Chat = Awaited<ReturnType<Parts["openChat"]>>;

export interface ConversationOptions {
  /** As the banner names it. */
  readonly model: string;
  readonly system: string | undefined;
  readonly reply: ReplySettings;
}

/** Talks with a person on a terminal; without one, answers each line of the input as one turn. Ends when the input does. */
export async function converse(chat: Chat, options: ConversationOptions, io: Io): Promise<void> {
  const conversation = new Conversation(chat, options, io.env);
  if (io.stdin.isTTY === true && isInteractive(io.stdout, io.env)) await talk(conversation, options.model, io);
  else await answerLines(conversation, io);
}

/** What is shown of an answer while it comes. */
interface AnswerView {
  /** The answer as the model writes it. */
  raw?(text: string): void;
  thoughts?(text: string): void;
  words?(text: string): void;
  end(): void;
}

class Conversation {
  readonly chat: Chat;
  readonly #words: Words["chat"];
  #messages: Message[] = [];
  #answering: AbortController | undefined;
  #system: string | undefined;
  /**
   * The seed is the next answer's. It counts up, so that a question asked twice may get two answers, and starts where it is set, so that a
   * conversation can be repeated.
   */
  #settings: ReplySettings;

  constructor(chat: Chat, { system, reply }: ConversationOptions, env: Io["env"]) {
    this.chat = chat;
    this.#system = system;
    this.#settings = reply;
    this.#words = wordsFor(env).chat;
  }

  get isAnswering(): boolean {
    return this.#answering !== undefined;
  }

  get isStopping(): boolean {
    return this.#answering?.signal.aborted === true;
  }

  get system(): string | undefined {
    return this.#system;
  }

  get help(): string {
    const { commands, adapterCommands } = this.#words;
    return this.chat.adapters.length === 0 ? commands : `${commands}\n${adapterCommands}`;
  }

  /**
   * Carries out a line that is a command (/reset, /adapter …) and returns what to print; undefined if the line is no command.
   * Throws ConfigError.
   */
  async obey(line: string): Promise<string | undefined> {
    const [, command, rest = ""] = /^(\/[a-z]*)(?:\s+(.*))?$/s.exec(line.trim()) ?? [];
    switch (command) {
      case "/help":
        return this.help;
      case "/reset":
        this.#messages = [];
        return this.#words.reset;
      case "/system":
        if (rest !== "") this.#system = rest === '""' ? undefined : rest;
        return this.#system === undefined ? this.#words.noSystem : this.#words.systemIs(this.#system);
      case "/set":
        return this.#set(rest.split(/[\s=]+/).filter((word) => word !== ""));
      case "/save":
        return await this.#save(rest);
      case "/base":
        this.chat.useAdapter(null);
        return this.#words.base;
      case "/adapter":
        if (rest === "") return this.#list();
        this.chat.useAdapter(rest);
        return this.#words.answers(rest);
      case "/adapters":
        return this.#list();
    }
    return undefined;
  }

  #list(): string {
    const { adapter, adapters } = this.chat;
    return [null, ...adapters].map((name) => `${name === adapter ? "*" : " "} ${name ?? this.#words.baseName}`).join("\n");
  }

  /** Without a value it shows; throws ConfigError for a name that is not known, and a value out of its range. */
  #set([name, value]: readonly string[]): string {
    const shown = (key: string) => `${key} ${this.#settings[key as keyof ReplySettings]}`;
    const names = Object.keys(replyRanges);
    if (name === undefined) return names.map(shown).join("\n");
    if (!Object.hasOwn(replyRanges, name)) {
      const near = closest(name, names);
      const guess = near === undefined ? "" : ` Did you mean ${JSON.stringify(near)}?`;
      throw new ConfigError(`/set: there is no ${JSON.stringify(name)}.${guess} Settings: ${names.join(", ")}`);
    }
    if (value !== undefined)
      this.#settings = { ...this.#settings, [name]: numberOf(name, value, replyRanges[name as keyof ReplySettings]) };
    return shown(name);
  }

  /** Writes the conversation as a row of training data. Throws ConfigError if the file is there already or cannot be written. */
  async #save(written: string): Promise<string> {
    const path = /^(["'])(.+)\1$/.exec(written)?.[2] ?? written;
    if (path === "") throw new ConfigError("/save: expected the name of a file, such as chat.json");
    if (this.#messages.length === 0) throw new ConfigError("/save: nothing has been said yet");
    const file = path.startsWith("~/") ? join(homedir(), path.slice(2)) : path;
    const row = { messages: this.#withSystem(this.#messages) };
    const text = /\.jsonl$/i.test(file) ? JSON.stringify(row) : JSON.stringify([row], null, 2);
    try {
      await writeFile(file, `${text}\n`, { flag: "wx" });
    } catch (error) {
      const code = systemErrorCode(error);
      if (code === undefined) throw error;
      const why =
        code === "EEXIST" ? "is there already, and nothing is overwritten: choose another name" : `cannot be written (${code})`;
      throw new ConfigError(`/save: ${file} ${why}`, { cause: error });
    }
    return this.#words.savedTo(row.messages.length, file);
  }

  #withSystem(messages: readonly Message[]): Message[] {
    return [...(this.#system === undefined ? [] : [{ role: "system", content: this.#system }]), ...messages];
  }

  stopAnswer(): void {
    this.#answering?.abort();
  }

  /**
   * Answers, and shows it as it comes. Thoughts go into the conversation where the chat template knows them, so that it leaves them out of later turns,
   * or not, as it does in training. Returns a remark if the answer is not whole. After an error the conversation is as it was before.
   */
  async answer(content: string, view: AnswerView): Promise<string | undefined> {
    const messages: Message[] = [...this.#messages, { role: "user", content }];
    const known = this.chat.thoughts;
    const splitter = new ThoughtSplitter(known.areOpen);
    const said = { raw: "", thoughts: "", words: "" };
    const take = (parts: ReturnType<ThoughtSplitter["push"]>) => {
      for (const { kind, text } of parts) {
        said[kind] += text;
        view[kind]?.(text);
      }
    };
    this.#answering = new AbortController();
    const settings = this.#settings;
    this.#settings = { ...settings, seed: settings.seed + 1 };
    let end: ReplyEnd;
    try {
      const { signal } = this.#answering;
      const pieces = this.chat.reply(this.#withSystem(messages), { ...replyOptionsOf(settings), signal });
      for (;;) {
        const next = await pieces.next();
        if (next.done === true) {
          end = next.value;
          break;
        }
        said.raw += next.value;
        view.raw?.(next.value);
        take(splitter.push(next.value));
      }
      take(splitter.end());
    } finally {
      this.#answering = undefined;
      view.end();
    }
    const { raw, thoughts, words } = said;
    const answer = known.areKnown && thoughts !== "" ? { content: words, reasoning_content: thoughts.trim() } : { content: raw };
    this.#messages = [...messages, { role: "assistant", ...answer }];
    return this.#remark(end);
  }

  #remark({ finished, tokens }: ReplyEnd): string | undefined {
    if (finished === "length") return this.#words.cutAtLimit(tokens);
    if (finished === "context") return this.#words.contextFull(this.chat.facts.contextTokens);
    return finished === "aborted" ? this.#words.stopped : undefined;
  }
}

async function answerLines(conversation: Conversation, { stdin, stdout, stderr, env }: Io): Promise<void> {
  const tell = (text: string) => stderr.write(`${styleFor(stderr, env).dim(escapeControls(text))}\n`);
  const view: AnswerView = { raw: (text) => stdout.write(escapeControls(text)), end: () => stdout.write("\n") };
  for await (const line of createInterface({ input: stdin, crlfDelay: Number.POSITIVE_INFINITY })) {
    if (line.trim() === "/quit") return;
    const said = (await conversation.obey(line)) ?? (line.trim() === "" ? "" : await conversation.answer(line, view));
    if (said !== undefined && said !== "") tell(said);
  }
}

async function talk(conversation: Conversation, model: string, io: Io): Promise<void> {
  const { stdout, env } = io;
  const style = styleFor(stdout, env);
  const words = wordsFor(env).chat;
  const tell = (text: string) => stdout.write(`${style.dim(escapeControls(text))}\n`);
  const prompts = { first: style.bold("> "), next: style.dim(hasUnicode(env) ? "… " : ". ") };
  let isLeaving = false;
  const editor = new LineEditor(io, prompts, () => {
    if (conversation.isAnswering && !conversation.isStopping) {
      conversation.stopAnswer();
      isLeaving = true;
    } else if (isLeaving) editor.close();
    else {
      isLeaving = true;
      stdout.write("\n");
      tell(words.leaving);
      editor.redraw();
    }
  });

  stdout.write(`${banner(conversation, model, io)}\n`);
  tell(words.hint);
  try {
    for (let entry = await editor.next(); entry !== null; entry = await editor.next()) {
      const { text, isLine } = entry;
      isLeaving = false;
      const command = isLine ? text.trim() : "";
      if (command === "/quit" || command === "/exit") break;
      if (text.trim() !== "") await obeyOrAnswer(text, command.startsWith("/"));
    }
  } finally {
    editor.close();
    stdout.write("\n");
  }

  /** Prints attune's own errors and stays in the chat: a conversation that grew too long, for instance, or an unknown adapter. */
  async function obeyOrAnswer(text: string, isCommand: boolean): Promise<void> {
    try {
      const said = isCommand
        ? ((await conversation.obey(text)) ?? `${words.noCommand(text.trim())}\n${conversation.help}`)
        : await conversation.answer(text, answerView(io));
      if (said !== undefined) tell(said);
    } catch (error) {
      if (!(error instanceof AttuneError)) throw error;
      stdout.write(`${style.red("attune:")} ${escapeControls(error.message)}\n`);
    }
  }
}

/** What answers here: the model and how it is stored, the adapters and their methods, and how long a conversation may get. */
function banner({ chat, system }: Conversation, model: string, { stdout, env }: Io): string {
  const style = styleFor(stdout, env);
  const words = wordsFor(env).chat;
  const { weights, compute, contextTokens, methods } = chat.facts;
  const adapters = chat.adapters.map((name) => `${name} (${methods.get(name)})`);
  const lines = [
    `${style.bold(escapeControls(model))}  ${words.facts(weights, compute, contextTokens)}`,
    ...(adapters.length === 0 ? [] : [escapeControls(words.adapters(adapters.join(", ")))]),
    ...(system === undefined ? [] : [escapeControls(words.systemIs(system))]),
  ];
  return lines.join("\n");
}

/** Thoughts are dim before the answer; without colours, both are headed. */
function answerView({ stdout, env }: Io): AnswerView {
  const style = styleFor(stdout, env);
  const words = wordsFor(env).chat;
  const isHeaded = !hasColours(stdout, env);
  let hasThoughts = false;
  let hasWords = false;
  return {
    thoughts(text) {
      if (!hasThoughts && isHeaded) stdout.write(`${words.thoughtsHeading}\n`);
      hasThoughts = true;
      stdout.write(style.dim(escapeControls(text)));
    },
    words(text) {
      if (!hasWords && hasThoughts) stdout.write(isHeaded ? `\n\n${words.answerHeading}\n` : "\n\n");
      hasWords = true;
      stdout.write(escapeControls(text));
    },
    end: () => stdout.write("\n"),
  };
}
