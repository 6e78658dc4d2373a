import assert from "node:assert/strict";
import test from "node:test";
import { Rng } from "../core/rng.js";
import { drop, electedMean, keepLargest, sum } from "./blend.js";

test("blending: the largest stay, dropping keeps the expectation, signs are elected", () => {
  const values = Float32Array.of(1, -4, 2, -3);
  assert.deepEqual([...keepLargest(values, 0.5)], [0, -4, 0, -3]);
  assert.deepEqual([...keepLargest(values, 1)], [...values]);
  const many = new Float32Array(10_000).fill(1);
  const dropped = drop(many, 0.25, new Rng(1));
  assert.ok(dropped.every((value) => value === 0 || value === 4));
  assert.ok(Math.abs(dropped.reduce((a, b) => a + b, 0) / 10_000 - 1) < 0.05);
  const parts = [
    { values: Float32Array.of(3, -1, 0), factor: 2 },
    { values: Float32Array.of(-1, -2, 5), factor: 1 },
    { values: Float32Array.of(-1, 4, 0), factor: 1 },
  ];
  assert.deepEqual([...sum(parts)], [4, 0, 5]);
  assert.deepEqual([...electedMean(parts, "total")], [6, 4, 5]);
  assert.deepEqual([...electedMean(parts, "frequency")], [-1, -2, 5]);
});
