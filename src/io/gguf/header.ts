import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { bytesOf, type DType, dtypes, isWholeBlocks } from "../../engine/dtype.js";
import { ModelError } from "../../errors.js";
import { systemErrorCode } from "../disk.js";

/**
 * What a GGUF file says about itself: metadata and where each tensor lies.
 */
export interface GgufHeader {
  /** Numbers, booleans, strings and arrays of them; a 64-bit integer beyond 2⁵³ is a bigint. */
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly tensors: readonly GgufTensor[];
}

export interface GgufTensor {
  /** llama.cpp's name. */
  readonly name: string;
  readonly dtype: DType;
  /** Outermost dimension first: the reverse of the order in the file. */
  readonly shape: readonly number[];
  /** From the beginning of the file. */
  readonly offset: number;
  readonly bytes: number;
}

/** The ggml_type numbers of the types that the engine reads. */
export const tensorTypes: ReadonlyMap<number, DType> = new Map([
  [0, "f32"],
  [1, "f16"],
  [30, "bf16"],
  [8, "q8_0"],
  [2, "q4_0"],
  [3, "q4_1"],
  [6, "q5_0"],
  [7, "q5_1"],
  [12, "q4_k"],
  [13, "q5_k"],
  [14, "q6_k"],
]);

/** Names of other ggml types, for the message that refuses them. */
const otherTypes: ReadonlyMap<number, string> = new Map([
  [9, "Q8_1"],
  [10, "Q2_K"],
  [11, "Q3_K"],
  [15, "Q8_K"],
  [16, "IQ2_XXS"],
  [17, "IQ2_XS"],
  [18, "IQ3_XXS"],
  [19, "IQ1_S"],
  [20, "IQ4_NL"],
  [21, "IQ3_S"],
  [22, "IQ2_S"],
  [23, "IQ4_XS"],
  [24, "I8"],
  [25, "I16"],
  [26, "I32"],
  [27, "I64"],
  [28, "F64"],
  [29, "IQ1_M"],
  [34, "TQ1_0"],
  [35, "TQ2_0"],
  [39, "MXFP4"],
]);

/** Bytes of each gguf_type, whose number is the index; of a string (8) and an array (9) at least its length. */
const valueBytes = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];
export const stringType = 8;
export const arrayType = 9;

export const defaultAlignment = 32;
export const maxDimensions = 4;
const maxNameBytes = 65_535;
const maxStringBytes = 64 << 20;
const maxItems = 1 << 22; // of all arrays together: the largest vocabularies and merge lists have about 2¹⁹ each
const maxMetadataBytes = 128 << 20;
const maxTensors = 1 << 17;
const minKeyValueBytes = 8 + 4 + 1;
const minTensorBytes = 8 + 4 + 8 + 4 + 8;

/**
 * Reads the header of a GGUF file, version 2 or 3, little-endian.
 * Source: ggml/src/gguf.cpp of llama.cpp. We refuse what it refuses (repeated keys and names, offsets that leave holes or
 * overlap, a broken alignment), and arrays of arrays and empty dimensions as well. Every count is checked against the bytes
 * left in the file before anything is allocated for it.
 * Throws ModelError that names the file and what is wrong in it.
 */
export function readGgufHeader(path: string): GgufHeader {
  let fd: number;
  try {
    if (!statSync(path).isFile()) throw new ModelError(`${path}: not a file.`); // to open a pipe would wait for its other end
    fd = openSync(path, "r");
  } catch (error) {
    if (error instanceof ModelError) throw error;
    const code = systemErrorCode(error);
    throw new ModelError(`${path}: ${code === "ENOENT" ? "no such file" : `cannot be opened (${code})`}.`, { cause: error });
  }
  try {
    return parseGgufHeader(path, {
      size: fstatSync(fd).size,
      read: (target, position) => readSync(fd, target, 0, target.length, position),
    });
  } finally {
    closeSync(fd);
  }
}

/** What a header is read from: a file, or memory in tests. `read` returns how many bytes it put into the target. */
export interface SyncByteSource {
  readonly size: number;
  read(target: Uint8Array, position: number): number;
}

/** The checks behind `readGgufHeader`. */
export function parseGgufHeader(path: string, source: SyncByteSource): GgufHeader {
  const bytes = new ByteReader(path, source);
  if (bytes.remaining < 24) throw bytes.damaged(`it has ${bytes.remaining} bytes, fewer than the 24 a header needs`);
  if (bytes.u32() !== 0x46554747) throw bytes.damaged('it does not begin with "GGUF"');
  const version = bytes.u32();
  if (version > 0xffff) throw bytes.unsupported("it is big-endian; convert it on this machine");
  if (version !== 2 && version !== 3) throw bytes.unsupported(`it has version ${version}; versions 2 and 3 are read`);
  const tensorCount = bytes.count("tensors", minTensorBytes);
  if (tensorCount > maxTensors) throw bytes.damaged(`it claims ${tensorCount} tensors, more than ${maxTensors}`);
  const keyCount = bytes.count("metadata values", minKeyValueBytes);

  const metadata: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (let i = 0; i < keyCount; i++) {
    const key = bytes.string(maxNameBytes, "a metadata key");
    if (key in metadata) throw bytes.damaged(`metadata key "${key}" appears twice`);
    metadata[key] = readValue(bytes, key);
    if (bytes.position > maxMetadataBytes) throw bytes.damaged(`its metadata have more than ${maxMetadataBytes} bytes`);
  }
  const splits = metadata["split.count"];
  if (typeof splits === "number" && splits > 1) {
    throw bytes.unsupported(`it is one of ${splits} parts; merge them with llama.cpp's llama-gguf-split --merge`);
  }

  const alignment = metadata["general.alignment"] ?? defaultAlignment;
  if (typeof alignment !== "number" || alignment < 1 || !Number.isInteger(Math.log2(alignment))) {
    throw bytes.damaged(`general.alignment is ${String(alignment).slice(0, 100)}, expected a power of two`);
  }
  const infos = readTensorInfos(bytes, tensorCount);

  const align = (offset: number) => Math.ceil(offset / alignment) * alignment;
  const dataStart = align(bytes.position);
  let end = 0;
  const tensors = infos.map(({ offset, ...tensor }) => {
    if (offset !== end) throw bytes.damaged(`tensor "${tensor.name}" lies at offset ${offset}, expected ${end}`);
    if (dataStart + end + tensor.bytes > bytes.size) {
      throw bytes.damaged(
        `tensor "${tensor.name}" ends at byte ${dataStart + end + tensor.bytes}, the file at ${bytes.size}: it was cut off`,
      );
    }
    end = align(end + tensor.bytes);
    return { ...tensor, offset: dataStart + offset };
  });
  return { metadata, tensors };
}

function readTensorInfos(bytes: ByteReader, count: number): GgufTensor[] {
  const tensors = new Map<string, GgufTensor>();
  for (let i = 0; i < count; i++) {
    const name = bytes.string(maxNameBytes, "a tensor name");
    const fail = (what: string) => bytes.damaged(`tensor "${name}": ${what}`);
    if (tensors.has(name)) throw fail("appears twice");

    const dimensions = bytes.u32();
    if (dimensions < 1 || dimensions > maxDimensions) throw fail(`${dimensions} dimensions; 1 to ${maxDimensions} are possible`);
    const shape: number[] = [];
    let elements = 1;
    for (let axis = 0; axis < dimensions; axis++) {
      const size = bytes.u64();
      elements *= Number(size);
      if (size < 1n || !Number.isSafeInteger(elements)) throw fail(`dimension ${axis} is ${size}, which is impossible`);
      shape.unshift(Number(size));
    }

    const type = bytes.u32();
    const dtype = tensorTypes.get(type);
    if (dtype === undefined) {
      const supported = [...tensorTypes.values()].map((known) => known.toUpperCase()).join(", ");
      throw bytes.unsupported(
        `tensor "${name}" has type ${otherTypes.get(type) ?? `number ${type}`}; attune reads ${supported}. Take another quantization of the model`,
      );
    }
    const rowElements = shape.at(-1)!;
    if (!isWholeBlocks(dtype, rowElements)) {
      throw fail(`rows of ${rowElements} elements do not divide into ${dtype} blocks of ${dtypes[dtype].block}`);
    }
    const offset = bytes.u64();
    if (offset > bytes.size) throw fail(`lies at offset ${offset}, behind the end of the file`);
    tensors.set(name, { name, dtype, shape, offset: Number(offset), bytes: bytesOf(dtype, elements) });
  }
  return [...tensors.values()];
}

function readValue(bytes: ByteReader, key: string): unknown {
  const type = bytes.u32();
  if (type !== arrayType) return readScalar(bytes, type, key);

  const itemType = bytes.u32();
  const itemBytes = valueBytes[itemType];
  if (itemBytes === undefined || itemType === arrayType) {
    throw bytes.damaged(`metadata "${key}" is an array of ${itemType === arrayType ? "arrays" : `unknown type ${itemType}`}`);
  }
  const length = bytes.count(`items of "${key}"`, itemType === stringType ? 8 : itemBytes);
  bytes.items += length;
  if (bytes.items > maxItems) throw bytes.damaged(`metadata up to "${key}" have ${bytes.items} items, more than ${maxItems}`);
  const items: unknown[] = [];
  for (let i = 0; i < length; i++) items.push(readScalar(bytes, itemType, key));
  return items;
}

function readScalar(bytes: ByteReader, type: number, key: string): unknown {
  switch (type) {
    case 0:
      return bytes.take(1).readUInt8();
    case 1:
      return bytes.take(1).readInt8();
    case 2:
      return bytes.take(2).readUInt16LE();
    case 3:
      return bytes.take(2).readInt16LE();
    case 4:
      return bytes.u32();
    case 5:
      return bytes.take(4).readInt32LE();
    case 6:
      return bytes.take(4).readFloatLE();
    case 7:
      return bytes.take(1).readUInt8() !== 0;
    case stringType:
      return bytes.string(maxStringBytes, `metadata "${key}"`);
    case 10:
      return numberIfExact(bytes.u64());
    case 11:
      return numberIfExact(bytes.take(8).readBigInt64LE());
    case 12:
      return bytes.take(8).readDoubleLE();
    default:
      throw bytes.damaged(`metadata "${key}" has unknown type ${type}`);
  }
}

function numberIfExact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

const chunkBytes = 1 << 20;

/** Walks through a source from its beginning; knows how much is left and never reads past it. */
class ByteReader {
  readonly #path: string;
  readonly #source: SyncByteSource;
  #buffer = Buffer.alloc(0);
  /** Of all arrays so far. */
  items = 0;
  /** Next byte in the buffer. */
  #at = 0;
  /** Position in the source of the buffer's end. */
  #loaded = 0;

  constructor(path: string, source: SyncByteSource) {
    this.#path = path;
    this.#source = source;
  }

  get size(): number {
    return this.#source.size;
  }

  get position(): number {
    return this.#loaded - (this.#buffer.length - this.#at);
  }

  get remaining(): number {
    return this.size - this.position;
  }

  /** The next bytes; valid until the next call. */
  take(length: number): Buffer {
    if (this.#buffer.length - this.#at < length) this.#load(length);
    this.#at += length;
    return this.#buffer.subarray(this.#at - length, this.#at);
  }

  #load(length: number): void {
    const position = this.position;
    if (length > this.remaining) throw this.damaged(`it ends at byte ${this.size}, in the middle of its header`);
    const fresh = Buffer.allocUnsafe(Math.min(Math.max(length, chunkBytes), this.remaining));
    let filled = 0;
    while (filled < fresh.length) {
      const count = this.#source.read(fresh.subarray(filled), position + filled);
      if (count === 0) throw this.damaged("it became shorter while it was read");
      filled += count;
    }
    this.#buffer = fresh;
    this.#at = 0;
    this.#loaded = position + fresh.length;
  }

  u32(): number {
    return this.take(4).readUInt32LE();
  }

  u64(): bigint {
    return this.take(8).readBigUInt64LE();
  }

  /** A u64 that says how many things follow, each of at least `minBytes`. */
  count(what: string, minBytes: number): number {
    const count = this.u64();
    if (count * BigInt(minBytes) > this.remaining) {
      throw this.damaged(`it claims ${count} ${what}, more than fit in the ${this.remaining} bytes left`);
    }
    return Number(count);
  }

  string(maxBytes: number, what: string): string {
    const length = this.count(`bytes of ${what}`, 1);
    if (length > maxBytes) throw this.damaged(`${what} has ${length} bytes, more than ${maxBytes}`);
    const raw = this.take(length);
    const text = raw.toString("utf8");
    // Only text with U+FFFD can come from bytes that are not UTF-8; comparing tells it from a real one.
    if (text.includes("\ufffd") && !Buffer.from(text, "utf8").equals(raw)) throw this.damaged(`${what} is not UTF-8`);
    return text;
  }

  damaged(what: string): ModelError {
    return new ModelError(`${this.#path}: not a valid GGUF file: ${what}. Download or convert it again.`);
  }

  unsupported(what: string): ModelError {
    return new ModelError(`${this.#path}: this GGUF file cannot be used: ${what}.`);
  }
}
