/** Smoothed labels, held against transformers' LabelSmoother and against differences of the loss. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { crossEntropy } from "../src/core/ops/cross-entropy.js";
import { linearCrossEntropy } from "../src/core/ops/linear-cross-entropy.js";
import { Rng } from "../src/core/rng.js";
import { differentiate } from "../src/core/tape.js";
import { scope, Tensor } from "../src/core/tensor.js";
import { evaluate } from "../src/evaluate/evaluate.js";
import { NextTokenConfig, nextTokenTask } from "../src/objectives/next-token.js";
import { SharedBase } from "../src/tuners/shared-base.js";
import { device, randomValues } from "./support/gradient-check.js";
import { collect, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { exampleOf, loadTinyLlama, logitsOf, reference } from "./support/tiny-llama.js";

interface Values {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}

interface Case {
  readonly epsilon: number;
  readonly labels: readonly number[];
  readonly loss: number;
}

interface Fixture {
  readonly tokens: readonly (Case & Readonly<Record<"hidden" | "weight" | "dhidden" | "dweight", Values>>)[];
  readonly classes: readonly (Case & Readonly<Record<"logits" | "dlogits", Values>>)[];
}

const fixture = JSON.parse(readFileSync(join(import.meta.dirname, "../../test/fixtures/smoothing.json"), "utf8")) as Fixture;

function leafOf({ shape, data }: Values): Tensor {
  const leaf = Tensor.from(device, Float32Array.from(data), shape);
  leaf.requiresGrad = true;
  return leaf;
}

/** The gradients are of the mean, and ours of the sum. */
function assertGradient(actual: Float32Array, { data }: Values, count: number): void {
  for (const [i, value] of actual.entries())
    assert.ok(Math.abs(value / count - data[i]!) < 1e-6, `[${i}] is ${value / count}, LabelSmoother has ${data[i]}`);
}

for (const { epsilon, labels, loss: expected, ...arrays } of fixture.tokens)
  test(`a loss over tokens, smoothed by ${epsilon}`, async () => {
    const [hidden, weight] = [leafOf(arrays.hidden), leafOf(arrays.weight)];
    const width = hidden.columns;
    const rows = labels.flatMap((label, t) => (t > 0 && label >= 0 ? [t - 1] : []));
    const targets = Int32Array.from(rows, (row) => labels[row + 1]!);
    const values = await hidden.read();
    const supervised = Tensor.from(
      device,
      rows.flatMap((row) => [...values.subarray(row * width, (row + 1) * width)]),
      [rows.length, width],
    );
    supervised.requiresGrad = true;
    const plain = scope(() => linearCrossEntropy(supervised, weight, targets, [], { smoothing: epsilon }));
    assert.ok(Math.abs((await plain.item()) / rows.length - expected) < 1e-5);
    const loss = differentiate(() => linearCrossEntropy(supervised, weight, targets, [], { smoothing: epsilon }));
    assert.equal(await loss.item(), await plain.item());
    const { shape, data } = arrays.dhidden;
    const dhidden = rows.flatMap((row) => data.slice(row * width, (row + 1) * width));
    assertGradient(await supervised.grad!.read(), { shape, data: dhidden }, rows.length);
    assertGradient(await weight.grad!.read(), arrays.dweight, rows.length);
  });

for (const { epsilon, labels, loss: expected, ...arrays } of fixture.classes)
  test(`a loss over classes, smoothed by ${epsilon}`, async () => {
    const logits = leafOf(arrays.logits);
    const loss = differentiate(() => crossEntropy(logits, Int32Array.from(labels), { smoothing: epsilon }));
    assert.ok(Math.abs((await loss.item()) / labels.length - expected) < 1e-5);
    assertGradient(await logits.grad!.read(), arrays.dlogits, labels.length);
  });

test("the gradient of a smoothed loss is that of its differences", async () => {
  const rng = new Rng(5);
  const [rows, width, vocab, smoothing, step] = [6, 7, 11, 0.3, 1e-2];
  const shapes = { hidden: [rows, width], weight: [vocab, width] };
  const values = { hidden: randomValues(rng, shapes.hidden), weight: randomValues(rng, shapes.weight) };
  const targets = Int32Array.of(0, 10, 3, 3, 7, 5);
  const lossAt = async ({ hidden, weight }: typeof values) =>
    scope(() =>
      linearCrossEntropy(Tensor.from(device, hidden, shapes.hidden), Tensor.from(device, weight, shapes.weight), targets, [], {
        smoothing,
      }),
    ).item();
  const leaves = {
    hidden: leafOf({ shape: shapes.hidden, data: [...values.hidden] }),
    weight: leafOf({ shape: shapes.weight, data: [...values.weight] }),
  };
  differentiate(() => linearCrossEntropy(leaves.hidden, leaves.weight, targets, [], { smoothing })).dispose();
  for (const name of ["hidden", "weight"] as const) {
    const direction = randomValues(rng, shapes[name]);
    const moved = (by: number) => ({ ...values, [name]: values[name].map((x, i) => x + by * direction[i]!) });
    const expected = ((await lossAt(moved(step))) - (await lossAt(moved(-step)))) / (2 * step);
    const gradient = await leaves[name].grad!.read();
    const actual = gradient.reduce((sum, g, i) => sum + g * direction[i]!, 0);
    assert.ok(Math.abs(actual - expected) < 2e-3 * Math.hypot(...gradient), `${name}: ${actual}, differences say ${expected}`);
  }
});

test("held-out rows are measured with the smoothed loss, as by transformers' Trainer", async () => {
  const smoothing = 0.2;
  const { model } = await loadTinyLlama("tied");
  const logits = await logitsOf(model);
  const vocab = model.shape.vocabSize;
  const examples = reference.sequences.map((sequence) => exampleOf(sequence));
  const [expected, count] = [{ nll: 0, all: 0 }, { tokens: 0 }];
  let start = 0;
  for (const { ids, supervised } of examples) {
    for (let t = 1; t < ids.length; t++) {
      if (supervised[t] !== 1) continue;
      const row = [...logits.subarray((start + t - 1) * vocab, (start + t) * vocab)];
      const log = Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0));
      expected.nll += log - row[ids[t]!]!;
      expected.all += log - row.reduce((sum, x) => sum + x, 0) / vocab;
      count.tokens++;
    }
    start += ids.length;
  }
  const task = nextTokenTask(NextTokenConfig.parse({ label_smoothing_factor: smoothing }));
  const { loss } = (await evaluate(new SharedBase(model), null, task, examples, { batchSize: 1 }))!;
  const wanted = ((1 - smoothing) * expected.nll + smoothing * expected.all) / count.tokens;
  assert.ok(Math.abs(loss - wanted) < 1e-5, `${loss}, expected ${wanted}`);
});

test("a recipe smooths labels; 0 leaves every bit as it was, and 1 is refused", async () => {
  const steps = async (changes: object) => trace(await collect(tinyRecipe(makeFolder(), { max_steps: 2, ...changes })));
  const plain = await steps({});
  assert.deepEqual(await steps({ label_smoothing_factor: 0 }), plain);
  assert.notDeepEqual(await steps({ label_smoothing_factor: 0.1 }), plain);
  await assert.rejects(
    steps({ label_smoothing_factor: 1 }),
    /label_smoothing_factor: expected a number from 0 and below 1, got 1/,
  );
});
