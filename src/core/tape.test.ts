import assert from "node:assert/strict";
import test from "node:test";
import { loadEngine } from "../engine/load.js";
import { ShapeError } from "../errors.js";
import { add } from "./ops/add.js";
import { crossEntropy } from "./ops/cross-entropy.js";
import { linear } from "./ops/linear.js";
import { linearCrossEntropy } from "./ops/linear-cross-entropy.js";
import { mul } from "./ops/mul.js";
import { rmsNorm } from "./ops/rms-norm.js";
import { Rng } from "./rng.js";
import { differentiate, forward, type Root } from "./tape.js";
import { Tensor } from "./tensor.js";

const engine = loadEngine();
const device = { kernels: engine, compute: "f32" } as const;
const rng = new Rng(11);
const normals = (count: number) => Float32Array.from({ length: count }, () => rng.normal());
const values = { x: normals(15), weight: normals(35) };
const targets = Int32Array.of(0, 6, 3);
const ones = Tensor.from(device, [1, 1, 1, 1, 1], [5]);

/** Leaves x (3, 5) and weight (7, 5), fresh and trainable. */
function leaves(): { x: Tensor; weight: Tensor } {
  const [x, weight] = [Tensor.from(device, values.x, [3, 5]), Tensor.from(device, values.weight, [7, 5])];
  x.requiresGrad = weight.requiresGrad = true;
  return { x, weight };
}

async function gradientsOf({ x, weight }: ReturnType<typeof leaves>): Promise<Float32Array[]> {
  return [await x.grad!.read(), await weight.grad!.read()];
}

/** What a pass over fresh leaves leaves behind when backward starts from the roots that `rootsOf` names. */
async function gradientsFrom<T>(
  body: (leaf: ReturnType<typeof leaves>) => T,
  rootsOf: (result: T, leaf: ReturnType<typeof leaves>) => Root[],
): Promise<Float32Array[]> {
  const leaf = leaves();
  const pass = forward(() => body(leaf));
  pass.backward(rootsOf(pass.result, leaf));
  pass.dispose();
  return gradientsOf(leaf);
}

/** Σ factor · gradients, element by element. */
const combined = (...terms: [number, Float32Array[]][]) =>
  terms[0]![1].map((first, i) => first.map((_, j) => terms.reduce((sum, [factor, of]) => sum + factor * of[i]![j]!, 0)));

function assertClose(actual: Float32Array[], expected: Float32Array[]): void {
  for (const [i, array] of actual.entries())
    for (const [j, value] of array.entries())
      assert.ok(Math.abs(value - expected[i]![j]!) < 1e-5, `${i}, ${j}: expected ${expected[i]![j]}, got ${value}`);
}

const losses = {
  linearCrossEntropy: ({ x, weight }: ReturnType<typeof leaves>) => linearCrossEntropy(x, weight, targets),
  crossEntropy: ({ x, weight }: ReturnType<typeof leaves>) => crossEntropy(linear(x, weight), targets),
};

test("numbers of a forward pass say with which seeds its backward starts", async () => {
  const leaf = leaves();
  const pass = forward(() => linear(leaf.x, leaf.weight));
  const seed = (await pass.result.read()).map((y) => 2 * y); // of Σ y²
  pass.backward([{ output: pass.result, seed }]);
  pass.dispose();
  const y = (r: number, n: number) =>
    values.x.reduce((sum, _, c) => (c < 5 ? sum + values.x[r * 5 + c]! * values.weight[n * 5 + c]! : sum), 0);
  const dx = values.x.map((_, i) => {
    let sum = 0;
    for (let n = 0; n < 7; n++) sum += 2 * y(Math.floor(i / 5), n) * values.weight[n * 5 + (i % 5)]!;
    return sum;
  });
  const actual = await leaf.x.grad!.read();
  for (const [i, value] of actual.entries()) assert.ok(Math.abs(value - dx[i]!) < 1e-4 * Math.max(1, Math.abs(dx[i]!)));
});

for (const [name, loss] of Object.entries(losses)) {
  test(`${name}: a root with seed 1 is what differentiate gives, bit for bit`, async () => {
    const leaf = leaves();
    const value = differentiate(() => loss(leaf));
    const others = leaves();
    const pass = forward(() => loss(others));
    pass.backward([{ output: pass.result, seed: 1 }]);
    assert.equal(await pass.result.item(), await value.item());
    assert.deepEqual(await gradientsFrom(loss, (output) => [{ output, seed: 1 }]), await gradientsOf(leaf));
  });

  test(`${name}: a seed multiplies the gradient, and seeds of one loss add up`, async () => {
    const once = await gradientsFrom(loss, (output) => [{ output, seed: 1 }]);
    const scaled = await gradientsFrom(loss, (output) => [{ output, seed: -2.5 }]);
    assertClose(scaled, combined([-2.5, once]));
    const twice = (output: Tensor) => [
      { output, seed: -3 },
      { output, seed: Float32Array.of(0.5) },
    ];
    assert.deepEqual(await gradientsFrom(loss, twice), scaled);
  });
}

test("losses and ordinary roots of one backward add up", async () => {
  const body = (leaf: ReturnType<typeof leaves>) => {
    const hidden = rmsNorm(leaf.x, ones, 1e-5);
    const logits = linear(hidden, leaf.weight);
    return {
      fused: linearCrossEntropy(hidden, leaf.weight, targets),
      plain: crossEntropy(mul(logits, logits), targets),
      logits,
    };
  };
  const seed = normals(21);
  const parts = await Promise.all([
    gradientsFrom(body, ({ fused }) => [{ output: fused, seed: 1 }]),
    gradientsFrom(body, ({ plain }) => [{ output: plain, seed: 1 }]),
    gradientsFrom(body, ({ logits }) => [{ output: logits, seed }]),
  ]);
  const together = await gradientsFrom(body, ({ fused, plain, logits }) => [
    { output: fused, seed: 0.5 },
    { output: plain, seed: -1.5 },
    { output: logits, seed },
    { output: logits, seed },
  ]);
  assertClose(together, combined([0.5, parts[0]!], [-1.5, parts[1]!], [2, parts[2]!]));
});

test("a leaf can be a root; an output without gradient counts for nothing", async () => {
  const [x, weight] = await gradientsFrom(
    (leaf) => ({ constant: Tensor.zeros(device, [2]), loss: losses.linearCrossEntropy(leaf) }),
    ({ constant, loss }, leaf) => [
      { output: leaf.x, seed: new Float32Array(15).fill(100) },
      { output: constant, seed: Float32Array.of(1, 1) },
      { output: loss, seed: 0 },
    ],
  );
  assert.ok(x!.every((value) => value === 100));
  assert.ok(weight!.every((value) => value === 0));
});

test("a loss that backward computes can be read after it, not before, and not where it was no root", async () => {
  for (const loss of Object.values(losses)) {
    const leaf = leaves();
    const pass = forward(() => ({ loss: loss(leaf), other: loss(leaf) }));
    await assert.rejects(() => pass.result.loss.item(), /before backward had computed it/);
    await assert.rejects(() => pass.result.loss.alias().item(), ShapeError);
    pass.backward([{ output: pass.result.loss, seed: 0.25 }]);
    assert.ok((await pass.result.loss.item()) > 0);
    await assert.rejects(() => pass.result.other.item(), ShapeError);
    pass.dispose();
  }
});

test("wrong seeds, outputs of other passes and a second backward are refused before anything is added", async () => {
  const leaf = leaves();
  const pass = forward(() => ({ y: linear(leaf.x, leaf.weight), loss: losses.linearCrossEntropy(leaf) }));
  const { y, loss } = pass.result;
  const good = { output: loss, seed: 1 };
  assert.throws(
    () => pass.backward([good, { output: y, seed: new Float32Array(20) }]),
    /expected 21 seeds, one for each element of an output of shape \[3, 7\], got 20/,
  );
  assert.throws(() => pass.backward([good, { output: y, seed: 1 }]), ShapeError);
  assert.throws(() => pass.backward([{ output: loss, seed: new Float32Array(2) }]), ShapeError);
  const other = forward(() => linear(leaf.x, leaf.weight));
  assert.throws(() => pass.backward([good, { output: other.result, seed: new Float32Array(21) }]), /not made in this pass/);
  assert.equal(leaf.x.grad, null);
  pass.backward([good]);
  const before = await gradientsOf(leaf);
  assert.throws(() => pass.backward([good]), /run forward again/);
  other.dispose();
  assert.throws(() => other.backward([]), ShapeError);
  assert.deepEqual(await gradientsOf(leaf), before);
  pass.dispose();
});

test("no memory stays behind: not after backward, nor without one, nor where forward or backward fails", () => {
  const leaf = leaves();
  const live = () => engine.stats().liveBytes;
  const start = live();
  const body = () => {
    const hidden = rmsNorm(leaf.x, ones, 1e-5);
    return { input: leaf.x, y: linear(hidden, leaf.weight), loss: linearCrossEntropy(hidden, leaf.weight, targets) };
  };
  const forget = () => {
    for (const tensor of Object.values(leaf)) {
      tensor.grad?.dispose();
      tensor.grad = null;
    }
  };
  const whole = forward(body);
  const held = live();
  whole.backward([{ output: whole.result.loss, seed: 1 }]);
  forget();
  assert.ok(held > live(), "backward frees what only it needed");
  assert.ok(live() > start, "the result stays");
  whole.dispose();
  whole.dispose();
  assert.equal(live(), start);

  const abandoned = forward(body);
  abandoned.dispose();
  assert.equal(live(), start);
  assert.ok(leaf.x.id > 0, "a tensor of the result that the pass did not make is left alone");

  assert.throws(() =>
    forward(() => {
      body();
      throw new Error("stop");
    }),
  );
  assert.equal(live(), start);
  assert.throws(() => differentiate(() => body().y), ShapeError);
  assert.equal(live(), start);

  const failing = forward(() => ({ ...body(), sum: add(linear(leaf.x, leaf.weight), linear(leaf.x, leaf.weight)) }));
  const { matmulInputGrad } = engine;
  engine.matmulInputGrad = () => {
    throw new Error("stop");
  };
  try {
    assert.throws(() => failing.backward([{ output: failing.result.sum, seed: new Float32Array(21) }]), /stop/);
  } finally {
    engine.matmulInputGrad = matmulInputGrad;
  }
  assert.throws(() => failing.backward([]), ShapeError);
  failing.dispose();
  forget();
  assert.equal(live(), start);
});

test("a pass outlives the scopes around it", async () => {
  const leaf = leaves();
  const kept: { pass?: ReturnType<typeof forward<Tensor>> } = {};
  differentiate(() => {
    kept.pass = forward(() => linear(leaf.x, leaf.weight));
    return Tensor.zeros(device, [1]);
  });
  assert.equal((await kept.pass!.result.read()).length, 21);
  kept.pass!.backward([{ output: kept.pass!.result, seed: new Float32Array(21).fill(1) }]);
  assert.ok(leaf.weight.grad !== null);
  kept.pass!.dispose();
});
