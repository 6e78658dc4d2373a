import { createInterface, emitKeypressEvents, type Interface, type Key } from "node:readline";
import { PassThrough, Writable } from "node:stream";
import type { Io } from "./terminal.js";

/** What a person typed or pasted, and sent. */
export interface Entry {
  readonly text: string;
  /** A single line that was typed as such: only these can be commands. */
  readonly isLine: boolean;
}

interface Prompts {
  readonly first: string;
  /** Before each further line of an entry. */
  readonly next: string;
}

const quotes = '"""';
const [pasteOn, pasteOff] = ["\x1b[?2004h", "\x1b[?2004l"];

/**
 * Lines of a terminal, with editing, and a history on the arrow keys. An entry has several lines where one ends with a backslash, where it stands between
 * `"""` and `"""`, where Alt-Enter was pressed, and where text with line feeds was pasted: terminals say what is pasted, so it is not sent on its own.
 *
 * Keys that are pressed while nobody waits for an entry are kept for the next one and are not shown; Ctrl-C is told at once.
 */
export class LineEditor {
  readonly #io: Io;
  readonly #prompts: Prompts;
  readonly #onInterrupt: () => void;
  readonly #readline: Interface;
  readonly #output: Writable;
  readonly #onKey = (text: string | undefined, key: Key) => this.#press(text, key);
  readonly #onEnd = () => this.close();
  readonly #onResize = () => {
    if (this.#waiting !== undefined) this.#output.emit("resize");
  };
  #keys: [text: string | undefined, key: Key][] = [];
  /** What is being pasted. */
  #pasted: string | undefined;
  /** Lines of the entry that are complete. */
  #lines: string[] = [];
  #isQuoted = false;
  #waiting: ((entry: Entry | null) => void) | undefined;
  #isClosed = false;

  /** `onInterrupt` is called for Ctrl-C, but for one that empties what was typed. */
  constructor(io: Io, prompts: Prompts, onInterrupt: () => void) {
    const { stdin, stdout } = io;
    this.#io = io;
    this.#prompts = prompts;
    this.#onInterrupt = onInterrupt;
    this.#output = new Writable({
      write(chunk, _, done) {
        stdout.write(chunk);
        done();
      },
    });
    Object.defineProperty(this.#output, "columns", { get: () => stdout.columns });
    // Readline reads nothing itself: it is handed each key.
    const terminal = stdin as typeof stdin & { setRawMode?(isRaw: boolean): void };
    const input = Object.assign(new PassThrough(), { setRawMode: (isRaw: boolean) => terminal.setRawMode?.(isRaw) });
    this.#readline = createInterface({ input, output: this.#output, terminal: true, historySize: 1000 });
    this.#readline.on("line", (line) => this.#complete(line));
    this.#readline.on("close", () => this.close());
    this.#readline.on("SIGCONT", () => stdout.write(pasteOn));
    emitKeypressEvents(stdin);
    stdin.on("keypress", this.#onKey);
    stdin.on("end", this.#onEnd);
    stdout.on("resize", this.#onResize);
    stdin.resume();
    stdout.write(pasteOn);
  }

  /** The next entry; null at the end of the input, after Ctrl-D on an empty line, and once the editor is closed. */
  next(): Promise<Entry | null> {
    if (this.#isClosed) return Promise.resolve(null);
    return new Promise((resolve) => {
      this.#waiting = resolve;
      this.#show();
      const keys = this.#keys.splice(0);
      for (const [text, key] of keys) this.#press(text, key); // once an entry is complete, the rest is kept again
    });
  }

  /** Draws the prompt anew, below what was printed meanwhile. */
  redraw(): void {
    this.#show();
  }

  /** Ends the editing, and gives the terminal back as it was. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const { stdin, stdout } = this.#io;
    stdin.off("keypress", this.#onKey);
    stdin.off("end", this.#onEnd);
    stdout.off("resize", this.#onResize);
    this.#readline.close();
    stdin.pause();
    stdout.write(pasteOff);
    this.#settle(null);
  }

  #press(text: string | undefined, key: Key): void {
    const isInterrupt = key.ctrl === true && key.name === "c";
    if (this.#waiting === undefined && !this.#isClosed) {
      if (isInterrupt) this.#onInterrupt();
      else this.#keys.push([text, key]);
    } else if (this.#isClosed) {
      // Nobody is there any more.
    } else if (key.name === "paste-start") this.#pasted = "";
    else if (key.name === "paste-end") {
      this.#insert(printable(this.#pasted ?? ""));
      this.#pasted = undefined;
    } else if (this.#pasted !== undefined && !isInterrupt) this.#pasted += text ?? "";
    else if (isInterrupt) this.#interrupt();
    else if (key.meta === true && (key.name === "return" || key.name === "enter")) this.#insert("\n");
    else this.#readline.write(text as string, key);
  }

  #interrupt(): void {
    this.#pasted = undefined;
    const wasEmpty = this.#readline.line === "" && this.#lines.length === 0 && !this.#isQuoted;
    if (wasEmpty) {
      this.#onInterrupt();
      return;
    }
    for (const name of ["e", "u"]) this.#readline.write(null as unknown as string, { ctrl: true, name }); // empties the line
    if (this.#lines.length > 0 || this.#isQuoted) this.#output.write("\n");
    this.#lines = [];
    this.#isQuoted = false;
    this.#show();
  }

  #insert(text: string): void {
    const readline = this.#readline as { line: string; cursor: number };
    const { line, cursor } = readline;
    readline.line = line.slice(0, cursor) + text + line.slice(cursor);
    readline.cursor = cursor + text.length;
    this.#readline.prompt(true);
  }

  #show(): void {
    this.#readline.setPrompt(this.#lines.length > 0 || this.#isQuoted ? this.#prompts.next : this.#prompts.first);
    this.#readline.prompt(true);
  }

  /** Readline has a line: the entry goes on, or is whole. */
  #complete(line: string): void {
    const isTyped = !line.includes("\n");
    const isFirst = this.#lines.length === 0;
    if (this.#isQuoted) this.#completeQuoted(line);
    else if (isTyped && isFirst && line.trimStart().startsWith(quotes)) {
      this.#isQuoted = true;
      this.#completeQuoted(line.trimStart().slice(quotes.length), true);
    } else if (isTyped && line.endsWith("\\")) this.#goOn(line.slice(0, -1));
    else if (isTyped && isFirst) this.#settle({ text: line, isLine: true });
    else this.#send([...this.#lines, line]);
  }

  /** A line between quotes, or what stands beside them: nothing there is no line. */
  #completeQuoted(line: string, isFirst = false): void {
    const isLast = line.trimEnd().endsWith(quotes);
    const text = isLast ? line.trimEnd().slice(0, -quotes.length) : line;
    if (!((isFirst || isLast) && text === "")) this.#lines.push(text);
    if (isLast) this.#isQuoted = false;
    if (isLast) this.#send(this.#lines);
    else this.#show();
  }

  #goOn(line: string): void {
    this.#lines.push(line);
    this.#show();
  }

  #send(lines: readonly string[]): void {
    this.#lines = [];
    this.#settle({ text: lines.join("\n").replace(/\n+$/, ""), isLine: false });
  }

  #settle(entry: Entry | null): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.(entry);
  }
}

/** Pasted text as it can stand in a line: no control characters but line feeds and tabs. */
function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out
  return text.replace(/\r\n?/g, "\n").replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, "");
}
