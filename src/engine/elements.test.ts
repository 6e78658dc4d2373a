import assert from "node:assert/strict";
import test from "node:test";
import type { Activation } from "./kernels.js";
import { loadEngine } from "./load.js";
import { Blocks, philox, philoxWord, randomFloats, testKernel } from "./testing/testing.js";

const counts = [0, 1, 7, 63, 65, 16385, 1000003];
const roundoff = 2e-7;

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const normalBelow = (x: number) => 0.5 * (1 + erf(x / Math.SQRT2));
const normalDensity = (x: number) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
const bend = (x: number) => Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3));

/** Each activation and its derivative. */
const functions: Readonly<Record<Activation, { value(x: number): number; slope(x: number): number }>> = {
  relu: { value: (x) => Math.max(x, 0), slope: (x) => (x > 0 ? 1 : 0) },
  gelu: { value: (x) => x * normalBelow(x), slope: (x) => normalBelow(x) + x * normalDensity(x) },
  gelu_tanh: {
    value: (x) => 0.5 * x * (1 + bend(x)),
    slope: (x) => 0.5 * (1 + bend(x)) + 0.5 * x * (1 - bend(x) ** 2) * Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x * x),
  },
  silu: { value: (x) => x * sigmoid(x), slope: (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x))) },
  tanh: { value: Math.tanh, slope: (x) => 1 - Math.tanh(x) ** 2 },
  sigmoid: { value: sigmoid, slope: (x) => sigmoid(x) * (1 - sigmoid(x)) },
};

/** Its Taylor series, or for large x the continued fraction of what is left to 1. */
function erf(x: number): number {
  if (x < 0) return -erf(-x);
  if (x > 3) {
    let fraction = x;
    for (let k = 60; k > 0; k--) fraction = x + k / 2 / fraction;
    return 1 - Math.exp(-x * x) / (fraction * Math.sqrt(Math.PI));
  }
  let [term, sum] = [x, x];
  for (let n = 1; n < 80; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

for (const count of counts) {
  const x = randomFloats(count, 1);
  const y = randomFloats(count, 2);
  const d = randomFloats(count, 3);

  testKernel(`fill, copy and add of ${count}`, {
    async run(engine, blocks) {
      const a = blocks.of(x);
      const b = blocks.of(y);
      const filled = blocks.empty(count * 4);
      const copied = blocks.empty(count * 4);
      engine.fill(filled, 0.375, count);
      engine.copy(a, copied, count);
      engine.add(a, b, b, count);
      return [await blocks.read(filled, count), await blocks.read(copied, count), await blocks.read(b, count)];
    },
    expected: () => [new Float32Array(count).fill(0.375), x, x.map((value, i) => value + y[i]!)],
    tolerance: 0,
  });

  testKernel(`scale of ${count}`, {
    async run(engine, blocks) {
      const a = blocks.of(x);
      const b = blocks.of(y);
      const c = blocks.empty(count * 4);
      engine.scale(a, c, -2.5, count, false);
      engine.scale(a, b, -2.5, count, true);
      return [await blocks.read(c, count), await blocks.read(b, count)];
    },
    expected: () => [x.map((value) => value * -2.5), Array.from(x, (value, i) => y[i]! - 2.5 * value)],
    tolerance: roundoff,
  });

  testKernel(`mul of ${count}`, {
    async run(engine, blocks) {
      const a = blocks.of(x);
      const b = blocks.of(y);
      const c = blocks.empty(count * 4);
      engine.mul(a, b, c, count, false);
      engine.mul(a, b, b, count, true);
      return [await blocks.read(c, count), await blocks.read(b, count)];
    },
    expected: () => [x.map((value, i) => value * y[i]!), Array.from(x, (value, i) => y[i]! + value * y[i]!)],
    tolerance: roundoff,
  });

  for (const [kind, { value, slope }] of Object.entries(functions))
    testKernel(`${kind} of ${count}`, {
      async run(engine, blocks) {
        const input = blocks.of(x);
        const up = blocks.of(y);
        const dy = blocks.of(d);
        const [out, dx, gatedOut] = [blocks.empty(count * 4), blocks.of(y), blocks.empty(count * 4)];
        engine.activation(input, out, kind as Activation, count);
        engine.activationGrad(dy, input, dx, kind as Activation, count, true);
        engine.gated(input, up, gatedOut, kind as Activation, count);
        engine.gatedGrad(dy, input, up, input, up, kind as Activation, count); // in place
        return Promise.all([out, dx, gatedOut, input, up].map((id) => blocks.read(id, count)));
      },
      expected: () => [
        Array.from(x, value),
        Array.from(x, (g, i) => y[i]! + d[i]! * slope(g)),
        Array.from(x, (g, i) => value(g) * y[i]!),
        Array.from(x, (g, i) => d[i]! * y[i]! * slope(g)),
        Array.from(x, (g, i) => d[i]! * value(g)),
      ],
      tolerance: roundoff,
    });

  testKernel(`sum and sumSquares of ${count}`, {
    async run(engine, blocks) {
      const a = blocks.of(x);
      const sum = blocks.of(Float32Array.of(3));
      const squares = blocks.empty(4);
      engine.sum(a, sum, count, true);
      engine.sumSquares(a, squares, count, false);
      return [await blocks.read(sum, 1), await blocks.read(squares, 1)];
    },
    expected: () => [
      [x.reduce((total, value) => total + value, 3)].map(Math.fround),
      [x.reduce((total, value) => total + value * value, 0)].map(Math.fround),
    ],
    tolerance: roundoff,
  });

  testKernel(`dropout of ${count}`, {
    async run(engine, blocks) {
      const a = blocks.of(x);
      const b = blocks.of(y);
      const c = blocks.empty(count * 4);
      engine.dropout(a, c, 0.3, 0xfedc_ba98_7654_3210n, count, false);
      engine.dropout(a, b, 0.3, 0xfedc_ba98_7654_3210n, count, true);
      return [await blocks.read(c, count), await blocks.read(b, count)];
    },
    expected: () => {
      const dropped = Array.from(x, (value, i) => (philoxWord(0xfedc_ba98_7654_3210n, i) >= 0.3 * 2 ** 32 ? value / 0.7 : 0));
      return [dropped, dropped.map((value, i) => value + y[i]!)];
    },
    tolerance: roundoff,
  });
}

for (const [rows, cols] of [
  [1, 1],
  [3, 64],
  [5, 131],
] as const) {
  const x = randomFloats(rows * cols, 5, 1);
  const scales = Float64Array.from({ length: rows }, (_, row) => row / 2);
  const seed = 0x0123_4567_89ab_cdefn;
  testKernel(`addUniform of ${rows} × ${cols}`, {
    async run(engine, blocks) {
      const [a, y] = [blocks.of(x), blocks.empty(rows * cols * 4)];
      engine.addUniform(a, scales, y, seed, rows, cols);
      engine.addUniform(a, scales, a, seed, rows, cols);
      return [await blocks.read(y, rows * cols), await blocks.read(a, rows * cols)];
    },
    expected: () => {
      const signed = (row: number, i: number) => (philoxWord(seed, i, row) | 0) / 2 ** 31;
      const y = Array.from(x, (value, i) => value + scales[Math.floor(i / cols)]! * signed(Math.floor(i / cols), i % cols));
      return [y, y];
    },
    tolerance: 1e-7,
  });
}

test("addUniform is even between −1 and 1", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const [rows, cols] = [100, 1000];
  const y = blocks.of(new Float32Array(rows * cols));
  engine.addUniform(y, new Float64Array(rows).fill(1), y, 7n, rows, cols);
  const values = await blocks.read(y, rows * cols);
  const mean = (of: (value: number) => number) => values.reduce((sum, value) => sum + of(value), 0) / values.length;
  assert.ok(values.every((value) => Math.abs(value) <= 1));
  assert.ok(Math.abs(mean((value) => value)) < 0.01);
  assert.ok(Math.abs(mean((value) => value ** 2) - 1 / 3) < 0.005);
  assert.ok(Math.abs(mean((value) => value ** 4) - 1 / 5) < 0.005);
  blocks.freeAll();
});

test("the reference Philox gives the known answers of Random123", () => {
  assert.deepEqual(philox([0, 0, 0, 0], [0, 0]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  const ones = 0xffffffff;
  assert.deepEqual(philox([ones, ones, ones, ones], [ones, ones]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
});

test("dropout keeps everything at p = 0 and about 1 − p of it otherwise", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const count = 100_000;
  const x = blocks.of(new Float32Array(count).fill(1));
  const y = blocks.empty(count * 4);
  engine.dropout(x, y, 0, 1n, count, false);
  assert.ok((await blocks.read(y, count)).every((value) => value === 1));
  engine.dropout(x, y, 0.1, 1n, count, false);
  const kept = (await blocks.read(y, count)).filter((value) => value !== 0).length;
  assert.ok(Math.abs(kept / count - 0.9) < 0.005, `kept ${kept}`);
  blocks.freeAll();
});

test("activations and their slopes at the edges of f32", async () => {
  const engine = loadEngine();
  const { isa, tiers } = engine.info();
  const edges = Float32Array.of(-1e6, -1000, -104, -88, -9, -0.93, -1e-30, 0, 1e-30, 0.62, 0.63, 0.92, 9, 88, 1000, 1e6);
  for (const tier of tiers) {
    engine.setIsa(tier);
    const blocks = new Blocks(engine);
    const [x, one] = [blocks.of(edges), blocks.of(new Float32Array(edges.length).fill(1))];
    const [y, dx] = [blocks.empty(edges.byteLength), blocks.empty(edges.byteLength)];
    for (const [kind, { value, slope }] of Object.entries(functions)) {
      engine.activation(x, y, kind as Activation, edges.length);
      engine.activationGrad(one, x, dx, kind as Activation, edges.length, false);
      for (const [id, f] of [
        [y, value],
        [dx, slope],
      ] as const)
        for (const [i, got] of (await blocks.read(id, edges.length)).entries()) {
          const wanted = f(edges[i]!);
          assert.ok(Math.abs(got - wanted) <= 4e-7 * Math.max(1, Math.abs(wanted)), `${kind}(${edges[i]}) on ${tier}: ${got}`);
        }
    }
    blocks.freeAll();
  }
  engine.setIsa(isa);
});

test("an activation of NaN is NaN", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const x = blocks.of(Float32Array.of(Number.NaN));
  for (const kind of Object.keys(functions)) {
    const y = blocks.empty(4);
    engine.activation(x, y, kind as Activation, 1);
    assert.ok(Number.isNaN((await blocks.read(y, 1))[0]!), kind);
  }
  blocks.freeAll();
});

test("an activation's value does not depend on its neighbours or its place", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const values = randomFloats(37, 5, 4);
  const whole = blocks.of(values);
  const one = blocks.of(new Float32Array(37).fill(1));
  const y = blocks.empty(37 * 4);
  engine.gated(whole, one, y, "silu", 37);
  const together = await blocks.read(y, 37);
  for (let i = 0; i < 37; i++) {
    engine.gated(blocks.of(values.subarray(i, i + 1)), one, y, "silu", 1);
    assert.equal((await blocks.read(y, 1))[0], together[i]);
  }
  blocks.freeAll();
});

for (const [rows, cols] of [
  [0, 5],
  [1, 1],
  [3, 65],
  [130, 7],
  [200, 1000],
] as const) {
  const y = randomFloats(rows * cols, 6);
  const bias = randomFloats(cols, 7);
  testKernel(`addBias and biasGrad of ${rows} × ${cols}`, {
    async run(engine, blocks) {
      const a = blocks.of(y);
      const b = blocks.of(bias);
      const grad = blocks.empty(cols * 4);
      engine.biasGrad(a, grad, rows, cols, false);
      engine.biasGrad(a, b, rows, cols, true);
      const grads = [await blocks.read(grad, cols), await blocks.read(b, cols)];
      engine.write(b, 0, bias);
      engine.addBias(a, b, rows, cols);
      return [...grads, await blocks.read(a, rows * cols)];
    },
    expected: () => {
      const sums = new Float64Array(cols);
      for (let i = 0; i < y.length; i++) sums[i % cols]! += y[i]!;
      return [sums, sums.map((sum, j) => sum + bias[j]!), y.map((value, i) => value + bias[i % cols]!)];
    },
    tolerance: 1e-6,
  });
}
