import { constants, isUtf8 } from "node:buffer";
import { type FileHandle, open } from "node:fs/promises";
import { basename } from "node:path";
import { DataError } from "../errors.js";
import { parseStrictJson } from "../io/strict-json.js";

/** One row of a data file as it stands there. */
export interface Row {
  readonly value: Record<string, unknown>;
  /** `orders.jsonl:17` or `alpaca.json, row 3`. */
  readonly where: string;
}

/** A row that cannot be used, and why. */
export interface BadRow {
  readonly where: string;
  readonly reason: string;
}

export interface FileRows {
  readonly rows: readonly Row[];
  readonly bad: readonly BadRow[];
}

const maxFileBytes = 2 ** 31 - 1; // what one Buffer from readFile may hold
const maxRowBytes = 32 * 2 ** 20;

const newline = 0x0a;

/**
 * The rows of a JSON array or of JSON lines; which of them it is, the file itself says. Of a file that is called `.txt`, every line that is
 * not empty is a row with one column, `text`, as Hugging Face's datasets reads it. Rows that are no JSON objects, or too long to be meant,
 * come back as bad; each of the first `maxRows` rows of the file is in one list or the other.
 * Throws DataError for what spoils the whole file: missing, empty, not UTF-8, a damaged array.
 */
export async function readRows(path: string, maxRows = Number.POSITIVE_INFINITY): Promise<FileRows> {
  const bytes = await readBytes(path);
  const name = basename(path);
  checkEncoding(bytes, name);
  const start = bytes.findIndex((byte) => byte > 0x20);
  if (start < 0) throw new DataError(`${name}: the file is empty.`);
  if (name.endsWith(".txt")) return textRows(bytes, name, maxRows);
  if (bytes[start] === 0x5b) return arrayRows(bytes, name, maxRows); // [
  if (bytes[start] === 0x7b) return lineRows(bytes, name, maxRows); // {
  throw new DataError(
    `${name}: expected a JSON array of rows, or JSON lines with one row in each; the file begins with ${peek(bytes, start)}.`,
  );
}

async function readBytes(path: string): Promise<Buffer> {
  let file: FileHandle | undefined;
  try {
    file = await open(path);
    const status = await file.stat();
    if (status.isDirectory()) throw new DataError(`${path}: this is a folder; name the file in it.`);
    if (status.size > maxFileBytes)
      throw new DataError(`${path}: ${status.size} bytes are more than can be read at once (${maxFileBytes}); split the file.`);
    const bytes = await file.readFile();
    const hasByteOrderMark = bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf;
    return hasByteOrderMark ? bytes.subarray(3) : bytes;
  } catch (error) {
    if (error instanceof DataError) throw error;
    const code = error instanceof Error && "code" in error ? error.code : undefined;
    if (code === "ENOENT") throw new DataError(`${path}: there is no such file.`);
    throw new DataError(`${path}: cannot be read: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  } finally {
    await file?.close();
  }
}

function checkEncoding(bytes: Buffer, name: string): void {
  const [first, second] = bytes;
  const isMarked = (first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff);
  const isUnmarked = bytes.length > 1 && (first === 0) !== (second === 0); // ASCII in UTF-16 has a zero in every pair
  if (isMarked || isUnmarked)
    throw new DataError(`${name}: the file is UTF-16; save it as UTF-8, for instance with: iconv -f UTF-16 -t UTF-8.`);
  if (isUtf8(bytes)) return;
  const offset = firstInvalidByte(bytes);
  throw new DataError(
    `${name}:${lineAt(bytes, offset)}: not UTF-8: byte ${hex(bytes[offset])} at offset ${offset}. Save the file as UTF-8.`,
  );
}

function arrayRows(bytes: Buffer, name: string, maxRows: number): FileRows {
  const rows: Row[] = [];
  const bad: BadRow[] = [];
  for (const [index, value] of parseArray(bytes, name).slice(0, maxRows).entries())
    sort(value, `${name}, row ${index + 1}`, rows, bad);
  if (rows.length + bad.length === 0) throw new DataError(`${name}: the list of rows is empty.`);
  return { rows, bad };
}

function parseArray(bytes: Buffer, name: string): unknown[] {
  if (bytes.length > constants.MAX_STRING_LENGTH)
    throw new DataError(`${name}: the array is too large to be read at once; write it as JSON lines, one row in each.`);
  const source = bytes.toString("utf8");
  try {
    return JSON.parse(source) as unknown[];
  } catch (error) {
    const { line, reason } = jsonFault(source, error);
    throw new DataError(`${name}:${line}: not valid JSON: ${reason}`);
  }
}

function lineRows(bytes: Buffer, name: string, maxRows: number): FileRows {
  const rows: Row[] = [];
  const bad: BadRow[] = [];
  for (const { source, line, where } of linesOf(bytes, name, maxRows, bad)) {
    let value: unknown;
    try {
      value = JSON.parse(source);
    } catch (error) {
      if (line === 1 && isPrettyPrinted(bytes))
        throw new DataError(
          `${name}: the file is one JSON object; expected an array of rows, or JSON lines with one row in each.`,
        );
      bad.push({ where, reason: `not valid JSON: ${jsonFault(source, error).reason}` });
      continue;
    }
    sort(value, where, rows, bad);
  }
  return { rows, bad };
}

function textRows(bytes: Buffer, name: string, maxRows: number): FileRows {
  const rows: Row[] = [];
  const bad: BadRow[] = [];
  for (const { source, where } of linesOf(bytes, name, maxRows, bad)) {
    rows.push({ value: { text: source.replace(/\r$/, "") }, where });
  }
  return { rows, bad };
}

/** The first lines that are not empty; those of them that are too long for a row go to `bad`. */
function* linesOf(
  bytes: Buffer,
  name: string,
  maxRows: number,
  bad: BadRow[],
): Generator<{ source: string; line: number; where: string }> {
  let line = 0;
  let rows = 0;
  for (let from = 0; from < bytes.length && rows < maxRows; ) {
    const found = bytes.indexOf(newline, from);
    const to = found < 0 ? bytes.length : found;
    line++;
    const where = `${name}:${line}`;
    const text = bytes.subarray(from, to);
    from = to + 1;
    if (text.every((byte) => byte <= 0x20)) continue;
    rows++;
    if (text.length > maxRowBytes)
      bad.push({ where, reason: `the line has ${text.length} bytes, more than the ${maxRowBytes} allowed for a row.` });
    else yield { source: text.toString("utf8"), line, where };
  }
}

function sort(value: unknown, where: string, rows: Row[], bad: BadRow[]): void {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    bad.push({ where, reason: `expected an object with columns, got ${JSON.stringify(value)?.slice(0, 60)}.` });
  else rows.push({ value: value as Record<string, unknown>, where });
}

/** A file whose first line is only the beginning of an object, and that is an object as a whole. */
function isPrettyPrinted(bytes: Buffer): boolean {
  if (bytes.length > maxRowBytes) return false;
  try {
    JSON.parse(bytes.toString("utf8"));
    return true;
  } catch {
    return false;
  }
}

/** Where and why JSON is not valid. V8 tells the place only sometimes; the strict parser always does. */
function jsonFault(source: string, error: unknown): { line: number; reason: string } {
  try {
    parseStrictJson(source);
  } catch (strict) {
    const message = strict instanceof Error ? strict.message : "";
    const at = /^(.*) at character (\d+)$/.exec(message);
    if (at) {
      const before = source.slice(0, Number(at[2]));
      const column = Number(at[2]) - before.lastIndexOf("\n");
      return { line: before.split("\n").length, reason: `${at[1]} in column ${column}.` };
    }
  }
  return { line: 1, reason: error instanceof Error ? error.message : String(error) };
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

function lineAt(bytes: Buffer, offset: number): number {
  let line = 1;
  for (let at = bytes.indexOf(newline); at >= 0 && at < offset; at = bytes.indexOf(newline, at + 1)) line++;
  return line;
}

function peek(bytes: Buffer, start: number): string {
  return JSON.stringify(bytes.toString("utf8", start, start + 20));
}

function hex(byte: number | undefined): string {
  return `0x${(byte ?? 0).toString(16).padStart(2, "0")}`;
}
