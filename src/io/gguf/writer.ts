import type { FileHandle } from "node:fs/promises";
import { bytesOf, type DType, isWholeBlocks } from "../../engine/dtype.js";
import { ModelError } from "../../errors.js";
import { replaceFile } from "../disk.js";
import { arrayType, defaultAlignment, maxDimensions, stringType, tensorTypes } from "./header.js";

/** A metadata value, under the name of its gguf_type. */
export type GgufValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly bool: boolean }
  | { readonly string: string }
  | { readonly strings: readonly string[] }
  | { readonly i32s: readonly number[] }
  | { readonly f32s: readonly number[] };

export type GgufMetadata = Readonly<Record<string, GgufValue>>;

/** One tensor to write. `data` is called once, when its turn comes, so that only one tensor needs to be in memory. */
export interface GgufTensorSource {
  /** llama.cpp's name. */
  readonly name: string;
  readonly dtype: DType;
  /** Outermost dimension first. */
  readonly shape: readonly number[];
  readonly data: () => Uint8Array | Promise<Uint8Array>;
}

const ggufTypes: ReadonlyMap<DType, number> = new Map([...tensorTypes].map(([type, dtype]) => [dtype, type]));

const [u32Type, i32Type, f32Type, boolType] = [4, 5, 6, 7];
const maxNameBytes = 63; // ggml keeps a name in 64 bytes

/**
 * Writes a GGUF file of version 3, tensor by tensor; the final name appears only when everything is written.
 * Source: gguf-py 0.19, gguf_writer.py. Throws ModelError for a bad entry, NoSpaceError on a full disk.
 */
export async function writeGguf(path: string, metadata: GgufMetadata, tensors: Iterable<GgufTensorSource>): Promise<void> {
  const sources = [...tensors];
  const keys = Object.entries(metadata);
  const start: Buffer[] = [Buffer.from("GGUF"), u32(3), u64(sources.length), u64(keys.length)];
  for (const [key, value] of keys) start.push(text(key), ...valueBytes(value));

  const names = new Set<string>();
  let end = 0;
  for (const source of sources) {
    check(path, source, names);
    const { name, dtype, shape } = source;
    names.add(name);
    start.push(text(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(ggufTypes.get(dtype)!), u64(end));
    end += aligned(byteLength(source));
  }
  const header = Buffer.concat(start);

  const write = async (file: FileHandle) => {
    await file.writeFile(padded(header));
    for (const source of sources) {
      const data = await source.data();
      if (data.length !== byteLength(source))
        throw new ModelError(`${path}: tensor ${source.name} should have ${byteLength(source)} bytes, got ${data.length}.`);
      await file.writeFile(padded(data)); // appends at the file's position
    }
  };
  await replaceFile(path, write, { neededBytes: aligned(header.length) + end });
}

function check(path: string, { name, dtype, shape }: GgufTensorSource, names: ReadonlySet<string>): void {
  const fail = (what: string) => new ModelError(`${path}: tensor ${JSON.stringify(name)} cannot be written: ${what}.`);
  if (names.has(name)) throw fail("there is another of this name");
  if (name === "" || Buffer.byteLength(name) > maxNameBytes) throw fail(`llama.cpp takes names of 1 to ${maxNameBytes} bytes`);
  if (!ggufTypes.has(dtype)) throw fail(`GGUF has no type ${dtype}`);
  if (shape.length < 1 || shape.length > maxDimensions)
    throw fail(`it has ${shape.length} dimensions, 1 to ${maxDimensions} are possible`);
  if (!shape.every((size) => Number.isSafeInteger(size) && size > 0)) throw fail(`its shape is [${shape}]`);
  if (!isWholeBlocks(dtype, shape.at(-1)!)) throw fail(`rows of ${shape.at(-1)} do not divide into ${dtype} blocks`);
}

function byteLength({ dtype, shape }: GgufTensorSource): number {
  return bytesOf(
    dtype,
    shape.reduce((product, size) => product * size, 1),
  );
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / defaultAlignment) * defaultAlignment;
}

/** `data` with zeros up to the next aligned position. */
function padded(data: Uint8Array): Uint8Array {
  const length = aligned(data.length);
  if (length === data.length) return data;
  const result = new Uint8Array(length);
  result.set(data);
  return result;
}

function valueBytes(value: GgufValue): Buffer[] {
  if ("u32" in value) return [u32(u32Type), u32(value.u32)];
  if ("f32" in value) return [u32(f32Type), f32(value.f32)];
  if ("bool" in value) return [u32(boolType), Buffer.from([value.bool ? 1 : 0])];
  if ("string" in value) return [u32(stringType), text(value.string)];
  if ("strings" in value) return array(stringType, value.strings.map(text));
  if ("i32s" in value) return array(i32Type, [Buffer.from(Int32Array.from(value.i32s).buffer)], value.i32s.length);
  return array(f32Type, [Buffer.from(Float32Array.from(value.f32s).buffer)], value.f32s.length);
}

function array(itemType: number, items: Buffer[], length = items.length): Buffer[] {
  return [u32(arrayType), u32(itemType), u64(length), ...items];
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function f32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}
