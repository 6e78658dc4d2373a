import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { type MixStrategy, mixRows } from "./mix.js";
import { NumpyRandom } from "./numpy-random.js";

interface Case {
  readonly strategy: MixStrategy;
  readonly probabilities: readonly number[] | null;
  readonly seed: number;
  readonly lengths: readonly number[];
  readonly rows: readonly (readonly number[])[];
}

const { numbers, cases } = JSON.parse(await readFile("test/fixtures/mix.json", "utf8")) as {
  numbers: [number, number[]][];
  cases: Case[];
};

test("random numbers are NumPy's, bit by bit", () => {
  for (const [seed, values] of numbers) {
    const random = new NumpyRandom(seed);
    assert.deepEqual(
      values.map(() => random.next()),
      values,
      String(seed),
    );
  }
});

test("rows come in the order of interleave_datasets", () => {
  for (const { lengths, rows, ...options } of cases) {
    const datasets = lengths.map((length, i) => Array.from({ length }, (_, row) => [i, row]));
    assert.deepEqual(mixRows(datasets, options), rows, JSON.stringify({ lengths, ...options }));
  }
});

test("concat puts data sets one after another, and an empty one cannot be drawn from", () => {
  assert.deepEqual(mixRows([[1, 2], [], [3]], { strategy: "concat", probabilities: null, seed: 0 }), [1, 2, 3]);
  for (const strategy of ["interleave_under", "interleave_over", "interleave_once"] as const)
    assert.throws(() => mixRows([[1], []], { strategy, probabilities: [0.5, 0.5], seed: 0 }), /data set 2 of 2 has no rows/);
});

test("probabilities that would never end are refused", () => {
  const datasets = [[1], Array.from({ length: 1000 }, () => 2)];
  const options = { strategy: "interleave_over", probabilities: [1 - 1e-7, 1e-7], seed: 0 } as const;
  assert.throws(() => mixRows(datasets, options), /about 10000000000 rows/);
});
