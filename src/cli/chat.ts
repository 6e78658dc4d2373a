import { basename, resolve } from "node:path";
import { createInterface } from "node:readline";
import { Writable } from "node:stream";
import { AttuneError, ConfigError } from "../errors.js";
import type { ReplyOptions } from "../generate/chat.js";
import type { Message } from "../text/chat-template.js";
import type { AddCommand } from "./command.js";
import { numberFor, required } from "./options.js";
import type { Parts } from "./parts.js";
import { whileDownloading } from "./progress-bar.js";
import { escapeControls, type Io, isInteractive, styleFor } from "./terminal.js";

type Chat = Awaited<ReturnType<Parts["openChat"]>>;

const help = "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer.";
const adapterHelp = "/adapter NAME changes to another, /base to the model without one, /adapters lists them.";

/** `attune chat`: a conversation on a terminal, or one turn for every line of the input. */
export const chat: AddCommand = (program, { io, parts }) => {
  program
    .command("chat")
    .summary("talk to a model, with or without an adapter")
    .description("Talk to a model. Without a terminal, each line of the input is one turn.")
    .usage("--model MODEL [--adapter [NAME=]FOLDER ...]")
    .option("-m, --model <model>", "a folder, a GGUF file, or a name on the hub")
    .option(
      "-a, --adapter <folder>",
      "the output_dir of a run, or an adapter of PEFT or AdapterHub; NAME=FOLDER, more than once, to change between them",
      (folder: string, before: readonly string[] = []) => [...before, folder],
    )
    .option("-s, --system <text>", "a system message")
    .option("--template <name>", "another chat template than the adapter's or the model's own")
    .option("-n, --max-new-tokens <count>", "longest answer", numberFor("max-new-tokens", { from: 1, whole: true }), 512)
    .option("-t, --temperature <number>", "0: always the likeliest token", numberFor("temperature", { from: 0 }), 0)
    .option(
      "--top-p <number>",
      "sample from the likeliest tokens of this total probability",
      numberFor("top-p", { from: 0, to: 1 }),
      1,
    )
    .addHelpText(
      "after",
      `
In the chat: ${help}
With adapters: ${adapterHelp}

Examples:
  attune chat --model SmolLM2-135M-Instruct --adapter runs/orders
  attune chat --model SmolLM2-135M-Instruct --adapter a=runs/orders --adapter b=runs/poems
  echo "two teas to table 5" | attune chat --model model.gguf`,
    )
    .action(async ({ model: name, adapter = [], system, template, ...replyOptions }) => {
      const model = required("model", name);
      const opened = await whileDownloading(model, io, (watch) =>
        parts.openChat({ model, adapter: adaptersOf(adapter), template, ...watch }),
      );
      try {
        const conversation = new Conversation(opened, replyOptions, system, io);
        if (io.stdin.isTTY === true && isInteractive(io.stdout, io.env)) await talk(conversation, io);
        else await answerLines(conversation, io);
      } finally {
        opened.close();
      }
    });
};

/** Folders by name, each written NAME=FOLDER; a folder alone is called by its own name. */
function adaptersOf(flags: readonly string[]): string | ReadonlyMap<string, string> | undefined {
  if (flags.length <= 1 && !flags.some((flag) => named.test(flag))) return flags[0];
  const folders = new Map<string, string>();
  for (const flag of flags) {
    const [, name = basename(resolve(flag)), folder = flag] = named.exec(flag) ?? [];
    if (folders.has(name))
      throw new ConfigError(`--adapter: two are called ${JSON.stringify(name)}; give them names: --adapter NAME=FOLDER`);
    folders.set(name, folder);
  }
  return folders;
}

const named = /^([\w.-]+)=(.+)$/s;

class Conversation {
  #messages: Message[] = [];
  #answering: AbortController | undefined;
  /** Of the next answer: the same question twice may be answered twice, and a whole conversation can be repeated. */
  #seed = 0;
  readonly #chat: Chat;
  readonly #options: ReplyOptions;
  readonly #system: readonly Message[];
  readonly #io: Io;

  constructor(chat: Chat, options: ReplyOptions, system: string | undefined, io: Io) {
    this.#chat = chat;
    this.#options = options;
    this.#system = system === undefined ? [] : [{ role: "system", content: system }];
    this.#io = io;
  }

  get isAnswering(): boolean {
    return this.#answering !== undefined;
  }

  get help(): string {
    return this.#chat.adapters.length === 0 ? help : `${help}\n${adapterHelp}`;
  }

  /** Does what a command between two turns says. Returns what to say of it; undefined if the line is none. Throws ConfigError. */
  obey(line: string): string | undefined {
    const [command, name] = line.trim().split(/\s+/, 2);
    switch (command) {
      case "/reset":
        this.#messages = [];
        return "The conversation begins anew.";
      case "/base":
        this.#chat.useAdapter(null);
        return "From now on the model answers without an adapter.";
      case "/adapter":
        if (name === undefined) return this.#list();
        this.#chat.useAdapter(name);
        return `From now on ${name} answers.`;
      case "/adapters":
        return this.#list();
    }
    return undefined;
  }

  #list(): string {
    const { adapter, adapters } = this.#chat;
    return [null, ...adapters].map((name) => `${name === adapter ? "*" : " "} ${name ?? "(base)"}`).join("\n");
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
  // Keys pressed during an answer are kept for the next turn, but not shown in the middle of it.
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
      stdout.write(`\n${style.dim("Ctrl-C again, /quit or Ctrl-D leaves.")}\n`);
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

  /** A conversation that grew too long, for instance, or an adapter that is not there is no reason to leave. */
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
