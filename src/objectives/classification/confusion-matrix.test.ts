import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import type { Metrics } from "../metrics.js";
import { ConfusionMatrix } from "./confusion-matrix.js";

/** Made by test/fixtures/make_confusion.py. */
const path = new URL("../../../../test/fixtures/confusion.json", import.meta.url);

interface Report {
  readonly actual: readonly number[];
  readonly predicted: readonly number[];
  readonly accuracy: number;
  readonly f1: number;
  readonly classes: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

test("accuracy, macro F1, and precision, recall, F1 and support of every class are scikit-learn's", () => {
  const report = JSON.parse(readFileSync(path, "utf8")) as Report;
  const matrix = new ConfusionMatrix(["0", "1", "2", "3", "4"]);
  for (const [i, actual] of report.actual.entries()) matrix.add(actual, report.predicted[i]!);
  const { accuracy, f1, classes } = matrix.metrics() as { accuracy: number; f1: number; classes: Record<string, Metrics> };
  const isClose = (a: number, b: number, what: string) => assert.ok(Math.abs(a - b) < 1e-12, `${what}: ${a}, expected ${b}`);
  isClose(accuracy, report.accuracy, "accuracy");
  isClose(f1, report.f1, "f1");
  for (const [name, expected] of Object.entries(report.classes)) {
    const { precision, recall, f1, support } = classes[name] as Record<string, number>;
    isClose(precision!, expected.precision!, `precision of ${name}`);
    isClose(recall!, expected.recall!, `recall of ${name}`);
    isClose(f1!, expected["f1-score"]!, `f1 of ${name}`);
    assert.equal(support, expected.support);
  }
  assert.deepEqual(classes["4"], { precision: 0, recall: 0, f1: 0, support: 0 });
});

test("without rows everything is 0, and nothing is no number", () => {
  const none = { precision: 0, recall: 0, f1: 0, support: 0 };
  assert.deepEqual(new ConfusionMatrix(["a", "b"]).metrics(), { accuracy: 0, f1: 0, classes: { a: none, b: none } });
});
