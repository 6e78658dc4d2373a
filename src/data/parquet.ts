import { isUtf8 } from "node:buffer";
import { getHeapStatistics } from "node:v8";
import { brotliDecompressSync, gunzipSync } from "node:zlib";
import { type FileMetaData, parquetMetadata, parquetRead, type RowGroup, snappyUncompress } from "hyparquet";
import { decompressLz4, decompressLz4Raw, decompressZstd } from "hyparquet-compressors";
import { DataError } from "../errors.js";
import { withTimeLimit } from "../text/work-limit.js";
import { type DataFile, maxTextBytes, tooLarge } from "./data-file.js";
import { type BadRow, maxRowBytes, type Row, tooLong } from "./pieces.js";

/**
 * The rows of a Parquet file, a row group at a time. Lists, structs and maps are lists and objects, as in JSON; whole numbers of 64 bits are numbers, dates and
 * times their ISO text, and bytes that no type calls text stay bytes. What a file claims is checked before anything is unpacked: each page's size and number
 * of values against what fits into memory, each length against the file. Throws DataError for a file that is damaged, cut off or too large.
 */
export async function* parquetRows(file: DataFile, name: string, maxRows: number): AsyncGenerator<Row | BadRow> {
  const metadata = await guarded(name, () => readFooter(file));
  const { columns, leaves } = checkSchema(metadata, name);
  const budget = { bytes: maxTextBytes() };
  const promised = metadata.row_groups.reduce((sum, { num_rows }) => sum + Number(num_rows), 0);
  if (promised === 0) throw new DataError(`${name}: the file has no rows.`);
  if (Math.min(promised, maxRows) * rowBytes > maxTextBytes()) throw tooLarge(name);
  const whole = { rows: 0, chars: 0 };
  for (const group of metadata.row_groups) {
    const count = Math.min(Number(group.num_rows), maxRows - whole.rows);
    if (count <= 0) continue;
    const rows = await guarded(name, async () => {
      await checkPages(file, group, leaves, name, budget);
      return readGroup(file, { ...metadata, row_groups: [group] }, count);
    });
    for (const cells of rows) {
      const where = `${name}, row ${++whole.rows}`;
      const row = rowOf(cells, columns, where);
      yield row.read;
      whole.chars += row.chars + rowBytes;
      if (whole.chars > maxTextBytes()) throw tooLarge(name);
    }
  }
}

/** Whatever the reader stumbles over is the file's fault. */
async function guarded<T>(name: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof DataError) throw error;
    const said = error instanceof Error ? error.message : String(error);
    throw new DataError(`${name}: cannot be read as Parquet, the file is damaged or of a newer kind: ${said}`, { cause: error });
  }
}

const maxFooterBytes = 2 ** 25;

async function readFooter(file: DataFile): Promise<FileMetaData> {
  const end = await file.slice(Math.max(0, file.size - 8), file.size);
  if (end.toString("latin1", 4) !== "PAR1") throw new Error("it does not end with PAR1, so its end is missing");
  const length = end.readUInt32LE(0);
  if (length > maxFooterBytes) throw new Error(`its description has ${length} bytes, more than the ${maxFooterBytes} allowed`);
  const footer = await file.slice(file.size - 8 - length, file.size);
  new Thrift(footer.subarray(0, length)).struct();
  return parquetMetadata(footer, { geoparquet: false });
}

const maxDepth = 32;
const maxColumns = 10_000;

/** The names of the columns, and the paths of what is stored. Throws for what cannot be told apart, or takes more than the file holds. */
function checkSchema({ schema: [root, ...elements] }: FileMetaData, name: string): { columns: string[]; leaves: string[] } {
  const columns: string[] = [];
  const leaves: string[] = [];
  const open = [{ left: root?.num_children ?? 0, path: [] as string[], names: new Set<string>() }];
  for (const element of elements) {
    while (open.at(-1)?.left === 0) open.pop();
    const parent = open.at(-1);
    const own = element.name ?? "";
    if (parent === undefined || open.length > maxDepth || elements.length > maxColumns)
      throw new DataError(`${name}: columns nested deeper than ${maxDepth}, more than ${maxColumns} of them, or of no table.`);
    if (parent.names.has(own) || own === "__proto__")
      throw new DataError(`${name}: columns may not be called __proto__, or two of them ${shown(own)}; rename them.`);
    if (element.logical_type?.type === "VARIANT" || (element.type_length ?? 0) > 2 ** 16)
      throw new DataError(`${name}: the column ${shown(own)} is of a type that attune does not read; leave it out.`);
    parent.names.add(own);
    parent.left--;
    const path = [...parent.path, own];
    if (path.length === 1) columns.push(own);
    const children = element.num_children ?? 0;
    if (children > 0) open.push({ left: children, path, names: new Set() });
    else leaves.push(path.join("."));
  }
  return { columns, leaves };
}

const shown = (column: string) => JSON.stringify(column.slice(0, 80));

/** What a row and a value take at least while rows are made: arrays and objects, one for each list and struct that a value lies in. */
const [rowBytes, cellBytes, levelBytes] = [256, 16, 16];

const deltaByteArray = 7;

/**
 * Walks over the pages of a row group without unpacking them, and throws for claims that would not fit, or that hyparquet stumbles over where nobody
 * can catch it; `budget` is what the whole file may unpack to.
 */
async function checkPages(
  file: DataFile,
  { columns, num_rows }: RowGroup,
  leaves: readonly string[],
  name: string,
  budget: { bytes: number },
): Promise<void> {
  let made = Number(num_rows) * rowBytes;
  let packed = 0;
  if (columns.length !== leaves.length) throw new Error(`${columns.length} columns where ${leaves.length} are described`);
  for (const [i, { meta_data: chunk }] of columns.entries()) {
    const path = leaves[i]!;
    if (chunk?.path_in_schema.join(".") !== path) throw new Error(`there is no column ${shown(path)} where it should be`);
    const start = Number(chunk.dictionary_page_offset || chunk.data_page_offset);
    const length = Number(chunk.total_compressed_size);
    packed += length;
    if (packed > file.size) throw new Error("its columns overlap");
    const bytes = await file.slice(start, start + length);
    for (let at = 0; at < length - 1; ) {
      const thrift = new Thrift(bytes.subarray(at));
      const { 2: unpacked, 3: compressed, ...header } = thrift.struct();
      const page = (header[5] ?? header[7] ?? header[8]) as Header | undefined;
      const values = page?.[1] ?? 0;
      if (!isCount(unpacked) || !isCount(compressed) || !isCount(values)) throw new Error(`a page of ${path} has no size`);
      if ((header[5] as Header | undefined)?.[2] === deltaByteArray || (header[8] as Header | undefined)?.[4] === deltaByteArray)
        throw new Error(`${path} is stored as DELTA_BYTE_ARRAY, which attune does not read; write it with another encoding`);
      at += thrift.at + compressed;
      if (at > length) throw new Error(`a page of ${path} reaches beyond its column`);
      budget.bytes -= unpacked;
      made += values * (cellBytes + chunk.path_in_schema.length * levelBytes);
      if (budget.bytes < 0 || made > getHeapStatistics().heap_size_limit / 2) throw tooLarge(name);
    }
  }
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && value >= 0;
}

async function readGroup(file: DataFile, metadata: FileMetaData, count: number): Promise<unknown[][]> {
  let rows: unknown[][] = [];
  await parquetRead({
    file: {
      byteLength: file.size,
      slice: async (start, end = file.size) => {
        const { buffer, byteOffset, byteLength } = await file.slice(start, end);
        return (buffer as ArrayBuffer).slice(byteOffset, byteOffset + byteLength);
      },
    },
    metadata,
    rowEnd: count,
    utf8: false,
    geoparquet: false,
    compressors,
    parsers,
    onComplete: (read) => {
      rows = read as unknown[][];
    },
  });
  if (rows.length !== count) throw new Error(`${rows.length} rows where ${count} are promised`);
  return rows;
}

const pageLimitMs = 20_000;

/** Unpacks a page into exactly as many bytes as it claims, which `checkPages` has found to fit. */
function bounded(unpack: (input: Uint8Array, length: number) => Uint8Array) {
  return (input: Uint8Array, length: number) =>
    withTimeLimit(
      pageLimitMs,
      () => unpack(input, length),
      () => new DataError(`unpacking a page of Parquet took over ${pageLimitMs / 1000} s.`),
    );
}

const compressors = {
  SNAPPY: bounded((input, length) => {
    const output = new Uint8Array(length);
    snappyUncompress(input, output);
    return output;
  }),
  GZIP: bounded((input, length) => gunzipSync(input, { maxOutputLength: length + 1 })),
  BROTLI: bounded((input, length) => brotliDecompressSync(input, { maxOutputLength: length + 1 })),
  ZSTD: bounded((input, length) => decompressZstd(input, new Uint8Array(length))),
  LZ4: bounded(decompressLz4),
  LZ4_RAW: bounded(decompressLz4Raw),
};

/** Stands for bytes that should be text and are none. */
const notUtf8 = Symbol("not UTF-8");

const textOf = (bytes: Uint8Array): unknown =>
  isUtf8(bytes) ? Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8") : notUtf8;

/** `2026-05-01T12:30:00`, as Python's isoformat. */
function isoText(ms: number): string {
  return Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString().replace(/(?:\.000)?Z$/, "") : String(ms);
}

const parsers = {
  stringFromBytes: textOf,
  jsonFromBytes: textOf,
  dateFromDays: (days: number) => isoText(days * 86_400_000).slice(0, -"T00:00:00".length),
  timestampFromMilliseconds: (time: bigint) => isoText(Number(time)),
  timestampFromMicroseconds: (time: bigint) => isoText(Number(time / 1000n)),
  timestampFromNanoseconds: (time: bigint) => isoText(Number(time / 1_000_000n)),
  geometryFromBytes: (bytes: Uint8Array) => bytes,
  geographyFromBytes: (bytes: Uint8Array) => bytes,
};

/** A row as JSON would have it, or what is wrong with it; and how long it is. */
function rowOf(cells: readonly unknown[], columns: readonly string[], where: string): { read: Row | BadRow; chars: number } {
  let chars = 0;
  const toPlain = (value: unknown): unknown => {
    chars += typeof value === "string" ? value.length : value instanceof Uint8Array ? value.length : 8;
    if (typeof value === "bigint") return Number(value);
    if (typeof value !== "object" || value === null || value instanceof Uint8Array) {
      if (value === notUtf8) throw notUtf8;
      return value ?? null;
    }
    if (Array.isArray(value)) return value.map(toPlain);
    return recordOf(Object.entries(value), toPlain);
  };
  const value = recordOf([], toPlain);
  for (const [i, column] of columns.entries())
    try {
      value[column] = toPlain(cells[i]);
    } catch (error) {
      if (error !== notUtf8) throw error;
      return {
        read: { where, reason: `the column ${shown(column)} holds text that is not UTF-8.` },
        chars,
      };
    }
  return { read: chars > maxRowBytes ? { where, reason: tooLong(chars) } : { where, value }, chars };
}

function recordOf(entries: readonly [string, unknown][], toPlain: (value: unknown) => unknown): Record<string, unknown> {
  const record: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const [key, value] of entries) record[key] = toPlain(value);
  return record;
}

interface Header {
  readonly [field: number]: number | Header | undefined;
}

const [stop, isTrue, isFalse, byte, i16, i32, i64, double, binary, list, struct] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12];

/**
 * Reads the descriptions in a Parquet file to see that they end where they should, and the numbers of a page's. A reader that trusts their lengths, as
 * hyparquet's does, is safe behind it. Source: Thrift's compact protocol.
 */
class Thrift {
  readonly #bytes: Buffer;
  at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  struct(depth = 0): Header {
    if (depth > maxDepth) throw new Error("a description nested too deeply");
    const fields: Record<number, number | Header | undefined> = {};
    let field = 0;
    for (;;) {
      const head = this.#byte();
      const type = head & 0x0f;
      if (type === stop) return fields;
      const step = head >> 4;
      field = step === 0 ? this.#zigzag() : field + step;
      fields[field] = this.#value(type, depth);
    }
  }

  #value(type: number, depth: number): number | Header | undefined {
    switch (type) {
      case isTrue:
      case isFalse:
        return undefined;
      case byte:
        this.#byte();
        return undefined;
      case i16:
      case i32:
        return this.#zigzag();
      case i64:
        return this.#zigzag(2 ** 64);
      case double:
        this.#skip(8);
        return undefined;
      case binary:
        this.#skip(this.#varint());
        return undefined;
      case list: {
        const head = this.#byte();
        const length = head >> 4 === 15 ? this.#varint() : head >> 4;
        if (length > this.#bytes.length - this.at) throw new Error("a list longer than the file");
        const item = head & 0x0f;
        for (let i = 0; i < length; i++) this.#value(item === isTrue || item === isFalse ? byte : item, depth + 1);
        return undefined;
      }
      case struct:
        return this.struct(depth + 1);
      default:
        throw new Error(`a field of the unknown type ${type}`);
    }
  }

  #byte(): number {
    const value = this.#bytes[this.at++];
    if (value === undefined) throw new Error("a description without an end");
    return value;
  }

  #skip(length: number): void {
    this.at += length;
    if (this.at > this.#bytes.length) throw new Error("a text longer than the file");
  }

  /** Below `limit`: hyparquet wraps what is larger, and would see another number than was checked. */
  #varint(limit = 2 ** 32): number {
    let value = 0;
    for (let shift = 0; shift < 70 && value < limit; shift += 7) {
      const next = this.#byte();
      value += (next & 0x7f) * 2 ** shift;
      if (next < 0x80 && value <= limit) return value;
    }
    throw new Error("a number too large");
  }

  #zigzag(limit = 2 ** 32): number {
    const value = this.#varint(limit);
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }
}
