import { type FileHandle, open, stat } from "node:fs/promises";
import { getHeapStatistics } from "node:v8";
import { DataError } from "../errors.js";

/** A file that is read chunk by chunk, as text without its byte-order mark, or at any place, as Parquet is. */
export interface DataFile {
  readonly isParquet: boolean;
  readonly size: number;
  /** Where its text begins: behind the mark. */
  readonly startOffset: number;
  /** The next bytes; null at the end. Throws DataError when the file changes meanwhile, or holds more than fits into memory. */
  next(): Promise<Buffer | null>;
  /** The bytes from `start` up to `end`. Throws DataError when the file has no such bytes. */
  slice(start: number, end: number): Promise<Buffer>;
  close(): Promise<void>;
}

const chunkBytes = 2 ** 20;

/** Texts take up to two bytes a character in memory, beside what is made of them. */
export const maxTextBytes = () => Math.floor(getHeapStatistics().heap_size_limit / 3);

const toJsonLines = 'convert it: datasets.load_dataset("KIND", data_files="FILE")["train"].to_json("rows.jsonl")';
const neverOpened = "attune never opens these; save the data as JSON lines";

/** How files begin that hold data, but no text, and what to do with them. Source: file(1)'s magic, and the formats' own descriptions. */
const otherFormats: readonly (readonly [name: string, remedy: string, ...magic: string[]])[] = [
  ["gzip", "unpack it with gunzip", "\x1f\x8b"],
  ["bzip2", "unpack it with bunzip2", "BZh91AY&SY"],
  ["xz", "unpack it with unxz", "\xfd7zXZ\0"],
  ["Zstandard", "unpack it with unzstd", "\x28\xb5\x2f\xfd"],
  ["LZ4", "unpack it with unlz4", "\x04\x22\x4d\x18"],
  ["7z", "unpack it", "7z\xbc\xaf\x27\x1c"],
  ["RAR", "unpack it", "Rar!\x1a"],
  ["ZIP (or a spreadsheet, or what PyTorch saves)", "unpack it, or save it as JSON lines", "PK\x03\x04", "PK\x05\x06"],
  ["encrypted Parquet", "decrypt it first", "PARE"],
  ["Arrow", toJsonLines.replace("KIND", "arrow"), "ARROW1", "\xff\xff\xff\xff"],
  ["Avro", "convert it to JSON lines", "Obj\x01"],
  ["an SQLite database", "convert it to JSON lines", "SQLite format 3\0"],
  ["HDF5", "convert it to JSON lines", "\x89HDF"],
  ["NumPy's", "convert it to JSON lines", "\x93NUMPY"],
  ["PDF", "take its text out first", "%PDF-"],
  ["a Python pickle", neverOpened, "\x80\x02", "\x80\x03", "\x80\x04", "\x80\x05"],
  ["GGUF, a model", "name the data instead", "GGUF\x02\0", "GGUF\x03\0"],
  ["a pointer of Git LFS, and the data is not there yet", "get it with git lfs pull", "version https://git-lfs"],
];

/**
 * Opens a file of text or of Parquet. Throws DataError for what is neither: a folder, a pipe or a device (which is not even opened: it might never answer), another
 * format by its first bytes, UTF-16; and, when all of it is to be read (`isWhole`), what would not fit into memory.
 */
export async function openDataFile(path: string, isWhole = true): Promise<DataFile> {
  let file: FileHandle;
  let size: number;
  try {
    const status = await stat(path);
    if (status.isDirectory()) throw new DataError(`${path}: this is a folder; name the file in it.`);
    if (!status.isFile())
      throw new DataError(`${path}: this is no file but a pipe, a socket or a device; save the data to a file.`);
    size = status.size;
    if (isWhole && size > maxTextBytes()) throw tooLarge(path);
    file = await open(path);
  } catch (error) {
    throw unreadable(path, error);
  }

  const slice = async (start: number, end: number): Promise<Buffer> => {
    if (!(start >= 0 && start <= end && end <= size))
      throw new DataError(`${path}: the file is damaged or cut off: it has no bytes ${start} to ${end}.`);
    const chunk = Buffer.allocUnsafe(end - start);
    let length = 0;
    try {
      while (length < chunk.length) {
        const { bytesRead } = await file.read(chunk, length, chunk.length - length, start + length);
        if (bytesRead === 0) throw new DataError(`${path}: the file became shorter while it was read.`);
        length += bytesRead;
      }
    } catch (error) {
      throw unreadable(path, error);
    }
    return chunk;
  };
  let offset = 0;
  const read = async (): Promise<Buffer> => {
    if (offset > maxTextBytes()) throw tooLarge(path);
    // No further than the size at the beginning: a file that somebody still writes to would never end.
    const chunk = await slice(offset, Math.min(size, offset + chunkBytes));
    offset += chunk.length;
    return chunk;
  };

  try {
    const head = await read();
    checkFormat(head, path);
    const hasByteOrderMark = head[0] === 0xef && head[1] === 0xbb && head[2] === 0xbf;
    let first: Buffer | null = hasByteOrderMark ? head.subarray(3) : head;
    return {
      isParquet: head.toString("latin1", 0, 4) === "PAR1",
      size,
      slice,
      startOffset: head.length - first.length,
      async next() {
        const chunk = first ?? (offset < size ? await read() : null);
        first = null;
        return chunk;
      },
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

function unreadable(path: string, error: unknown): DataError {
  if (error instanceof DataError) return error;
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (code === "ENOENT") return new DataError(`${path}: there is no such file.`);
  return new DataError(`${path}: cannot be read: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}

export function tooLarge(path: string): DataError {
  return new DataError(
    `${path}: more than ${maxTextBytes()} bytes of rows do not fit into Node's memory; split the file, set max_samples, or allow more with NODE_OPTIONS=--max-old-space-size=MEGABYTES.`,
  );
}

function checkFormat(head: Buffer, path: string): void {
  const beginning = head.toString("latin1", 0, 32);
  for (const [format, remedy, ...magic] of otherFormats)
    if (magic.some((bytes) => beginning.startsWith(bytes)))
      throw new DataError(`${path}: this is no JSON and no text: the file is ${format}; ${remedy}.`);
  const [first, second] = head;
  const isMarked = (first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff);
  const isUnmarked = head.length > 1 && (first === 0) !== (second === 0); // ASCII in UTF-16 has a zero in every pair
  if (isMarked || isUnmarked)
    throw new DataError(`${path}: the file is UTF-16; save it as UTF-8, for instance with: iconv -f UTF-16 -t UTF-8.`);
}
