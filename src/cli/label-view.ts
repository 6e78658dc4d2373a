import { createInterface, emitKeypressEvents, type Interface, type Key } from "node:readline";
import type { Judgement, LabelSession, Shown } from "../preference/label-session.js";
import type { Message } from "../text/chat-template.js";
import { LineEditor } from "./line-editor.js";
import {
  displayWidth,
  escapeControls,
  hasUnicode,
  type Io,
  isInteractive,
  type Style,
  styleFor,
  widthOf,
  wrapText,
} from "./terminal.js";
import { type Words, wordsFor } from "./words/index.js";

/** Items that come while a rater labels. */
export interface Incoming {
  /** How many are still to come. */
  readonly left: number;
  /** Resolves when one has come, or none will any more; rejects where they cannot be made. */
  wait(): Promise<void>;
}

/** What a rater asks for: a letter, or a line that is none, and behind an `n` the note. */
interface Said {
  readonly letter: string;
  readonly rest: string;
}

const judgements: Readonly<Record<string, Judgement>> = { a: "left", b: "right", t: "tie", x: "both_bad" };

/**
 * Shows a rater one item after the other and stores what he says, until nothing is left, he leaves, or `signal` aborts. On a terminal a key is an answer;
 * without one, a line of the input is: its first letter, and behind an `n` the note. What was said is stored before the next item is shown.
 */
export async function labelWith(session: LabelSession, incoming: Incoming, io: Io, signal: AbortSignal): Promise<void> {
  const input = io.stdin.isTTY === true && isInteractive(io.stdout, io.env) ? new KeyInput(io) : new LineInput(io);
  const onAbort = () => input.close();
  signal.addEventListener("abort", onAbort);
  try {
    await new Labelling(session, incoming, io, input).run(signal);
  } finally {
    signal.removeEventListener("abort", onAbort);
    input.close();
  }
}

class Labelling {
  readonly #session: LabelSession;
  readonly #incoming: Incoming;
  readonly #io: Io;
  readonly #input: KeyInput | LineInput;
  readonly #words: Words["label"];
  readonly #style: Style;

  constructor(session: LabelSession, incoming: Incoming, io: Io, input: KeyInput | LineInput) {
    this.#session = session;
    this.#incoming = incoming;
    this.#io = io;
    this.#input = input;
    this.#words = wordsFor(io.env).label;
    this.#style = styleFor(io.stdout, io.env);
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const shown = this.#session.next({ isMoreComing: this.#incoming.left > 0 });
      if (shown !== undefined) {
        if (!(await this.#judge(shown))) return;
      } else if (this.#incoming.left > 0) {
        this.#tell(this.#words.waiting(this.#incoming.left));
        const left = await Promise.race([this.#incoming.wait(), this.#input.untilLeaving()]);
        if (left === "leaving") return;
      } else if (!(await this.#goBack())) return;
    }
  }

  /** Everything is labelled: the last labels can still be taken back. False where the rater leaves. */
  async #goBack(): Promise<boolean> {
    this.#print(`\n${this.#words.allDone}`);
    for (let said = await this.#input.next(); said !== null && said.letter !== "q"; said = await this.#input.next())
      if (said.letter === "u" && (await this.#undo())) return true;
    return false;
  }

  async #undo(): Promise<boolean> {
    const undone = await this.#session.undo();
    this.#tell(undone === undefined ? this.#words.nothingToUndo : this.#words.undone);
    return undone !== undefined;
  }

  /** False where the rater leaves. */
  async #judge(shown: Shown): Promise<boolean> {
    this.#show(shown);
    const start = performance.now();
    let note: string | undefined;
    for (;;) {
      const said = await this.#input.next();
      if (said === null || said.letter === "q") return false;
      const judgement = judgements[said.letter];
      if (judgement !== undefined) {
        await this.#session.judge(judgement, { note, ms: performance.now() - start });
        this.#tell(this.#words.said[judgement]);
        return true;
      }
      if (said.letter === "n") {
        note = said.rest === "" ? ((await this.#input.line(this.#words.notePrompt)) ?? note) : said.rest;
        if (note !== undefined) this.#tell(this.#words.noted);
      } else if (said.letter === "u") {
        if (await this.#undo()) return true;
      } else this.#tell(said.letter === "?" ? this.#keys : this.#words.noKey(said.letter));
    }
  }

  #show({ prompt, left, right }: Shown): void {
    const { given, left: rest } = this.#session.progress;
    const rule = hasUnicode(this.#io.env) ? "─" : "-";
    const heading = (text: string) => this.#print(this.#style.bold(`${rule}${rule} ${text} ${rule}${rule}`));
    this.#print("");
    heading(this.#words.number(given + 1, given + rest + this.#incoming.left));
    this.#print(this.#textOf(prompt, prompt.length > 1));
    for (const [name, answer] of [
      ["A", left],
      ["B", right],
    ] as const) {
      this.#print("");
      heading(name);
      this.#print(this.#textOf(answer, answer.length > 1));
    }
    this.#print("");
    this.#tell(this.#keys);
  }

  /** The keys, broken between them where the terminal is narrow. */
  get #keys(): string {
    const between = " · ";
    return this.#words.keys.split(between).reduce((lines, key) => {
      const last = lines.slice(lines.lastIndexOf("\n") + 1);
      const isFull = displayWidth(last + between + key) > widthOf(this.#io.stdout);
      return `${lines}${isFull ? "\n" : between}${key}`;
    });
  }

  /** Messages as text, each under its role where there are several. */
  #textOf(messages: readonly Message[], hasRoles: boolean): string {
    const texts = messages.map(({ role, content, reasoning_content: thoughts, tool_calls: calls = [] }) => {
      const parts = [
        ...(hasRoles ? [`[${role}]`] : []),
        ...(thoughts === undefined ? [] : [`${this.#words.thoughts}\n${thoughts}\n`]),
        ...(content.trim() === "" && calls.length === 0 ? [this.#words.empty] : [content]),
        ...calls.map(({ function: { name, arguments: values } }) => `${name}(${JSON.stringify(values)})`),
      ];
      return parts.join("\n");
    });
    return escapeControls(texts.length === 0 ? this.#words.empty : texts.join("\n"));
  }

  #tell(text: string): void {
    this.#print(text, this.#style.dim);
  }

  #print(text: string, paint: (text: string) => string = (plain) => plain): void {
    const wrapped = wrapText(text, widthOf(this.#io.stdout));
    this.#io.stdout.write(`${paint(wrapped)}\n`);
  }
}

/** Keys of a terminal. Those pressed while nobody waits are not taken: they would judge what nobody has seen. */
class KeyInput {
  readonly #io: Io;
  #waiting: ((said: Said | null) => void) | undefined;
  #isClosed = false;
  #editor: LineEditor | undefined;
  #onLeaving: (() => void) | undefined;
  readonly #onKey = (text: string | undefined, key: Key) => this.#press(text, key);
  readonly #onEnd = () => this.close();

  constructor(io: Io) {
    this.#io = io;
    emitKeypressEvents(io.stdin);
    this.#attach();
  }

  next(): Promise<Said | null> {
    if (this.#isClosed) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.#waiting = resolve;
    });
  }

  /** Resolves when the rater leaves while he waits for an item. */
  untilLeaving(): Promise<"leaving"> {
    return new Promise((resolve) => {
      this.#onLeaving = () => resolve("leaving");
      if (this.#isClosed) this.#onLeaving();
    });
  }

  /** A line with editing; null where it was not finished. */
  async line(prompt: string): Promise<string | null> {
    this.#detach();
    const editor = new LineEditor(this.#io, { first: prompt, next: prompt }, () => editor.close());
    this.#editor = editor;
    const entry = await editor.next();
    editor.close();
    this.#editor = undefined;
    if (!this.#isClosed) this.#attach();
    return entry === null ? null : entry.text.trim();
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#editor?.close();
    this.#detach();
    this.#io.stdin.pause();
    this.#waiting?.(null);
    this.#onLeaving?.();
  }

  #press(text: string | undefined, key: Key): void {
    if (key.ctrl === true && (key.name === "c" || key.name === "d")) this.close();
    const letter = text?.toLowerCase() ?? "";
    if (letter === "q") this.#onLeaving?.();
    if (letter.length !== 1 || key.ctrl === true || key.meta === true || letter.trim() === "") return;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.({ letter, rest: "" });
  }

  #attach(): void {
    const { stdin } = this.#io;
    (stdin as typeof stdin & { setRawMode?(isRaw: boolean): void }).setRawMode?.(true);
    stdin.on("keypress", this.#onKey);
    stdin.on("end", this.#onEnd);
    stdin.resume();
  }

  #detach(): void {
    const { stdin } = this.#io;
    stdin.off("keypress", this.#onKey);
    stdin.off("end", this.#onEnd);
    (stdin as typeof stdin & { setRawMode?(isRaw: boolean): void }).setRawMode?.(false);
  }
}

/** Lines of an input that is no terminal. */
class LineInput {
  readonly #readline: Interface;
  readonly #lines: string[] = [];
  #waiting: (() => void) | undefined;
  #isEnded = false;
  #isClosed = false;

  constructor({ stdin }: Io) {
    this.#readline = createInterface({ input: stdin, crlfDelay: Number.POSITIVE_INFINITY });
    this.#readline.on("line", (line) => {
      this.#lines.push(line);
      this.#waiting?.();
    });
    this.#readline.on("close", () => {
      this.#isEnded = true;
      this.#waiting?.();
    });
  }

  /** The next line that is not empty; null at the end of the input. */
  async next(): Promise<Said | null> {
    const line = await this.line();
    if (line === null) return null;
    if (line === "") return this.next();
    const [, letter, rest = ""] = /^(\S)(?:\s+(.*))?$/s.exec(line) ?? [];
    const isKnown = letter !== undefined && (rest === "" || letter.toLowerCase() === "n");
    return isKnown ? { letter: letter.toLowerCase(), rest } : { letter: line, rest: "" };
  }

  /** What comes does not stop the waiting: the input may have ended long before the last answer is there. */
  untilLeaving(): Promise<"leaving"> {
    return new Promise((resolve) => {
      if (this.#isClosed) resolve("leaving");
      else this.#waiting = () => this.#isClosed && resolve("leaving");
    });
  }

  async line(_prompt?: string): Promise<string | null> {
    while (this.#lines.length === 0 && !this.#isEnded)
      await new Promise<void>((resolve) => {
        this.#waiting = resolve;
      });
    return this.#isClosed ? null : (this.#lines.shift()?.trim() ?? null);
  }

  close(): void {
    this.#isClosed = true;
    this.#readline.close();
    this.#waiting?.();
  }
}
