import { basename, extname } from "node:path";
import { DataError } from "../errors.js";
import { parseStrictJson, toPlainJson } from "../io/strict-json.js";
import { csvRows } from "./csv.js";
import { type DataFile, openDataFile } from "./data-file.js";
import { type BadRow, countNewlines, encodingFault, Gatherer, newline, type Piece, type Row, tooLong } from "./pieces.js";

/**
 * The rows of Parquet, of a JSON array or of JSON lines; which of them it is, the file itself says. A file that is called `.csv` or `.tsv` has the names of
 * its columns in its first line. Of a file that is called `.txt`, every line that is not empty is a row with one column, `text`, as Hugging Face's
 * datasets reads it. Rows that are no objects, or too long to be meant,
 * come back as bad, one for one. At most `maxRows` of them, and the file is never held whole.
 * Throws DataError for what spoils the whole file: missing, empty, no text, an array that does not go on as one.
 */
export async function* readRows(path: string, maxRows = Number.POSITIVE_INFINITY): AsyncGenerator<Row | BadRow> {
  const file = await openDataFile(path, maxRows === Number.POSITIVE_INFINITY);
  try {
    let rows = 0;
    for await (const row of rowsOf(file, basename(path), maxRows)) {
      yield row;
      if (++rows >= maxRows) return;
    }
  } finally {
    await file.close();
  }
}

async function* rowsOf(file: DataFile, name: string, maxRows: number): AsyncGenerator<Row | BadRow> {
  const ending = extname(name).toLowerCase();
  if (file.isParquet) {
    const { parquetRows } = await import("./parquet.js"); // its reader takes time to load
    yield* parquetRows(file, name, maxRows);
    return;
  }
  if (ending === ".parquet") throw new DataError(`${name}: this is no Parquet: it does not begin with PAR1.`);
  if (ending === ".csv" || ending === ".tsv") {
    yield* csvRows(file, name, ending === ".csv" ? "," : "\t");
    return;
  }
  const first = await firstByte(file, name);
  if (ending === ".txt") {
    for await (const piece of lines(file, first)) yield textRow(piece, name);
  } else if (first.byte === 0x5b) {
    for await (const piece of elements(file, name, first)) yield jsonRow(piece, name, `${name}, row ${piece.number}`);
  } else if (first.byte === 0x7b) {
    for await (const piece of lines(file, first)) yield jsonRow(piece, name, `${name}:${piece.line}`);
  } else {
    const begins = JSON.stringify(first.bytes.toString("utf8", 0, 20));
    throw new DataError(
      `${name}: expected a JSON array of rows, JSON lines with one row in each, Parquet, or a name that ends in .csv, .tsv or .txt; the file begins with ${begins}.`,
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
