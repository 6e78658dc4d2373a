/** The directions of a layer's input that an adapter looks at: A (R, in), row by row. */
export interface Directions {
  readonly a: Float32Array;
  readonly rank: number;
}

/**
 * Rounds a merged matrix W + s · B A (rows, columns) to bf16, in place, so that what the adapter learnt stays. Rounding to the nearest would take most numbers
 * of a base in bf16 back to where they were, if the change is smaller than their step. Here each number goes to one of its two neighbours, so that a row's
 * errors e, which add up, cancel where A looks: from left to right, each choice makes ‖Σ eⱼ pⱼ‖² + λ Σ eⱼ² as small as it can, with pⱼ the columns of A with
 * orthonormal rows, and λ = R / in, the mean of ‖pⱼ‖². The rest of the errors is noise without direction.
 *
 * This is error feedback as in GPTQ (Frantar et al. 2022, arXiv:2210.17323), with A in the place of data.
 */
export function roundKeeping(values: Float32Array, columns: number, directions: Directions): void {
  const { p, rank } = orthonormal(directions, columns);
  if (rank === 0) return;
  const lambda = rank / columns;
  const weight = new Float64Array(columns); // ‖pⱼ‖² + λ
  for (let j = 0; j < columns; j++) {
    let square = lambda;
    for (let k = 0; k < rank; k++) square += p[j * rank + k]! ** 2;
    weight[j] = square;
  }
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const scratch = new Float32Array(2);
  const scratchBits = new Uint32Array(scratch.buffer);
  const sum = new Float64Array(rank); // Σ eⱼ pⱼ of the row so far
  for (let row = 0; row < values.length; row += columns) {
    sum.fill(0);
    for (let j = 0; j < columns; j++) {
      const exact = bits[row + j]!;
      const toZero = exact & 0xffff0000;
      if (toZero >>> 0 === exact) continue; // a bf16 number already
      scratchBits[0] = toZero;
      scratchBits[1] = toZero + 0x10000;
      const value = values[row + j]!;
      const [down, up] = [scratch[0]! - value, scratch[1]! - value];
      const at = j * rank;
      let along = 0;
      for (let k = 0; k < rank; k++) along += sum[k]! * p[at + k]!;
      const isUp = up * (2 * along + up * weight[j]!) < down * (2 * along + down * weight[j]!);
      const error = isUp ? up : down;
      values[row + j] = scratch[isUp ? 1 : 0]!;
      for (let k = 0; k < rank; k++) sum[k]! += error * p[at + k]!;
    }
  }
}

/** The rows of A made orthonormal (Gram-Schmidt), those left out that lie among others; column by column, (in, R). */
function orthonormal({ a, rank }: Directions, columns: number): { readonly p: Float64Array; readonly rank: number } {
  const rows: Float64Array[] = [];
  for (let k = 0; k < rank; k++) {
    const row = Float64Array.from(a.subarray(k * columns, (k + 1) * columns));
    const size = normOf(row);
    for (const other of [...rows, ...rows]) {
      const along = row.reduce((total, value, j) => total + value * other[j]!, 0);
      for (let j = 0; j < columns; j++) row[j]! -= along * other[j]!;
    }
    const left = normOf(row);
    if (!(left > 1e-6 * size)) continue;
    for (let j = 0; j < columns; j++) row[j]! /= left;
    rows.push(row);
  }
  const p = new Float64Array(columns * rows.length);
  for (const [k, row] of rows.entries()) for (let j = 0; j < columns; j++) p[j * rows.length + k] = row[j]!;
  return { p, rank: rows.length };
}

const normOf = (row: Float64Array): number => Math.sqrt(row.reduce((total, value) => total + value * value, 0));
