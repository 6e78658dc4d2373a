import { createInterface } from "node:readline";
import { Writable } from "node:stream";
import { AttuneError } from "../errors.js";
import type { ReplyOptions } from "../generate/chat.js";
import type { Message } from "../text/chat-template.js";
import type { Parts } from "./parts.js";
import { escapeControls, type Io, isInteractive, styleFor } from "./terminal.js";
import { type Words, wordsFor } from "./words/index.js";

type Chat = Awaited<ReturnType<Parts["openChat"]>>;

interface ConversationOptions extends ReplyOptions {
  readonly system: string | undefined;
}

/** Talks with a person on a terminal; without one, answers each line of the input as one turn. Ends when the input does. */
export async function converse(chat: Chat, options: ConversationOptions, io: Io): Promise<void> {
  const conversation = new Conversation(chat, options, io);
  if (io.stdin.isTTY === true && isInteractive(io.stdout, io.env)) await talk(conversation, io);
  else await answerLines(conversation, io);
}

class Conversation {
  #messages: Message[] = [];
  #answering: AbortController | undefined;
  /**
   * The next answer's seed. It counts up, so that a question asked twice may get two answers, and starts at 0, so that a
   * conversation can be repeated.
   */
  #seed = 0;
  readonly #chat: Chat;
  readonly #options: ReplyOptions;
  readonly #system: readonly Message[];
  readonly #io: Io;
  readonly #words: Words["chat"];

  constructor(chat: Chat, { system, ...options }: ConversationOptions, io: Io) {
    this.#chat = chat;
    this.#options = options;
    this.#system = system === undefined ? [] : [{ role: "system", content: system }];
    this.#io = io;
    this.#words = wordsFor(io.env).chat;
  }

  get isAnswering(): boolean {
    return this.#answering !== undefined;
  }

  get help(): string {
    const { commands, adapterCommands } = this.#words;
    return this.#chat.adapters.length === 0 ? commands : `${commands}\n${adapterCommands}`;
  }

  /**
   * Carries out a line that is a command (/reset, /adapter …) and returns what to print; undefined if the line is no command.
   * Throws ConfigError.
   */
  obey(line: string): string | undefined {
    const [command, name] = line.trim().split(/\s+/, 2);
    switch (command) {
      case "/reset":
        this.#messages = [];
        return this.#words.reset;
      case "/base":
        this.#chat.useAdapter(null);
        return this.#words.base;
      case "/adapter":
        if (name === undefined) return this.#list();
        this.#chat.useAdapter(name);
        return this.#words.answers(name);
      case "/adapters":
        return this.#list();
    }
    return undefined;
  }

  #list(): string {
    const { adapter, adapters } = this.#chat;
    return [null, ...adapters].map((name) => `${name === adapter ? "*" : " "} ${name ?? this.#words.baseName}`).join("\n");
  }

  stopAnswer(): void {
    this.#answering?.abort();
  }

  /** Prints the answer as it comes. After an error the conversation is as it was before. */
  async answer(content: string): Promise<void> {
    const messages: Message[] = [...this.#messages, { role: "user", content }];
    this.#answering = new AbortController();
    let answer = "";
    try {
      const { signal } = this.#answering;
      for await (const part of this.#chat.reply([...this.#system, ...messages], {
        ...this.#options,
        seed: this.#seed++,
        signal,
      })) {
        answer += part;
        this.#io.stdout.write(escapeControls(part));
      }
    } finally {
      this.#answering = undefined;
      this.#io.stdout.write("\n");
    }
    this.#messages = [...messages, { role: "assistant", content: answer }];
  }
}

async function answerLines(conversation: Conversation, { stdin, stderr, env }: Io): Promise<void> {
  for await (const line of createInterface({ input: stdin, crlfDelay: Number.POSITIVE_INFINITY })) {
    if (line.trim() === "/quit") return;
    const said = conversation.obey(line);
    if (said !== undefined) stderr.write(`${styleFor(stderr, env).dim(escapeControls(said))}\n`);
    else if (line.trim() !== "") await conversation.answer(line);
  }
}

async function talk(conversation: Conversation, { stdin, stdout, env }: Io): Promise<void> {
  const style = styleFor(stdout, env);
  // Keys pressed during an answer go into the next turn's line, but are not shown in the middle of the answer.
  const output = new Writable({
    write(chunk, encoding, done) {
      if (conversation.isAnswering) done();
      else stdout.write(chunk, encoding, () => done());
    },
  });
  const readline = createInterface({ input: stdin, output, terminal: true, historySize: 1000, prompt: style.bold("> ") });
  let leaving = false;
  readline.on("SIGINT", () => {
    if (conversation.isAnswering) {
      conversation.stopAnswer();
    } else if (leaving || readline.line === "") {
      if (leaving) return readline.close();
      leaving = true;
      stdout.write(`\n${style.dim(wordsFor(env).chat.leaving)}\n`);
      readline.prompt();
    } else {
      readline.write(null, { ctrl: true, name: "e" });
      readline.write(null, { ctrl: true, name: "u" }); // empties the line
    }
  });

  stdout.write(`${style.dim(conversation.help)}\n`);
  readline.prompt();
  for await (const line of readline) {
    leaving = false;
    const command = line.trim();
    if (command === "/quit" || command === "/exit") break;
    if (command !== "") await obeyOrAnswer(line);
    readline.prompt();
  }
  readline.close();
  stdout.write("\n");

  /** Prints attune's own errors and stays in the chat: a conversation that grew too long, for instance, or an unknown adapter. */
  async function obeyOrAnswer(line: string): Promise<void> {
    try {
      const said = conversation.obey(line) ?? (line.trim().startsWith("/") ? conversation.help : undefined);
      if (said === undefined) await conversation.answer(line);
      else stdout.write(`${style.dim(escapeControls(said))}\n`);
    } catch (error) {
      if (!(error instanceof AttuneError)) throw error;
      stdout.write(`${style.red("attune:")} ${escapeControls(error.message)}\n`);
    }
  }
}
