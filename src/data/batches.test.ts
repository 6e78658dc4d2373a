import assert from "node:assert/strict";
import test from "node:test";
import fc from "fast-check";
import { ConfigError } from "../errors.js";
import { BatchPlan } from "./batches.js";

const cutoffLen = 64;
const lengths = fc.array(fc.integer({ min: 1, max: cutoffLen }), { minLength: 1, maxLength: 80 });
const setup = fc.record({
  batchSize: fc.integer({ min: 1, max: 5 }),
  packing: fc.boolean(),
  cutoffLen: fc.constant(cutoffLen),
  seed: fc.nat(),
});

test("every row is in an epoch exactly once, and the seed alone decides where", () => {
  fc.assert(
    fc.property(lengths, setup, fc.nat({ max: 9 }), (rows, options, epoch) => {
      const batches = new BatchPlan(rows, options).epoch(epoch);
      assert.deepEqual(
        batches.flat().sort((a, b) => a - b),
        [...rows.keys()],
      );
      assert.deepEqual(new BatchPlan(rows, options).epoch(epoch), batches);
      assert.ok(batches.every((batch) => batch.length > 0));
    }),
  );
});

test("without packing, every micro-batch but the last is full", () => {
  fc.assert(
    fc.property(lengths, setup, (rows, options) => {
      const batches = new BatchPlan(rows, { ...options, packing: false }).epoch(0);
      assert.equal(batches.length, Math.ceil(rows.length / options.batchSize));
      assert.ok(batches.slice(0, -1).every((batch) => batch.length === options.batchSize));
    }),
  );
});

test("packed rows fit into their bins, and few bins are used", () => {
  fc.assert(
    fc.property(lengths, fc.nat(), (rows, seed) => {
      const bins = new BatchPlan(rows, { batchSize: 1, packing: true, cutoffLen, seed }).epoch(0);
      const filled = bins.map((bin) => bin.reduce((total, row) => total + rows[row]!, 0));
      assert.ok(filled.every((tokens) => tokens <= cutoffLen));
      const fewest = Math.ceil(rows.reduce((total, length) => total + length, 0) / cutoffLen);
      assert.ok(filled.filter((tokens) => tokens <= cutoffLen / 2).length <= 1, "two half-empty bins fit into one");
      assert.ok(bins.length <= 2 * fewest);
    }),
  );
  const known = new BatchPlan([40, 24, 33, 31, 64], { batchSize: 1, packing: true, cutoffLen, seed: 3 }).epoch(0);
  assert.deepEqual(known.map((bin) => [...bin].sort()).sort(), [[0, 1], [2, 3], [4]]);
});

test("epochs and seeds differ, in packing too", () => {
  const rows = Array.from({ length: 100 }, (_, i) => 5 + (i % 20));
  for (const packing of [false, true]) {
    const plan = (seed: number) => new BatchPlan(rows, { batchSize: 4, packing, cutoffLen, seed });
    assert.notDeepEqual(plan(1).epoch(0), plan(1).epoch(1));
    assert.notDeepEqual(plan(1).epoch(0), plan(2).epoch(0));
    const companions = (epoch: number) =>
      plan(1)
        .epoch(epoch)
        .find((batch) => batch.includes(0))!
        .sort((a, b) => a - b);
    assert.notDeepEqual(companions(0), companions(1));
  }
});

test("many rows are packed in moderate time", () => {
  const rows = Array.from({ length: 50_000 }, (_, i) => 1 + ((i * 7919) % 2048));
  const start = performance.now();
  const batches = new BatchPlan(rows, { batchSize: 1, packing: true, cutoffLen: 2048, seed: 1 }).epoch(0);
  assert.equal(batches.flat().length, rows.length);
  assert.ok(performance.now() - start < 5000);
});

test("sizes that cannot be are refused", () => {
  assert.throws(() => new BatchPlan([1], { batchSize: 0, packing: false, cutoffLen, seed: 1 }), ConfigError);
  assert.throws(() => new BatchPlan([65], { batchSize: 1, packing: true, cutoffLen, seed: 1 }), {
    code: "CONFIG",
    message: /65 tokens/,
  });
});

test("rows keep their order where they are not shuffled, packed or not, in every epoch", () => {
  const lengths = [3, 4, 2, 5, 1, 1];
  const options = { batchSize: 2, cutoffLen: 7, seed: 1, keepsOrder: true };
  for (const epoch of [0, 1]) {
    assert.deepEqual(new BatchPlan(lengths, { ...options, packing: false }).epoch(epoch), [
      [0, 1],
      [2, 3],
      [4, 5],
    ]);
    assert.deepEqual(new BatchPlan(lengths, { ...options, packing: true }).epoch(epoch), [
      [0, 1, 2, 3],
      [4, 5],
    ]);
    assert.deepEqual(new BatchPlan(lengths, { ...options, batchSize: 1, packing: true }).epoch(epoch), [
      [0, 1],
      [2, 3],
      [4, 5],
    ]);
  }
});
