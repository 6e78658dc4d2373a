/**
 * Element types that arrays of the engine may have: plain numbers, and blocks in which several numbers share a scale. `code` is what
 * crosses to C++ (engine/dtype.h keeps the same numbers and has the layouts).
 *
 * Types from q8_0 to q6_k are GGUF's, byte for byte (ggml/src/ggml-common.h). nf4 and fp4 are bitsandbytes' with double quantization:
 * every 256 blocks have a header, {f32 scale, f32 offset} of their absmax codes; in nf4_f32 and fp4_f32 a block has its absmax in f32.
 */
export const dtypes = {
  f32: { code: 0, block: 1, bytes: 4 },
  f16: { code: 1, block: 1, bytes: 2 },
  bf16: { code: 2, block: 1, bytes: 2 },
  q8_0: { code: 3, block: 32, bytes: 34 },
  q4_0: { code: 4, block: 32, bytes: 18 },
  q4_1: { code: 5, block: 32, bytes: 20 },
  q5_0: { code: 6, block: 32, bytes: 22 },
  q5_1: { code: 7, block: 32, bytes: 24 },
  q4_k: { code: 8, block: 256, bytes: 144 },
  q5_k: { code: 9, block: 256, bytes: 176 },
  q6_k: { code: 10, block: 256, bytes: 210 },
  nf4: { code: 11, block: 64, bytes: 33, header: { bytes: 8, blocks: 256 } },
  fp4: { code: 12, block: 64, bytes: 33, header: { bytes: 8, blocks: 256 } },
  nf4_f32: { code: 13, block: 64, bytes: 36 },
  fp4_f32: { code: 14, block: 64, bytes: 36 },
} as const satisfies Record<string, Layout>;

export interface Layout {
  readonly code: number;
  /** Elements that are stored together, and the bytes that they take. */
  readonly block: number;
  readonly bytes: number;
  /** So many bytes stand in front of every so many blocks of an array, and of the rest at its end. */
  readonly header?: { readonly bytes: number; readonly blocks: number };
}

export type DType = keyof typeof dtypes;

/** Bytes of an array of `count` elements. Block types need `count` to be a multiple of their block; see `isWholeBlocks`. */
export function bytesOf(dtype: DType, count: number): number {
  const { block, bytes, header }: Layout = dtypes[dtype];
  const blocks = count / block;
  return blocks * bytes + (header ? Math.ceil(blocks / header.blocks) * header.bytes : 0);
}

export function isWholeBlocks(dtype: DType, count: number): boolean {
  return count % dtypes[dtype].block === 0;
}
