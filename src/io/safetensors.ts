import { type FileHandle, open, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { type DType, dtypes } from "../engine/dtype.js";
import { DivergedError, ModelError } from "../errors.js";
import { readFully, replaceFile, systemErrorCode, writeFileAtomic } from "./disk.js";
import type { TensorEntry } from "./model-files.js";
import { parseStrictJson, type StrictJson } from "./strict-json.js";

/**
 * The safetensors format: 8 bytes little-endian header length, a JSON header, then the tensors without gaps.
 * Source: the reference library, safetensors 0.8 `tensor.rs`, and its format description. We accept what it accepts but for
 * three things that no known writer produces and parsers disagree about: duplicate keys, a header that does not begin with
 * `{`, and an array in place of a tensor's object.
 */

/** Bits per element of every type the format knows, in the order in which the reference library lays tensors out. */
const storedBits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E5M2FNUZ: 8,
  F8_E4M3FNUZ: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type StoredDType = keyof typeof storedBits;

/** Where one tensor lies in a safetensors file; its type may be one that the engine cannot compute with. */
export type StoredTensor = Omit<TensorEntry, "dtype"> & { readonly dtype: StoredDType };

export interface SafetensorsFile {
  readonly path: string;
  /** The strings under `__metadata__`. */
  readonly metadata: ReadonlyMap<string, string>;
  /** In the order of their offsets. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

/** The types that both safetensors and the engine have. */
export type PlainDType = "f32" | "f16" | "bf16";

const plainDTypes: ReadonlyMap<string, PlainDType> = new Map([
  ["F32", "f32"],
  ["F16", "f16"],
  ["BF16", "bf16"],
]);

const storedNames: Record<PlainDType, StoredDType> = { f32: "F32", f16: "F16", bf16: "BF16" };

const lengthBytes = 8;
const maxHeaderBytes = 10_000_000; // of 80,000 tensors; 100 MB, as the reference takes, could be made to take minutes and gigabytes
const maxU64 = 2n ** 64n - 1n;

/**
 * Reads and checks the header: every size against the file's length before anything is allocated for it.
 * Throws ModelError that names the file and the tensor.
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const file = await openForReading(path);
  try {
    return await readHeader(path, {
      size: (await file.stat()).size,
      read: (target, position) => readFully(file, target, position),
    });
  } finally {
    await file.close();
  }
}

/** What a header is read from: a file, or memory in tests. `read` fills the target and returns how many bytes there were. */
export interface ByteSource {
  readonly size: number;
  read(target: Uint8Array, position: number): Promise<number>;
}

async function openForReading(path: string): Promise<FileHandle> {
  try {
    if (!(await stat(path)).isFile()) throw new ModelError(`${path}: not a file.`); // to open a pipe would wait for its other end
    return await open(path, "r");
  } catch (error) {
    if (error instanceof ModelError) throw error;
    const code = systemErrorCode(error);
    throw new ModelError(`${path}: ${code === "ENOENT" ? "no such file" : `cannot be opened (${code})`}.`, { cause: error });
  }
}

/** The checks behind `openSafetensors`. */
export async function readHeader(path: string, source: ByteSource): Promise<SafetensorsFile> {
  const prefix = Buffer.alloc(lengthBytes);
  if ((await source.read(prefix, 0)) < lengthBytes) throw damaged(path, `it has ${source.size} bytes, fewer than 8`);
  const hint = looksLikePickle(prefix) ? "; it looks like a PyTorch pickle, which attune never opens" : "";
  const declared = prefix.readBigUInt64LE();
  if (declared > maxHeaderBytes) {
    throw damaged(path, `the header claims ${declared} bytes, more than the limit of ${maxHeaderBytes}${hint}`);
  }
  const headerBytes = Number(declared);
  if (headerBytes > source.size - lengthBytes) {
    throw damaged(
      path,
      `the header claims ${headerBytes} bytes, the file has ${source.size - lengthBytes} after the length${hint}`,
    );
  }

  const raw = new Uint8Array(headerBytes);
  if ((await source.read(raw, lengthBytes)) < headerBytes) throw damaged(path, "it became shorter while it was read");
  if (raw[0] !== 0x7b) throw damaged(path, `the header does not begin with "{"${hint}`);
  const header = parseHeader(path, raw);

  const metadata = readMetadata(path, header.get("__metadata__") ?? null);
  header.delete("__metadata__");
  const dataStart = lengthBytes + headerBytes;
  const tensors = [...header].map(([name, info]) => readTensorInfo(path, name, info, source.size - dataStart));
  tensors.sort((a, b) => a.begin - b.begin || a.end - b.end);

  let end = 0;
  const entries = new Map<string, StoredTensor>();
  for (const { name, dtype, shape, begin, end: tensorEnd } of tensors) {
    if (begin !== end) {
      const what = begin < end ? "overlaps the tensor before it" : "leaves a hole before it";
      throw damaged(path, `tensor "${printable(name)}" begins at ${begin}, expected ${end}: it ${what}`);
    }
    end = tensorEnd;
    entries.set(name, { name, dtype, shape, file: path, offset: dataStart + begin, bytes: tensorEnd - begin });
  }
  if (dataStart + end !== source.size) {
    throw damaged(path, `the tensors end at byte ${dataStart + end}, the file at ${source.size}`);
  }
  return { path, metadata, tensors: entries };
}

function parseHeader(path: string, raw: Uint8Array): Map<string, StrictJson> {
  let header: StrictJson;
  try {
    // ignoreBOM keeps U+FEFF in the text, where the JSON parser refuses it.
    header = parseStrictJson(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw));
  } catch (error) {
    const why = error instanceof SyntaxError ? error.message : "not UTF-8";
    throw damaged(path, `the header is not strict JSON: ${why}`, error);
  }
  return header as Map<string, StrictJson>; // it begins with "{"
}

function readMetadata(path: string, value: StrictJson): Map<string, string> {
  if (value === null) return new Map();
  const isStrings = value instanceof Map && [...value.values()].every((item) => typeof item === "string");
  if (!isStrings) throw damaged(path, "__metadata__ is not an object of strings");
  return value as Map<string, string>;
}

function readTensorInfo(path: string, name: string, info: StrictJson, dataBytes: number) {
  const fail = (what: string) => damaged(path, `tensor "${printable(name)}": ${what}`);
  if (!(info instanceof Map)) throw fail("not an object");

  const dtype = info.get("dtype");
  if (typeof dtype !== "string" || !isStoredDType(dtype))
    throw fail(`unknown type ${typeof dtype === "string" ? printable(dtype) : dtype}`);

  const shape = info.get("shape");
  if (!isU64Array(shape)) throw fail("shape is not a list of whole numbers");
  let count = 1n;
  for (const size of shape) {
    count *= size;
    if (count > maxU64) throw fail("the product of its shape overflows");
  }
  const bits = count * BigInt(storedBits[dtype]);
  if (bits > maxU64) throw fail("its size overflows");
  if (bits % 8n !== 0n) throw fail("does not end at a whole byte");

  const offsets = info.get("data_offsets");
  if (!isU64Array(offsets) || offsets.length !== 2) throw fail("data_offsets is not a pair of whole numbers");
  const [begin, end] = offsets as [bigint, bigint];
  if (begin > end || end > dataBytes) throw fail(`data_offsets [${begin}, ${end}] do not lie in the ${dataBytes} bytes of data`);
  if (end - begin !== bits / 8n) {
    throw fail(`${dtype} of shape [${shape}] needs ${bits / 8n} bytes, data_offsets give ${end - begin}`);
  }
  return { name, dtype, shape: shape.map(Number), begin: Number(begin), end: Number(end) };
}

function isStoredDType(name: string): name is StoredDType {
  return Object.hasOwn(storedBits, name);
}

function isU64Array(value: StrictJson | undefined): value is bigint[] {
  return Array.isArray(value) && value.every((item) => typeof item === "bigint" && item >= 0n && item <= maxU64);
}

function damaged(path: string, what: string, cause?: unknown): ModelError {
  return new ModelError(`${path}: not a valid safetensors file: ${what}. Download or export it again.`, { cause });
}

/** A name from a file, short and on one line, for messages. */
function printable(name: string): string {
  return JSON.stringify(name.slice(0, 200)).slice(1, -1);
}

/** A zip archive (torch.save) or a pickle of protocol 2 and later. */
function looksLikePickle(start: Uint8Array): boolean {
  return (start[0] === 0x50 && start[1] === 0x4b) || (start[0] === 0x80 && start[1]! >= 2 && start[1]! <= 5);
}

/** The entry with the engine's type. Throws ModelError for a type the engine does not compute with. */
export function toTensorEntry(stored: StoredTensor): TensorEntry {
  const dtype = plainDTypes.get(stored.dtype);
  if (dtype === undefined) {
    throw new ModelError(
      `${stored.file}: tensor "${printable(stored.name)}" has type ${stored.dtype}; attune reads ${[...plainDTypes.keys()].join(", ")}.`,
    );
  }
  return { ...stored, dtype };
}

/** The bytes of a tensor in a buffer of its own, so that any typed array can view it. */
export async function readEntry(entry: TensorEntry | StoredTensor): Promise<Uint8Array<ArrayBuffer>> {
  const file = await openForReading(entry.file);
  try {
    // The file may have been cut since it was opened; its length is checked again before memory is taken.
    const isThere = entry.offset + entry.bytes <= (await file.stat()).size;
    const data = new Uint8Array(isThere ? entry.bytes : 0);
    if (!isThere || (await readFully(file, data, entry.offset)) < entry.bytes) {
      throw becameShorter(entry);
    }
    return data;
  } finally {
    await file.close();
  }
}

function becameShorter({ file, name }: { file: string; name: string }): ModelError {
  return new ModelError(`${file}: tensor "${printable(name)}": the file became shorter after it was opened.`);
}

/** The most bytes of a tensor that are held on their way between a file and the engine; whole numbers of every plain type. */
export const pieceBytes = 4 << 20;

/** The bytes of a tensor in order, in pieces that lie in `buffer` until the next one is asked for. Throws as `readEntry`. */
export async function* readPieces(entry: TensorEntry, buffer: Uint8Array): AsyncGenerator<Uint8Array> {
  const file = await openForReading(entry.file);
  try {
    for (let at = 0; at < entry.bytes; at += buffer.length) {
      const piece = buffer.subarray(0, Math.min(buffer.length, entry.bytes - at));
      if ((await readFully(file, piece, entry.offset + at)) < piece.length) throw becameShorter(entry);
      yield piece;
    }
  } finally {
    await file.close();
  }
}

/** One tensor to write. `data` is called once, when its turn comes, so that only one tensor, or a piece of it, needs to be in memory. */
export interface TensorSource {
  readonly name: string;
  readonly dtype: PlainDType;
  readonly shape: readonly number[];
  /** The bytes, all at once or in pieces of whole numbers; a piece may be overwritten when the next one is asked for. */
  readonly data: () => Uint8Array | Promise<Uint8Array> | AsyncIterable<Uint8Array>;
  /**
   * Whether the bytes mean something else than their type says (codes, say): then they are not checked for being finite
   * numbers.
   */
  readonly isOpaque?: boolean;
}

export interface WriteOptions {
  readonly metadata?: Readonly<Record<string, string>>;
  /** Wait until the bytes are on the disk; default true. */
  readonly fsync?: boolean;
}

/** Index of the first NaN or infinite value, -1 if there is none: those whose exponent is all ones. */
export function firstNonFinite(data: Uint8Array, dtype: DType): number {
  const isWide = dtype === "f32";
  const { buffer, byteOffset } = data.byteOffset % 4 === 0 ? data : data.slice();
  const words = isWide
    ? new Uint32Array(buffer, byteOffset, data.length / 4)
    : new Uint16Array(buffer, byteOffset, data.length / 2);
  const exponent = isWide ? 0x7f800000 : dtype === "f16" ? 0x7c00 : 0x7f80;
  for (let i = 0; i < words.length; i++) if ((words[i]! & exponent) === exponent) return i;
  return -1;
}

/** The bytes of a tensor, which messages call `shown`. Throws ModelError if one of its numbers is not finite. */
export async function readFinite(entry: TensorEntry, shown = entry.name): Promise<Uint8Array<ArrayBuffer>> {
  const data = await readEntry(entry);
  const bad = firstNonFinite(data, entry.dtype);
  if (bad >= 0)
    throw new ModelError(
      `${entry.file}: tensor ${printable(shown)}: value ${bad} is not a finite number: the weights are damaged, or their training diverged.`,
    );
  return data;
}

/**
 * Writes a file tensor by tensor; the final name appears only when everything is written.
 * The layout is that of the reference library: wider types first, then by name, header padded to 8 bytes.
 * Throws ModelError for a bad entry, DivergedError for a number that is not finite, NoSpaceError on a full disk.
 */
export async function writeSafetensors(path: string, entries: Iterable<TensorSource>, options: WriteOptions = {}): Promise<void> {
  const sources = [...entries].sort(byWidthThenName);
  const header: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  if (options.metadata) header.__metadata__ = options.metadata;
  let end = 0;
  for (const source of sources) {
    if (source.name in header || source.name === "__metadata__") {
      throw new ModelError(`${path}: cannot write two tensors named "${printable(source.name)}".`);
    }
    const begin = end;
    end += sizeOf(path, source);
    header[source.name] = { dtype: storedNames[source.dtype], shape: source.shape, data_offsets: [begin, end] };
  }

  const json = Buffer.from(JSON.stringify(header));
  const headerBytes = Math.ceil(json.length / 8) * 8;
  if (headerBytes > maxHeaderBytes) throw new ModelError(`${path}: the header would exceed ${maxHeaderBytes} bytes.`);
  const start = Buffer.alloc(lengthBytes + headerBytes, " ");
  start.writeBigUInt64LE(BigInt(headerBytes));
  json.copy(start, lengthBytes);

  const write = async (file: FileHandle) => {
    await file.writeFile(start);
    for (const source of sources) {
      const expected = sizeOf(path, source);
      let written = 0;
      for await (const piece of inPieces(source.data())) {
        const bad = source.isOpaque ? -1 : firstNonFinite(piece, source.dtype);
        if (bad >= 0)
          throw new DivergedError(
            `${path}: number ${written / dtypes[source.dtype].bytes + bad} of tensor "${printable(source.name)}" is not finite: such a file is not written`,
          );
        await file.writeFile(piece); // appends at the file's position
        written += piece.length;
      }
      if (written !== expected) {
        throw new ModelError(`${path}: tensor "${printable(source.name)}" should have ${expected} bytes, got ${written}.`);
      }
    }
  };
  await replaceFile(path, write, { fsync: options.fsync ?? true, neededBytes: start.length + end });
}

/** The bytes of a `TensorSource` in pieces, however it gives them. */
export async function* inPieces(data: ReturnType<TensorSource["data"]>): AsyncGenerator<Uint8Array> {
  if (Symbol.asyncIterator in data) yield* data;
  else yield await data;
}

function byWidthThenName(a: TensorSource, b: TensorSource): number {
  const order = Object.keys(storedBits);
  const rank = (source: TensorSource) => order.indexOf(storedNames[source.dtype]);
  return rank(b) - rank(a) || Buffer.compare(Buffer.from(a.name), Buffer.from(b.name));
}

function sizeOf(path: string, { name, dtype, shape }: TensorSource): number {
  const bytes = shape.reduce((product, size) => product * size, dtypes[dtype].bytes);
  if (!Number.isSafeInteger(bytes) || !shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw new ModelError(`${path}: tensor "${printable(name)}" has an impossible shape [${shape}].`);
  }
  return bytes;
}

export const singleFileName = "model.safetensors";
export const indexFileName = "model.safetensors.index.json";

/**
 * Writes `model.safetensors`, or numbered shards with an index as transformers does when the tensors exceed
 * `maxShardBytes`. A tensor is never split, so one larger than the limit gets a shard of its own.
 * Returns the names of the files written. Throws as `writeSafetensors`.
 */
export async function writeShardedSafetensors(
  folder: string,
  entries: Iterable<TensorSource>,
  { maxShardBytes, ...options }: WriteOptions & { readonly maxShardBytes: number },
): Promise<string[]> {
  const shards: TensorSource[][] = [[]];
  let shardBytes = 0;
  let totalBytes = 0;
  for (const entry of entries) {
    const bytes = sizeOf(join(folder, singleFileName), entry);
    if (shardBytes > 0 && shardBytes + bytes > maxShardBytes) {
      shards.push([]);
      shardBytes = 0;
    }
    shards.at(-1)!.push(entry);
    shardBytes += bytes;
    totalBytes += bytes;
  }
  if (shards.length === 1) {
    await writeSafetensors(join(folder, singleFileName), shards[0]!, options);
    return [singleFileName];
  }

  const number = (index: number) => String(index).padStart(5, "0");
  const names = shards.map((_, index) => `model-${number(index + 1)}-of-${number(shards.length)}.safetensors`);
  const weightMap: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const [index, shard] of shards.entries()) {
    for (const { name } of shard) {
      if (name in weightMap) throw new ModelError(`${folder}: cannot write two tensors named "${printable(name)}".`);
      weightMap[name] = names[index]!;
    }
    await writeSafetensors(join(folder, names[index]!), shard, options);
  }
  // The index comes last: without it the shards are not taken for a model.
  const index = { metadata: { total_size: totalBytes }, weight_map: weightMap };
  await writeFileAtomic(join(folder, indexFileName), `${JSON.stringify(index, null, 2)}\n`);
  return [...names, indexFileName];
}

const maxIndexBytes = maxHeaderBytes;

/**
 * Opens every shard that a `model.safetensors.index.json` names and returns the tensors of all.
 * Shard names must be plain file names beside the index; index and shards must agree about every tensor.
 */
export async function openShardedSafetensors(indexPath: string): Promise<Map<string, StoredTensor>> {
  const weightMap = await readIndex(indexPath);
  const shards = new Map<string, SafetensorsFile>();
  for (const shard of new Set(weightMap.values())) {
    shards.set(shard, await openSafetensors(join(dirname(indexPath), shard)));
  }
  const tensors = new Map<string, StoredTensor>();
  for (const [name, shard] of weightMap) {
    const tensor = shards.get(shard)!.tensors.get(name);
    if (!tensor) throw new ModelError(`${indexPath}: tensor "${printable(name)}" is not in ${shard}, where the index puts it.`);
    tensors.set(name, tensor);
  }
  for (const { path, tensors: stored } of shards.values()) {
    for (const name of stored.keys()) {
      if (weightMap.get(name) !== basename(path)) {
        throw new ModelError(`${path}: tensor "${printable(name)}" is not in ${basename(indexPath)}.`);
      }
    }
  }
  return tensors;
}

async function readIndex(path: string): Promise<Map<string, string>> {
  const fail = (what: string, cause?: unknown) => new ModelError(`${path}: not a valid index: ${what}.`, { cause });
  const file = await openForReading(path);
  let text: string;
  try {
    const { size } = await file.stat();
    if (size > maxIndexBytes) throw fail(`larger than ${maxIndexBytes} bytes`);
    text = await file.readFile("utf8");
  } finally {
    await file.close();
  }
  let index: StrictJson;
  try {
    index = parseStrictJson(text);
  } catch (error) {
    throw fail((error as Error).message, error);
  }
  const weightMap = index instanceof Map ? index.get("weight_map") : undefined;
  if (!(weightMap instanceof Map) || weightMap.size === 0) throw fail("it has no weight_map");
  for (const [name, shard] of weightMap) {
    if (typeof shard !== "string" || !/^[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors$/.test(shard)) {
      throw fail(
        `tensor "${printable(name)}" is said to be in ${JSON.stringify(String(shard).slice(0, 200))}; expected a plain file name`,
      );
    }
  }
  return weightMap as Map<string, string>;
}

/** True for a type that holds real weights, as opposed to masks, ids and packed integers. */
export function isFloatingPoint(dtype: StoredDType): boolean {
  return dtype.startsWith("F") || dtype === "BF16" || dtype === "C64";
}
