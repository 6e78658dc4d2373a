import { isUtf8 } from "node:buffer";
import { basename } from "node:path";
import { DataError } from "../errors.js";
import { parseStrictJson, toPlainJson } from "../io/strict-json.js";
import { type DataFile, openDataFile } from "./data-file.js";

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

const newline = 0x0a;

/**
 * The rows of a JSON array or of JSON lines; which of them it is, the file itself says. Of a file that is called `.txt`, every line that is
 * not empty is a row with one column, `text`, as Hugging Face's datasets reads it. Rows that are no JSON objects, or too long to be meant,
 * come back as bad, one for one. At most `maxRows` of them, and the file is never held whole.
 * Throws DataError for what spoils the whole file: missing, empty, no text, an array that does not go on as one.
 */
export async function* readRows(path: string, maxRows = Number.POSITIVE_INFINITY): AsyncGenerator<Row | BadRow> {
  const file = await openDataFile(path, maxRows === Number.POSITIVE_INFINITY);
  try {
    let rows = 0;
    for await (const row of rowsOf(file, basename(path))) {
      yield row;
      if (++rows >= maxRows) return;
    }
  } finally {
    await file.close();
  }
}

async function* rowsOf(file: DataFile, name: string): AsyncGenerator<Row | BadRow> {
  const first = await firstByte(file, name);
  if (name.toLowerCase().endsWith(".txt")) {
    for await (const piece of lines(file, first)) yield textRow(piece, name);
  } else if (first.byte === 0x5b) {
    for await (const piece of elements(file, name, first)) yield jsonRow(piece, name, `${name}, row ${piece.number}`);
  } else if (first.byte === 0x7b) {
    for await (const piece of lines(file, first)) yield jsonRow(piece, name, `${name}:${piece.line}`);
  } else {
    const begins = JSON.stringify(first.bytes.toString("utf8", 0, 20));
    const hint = /\.[ct]sv$/i.test(name)
      ? ' Convert it: datasets.load_dataset("csv", data_files="FILE")["train"].to_json("rows.jsonl").'
      : "";
    throw new DataError(
      `${name}: expected a JSON array of rows, or JSON lines with one row in each; the file begins with ${begins}.${hint}`,
    );
  }
}

/** Offset of the file's first character that is not blank. */
interface Start {
  readonly byte: number;
  /** The rest of the chunk, from that byte on. */
  readonly bytes: Buffer;
  readonly line: number;
  readonly offset: number;
}

async function firstByte(file: DataFile, name: string): Promise<Start> {
  let [line, offset] = [1, file.startOffset];
  for (;;) {
    const chunk = await file.next();
    if (chunk === null) throw new DataError(`${name}: the file is empty.`);
    const at = chunk.findIndex((byte) => byte > 0x20);
    const blanks = chunk.subarray(0, at < 0 ? chunk.length : at);
    line += countNewlines(blanks);
    offset += blanks.length;
    if (at >= 0) return { byte: chunk[at]!, bytes: chunk.subarray(at), line, offset };
  }
}

/** The bytes of one row. */
interface Piece {
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
class Gatherer {
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

/** The lines that are not blank. */
async function* lines(file: DataFile, start: Start): AsyncGenerator<Piece> {
  const row = new Gatherer();
  let { line, offset } = start;
  let number = 1;
  const finish = (): Piece | null => {
    const { bytes, length } = row.take();
    const piece = { bytes, length, line: line++, offset, number };
    offset += length + 1;
    if (bytes?.every((byte) => byte <= 0x20)) return null;
    number++;
    return piece;
  };
  for (let chunk: Buffer | null = start.bytes; chunk !== null; chunk = await file.next()) {
    for (let from = 0; from < chunk.length; ) {
      const found = chunk.indexOf(newline, from);
      const to = found < 0 ? chunk.length : found;
      row.add(chunk.subarray(from, to));
      from = to + 1;
      const piece = found < 0 ? null : finish();
      if (piece !== null) yield piece;
    }
  }
  const last = finish();
  if (last !== null) yield last;
}

const [quote, backslash, comma, openArray, closeArray, openObject, closeObject] = [0x22, 0x5c, 0x2c, 0x5b, 0x5d, 0x7b, 0x7d];

/**
 * The items of the array that the file is, told apart by brackets and commas outside strings; whether each is JSON, its reader sees.
 * Throws DataError when the array is not closed, or when something stands behind it.
 */
async function* elements(file: DataFile, name: string, start: Start): AsyncGenerator<Piece> {
  const row = new Gatherer();
  let { line, offset } = start;
  let begin = { line, offset };
  let number = 1;
  let depth = 0;
  let state: "outside" | "string" | "escape" = "outside";
  let isClosed = false;
  const finish = (isLast: boolean): Piece | null => {
    const { bytes, length } = row.take();
    const isBlank = bytes?.every((byte) => byte <= 0x20) === true;
    if (isBlank && (!isLast || number > 1))
      throw new DataError(`${name}:${line}: not valid JSON: there is no row ${number} before the ${isLast ? "]" : "comma"}.`);
    if (isBlank) return null;
    // The row begins behind the blanks: its line is where it is looked for.
    const blanks = bytes === null ? 0 : bytes.findIndex((byte) => byte > 0x20);
    const blankLines = bytes === null ? 0 : countNewlines(bytes.subarray(0, blanks));
    return {
      bytes: bytes?.subarray(blanks) ?? null,
      length,
      line: begin.line + blankLines,
      offset: begin.offset + blanks,
      number: number++,
    };
  };
  for (let chunk: Buffer | null = start.bytes; chunk !== null; chunk = await file.next()) {
    let from = depth === 0 ? -1 : 0;
    for (let at = 0; at < chunk.length; at++, offset++) {
      const byte = chunk[at]!;
      if (byte === newline) line++;
      if (isClosed) {
        if (byte > 0x20) throw new DataError(`${name}:${line}: not valid JSON: unexpected text behind the array.`);
      } else if (state === "escape") state = "string";
      else if (state === "string") {
        if (byte === backslash) state = "escape";
        else if (byte === quote) state = "outside";
      } else if (byte === quote) state = "string";
      else if (byte === openArray || byte === openObject) {
        if (depth++ > 0) continue;
        from = at + 1;
        begin = { line, offset: offset + 1 };
      } else if (byte === closeArray || byte === closeObject || (byte === comma && depth === 1)) {
        const isEnd = byte !== comma && --depth === 0;
        if (isEnd && byte === closeObject) throw new DataError(`${name}:${line}: not valid JSON: the array is closed by }.`);
        if (byte !== comma && !isEnd) continue;
        row.add(chunk.subarray(from, at));
        from = at + 1;
        const piece = finish(isEnd);
        begin = { line, offset: offset + 1 };
        isClosed = isEnd;
        if (piece !== null) yield piece;
      }
    }
    if (!isClosed) row.add(chunk.subarray(from));
  }
  if (isClosed && number === 1) throw new DataError(`${name}: the list of rows is empty.`);
  if (isClosed) return;
  const { bytes } = row.take();
  const damage = bytes === null ? null : encodingFault(bytes, begin);
  if (damage !== null) throw new DataError(`${name}:${damage.line}: ${damage.reason}`);
  throw new DataError(`${name}:${line}: not valid JSON: the file ends inside row ${number}, which begins in line ${begin.line}.`);
}

function textRow({ bytes, length, line, offset }: Piece, name: string): Row | BadRow {
  const where = `${name}:${line}`;
  if (bytes === null) return { where, reason: tooLong(length) };
  const damage = encodingFault(bytes, { line, offset });
  if (damage !== null) return { where, reason: damage.reason };
  return { value: { text: bytes.toString("utf8").replace(/\r$/, "") }, where };
}

function jsonRow({ bytes, length, line, offset }: Piece, name: string, where: string): Row | BadRow {
  if (bytes === null) return { where, reason: tooLong(length) };
  const damage = encodingFault(bytes, { line, offset });
  if (damage !== null) return { where: `${name}:${damage.line}`, reason: damage.reason };
  const source = bytes.toString("utf8");
  let value: unknown;
  try {
    value = toPlainJson(parseStrictJson(source, { allowLoneSurrogates: true }));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    const fault = faultOf(error, source);
    return { where: `${name}:${line + fault.line}`, reason: `not valid JSON: ${fault.reason}` };
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return { value: value as Row["value"], where };
  return { where, reason: `expected an object with columns, got ${source.trim().slice(0, 60)}.` };
}

function tooLong(length: number): string {
  return `the row has ${length} bytes, more than the ${maxRowBytes} allowed.`;
}

/** Where and why JSON is not valid: lines behind the first, and the column. */
function faultOf({ message }: SyntaxError, source: string): { line: number; reason: string } {
  const [, what = message, position = "0"] = /^(.*) at character (\d+)$/s.exec(message) ?? [];
  const at = Number(position);
  const before = source.slice(0, at);
  const isCut = at >= source.trimEnd().length;
  const hint = isCut
    ? " A row may not go on in the next line, and a file that is one JSON object has no rows: write an array of rows, or JSON lines with one row in each."
    : "";
  return {
    line: before.split("\n").length - 1,
    reason: `${what} in column ${at - before.lastIndexOf("\n")}.${hint}`,
  };
}

function encodingFault(
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

function countNewlines(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(newline); at >= 0; at = bytes.indexOf(newline, at + 1)) count++;
  return count;
}
