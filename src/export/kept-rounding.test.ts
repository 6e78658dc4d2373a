import assert from "node:assert/strict";
import test from "node:test";
import { Rng } from "../core/rng.js";
import { roundKeeping } from "./kept-rounding.js";

const [rows, columns, rank] = [24, 256, 4];
const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length);

/** To the nearest bf16, ties to even. */
function nearest(values: Float32Array): Float32Array {
  const rounded = values.slice();
  const all = bits(rounded);
  for (const [i, one] of all.entries()) all[i] = (one + 0x7fff + ((one >>> 16) & 1)) & 0xffff0000;
  return rounded;
}

test("a change below bf16's steps stays where the adapter looks, and every number is a neighbour of the exact one", () => {
  const rng = new Rng(5);
  const drawn = (count: number, size: number) => Float32Array.from({ length: count }, () => size * rng.normal());
  const base = nearest(drawn(rows * columns, 0.05));
  const [a, b] = [drawn(rank * columns, 0.06), drawn(rows * rank, 0.0001)];
  const delta = Float32Array.from(base, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    let sum = 0;
    for (let k = 0; k < rank; k++) sum += b[row * rank + k]! * a[k * columns + column]!;
    return sum;
  });
  const merged = base.map((value, i) => value + delta[i]!);
  const kept = merged.slice();
  roundKeeping(kept, columns, { a, rank });

  assert.ok(bits(kept).every((one) => (one & 0xffff) === 0));
  assert.ok(kept.every((value, i) => Math.abs(value - merged[i]!) <= Math.abs(merged[i]!) * 2 ** -7));
  const input = (k: number) => a.subarray(k * columns, (k + 1) * columns); // what the adapter looks at, and no other noise
  const lost = (rounded: Float32Array) => {
    let [error, size] = [0, 0];
    for (let k = 0; k < rank; k++)
      for (let row = 0; row < rows; row++) {
        let [wrong, right] = [0, 0];
        for (let j = 0; j < columns; j++) {
          wrong += (rounded[row * columns + j]! - merged[row * columns + j]!) * input(k)[j]!;
          right += delta[row * columns + j]! * input(k)[j]!;
        }
        error += wrong * wrong;
        size += right * right;
      }
    return Math.sqrt(error / size);
  };
  assert.ok(lost(nearest(merged)) > 0.8, `to the nearest, ${lost(nearest(merged))} is lost`);
  assert.ok(lost(kept) < 0.1, `${lost(kept)} is lost`);
});

test("numbers of bf16 stay, rows of A that say nothing new are passed over, and without any nothing is done", () => {
  const exact = Float32Array.of(1, -0.5, 0, 3);
  roundKeeping(exact, 2, { a: Float32Array.of(1, 1, 2, 2), rank: 2 });
  assert.deepEqual(exact, Float32Array.of(1, -0.5, 0, 3));
  const left = Float32Array.of(1.0001, -0.3);
  roundKeeping(left, 2, { a: new Float32Array(4), rank: 2 });
  assert.deepEqual(left, Float32Array.of(1.0001, -0.3));
});
