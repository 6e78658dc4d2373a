import { type DType, dtypes } from "./dtype.js";
import { randomFloats, randomSource } from "./testing.js";

/**
 * Stored numbers, element by element, for tests: written from the format's definition (the structs in ggml/src/ggml-common.h) and not from
 * the engine's code.
 */

/** Element `index` of a row of `type` that begins at the start of `bytes`. */
export function storedElement(type: DType, bytes: DataView, index: number): number {
  const { block, bytes: size } = dtypes[type];
  const at = Math.floor(index / block) * size;
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
  }
}

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
  const { block, bytes: size } = dtypes[type];
  const next = randomSource(seed);
  const bytes = new Uint8Array((count / block) * size);
  const view = new DataView(bytes.buffer);
  if (type === "f32") new Float32Array(bytes.buffer).set(randomFloats(count, seed));
  else for (let i = 0; i < bytes.length; i++) bytes[i] = Math.floor(next() * 256);
  for (let at = 0; type !== "f32" && at < bytes.length; at += size) {
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
};

/** Bits of a normal f16 in ±[size / 2, size). */
function randomHalf(next: () => number, size: number): number {
  const exponent = Math.floor(Math.log2(size)) - 1 + 15;
  return (next() < 0.5 ? 0x8000 : 0) | (exponent << 10) | Math.floor(next() * 1024);
}

function nearestBits(x: number): number {
  return new Uint32Array(Float32Array.of(nearestBfloat(x)).buffer)[0]! >>> 16;
}
