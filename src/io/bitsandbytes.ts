import { createHash } from "node:crypto";
import { z } from "zod";
import { bytesOf, isWholeBlocks } from "../engine/dtype.js";
import { ModelError } from "../errors.js";
import type { TensorEntry } from "./model-files.js";
import { readEntry, type StoredDType, type StoredTensor } from "./safetensors.js";
import { parseStrictJson, toPlainJson } from "./strict-json.js";

/**
 * 4-bit weights as transformers saves them with bitsandbytes: `W` holds two codes a byte, and beside it lie `W.absmax`, `W.quant_map`,
 * `W.quant_state.bitsandbytes__nf4` (JSON in bytes) and, with double quantization, `W.nested_absmax` and `W.nested_quant_map`.
 *
 * Source: bitsandbytes 0.50, functional.py, QuantState.as_dict. The numbers that come out are those of its `dequantize_4bit`, bit by bit.
 */
export interface FourBitWeight {
  /** The weight with its real shape (N, K) and the engine's type; its place in the file is that of the codes. */
  readonly entry: TensorEntry;
  /** Reads all parts, and puts them together as the engine has them. */
  readonly read: () => Promise<Uint8Array>;
}

export interface GatheredWeights {
  readonly weights: ReadonlyMap<string, FourBitWeight>;
  /** The tensors of the folder that belong to no such weight. */
  readonly others: ReadonlyMap<string, StoredTensor>;
}

const blockSize = 64;
const nestedBlockSize = 256;
const maxStateBytes = 10_000;
const stateName = /^(.+)\.quant_state\.bitsandbytes__(nf4|fp4)$/;

const QuantState = z.object({
  quant_type: z.enum(["nf4", "fp4"]),
  blocksize: z.literal(blockSize),
  shape: z.tuple([z.int().min(1), z.int().min(1)]),
  nested_blocksize: z.literal(nestedBlockSize).optional(),
  nested_dtype: z.literal("float32").optional(),
  nested_offset: z.number().optional(),
});

/** What the engine multiplies absmax with, by code. */
const tables = {
  nf4: Float32Array.of(
    ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334],
    ...[-0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
    ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
  ),
  fp4: Float32Array.from([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], (value) => value / 12),
};

/** sha256 of the dynamic map that the engine has for codes of absmax. */
const dynamicMapHash = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c";

/** True if a folder's `quantization_config` says that its weights are stored so. */
export function isFourBit(quantization: unknown): boolean {
  return z.looseObject({ quant_method: z.literal("bitsandbytes"), load_in_4bit: z.literal(true) }).safeParse(quantization)
    .success;
}

/**
 * Finds the weights and reads all of them but codes and absmax. Throws ModelError that names the tensor: a part is missing or of the wrong
 * size, blocks are not of 64, or rows not of whole blocks.
 */
export async function gatherFourBitWeights(stored: ReadonlyMap<string, StoredTensor>): Promise<GatheredWeights> {
  const weights = new Map<string, FourBitWeight>();
  const others = new Map(stored);
  for (const state of stored.values()) {
    const name = stateName.exec(state.name)?.[1];
    if (name === undefined) continue;
    const parts = new Parts(name, state, stored);
    weights.set(name, await openWeight(parts));
    for (const part of parts.taken) others.delete(part);
  }
  return { weights, others };
}

/** The tensors of one weight, by what stands behind its name. */
class Parts {
  readonly taken = new Set<string>();

  constructor(
    readonly name: string,
    readonly state: StoredTensor,
    readonly stored: ReadonlyMap<string, StoredTensor>,
  ) {
    this.taken.add(state.name);
  }

  has(suffix: string): boolean {
    return this.stored.has(this.name + suffix);
  }

  /** A part of so many bytes; of that type, unless any will do. */
  take(suffix: string, bytes: number, dtype?: StoredDType): StoredTensor {
    const part = this.stored.get(this.name + suffix);
    if (part === undefined) throw this.fail(`has no ${this.name}${suffix}`);
    if (part.bytes !== bytes || (dtype !== undefined && part.dtype !== dtype)) {
      throw this.fail(`${part.name} has ${part.bytes} bytes of ${part.dtype}, expected ${bytes}${dtype ? ` of ${dtype}` : ""}`);
    }
    this.taken.add(part.name);
    return part;
  }

  fail(what: string): ModelError {
    return new ModelError(`${this.state.file}: 4-bit weight "${this.name}": ${what}.`);
  }
}

async function openWeight(parts: Parts): Promise<FourBitWeight> {
  const { quant_type: kind, shape, nested_offset: offset } = await readState(parts);
  const [, columns] = shape;
  const count = shape[0] * columns;
  if (!isWholeBlocks(kind, columns)) throw parts.fail(`rows of ${columns} are no whole blocks of ${blockSize}`);
  const blocks = count / blockSize;
  const codes = parts.take("", count / 2);
  const table = floats(await readEntry(parts.take(".quant_map", 16 * 4, "F32")));
  if (!table.every((value, code) => value === tables[kind][code]))
    throw parts.fail(`its quant_map is not bitsandbytes' own of ${kind}`);

  const entry = { ...codes, shape };
  if (!parts.has(".nested_absmax")) {
    const absmax = parts.take(".absmax", blocks * 4, "F32");
    const read = async () => joinF32Blocks(await readEntry(codes), floats(await readEntry(absmax)));
    return { entry: { ...entry, dtype: `${kind}_f32` }, read };
  }

  if (offset === undefined) throw parts.fail("its quant_state has no nested_offset");
  const absmax = parts.take(".absmax", blocks, "U8");
  const scales = parts.take(".nested_absmax", Math.ceil(blocks / nestedBlockSize) * 4, "F32");
  const map = await readEntry(parts.take(".nested_quant_map", 256 * 4, "F32"));
  if (createHash("sha256").update(map).digest("hex") === dynamicMapHash) {
    const read = async () =>
      joinSuperBlocks(await readEntry(codes), await readEntry(absmax), floats(await readEntry(scales)), offset);
    return { entry: { ...entry, dtype: kind }, read };
  }
  // Old versions changed the map's first number when they quantized on a CPU: then the engine gets what comes of it.
  const read = async () => {
    const nested = floats(await readEntry(scales));
    const values = floats(map);
    const f32 = (code: number, block: number) =>
      Math.fround(values[code]! * nested[Math.floor(block / nestedBlockSize)]!) + Math.fround(offset);
    return joinF32Blocks(await readEntry(codes), Float32Array.from(await readEntry(absmax), f32));
  };
  return { entry: { ...entry, dtype: `${kind}_f32` }, read };
}

async function readState(parts: Parts): Promise<z.output<typeof QuantState>> {
  const { state } = parts;
  if (state.bytes > maxStateBytes) throw parts.fail(`${state.name} is larger than ${maxStateBytes} bytes`);
  const text = new TextDecoder().decode(await readEntry(state));
  try {
    return QuantState.parse(toPlainJson(parseStrictJson(text)));
  } catch (error) {
    const why = error instanceof z.ZodError ? z.prettifyError(error) : `not valid JSON: ${(error as Error).message}`;
    throw parts.fail(`${state.name}: ${why}`);
  }
}

const floats = (bytes: Uint8Array<ArrayBuffer>): Float32Array => new Float32Array(bytes.buffer);

/** Blocks of nf4 and fp4, see engine/dtype.h. */
function joinSuperBlocks(codes: Uint8Array, absmax: Uint8Array, scales: Float32Array, offset: number): Uint8Array {
  const joined = new Uint8Array(bytesOf("nf4", codes.length * 2));
  const view = new DataView(joined.buffer);
  let at = 0;
  for (let block = 0; block < absmax.length; block++) {
    if (block % nestedBlockSize === 0) {
      view.setFloat32(at, scales[block / nestedBlockSize]!, true);
      view.setFloat32(at + 4, offset, true);
      at += 8;
    }
    joined[at++] = absmax[block]!;
    for (let i = 0; i < 32; i++) joined[at++] = codes[block * 32 + i]!;
  }
  return joined;
}

/** Blocks of nf4_f32 and fp4_f32. */
function joinF32Blocks(codes: Uint8Array, absmax: Float32Array): Uint8Array {
  const joined = new Uint8Array(bytesOf("nf4_f32", codes.length * 2));
  const view = new DataView(joined.buffer);
  let at = 0;
  for (const [block, value] of absmax.entries()) {
    view.setFloat32(at, value, true);
    at += 4;
    for (let i = 0; i < 32; i++) joined[at++] = codes[block * 32 + i]!;
  }
  return joined;
}
