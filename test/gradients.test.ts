import assert from "node:assert/strict";
import test, { describe } from "node:test";
import { activation } from "../src/core/ops/activation.js";
import { add } from "../src/core/ops/add.js";
import { addBias } from "../src/core/ops/add-bias.js";
import { attention } from "../src/core/ops/attention.js";
import { splitColumns } from "../src/core/ops/columns.js";
import { divideSqrt } from "../src/core/ops/divide-sqrt.js";
import { dropout } from "../src/core/ops/dropout.js";
import { embedding } from "../src/core/ops/embedding.js";
import { gated } from "../src/core/ops/gated.js";
import { layerNorm } from "../src/core/ops/layer-norm.js";
import { addLinear, linear } from "../src/core/ops/linear.js";
import { linearCrossEntropy } from "../src/core/ops/linear-cross-entropy.js";
import { mul } from "../src/core/ops/mul.js";
import { reshape } from "../src/core/ops/reshape.js";
import { rmsNorm } from "../src/core/ops/rms-norm.js";
import { rope } from "../src/core/ops/rope.js";
import { gatherRows, mergeRows } from "../src/core/ops/rows.js";
import { scale } from "../src/core/ops/scale.js";
import { scaleColumns } from "../src/core/ops/scale-columns.js";
import { tokenLogProbs } from "../src/core/ops/token-log-probs.js";
import { Rng } from "../src/core/rng.js";
import { checkpoint, differentiate } from "../src/core/tape.js";
import { scope, Tensor } from "../src/core/tensor.js";
import { ShapeError } from "../src/errors.js";
import { checkGradients, device, engine, randomValues, weightedSum } from "./support/gradient-check.js";

/** A prompt of three tokens, an answer of one and one of three. */
const family = [
  { qStart: 0, qLength: 3, kStart: 0, kLength: 3 },
  { qStart: 3, qLength: 1, kStart: 3, kLength: 1, prefix: { kStart: 0, kLength: 3 } },
  { qStart: 4, qLength: 3, kStart: 4, kLength: 3, prefix: { kStart: 0, kLength: 3 } },
];
const segments = [
  { qStart: 0, qLength: 5, kStart: 0, kLength: 5 },
  { qStart: 5, qLength: 2, kStart: 5, kLength: 2 },
];
const heads = { heads: 4, kvHeads: 2, headDim: 6 };

for (const isa of engine.info().tiers)
  describe(`gradients against finite differences on ${isa}`, () => {
    const check: typeof checkGradients = async (...args) => {
      engine.setIsa(isa);
      await checkGradients(...args);
    };

    test("linear", () =>
      check({ x: { shape: [7, 5] }, w: { shape: [9, 5] }, b: { shape: [9] } }, (x, w, b) => linear(x!, w!, b!)));
    test("addLinear", () =>
      check({ base: { shape: [7, 9] }, x: { shape: [7, 3] }, w: { shape: [9, 3] } }, (base, x, w) =>
        addLinear(base!, x!, w!, 0.5),
      ));
    test("embedding, an id twice", () => check({ w: { shape: [6, 5] } }, (w) => embedding(Int32Array.of(1, 3, 1, 5), w!)));
    test("rmsNorm", () => check({ x: { shape: [7, 33] }, w: { shape: [33] } }, (x, w) => rmsNorm(x!, w!, 1e-5)));
    test("rmsNorm of each head, with an offset", () =>
      check({ x: { shape: [7, 18] }, w: { shape: [6] } }, (x, w) => rmsNorm(x!, w!, 1e-5, { heads: 3, offset: 1 })));
    test("layerNorm", () =>
      check({ x: { shape: [7, 33] }, w: { shape: [33] }, b: { shape: [33] } }, (x, w, b) => layerNorm(x!, w!, b!, 1e-5)));
    for (const kind of ["relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"] as const) {
      test(`activation ${kind}`, () => check({ x: { shape: [7, 19] } }, (x) => activation(x!, kind), { step: 1e-3 }));
      test(`gated by ${kind}`, () =>
        check({ gate: { shape: [7, 19] }, up: { shape: [7, 19] } }, (gate, up) => gated(gate!, up!, kind), { step: 1e-3 }));
    }
    test("mul", () => check({ a: { shape: [7, 5] }, b: { shape: [7, 5] } }, (a, b) => mul(a!, b!)));
    test("mul of a tensor by itself", () => check({ a: { shape: [7, 5] } }, (a) => mul(a!, a!)));
    test("scale", () => check({ x: { shape: [7, 5] } }, (x) => scale(x!, -2.5)));
    test("splitColumns", () =>
      check({ x: { shape: [7, 11] }, w: { shape: [4, 3] } }, (x, w) => {
        const [a, b, c] = splitColumns(x!, [4, 3, 4]);
        return add(mul(a!, c!), linear(b!, w!));
      }));
    test("add", () => check({ a: { shape: [7, 5] }, b: { shape: [7, 5] } }, (a, b) => add(a!, b!)));
    test("addBias", () => check({ x: { shape: [7, 5] }, b: { shape: [5] } }, (x, b) => addBias(x!, b!)));
    test("scaleColumns", () => check({ x: { shape: [7, 5] }, s: { shape: [5] } }, (x, s) => scaleColumns(x!, s!)));
    test("divideSqrt", () => {
      const squares = Tensor.from(device, [0.5, 2, 0, 9, 1], [5]);
      return check({ x: { shape: [5] } }, (x) => divideSqrt(x!, squares));
    });
    test("add of a tensor to itself", () => check({ a: { shape: [7, 5] } }, (a) => add(a!, a!)));
    test("gatherRows, a row twice", () => check({ x: { shape: [7, 5] } }, (x) => gatherRows(x!, Int32Array.of(6, 0, 6))));
    test("mergeRows, some rows twice, others never", () =>
      check({ a: { shape: [4, 5] }, b: { shape: [3, 5] } }, (a, b) =>
        mergeRows(7, [
          { from: a!, rows: Int32Array.of(0, 3, 0, 1), at: Int32Array.of(6, 0, 2, 3) },
          { from: b!, rows: null, at: Int32Array.of(1, 5, 4) },
        ]),
      ));
    test("mergeRows of one tensor in two parts", () =>
      check({ x: { shape: [2, 5] } }, (x) =>
        mergeRows(4, [
          { from: x!, rows: null, at: Int32Array.of(3, 0) },
          { from: x!, rows: null, at: Int32Array.of(1, 2) },
        ]),
      ));
    test("reshape", () =>
      check({ x: { shape: [6, 4] }, w: { shape: [5, 8] } }, (x, w) => linear(reshape(scale(x!, 2), [3, 8]), w!)));
    test("attention", () =>
      check({ q: { shape: [7, 24] }, k: { shape: [7, 12] }, v: { shape: [7, 12] } }, (q, k, v) =>
        attention(q!, k!, v!, segments, heads),
      ));
    test("attention with a window", () =>
      check({ q: { shape: [7, 24] }, k: { shape: [7, 12] }, v: { shape: [7, 12] } }, (q, k, v) =>
        attention(q!, k!, v!, segments, { ...heads, window: 2 }),
      ));
    for (const window of [0, 4])
      test(`attention of answers to one prompt, window ${window}`, () =>
        check({ q: { shape: [7, 24] }, k: { shape: [7, 12] }, v: { shape: [7, 12] } }, (q, k, v) =>
          attention(q!, k!, v!, family, { ...heads, window }),
        ));
    test("attention that looks ahead", () =>
      check({ q: { shape: [7, 24] }, k: { shape: [7, 12] }, v: { shape: [7, 12] } }, (q, k, v) =>
        attention(q!, k!, v!, segments, { ...heads, causal: false }),
      ));
    test("rope", () => {
      const table = Tensor.from(
        device,
        Float32Array.from({ length: 8 * 2 * 3 }, (_, i) => Math.cos(i)),
        [8, 2, 3],
      );
      return check({ x: { shape: [4, 12] } }, (x) => rope(x!, table, Int32Array.of(0, 1, 2, 7), 6));
    });
    test("a value used by several ops", () =>
      check({ x: { shape: [7, 5] }, w: { shape: [5, 5] } }, (x, w) => add(linear(x!, w!), add(x!, linear(linear(x!, w!), w!)))));
    test("tokenLogProbs of a frozen projection, with a frozen update and a temperature", () => {
      const [rows, width, vocab, rank] = [4, 5, 7, 2];
      const frozen = (shape: number[], seed: number) => Tensor.from(device, randomValues(new Rng(seed), shape), shape);
      const [weight, narrow, b] = [frozen([vocab, width], 7), frozen([rows, rank], 8), frozen([vocab, rank], 9)];
      const updates = [{ narrow, weight: b, scale: -0.5 }];
      return check({ hidden: { shape: [rows, width] } }, (hidden) =>
        add(
          tokenLogProbs(hidden!, weight, Int32Array.of(6, 0, 0, 3), updates, { temperature: 1.5 }),
          tokenLogProbs(hidden!, weight, Int32Array.of(1, 2, 2, 5)), // hidden gets the sum of two gradients
        ),
      );
    });
    test("tokenLogProbs with a low-rank update and a temperature", () =>
      check(
        { hidden: { shape: [4, 5] }, w: { shape: [7, 5] }, narrow: { shape: [4, 2] }, b: { shape: [7, 2] } },
        (hidden, weight, narrow, b) =>
          tokenLogProbs(hidden!, weight!, Int32Array.of(6, 0, 0, 3), [{ narrow: narrow!, weight: b!, scale: -0.5 }], {
            temperature: 1.5,
          }),
        { step: 1e-3 },
      ));
    test("checkpoint", () =>
      check({ x: { shape: [7, 5] }, w: { shape: [5, 5] }, n: { shape: [5] } }, (x, w, n) =>
        checkpoint(() => add(x!, linear(rmsNorm(x!, n!, 1e-5), w!))),
      ));
  });

test("linearCrossEntropy: value, gradients and gradient of the weight", async () => {
  const rng = new Rng(3);
  const [rows, width, vocab] = [5, 7, 11];
  const h = randomValues(rng, [rows, width]);
  const w = randomValues(rng, [vocab, width]);
  const targets = Int32Array.of(0, 10, 3, 3, 7);

  const reference = { loss: 0, dh: new Float64Array(h.length), dw: new Float64Array(w.length) };
  for (let r = 0; r < rows; r++) {
    const logits = Array.from({ length: vocab }, (_, v) =>
      Array.from({ length: width }, (_, c) => h[r * width + c]! * w[v * width + c]!).reduce((a, b) => a + b),
    );
    const lse = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
    reference.loss += lse - logits[targets[r]!]!;
    for (let v = 0; v < vocab; v++) {
      const d = Math.exp(logits[v]! - lse) - (v === targets[r] ? 1 : 0);
      for (let c = 0; c < width; c++) {
        reference.dh[r * width + c]! += d * w[v * width + c]!;
        reference.dw[v * width + c]! += d * h[r * width + c]!;
      }
    }
  }

  const [hidden, weight] = [Tensor.from(device, h, [rows, width]), Tensor.from(device, w, [vocab, width])];
  const plain = scope(() => linearCrossEntropy(hidden, weight, targets));
  assert.ok(Math.abs((await plain.item()) - reference.loss) < 1e-4);
  hidden.requiresGrad = weight.requiresGrad = true;
  const loss = differentiate(() => linearCrossEntropy(hidden, weight, targets));
  assert.ok(Math.abs((await loss.item()) - reference.loss) < 1e-4);
  for (const [actual, expected] of [
    [await hidden.grad!.read(), reference.dh],
    [await weight.grad!.read(), reference.dw],
  ] as const)
    for (const [i, value] of actual.entries()) assert.ok(Math.abs(value - expected[i]!) < 1e-5);
});

test("linearCrossEntropy with a low-rank update is that of the wider product", async () => {
  const rng = new Rng(4);
  const [rows, width, vocab, rank, scale] = [6, 7, 11, 3, 0.5];
  const values = {
    hidden: randomValues(rng, [rows, width]),
    weight: randomValues(rng, [vocab, width]),
    narrow: randomValues(rng, [rows, rank]),
    b: randomValues(rng, [vocab, rank]),
  };
  const beside = (a: Float32Array, aWidth: number, b: Float32Array, factor: number) =>
    Float32Array.from({ length: (a.length / aWidth) * (aWidth + rank) }, (_, i) => {
      const [row, column] = [Math.floor(i / (aWidth + rank)), i % (aWidth + rank)];
      return column < aWidth ? a[row * aWidth + column]! : factor * b[row * rank + column - aWidth]!;
    });
  const trained = (data: Float32Array, shape: number[]) => {
    const tensor = Tensor.from(device, data, shape);
    tensor.requiresGrad = true;
    return tensor;
  };
  const targets = Int32Array.of(0, 10, 3, 3, 7, 1);
  const wideHidden = trained(beside(values.hidden, width, values.narrow, 1), [rows, width + rank]);
  const wideWeight = trained(beside(values.weight, width, values.b, scale), [vocab, width + rank]);
  const expected = await differentiate(() => linearCrossEntropy(wideHidden, wideWeight, targets)).item();
  const hidden = trained(values.hidden, [rows, width]);
  const weight = trained(values.weight, [vocab, width]);
  const narrow = trained(values.narrow, [rows, rank]);
  const b = trained(values.b, [vocab, rank]);
  const run = () => linearCrossEntropy(hidden, weight, targets, [{ narrow, weight: b, scale }]);
  assert.ok(Math.abs((await scope(run).item()) - expected) < 1e-4);
  assert.ok(Math.abs((await differentiate(run).item()) - expected) < 1e-4);
  const [dHidden, dWeight] = [await wideHidden.grad!.read(), await wideWeight.grad!.read()];
  const split = async (left: Tensor, right: Tensor, factor: number) =>
    beside(await left.grad!.read(), width, await right.grad!.read(), factor);
  for (const [actual, wanted] of [
    [await split(hidden, narrow, 1), dHidden],
    [await split(weight, b, 1 / scale), dWeight], // the wide weight holds scale · B
  ] as const)
    for (const [i, value] of actual.entries()) assert.ok(Math.abs(value - wanted[i]!) < 1e-5);
  assert.throws(() => linearCrossEntropy(hidden, weight, targets, [{ narrow: b, weight: b, scale }]), ShapeError);
});

test("a lazy loss cannot be fed to another op", () => {
  const hidden = Tensor.from(device, [1, 2], [1, 2]);
  const weight = Tensor.from(device, [1, 2, 3, 4], [2, 2]);
  hidden.requiresGrad = true;
  assert.throws(
    () => differentiate(() => add(linearCrossEntropy(hidden, weight, Int32Array.of(0)), Tensor.zeros(device, [1]))),
    ShapeError,
  );
});

test("dropout keeps the expected share, scales it, and repeats its mask in backward and under checkpointing", async () => {
  const shape = [1000, 100];
  const ones = Tensor.from(device, new Float32Array(100_000).fill(1), shape);
  const x = Tensor.from(device, new Float32Array(100_000).fill(1), shape);
  x.requiresGrad = true;
  const gradientOf = async (op: () => Tensor) => {
    const sum = differentiate(() => weightedSum(op(), ones), new Rng(5));
    const gradient = await x.grad!.read();
    assert.ok(Math.abs((await sum.item()) - gradient.reduce((a, b) => a + b)) < 10, "x is all ones: the sum is that of the mask");
    x.grad!.dispose();
    x.grad = null;
    return gradient;
  };
  const gradient = await gradientOf(() => dropout(x, 0.25));
  assert.deepEqual(await gradientOf(() => checkpoint(() => dropout(x, 0.25))), gradient);
  const kept = gradient.filter((g) => g !== 0);
  assert.ok(Math.abs(kept.length / gradient.length - 0.75) < 0.01);
  assert.ok(kept.every((g) => Math.abs(g - 1 / 0.75) < 1e-6));
});

test("shapes that do not fit are refused with both shapes named", () => {
  const x = Tensor.zeros(device, [4, 6]);
  const w = Tensor.zeros(device, [3, 5]);
  assert.throws(() => linear(x, w), /expected x of shape \[\.\.\., 5\] \(the columns of weight\), got \[4, 6\]/);
  assert.throws(() => rmsNorm(x, Tensor.zeros(device, [5]), 1e-5), /rmsNorm: expected weight of shape \[6\]/);
  assert.throws(() => addBias(x, Tensor.zeros(device, [5])), /addBias: expected bias of shape \[6\]/);
  assert.throws(() => scaleColumns(x, Tensor.zeros(device, [4])), /scaleColumns: expected scale of shape \[6\]/);
  assert.throws(() => divideSqrt(x, w), /divideSqrt: expected squares of shape \[4, 6\]/);
  assert.throws(() => add(x, w), /add: expected b of shape \[4, 6\]/);
  assert.throws(() => attention(x, x, x, segments, heads), /attention: expected q with 24 columns/);
  assert.throws(() => rope(x, Tensor.zeros(device, [8, 2, 3]), Int32Array.of(1), 6), /expected 4 positions/);
  assert.throws(() => linearCrossEntropy(x, w, Int32Array.of(1)), ShapeError);
  assert.throws(() => linearCrossEntropy(x, Tensor.zeros(device, [3, 6]), Int32Array.of(1)), /expected 4 targets/);
  assert.throws(() => gated(x, w, "silu"), /gated: expected up of shape/);
  assert.throws(() => mul(x, w), /mul: expected b of shape/);
  assert.throws(() => rmsNorm(x, w, 1e-5, { heads: 4 }), /rmsNorm: 4 heads do not divide x of shape \[4, 6\]/);
  assert.throws(() => layerNorm(x, Tensor.zeros(device, [6]), w, 1e-5), /layerNorm: expected bias of shape \[6\]/);
  assert.throws(() => splitColumns(x, [2, 3]), /splitColumns: parts of 2 \+ 3 do not fill the 6 columns of \[4, 6\]/);
  const one = { from: x, rows: null, at: Int32Array.of(0, 1, 2, 3) };
  assert.throws(() => mergeRows(7, [one, { from: w, rows: null, at: Int32Array.of(4, 5, 6) }]), /mergeRows: expected 6 columns/);
  assert.throws(() => mergeRows(4, [{ ...one, at: Int32Array.of(0, 1) }]), /mergeRows: 4 rows cannot go to 2 places/);
  assert.throws(() => mergeRows(5, [one]), /mergeRows: 4 rows do not fill 5/);
  assert.throws(() => reshape(x, [5, 5]), /reshape: \[4, 6\] does not fill \[5, 5\]/);
  assert.throws(() => embedding(Int32Array.of(9), Tensor.zeros(device, [3, 5])), RangeError);
});
