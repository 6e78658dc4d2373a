import { bytesOf, type DType, dtypes, type Layout } from "../dtype.js";
import { randomFloats, randomSource } from "./testing.js";

/**
 * Stored numbers, element by element, for tests: written from the formats' definitions (the structs in ggml/src/ggml-common.h, bitsandbytes'
 * functional.py) and not from the engine's code.
 */

/** Element `index` of an array of `type` that begins at the start of `bytes`. */
export function storedElement(type: DType, bytes: DataView, index: number): number {
  const { block } = dtypes[type];
  const at = blockOffset(type, Math.floor(index / block));
  const i = index % block;
  const byte = (offset: number): number => bytes.getUint8(at + offset);
  const half = (offset: number): number => halfToNumber(bytes.getUint16(at + offset, true));
  const nibble = (offset: number): number => (i < 16 ? byte(offset + i) & 15 : byte(offset + i - 16) >> 4);
  const fifth = (offset: number): number => ((byte(offset + (i >> 3)) >> (i & 7)) & 1) * 16;
  switch (type) {
    case "f32":
      return bytes.getFloat32(at, true);
    case "f16":
      return half(0);
    case "bf16":
      return bfloatToNumber(bytes.getUint16(at, true));
    case "q8_0":
      return half(0) * bytes.getInt8(at + 2 + i);
    case "q4_0":
      return half(0) * (nibble(2) - 8);
    case "q4_1":
      return half(0) * nibble(4) + half(2);
    case "q5_0":
      return half(0) * (nibble(6) + fifth(2) - 16);
    case "q5_1":
      return half(0) * (nibble(8) + fifth(4)) + half(2);
    case "q4_k":
    case "q5_k": {
      const group = i >> 5; // of 32, with a scale and a minimum each; two groups share 32 bytes
      const quants = type === "q4_k" ? 16 : 48;
      const pair = byte(quants + (group >> 1) * 32 + (i & 31));
      const low = group & 1 ? pair >> 4 : pair & 15;
      const high = type === "q5_k" ? ((byte(16 + (i & 31)) >> group) & 1) * 16 : 0;
      const [scale, minimum] = sixBitPair(byte, 4, group);
      return half(0) * scale * (low + high) - half(2) * minimum;
    }
    case "q6_k": {
      const part = (i >> 5) & 3; // which 32 of the 128 elements of a half
      const low = byte((i >> 7) * 64 + (part & 1) * 32 + (i & 31));
      const high = byte(128 + (i >> 7) * 32 + (i & 31));
      const q = (part < 2 ? low & 15 : low >> 4) + ((high >> (part * 2)) & 3) * 16 - 32;
      return half(208) * bytes.getInt8(at + 192 + (i >> 4)) * q;
    }
    case "nf4":
    case "fp4": {
      const header = Math.floor(index / (64 * 256)) * (8 + 256 * 33);
      const product = Math.fround(dynamicMap[byte(0)]! * bytes.getFloat32(header, true));
      const absmax = Math.fround(product + bytes.getFloat32(header + 4, true));
      return fourBitTables[type][(byte(1 + (i >> 1)) >> (i & 1 ? 0 : 4)) & 15]! * absmax;
    }
    case "nf4_f32":
    case "fp4_f32": {
      const table = fourBitTables[type === "nf4_f32" ? "nf4" : "fp4"];
      return table[(byte(4 + (i >> 1)) >> (i & 1 ? 0 : 4)) & 15]! * bytes.getFloat32(at, true);
    }
  }
}

function blockOffset(type: DType, index: number): number {
  const { bytes, header }: Layout = dtypes[type];
  return index * bytes + (header ? (Math.floor(index / header.blocks) + 1) * header.bytes : 0);
}

const fourBitTables = {
  nf4: Float32Array.of(
    ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334],
    ...[-0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
    ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
  ),
  fp4: Float32Array.from([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], (x) => x / 12),
};

/** bitsandbytes' signed dynamic map. */
export const dynamicMap = Float32Array.from({ length: 256 }, (_, code) => {
  if (code === 127) return 0;
  if (code === 255) return 1;
  const place = code < 127 ? 126 - code : code - 128; // from the smallest magnitude on: 1, 2, 4 … 64 in a decade
  const decade = Math.floor(Math.log2(place + 1));
  const parts = 2 ** decade;
  const part = place + 1 - parts;
  const tenth = Math.fround(0.1);
  const step = Math.fround(Math.fround(1 - tenth) / parts);
  const border = (i: number) => Math.fround(i < (parts + 1) / 2 ? step * i + tenth : 1 - step * (parts - i));
  const middle = Math.fround(Math.fround(border(part) + border(part + 1)) / 2);
  return (code < 127 ? -1 : 1) * middle * Math.fround(10 ** (decade - 6));
});

/** Eight 6-bit scales and eight 6-bit minima in twelve bytes from `offset` on. */
function sixBitPair(byte: (offset: number) => number, offset: number, group: number): [number, number] {
  if (group < 4) return [byte(offset + group) & 63, byte(offset + 4 + group) & 63];
  const rest = byte(offset + 4 + group);
  return [(rest & 15) + (byte(offset + group - 4) >> 6) * 16, (rest >> 4) + (byte(offset + group) >> 6) * 16];
}

function halfToNumber(h: number): number {
  const sign = h & 0x8000 ? -1 : 1;
  const exponent = (h >> 10) & 31;
  const fraction = (h & 1023) / 1024;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return exponent === 0 ? sign * fraction * 2 ** -14 : sign * (1 + fraction) * 2 ** (exponent - 15);
}

function bfloatToNumber(h: number): number {
  return new Float32Array(Uint32Array.of(h << 16).buffer)[0]!;
}

/** The nearest bf16, ties to even, as a number. */
export function nearestBfloat(x: number): number {
  const u = new Uint32Array(Float32Array.of(x).buffer)[0]!;
  return bfloatToNumber(((u + 0x7fff + ((u >>> 16) & 1)) >>> 16) & 0xffff);
}

/** Random stored weights of about unit size: `bytes` to hand to the engine, `values` to compute with. */
export function randomWeights(type: DType, count: number, seed: number): { bytes: Uint8Array; values: Float64Array } {
  const { block } = dtypes[type];
  const next = randomSource(seed);
  const bytes = new Uint8Array(bytesOf(type, count));
  const view = new DataView(bytes.buffer);
  if (type === "f32") new Float32Array(bytes.buffer).set(randomFloats(count, seed));
  else for (let i = 0; i < bytes.length; i++) bytes[i] = Math.floor(next() * 256);
  const scale = (offset: number, size: number) => view.setFloat32(offset, size * (0.5 + next()), true);
  if (type === "nf4" || type === "fp4")
    for (let at = 0; at < bytes.length; at += 8 + 256 * 33) {
      scale(at, 0.3);
      scale(at + 4, 1);
    }
  for (let i = 0; type !== "f32" && i < count / block; i++) {
    const at = blockOffset(type, i);
    if (type === "nf4_f32" || type === "fp4_f32") scale(at, 1);
    for (const offset of halves[type]) view.setUint16(at + offset, randomHalf(next, type.endsWith("_k") ? 0.002 : 0.1), true);
    if (type === "f16") view.setUint16(at, randomHalf(next, 1), true);
    if (type === "bf16") view.setUint16(at, nearestBits(next() * 2 - 1), true);
  }
  return { bytes, values: Float64Array.from({ length: count }, (_, i) => storedElement(type, view, i)) };
}

/** Where a block keeps its f16 scales. */
const halves: Record<Exclude<DType, "f32">, readonly number[]> = {
  f16: [],
  bf16: [],
  q8_0: [0],
  q4_0: [0],
  q4_1: [0, 2],
  q5_0: [0],
  q5_1: [0, 2],
  q4_k: [0, 2],
  q5_k: [0, 2],
  q6_k: [208],
  nf4: [],
  fp4: [],
  nf4_f32: [],
  fp4_f32: [],
};

/** Bits of a normal f16 in ±[size / 2, size). */
function randomHalf(next: () => number, size: number): number {
  const exponent = Math.floor(Math.log2(size)) - 1 + 15;
  return (next() < 0.5 ? 0x8000 : 0) | (exponent << 10) | Math.floor(next() * 1024);
}

function nearestBits(x: number): number {
  return new Uint32Array(Float32Array.of(nearestBfloat(x)).buffer)[0]! >>> 16;
}
