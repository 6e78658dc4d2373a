import assert from "node:assert/strict";
import test from "node:test";
import { median, pairedRatio, type Result, type Runs, rowsOf } from "./results.js";
import type { Measure, Work } from "./works.js";

const runs = (label: string, results: readonly (Result | undefined)[]): Runs => ({ command: { label, argv: ["x"] }, results });
const speeds = (label: string, ...values: number[]) =>
  runs(
    label,
    values.map((speed) => ({ speed })),
  );
const work = (...measures: [Measure, ...Measure[]]): Work => ({ name: "work", attune: [], peers: [], measures });
const speed: Measure = { what: "tokens/s", key: "speed", better: "more", targets: [{ ratio: 2 }] };

test("the median of odd and even counts, in any order", () => {
  assert.equal(median([10, 9, 100]), 10);
  assert.equal(median([4, 1, 3, 2]), 2.5);
  assert.ok(Number.isNaN(median([])));
});

test("ratios are taken round by round, and rounds that failed on either side do not count", () => {
  assert.equal(pairedRatio(speeds("a", 10, 40, 90), speeds("b", 10, 20, 30), "speed"), 2);
  assert.equal(pairedRatio(runs("a", [{ speed: 8 }, undefined]), speeds("b", 2, 1), "speed"), 4);
  assert.equal(pairedRatio(speeds("a", 1), runs("b", [undefined]), "speed"), undefined);
});

test("every variant has a row; the best is held to the target, against the best peer", () => {
  const attune = [speeds("f32", 30), speeds("bf16", 50)];
  const peers = [speeds("slow", 10), speeds("fast", 20)];
  assert.deepEqual(rowsOf({ work: work(speed), attune, peers }), [
    ["work, tokens/s", "30.0 f32", "20.0 fast", "1.50 ×", "", ""],
    ["work, tokens/s", "50.0 bf16", "20.0 fast", "2.50 ×", "≥ 2 × ✓", ""],
  ]);
});

test("the peer that is best by the first measure stands for the others as well", () => {
  const peak: Measure = { what: "GB", key: "gb", better: "less", targets: [{ ratio: 0.25 }, { value: 0.8 }] };
  const attune = [runs("", [{ speed: 50, gb: 1 }])];
  const peers = [runs("small", [{ speed: 10, gb: 2 }]), runs("fast", [{ speed: 20, gb: 5 }])];
  const [, row] = rowsOf({ work: work(speed, peak), attune, peers });
  assert.deepEqual(row, ["work, GB", "1.00", "5.00 fast", "0.20 ×", "≤ 0.25 × ✓, ≤ 0.8 ✗", ""]);
});

test("a target without a figure has no mark, and failures are named", () => {
  const share: Measure = { what: "GFLOP/s", key: "speed", better: "more", targets: [{ share: 0.85 }], share: "share" };
  assert.deepEqual(rowsOf({ work: work(share), attune: [speeds("", 123.4)], peers: [] }), [
    ["work, GFLOP/s", "123", "", "", "≥ 85 %", ""],
  ]);
  const [row] = rowsOf({ work: work(share), attune: [runs("", [{ speed: 9, share: 0.9 }])], peers: [runs("peer", [undefined])] });
  assert.deepEqual(row, ["work, GFLOP/s", "9.00", "failed", "", "≥ 85 % ✓", "90.0 %"]);
  const [failed] = rowsOf({ work: work(speed), attune: [runs("f32", [undefined])], peers: [] });
  assert.deepEqual(failed, ["work, tokens/s", "failed f32", "", "", "", ""]);
});

test("a figure that the peer does not print is left out, not called a failure", () => {
  const own: Measure = { what: "seconds of all", key: "all", better: "less" };
  const [, row] = rowsOf({ work: work(speed, own), attune: [runs("", [{ speed: 5, all: 6 }])], peers: [speeds("peer", 1)] });
  assert.deepEqual(row, ["work, seconds of all", "6.00", "", "", "", ""]);
});
