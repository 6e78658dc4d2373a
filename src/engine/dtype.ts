/**
 * Element types that arrays of the engine may have: plain numbers, and blocks in which several numbers share a scale.
 * Block layouts are GGUF's (ggml/src/ggml-common.h); `code` is what crosses to C++ (engine/dtype.h keeps the same numbers).
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
} as const satisfies Record<string, { code: number; block: number; bytes: number }>;

export type DType = keyof typeof dtypes;

/** Bytes of `count` elements in a row. Block types need `count` to be a multiple of their block; see `isWholeBlocks`. */
export function bytesOf(dtype: DType, count: number): number {
  const { block, bytes } = dtypes[dtype];
  return (count / block) * bytes;
}

export function isWholeBlocks(dtype: DType, count: number): boolean {
  return count % dtypes[dtype].block === 0;
}
