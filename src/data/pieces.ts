import { isUtf8 } from "node:buffer";

/** One row of a data file as it stands there. */
export interface Row {
  readonly value: Readonly<Record<string, unknown>>;
  /** `orders.jsonl:17` or `alpaca.json, row 3`. */
  readonly where: string;
}

/** A row that cannot be used, and why. */
export interface BadRow {
  readonly where: string;
  readonly reason: string;
}

export const maxRowBytes = 32 * 2 ** 20;

export const newline = 0x0a;

/** The bytes of one row. */
export interface Piece {
  /** Null when they are more than a row may have. */
  readonly bytes: Buffer | null;
  readonly length: number;
  /** Line of the file in which it begins, from 1, and offset of its first byte. */
  readonly line: number;
  readonly offset: number;
  /** Of the row, from 1. */
  readonly number: number;
}

/** Gathers the bytes of a row over the chunks that it lies in, and drops them when they become too many. */
export class Gatherer {
  #parts: Buffer[] = [];
  length = 0;

  add(part: Buffer): void {
    this.length += part.length;
    if (this.length > maxRowBytes) this.#parts = [];
    else if (part.length > 0) this.#parts.push(part);
  }

  take(): Pick<Piece, "bytes" | "length"> {
    const { length } = this;
    const bytes = length > maxRowBytes ? null : this.#parts.length === 1 ? this.#parts[0]! : Buffer.concat(this.#parts);
    this.#parts = [];
    this.length = 0;
    return { bytes, length };
  }
}

/** Why a row is bad that has more bytes than are allowed. */
export function tooLong(length: number): string {
  return `the row has ${length} bytes, more than the ${maxRowBytes} allowed.`;
}

/** The first byte that is not UTF-8, or null. */
export function encodingFault(
  bytes: Buffer,
  { line, offset }: { line: number; offset: number },
): { line: number; reason: string } | null {
  if (isUtf8(bytes)) return null;
  const at = firstInvalidByte(bytes);
  const byte = (bytes[at] ?? 0).toString(16).padStart(2, "0");
  return {
    line: line + countNewlines(bytes.subarray(0, at)),
    reason: `not UTF-8: byte 0x${byte} at offset ${offset + at}. Save the file as UTF-8.`,
  };
}

/** Source: Unicode 15, table 3-7 (well-formed UTF-8 byte sequences). */
function firstInvalidByte(bytes: Uint8Array): number {
  for (let i = 0; i < bytes.length; ) {
    const lead = bytes[i]!;
    const length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (length === 0) return i;
    const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
    const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
    for (let k = 1; k < length; k++) {
      const byte = bytes[i + k] ?? 0;
      if (k === 1 ? byte < low || byte > high : byte < 0x80 || byte > 0xbf) return i;
    }
    i += length;
  }
  return bytes.length;
}

export function countNewlines(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(newline); at >= 0; at = bytes.indexOf(newline, at + 1)) count++;
  return count;
}
