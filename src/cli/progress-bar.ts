import {
  cutTo,
  displayWidth,
  escapeControls,
  formatBytes,
  formatDuration,
  formatLoss,
  formatRate,
  hasUnicode,
  type Io,
  isInteractive,
  type Output,
  styleFor,
  widthOf,
} from "./terminal.js";
import { type Words, wordsFor } from "./words/index.js";

export interface TrainingProgress {
  readonly step: number;
  readonly totalSteps: number;
  /** Smoothed. */
  readonly loss: number;
  readonly tokensPerSecond: number;
  readonly remainingMs: number;
  readonly peakMemoryBytes: number;
}

/** One line of at most `width` columns; what does not fit is left out, the least important first. */
export function renderProgress(
  progress: TrainingProgress,
  width: number,
  { unicode, words }: { unicode: boolean; words: Words["train"] },
): string {
  const { step, totalSteps, loss, tokensPerSecond, remainingMs, peakMemoryBytes } = progress;
  const share = totalSteps > 0 ? Math.min(1, step / totalSteps) : 0;
  const percent = `${Math.floor(100 * share)}%`.padStart(4);
  const parts = [
    `${step}/${totalSteps}`,
    words.loss(formatLoss(loss)),
    words.left(formatDuration(remainingMs)),
    words.speed(formatRate(tokensPerSecond)),
    formatBytes(peakMemoryBytes),
  ];
  const separator = unicode ? " · " : "  ";
  const minBar = 8;
  const lengthOf = (count: number) => percent.length + 1 + displayWidth(parts.slice(0, count).join(separator));
  let count = parts.length;
  while (count > 1 && lengthOf(count) + minBar + 1 > width) count--;
  const text = parts.slice(0, count).join(separator);
  const barLength = Math.min(40, width - lengthOf(count) - 1);
  const line = barLength >= minBar ? `${percent} ${renderBar(share, barLength, unicode)} ${text}` : `${percent} ${text}`;
  return cutTo(line, width);
}

function renderBar(share: number, length: number, unicode: boolean): string {
  const full = Math.round(share * length);
  return unicode ? "━".repeat(full) + "─".repeat(length - full) : "#".repeat(full) + "-".repeat(length - full);
}

/** A line at the bottom of the terminal that is drawn anew in place; does nothing where the output is no terminal. */
export class ProgressBar {
  readonly #output: Output;
  readonly #unicode: boolean;
  readonly #words: Words;
  readonly #isLive: boolean;
  #line = "";
  #drawnAtMs = 0;

  constructor({ stdout, env }: Io) {
    this.#output = stdout;
    this.#unicode = hasUnicode(env);
    this.#words = wordsFor(env);
    this.#isLive = isInteractive(stdout, env);
  }

  get isLive(): boolean {
    return this.#isLive;
  }

  showTraining(progress: TrainingProgress): void {
    this.#draw(progress.step === progress.totalSteps, (width) =>
      renderProgress(progress, width, { unicode: this.#unicode, words: this.#words.train }),
    );
  }

  showBytes(what: string, doneBytes: number, totalBytes: number): void {
    const share = totalBytes > 0 ? `${Math.floor((100 * doneBytes) / totalBytes)}%` : "";
    const words = this.#words.download.of(formatBytes(doneBytes), formatBytes(totalBytes), escapeControls(what));
    const text = `${share.padStart(4)} ${words}`;
    this.#draw(doneBytes === totalBytes, (width) => cutTo(text, width));
  }

  showRows(what: string, done: number, total: number): void {
    const words = this.#words.train.rowsDone(done, total, escapeControls(what));
    this.#draw(done === total, (width) => cutTo(words, width));
  }

  /** Of a check of an export: how many answers are done. */
  showAnswers(done: number, total: number): void {
    this.#draw(done === total, (width) => cutTo(this.#words.export.checking(done, total), width));
  }

  /** `render` gets the terminal's width less one column, because a full line wraps on some terminals. */
  #draw(isLast: boolean, render: (width: number) => string): void {
    if (!this.#isLive) return;
    if (!isLast && performance.now() - this.#drawnAtMs < 50) return; // more would only flicker
    this.#drawnAtMs = performance.now();
    const toStart = this.#toStart();
    this.#line = render(widthOf(this.#output) - 1);
    this.#output.write(`${toStart}${this.#line}\x1b[K`);
  }

  /** Moves to where the line begins: a terminal that became narrower has broken it into several rows, which are emptied. */
  #toStart(): string {
    const rows = Math.floor(Math.max(0, displayWidth(this.#line) - 1) / widthOf(this.#output));
    return rows === 0 ? "\r" : `\x1b[${rows}A\r\x1b[J`;
  }

  clear(): void {
    if (this.#line !== "") this.#output.write(`${this.#toStart()}\x1b[K`);
    this.#line = "";
  }

  /** Prints a line above the bar. */
  print(line: string): void {
    const [clear, again] = this.#line === "" ? ["", ""] : [`${this.#toStart()}\x1b[K`, this.#line];
    this.#output.write(`${clear}${line}\n${again}`);
  }

  /** Leaves the bar as it is on the screen; what is printed next comes below it. */
  end(): void {
    if (this.#line !== "") this.#output.write("\n");
    this.#line = "";
  }
}

interface Watch {
  readonly onNotice: (message: string) => void;
  readonly onProgress: (doneBytes: number, totalBytes: number) => void;
  readonly onCheck: (done: number, total: number) => void;
}

/** Opens `model` with `open`, and shows on the terminal what is downloaded and noticed on the way. */
export async function whileDownloading<T>(model: string, io: Io, open: (watch: Watch) => Promise<T>): Promise<T> {
  const bar = new ProgressBar(io);
  try {
    return await open({
      onNotice: (message) => io.stderr.write(`${styleFor(io.stderr, io.env).dim(escapeControls(message))}\n`),
      onProgress: (doneBytes, totalBytes) => bar.showBytes(wordsFor(io.env).download.what(model), doneBytes, totalBytes),
      onCheck: (done, total) => bar.showAnswers(done, total),
    });
  } finally {
    bar.clear();
  }
}
