import assert from "node:assert/strict";
import test from "node:test";
import { smooth } from "./smooth.js";

test("smoothing keeps constants, leaves few values nearly alone and takes most of the noise from many", () => {
  assert.deepEqual(smooth([]), []);
  for (const value of [...smooth([2]), ...smooth(Array(50).fill(2))]) assert.ok(Math.abs(value - 2) < 1e-12);
  for (const [i, value] of smooth([1, 2, 3]).entries()) assert.ok(Math.abs(value - (i + 1)) < 0.1);

  const noisy = Array.from({ length: 400 }, (_, i) => i / 400 + (i % 2 === 0 ? 0.5 : -0.5));
  const smoothed = smooth(noisy);
  for (let i = 50; i < 350; i++) assert.ok(Math.abs(smoothed[i]! - i / 400) < 0.05, `${i}: ${smoothed[i]}`);
});
