import type { Readable, Writable } from "node:stream";
import { stripVTControlCharacters } from "node:util";
import { eastAsianWidth } from "get-east-asian-width";

/** What a command talks to; `process` has it all. */
export interface Io {
  readonly stdin: Readable & { readonly isTTY?: boolean };
  readonly stdout: Output;
  readonly stderr: Output;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export type Output = Writable & { readonly isTTY?: boolean; readonly columns?: number };

/** A terminal that understands cursor movement. */
export function isInteractive(output: Output, env: Io["env"]): boolean {
  return output.isTTY === true && env.TERM !== "dumb";
}

export function widthOf(output: Output): number {
  return output.columns && output.columns > 0 ? output.columns : 80;
}

/** Whether block and braille characters can be shown. */
export function hasUnicode(env: Io["env"], platform: string = process.platform): boolean {
  if (platform === "win32") return env.WT_SESSION !== undefined || env.TERM_PROGRAM !== undefined;
  if (env.TERM === "linux") return false; // the kernel's console font has no braille
  const locale = env.LC_ALL || env.LC_CTYPE || env.LANG || "";
  return /utf-?8/i.test(locale) || platform === "darwin";
}

export interface Style {
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  green(text: string): string;
  yellow(text: string): string;
  cyan(text: string): string;
}

/** NO_COLOR (no-color.org) wins, then FORCE_COLOR, then whether the output is a terminal. */
export function hasColours(output: Output, env: Io["env"]): boolean {
  const isForced = env.FORCE_COLOR !== undefined && env.FORCE_COLOR !== "0";
  return !env.NO_COLOR && (isForced || isInteractive(output, env));
}

/** Colours where the output has them. */
export function styleFor(output: Output, env: Io["env"]): Style {
  const colours = hasColours(output, env);
  const paint = (on: number, off: number) => (text: string) => (colours ? `\x1b[${on}m${text}\x1b[${off}m` : text);
  return {
    bold: paint(1, 22),
    dim: paint(2, 22),
    red: paint(31, 39),
    green: paint(32, 39),
    yellow: paint(33, 39),
    cyan: paint(36, 39),
  };
}

/**
 * Text from a file or a model, safe to print: what would move the cursor, change the terminal or turn the direction of writing is
 * shown as its code. Line feeds and tabs stay. Works on any part of a text, so that streams can be escaped as they come.
 */
export function escapeControls(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what it is for
  return text.replaceAll(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/** Columns that a text takes on a terminal: two for a wide character, none for colours and what combines. */
export function displayWidth(text: string): number {
  let width = 0;
  for (const character of stripVTControlCharacters(text).replaceAll(/[\p{Mark}\p{Format}]/gu, ""))
    width += eastAsianWidth(character.codePointAt(0)!);
  return width;
}

/** The beginning of a text that fits into `width` columns. */
export function cutTo(text: string, width: number): string {
  if (displayWidth(text) <= width) return text;
  let cut = "";
  for (const character of text) {
    if (displayWidth(cut + character) > width) break;
    cut += character;
  }
  return cut;
}

/** Text and spaces up to `width` columns. */
export function padTo(text: string, width: number): string {
  return text + " ".repeat(Math.max(0, width - displayWidth(text)));
}

/** Breaks lines longer than `width` columns: between words, and between any two wide characters but before punctuation. */
export function wrapText(text: string, width: number): string {
  const chunks = /\s*(?:[^\s\u2e80-\uffef]+|[\u2e80-\uffef])[，。；：、）？！]*/g;
  const lines: string[] = [];
  for (const line of text.split("\n")) {
    let current = "";
    for (const [chunk] of line.matchAll(chunks)) {
      if (current !== "" && displayWidth(current + chunk) > width) {
        lines.push(current);
        current = chunk.trimStart();
      } else current += chunk;
    }
    lines.push(current);
  }
  return lines.join("\n");
}

/** `980 B`, `1.2 MB`, `23.4 GB`: powers of ten, as disks and `ls` count. */
export function formatBytes(bytes: number): string {
  return withUnit(bytes, ["B", "kB", "MB", "GB", "TB", "PB"]);
}

/** `980`, `4.9 k`, `134.5 M`, `7.6 B`. */
export function formatCount(count: number): string {
  return withUnit(count, ["", "k", "M", "B", "T"]).trimEnd();
}

function withUnit(value: number, units: readonly string[]): string {
  let unit = 0;
  let scaled = value;
  while (scaled >= (unit === 0 ? 999.5 : 999.95) && unit < units.length - 1) {
    scaled /= 1000;
    unit++;
  }
  return `${unit === 0 ? Math.round(scaled) : scaled.toFixed(1)} ${units[unit]}`;
}

/** `0s`, `42s`, `3m 20s`, `2h 05m`, `3d 04h`. */
export function formatDuration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const [minutes, hours, days] = [Math.floor(seconds / 60), Math.floor(seconds / 3600), Math.floor(seconds / 86_400)];
  const two = (value: number) => String(value).padStart(2, "0");
  if (days > 0) return `${days}d ${two(hours % 24)}h`;
  if (hours > 0) return `${hours}h ${two(minutes % 60)}m`;
  if (minutes > 0) return `${minutes}m ${two(seconds % 60)}s`;
  return `${seconds}s`;
}

/** `1.234`, `0.0123`, `1.2e-5`: four figures, however small. */
export function formatLoss(loss: number): string {
  if (!Number.isFinite(loss)) return String(loss);
  if (loss !== 0 && Math.abs(loss) < 1e-3) return loss.toExponential(2);
  return loss.toFixed(Math.abs(loss) < 0.1 ? 4 : 3);
}

/** `512`, `12.3`: tokens a second. */
export function formatRate(rate: number): string {
  return rate >= 100 ? String(Math.round(rate)) : rate.toFixed(1);
}
