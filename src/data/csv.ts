import { DataError } from "../errors.js";
import type { DataFile } from "./data-file.js";
import { type BadRow, encodingFault, Gatherer, newline, type Piece, type Row, tooLong } from "./pieces.js";

const [quote, carriageReturn] = [0x22, 0x0d];

/**
 * The rows of a file whose first line names the columns, with commas or tabs between them: RFC 4180, read as pandas and so Hugging Face's datasets read it
 * (blank lines are skipped, a row that ends early lacks its last cells, an empty cell is null, quoted or not), with three differences. A cell is the
 * text that stands there: no numbers, dates or words such as NA are made something else. Text behind a closing quotation mark is a fault of its row,
 * where pandas joins it. A name that two columns have is an error, where pandas renames the second.
 * Throws DataError for a heading that cannot be used, and for quotation marks that are still open where the file ends.
 */
export async function* csvRows(file: DataFile, name: string, separator: "," | "\t"): AsyncGenerator<Row | BadRow> {
  let columns: string[] | undefined;
  let rows = 0;
  for await (const piece of records(file, name, separator)) {
    const where = `${name}:${piece.line}`;
    const read = readCells(piece, where, separator);
    if (columns === undefined) {
      if ("reason" in read) throw new DataError(`${read.where}: the names of the columns: ${read.reason}`);
      columns = columnNames(read.cells, where);
    } else {
      rows++;
      yield "reason" in read ? read : rowOf(read.cells, columns, where);
    }
  }
  if (columns === undefined) throw new DataError(`${name}: the file is empty.`);
  if (rows === 0) throw new DataError(`${name}: there are no rows below the names of the columns.`);
}

function rowOf(cells: readonly string[], columns: readonly string[], where: string): Row | BadRow {
  if (cells.length > columns.length) {
    const reason = `the row has ${cells.length} cells, and the first line names ${columns.length} columns; put a text with commas or line breaks in quotation marks.`;
    return { where, reason };
  }
  const value: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const [i, column] of columns.entries()) value[column] = cells[i] || null;
  return { where, value };
}

/** The heading. A column without a name, such as the row numbers that pandas writes, is called as pandas calls it. */
function columnNames(cells: readonly string[], where: string): string[] {
  const [first = ""] = cells;
  const other = cells.length === 1 ? [";", "\t", "|", ","].find((mark) => first.includes(mark)) : undefined;
  if (other !== undefined)
    throw new DataError(
      `${where}: the first line seems to name columns with ${JSON.stringify(other)} between them; save the file with commas, or with tabs as .tsv.`,
    );
  const names = cells.map((cell, i) => cell || `Unnamed: ${i}`);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined)
    throw new DataError(`${where}: two columns are called ${JSON.stringify(twice.slice(0, 80))}; rename one.`);
  return names;
}

/** The lines that are not blank, but for line breaks inside quotation marks. They end with LF, CRLF or CR. */
async function* records(file: DataFile, name: string, separator: string): AsyncGenerator<Piece> {
  const comma = separator.charCodeAt(0);
  const row = new Gatherer();
  let [line, offset, number] = [1, file.startOffset, 1];
  let begin = { line, offset };
  let state: "start" | "plain" | "quoted" | "closed" = "start"; // of the cell
  let isCrLf = false; // the last byte was a carriage return: a line feed belongs to it

  const finish = (): Piece | null => {
    const { bytes, length } = row.take();
    const piece = { bytes, length, number, ...begin };
    if (bytes?.every((byte) => byte <= 0x20 && byte !== comma)) return null;
    number++;
    return piece;
  };
  for (let chunk = await file.next(); chunk !== null; chunk = await file.next()) {
    let from = 0;
    for (let at = 0; at < chunk.length; at++, offset++) {
      const byte = chunk[at]!;
      const isBreak = byte === newline || byte === carriageReturn;
      const isSecond = isCrLf && byte === newline;
      isCrLf = byte === carriageReturn;
      if (isBreak && !isSecond) line++;
      if (state === "quoted") {
        if (byte === quote) state = "closed";
      } else if (isSecond) {
        from = at + 1;
        begin = { line, offset: offset + 1 };
      } else if (isBreak) {
        row.add(chunk.subarray(from, at));
        from = at + 1;
        const piece = finish();
        begin = { line, offset: offset + 1 };
        state = "start";
        if (piece !== null) yield piece;
      } else if (byte === quote && state !== "plain") state = "quoted";
      else state = byte === comma ? "start" : "plain";
    }
    row.add(chunk.subarray(from));
  }
  if (state === "quoted")
    throw new DataError(
      `${name}: the row of line ${begin.line} opens a quotation mark that is never closed, so the rest of the file belongs to it.`,
    );
  const last = finish();
  if (last !== null) yield last;
}

function readCells(piece: Piece, where: string, separator: string): { cells: string[] } | BadRow {
  if (piece.bytes === null) return { where, reason: tooLong(piece.length) };
  const damage = encodingFault(piece.bytes, piece);
  if (damage !== null) return { where: where.replace(/\d+$/, String(damage.line)), reason: damage.reason };
  const text = piece.bytes.toString("utf8");
  const cells: string[] = [];
  for (let at = 0; at <= text.length; at++) {
    if (text[at] !== '"') {
      const found = text.indexOf(separator, at);
      const end = found < 0 ? text.length : found;
      cells.push(text.slice(at, end));
      at = end;
      continue;
    }
    let end = text.indexOf('"', at + 1);
    while (text[end + 1] === '"') end = text.indexOf('"', end + 2);
    cells.push(text.slice(at + 1, end).replaceAll('""', '"'));
    at = end + 1;
    if (at < text.length && text[at] !== separator) {
      const shown = JSON.stringify(text.slice(at, at + 20));
      return {
        where,
        reason: `in cell ${cells.length}, ${shown} stands behind a closing quotation mark; a mark inside a text is written twice ("").`,
      };
    }
  }
  return { cells };
}
