import assert from "node:assert/strict";
import test from "node:test";
import type { ComputeType } from "../../engine/kernels.js";
import { loadEngine } from "../../engine/load.js";
import { ConfigError, ShapeError } from "../../errors.js";
import type { Device } from "../device.js";
import { Rng } from "../rng.js";
import { SymbolicDevice } from "../symbolic.js";
import { differentiate, forward, type Root } from "../tape.js";
import { scope, Tensor } from "../tensor.js";
import { activation } from "./activation.js";
import { linear } from "./linear.js";
import { linearCrossEntropy } from "./linear-cross-entropy.js";
import { gatherRows } from "./rows.js";
import { tokenLogProbs } from "./token-log-probs.js";

const engine = loadEngine();
const f32 = { kernels: engine, compute: "f32" } as const;
const rng = new Rng(7);
const normals = (count: number, scale = 1) => Float32Array.from({ length: count }, () => scale * rng.normal());

const [rows, width, vocab, rank] = [6, 9, 31, 3];
const targets = Int32Array.of(0, 30, 7, 7, 12, 1);
const values = {
  hidden: normals(rows * width),
  weight: normals(vocab * width),
  narrow: normals(rows * rank),
  b: normals(vocab * rank),
};

/** Fresh trainable leaves: hidden (S, C), weight (V, C), narrow (S, R), b (V, R). */
function leaves(device: Device = f32) {
  const leaf = (data: Float32Array, columns: number) => {
    const tensor = Tensor.from(device, data, [data.length / columns, columns]);
    tensor.requiresGrad = true;
    return tensor;
  };
  return {
    hidden: leaf(values.hidden, width),
    weight: leaf(values.weight, width),
    narrow: leaf(values.narrow, rank),
    b: leaf(values.b, rank),
  };
}

type Leaves = ReturnType<typeof leaves>;

const logProbs = ({ hidden, weight, narrow, b }: Leaves, temperature = 1) =>
  tokenLogProbs(hidden, weight, targets, [{ narrow, weight: b, scale: 0.5 }], { temperature });
const gradientsOf = (of: Leaves) => Promise.all(Object.values(of).map((leaf) => leaf.grad!.read()));

function assertClose(actual: Float32Array, expected: ArrayLike<number>, tolerance: number): void {
  assert.equal(actual.length, expected.length);
  const size = Math.max(...Array.from(expected, Math.abs), 1e-3);
  for (const [i, value] of actual.entries())
    assert.ok(Math.abs(value - expected[i]!) < tolerance * size, `${i}: expected ${expected[i]}, got ${value}`);
}

test("each is the negated cross-entropy of its row; with seeds of −1 their gradients are those of its sum", async () => {
  const [one, other] = [leaves(), leaves()];
  const pass = forward(() => logProbs(one));
  const logps = await pass.result.read();
  assert.deepEqual(pass.result.shape, [rows]);
  for (let row = 0; row < rows; row++) {
    const single = scope(() => {
      const narrow = gatherRows(other.narrow, Int32Array.of(row));
      const hidden = gatherRows(other.hidden, Int32Array.of(row));
      return linearCrossEntropy(hidden, other.weight, targets.subarray(row, row + 1), [{ narrow, weight: other.b, scale: 0.5 }]);
    });
    assert.ok(Math.abs((await single.item()) + logps[row]!) < 1e-5);
  }
  pass.backward([{ output: pass.result, seed: new Float32Array(rows).fill(-1) }]);
  const sum = differentiate(() =>
    linearCrossEntropy(other.hidden, other.weight, targets, [{ narrow: other.narrow, weight: other.b, scale: 0.5 }]),
  );
  assert.ok(Math.abs((await sum.item()) + logps.reduce((a, b) => a + b)) < 1e-4);
  const expected = await gradientsOf(other);
  for (const [i, gradient] of (await gradientsOf(one)).entries()) assertClose(gradient, expected[i]!, 1e-5);
});

test("a temperature divides the logits", async () => {
  const { hidden, narrow, ...weights } = leaves();
  const scaled = (of: Float32Array, shape: readonly number[]) =>
    Tensor.from(
      f32,
      of.map((x) => x / 0.7),
      shape,
    );
  const divided = { ...weights, hidden: scaled(values.hidden, hidden.shape), narrow: scaled(values.narrow, narrow.shape) };
  const expected = await scope(() => logProbs(divided)).read();
  assertClose(await scope(() => logProbs({ ...weights, hidden, narrow }, 0.7)).read(), expected, 1e-5);
});

test("where products round to bf16, values and gradients are near those of f32", async () => {
  const seed = normals(rows);
  const run = async (compute: ComputeType) => {
    const of = leaves({ kernels: engine, compute });
    const pass = forward(() => logProbs(of, 1.5));
    pass.backward([{ output: pass.result, seed }]);
    return [await pass.result.read(), ...(await gradientsOf(of))];
  };
  const exact = await run("f32");
  for (const [i, array] of (await run("bf16")).entries()) assertClose(array, exact[i]!, 3e-2);
});

test("memory holds one chunk of logits and never all, as the symbolic device foresees to the byte", async () => {
  const [rows, width, vocab] = [90, 8, 250_000];
  const chunk = 32 * 2 ** 20;
  assert.ok(4 * rows * vocab > 2.5 * chunk);
  const step = (device: Device) => {
    const [hidden, weight] = [Tensor.zeros(device, [rows, width]), Tensor.zeros(device, [vocab, width])];
    hidden.requiresGrad = weight.requiresGrad = true;
    const pass = forward(() => tokenLogProbs(hidden, weight, new Int32Array(rows)));
    pass.backward([{ output: pass.result, seed: new Float32Array(rows).fill(1 / rows) }]);
    pass.dispose();
    for (const tensor of [hidden, weight]) {
      tensor.grad!.dispose();
      tensor.dispose();
    }
  };
  const symbolic = new SymbolicDevice();
  step(symbolic);
  const before = engine.stats().liveBytes;
  engine.resetPeak();
  step(f32);
  await engine.sync();
  const measured = engine.stats().peakLiveBytes - before;
  assert.equal(symbolic.cost.peakBytes, measured);
  assert.equal(symbolic.cost.liveBytes, 0);
  assert.equal(engine.stats().liveBytes, before);
  const weights = 2 * 4 * vocab * width;
  assert.ok(measured < weights + chunk + 2 ** 16, `${measured} bytes at the peak`);
});

/** A small policy whose log-probabilities of six tokens depend on two weights. */
const policy = { inner: normals(width * width, 0.3), head: normals(vocab * width, 0.5) };
const input = Tensor.from(f32, values.hidden, [rows, width]);

interface Objective {
  readonly loss: number;
  /** By log-probability. */
  readonly gradient: Float32Array;
}

/**
 * Holds the gradients of both weights against central differences along random directions. The objective is `of` the log-probabilities, plus
 * `nll` times the negated sum of those of the first three tokens, which comes as a second root.
 */
async function checkObjective(of: (logps: Float32Array) => Objective, nll: number): Promise<void> {
  const weightsOf = (data: typeof policy) => ({
    inner: Tensor.from(f32, data.inner, [width, width]),
    head: Tensor.from(f32, data.head, [vocab, width]),
  });
  const run = ({ inner, head }: ReturnType<typeof weightsOf>) => {
    const hidden = activation(linear(input, inner), "tanh");
    const chosen = gatherRows(hidden, Int32Array.of(0, 1, 2));
    return {
      logps: tokenLogProbs(hidden, head, targets),
      chosen: nll === 0 ? null : linearCrossEntropy(chosen, head, targets.subarray(0, 3)),
    };
  };
  const valueAt = async (data: typeof policy) => {
    const { logps, chosen } = scope(() => run(weightsOf(data)));
    return of(await logps.read()).loss + (chosen === null ? 0 : nll * (await chosen.item()));
  };

  const weights = weightsOf(policy);
  weights.inner.requiresGrad = weights.head.requiresGrad = true;
  const pass = forward(() => run(weights));
  const { logps, chosen } = pass.result;
  const roots: Root[] = [{ output: logps, seed: of(await logps.read()).gradient }];
  if (chosen !== null) roots.push({ output: chosen, seed: nll });
  pass.backward(roots);
  for (const name of ["inner", "head"] as const) {
    const gradient = await weights[name].grad!.read();
    const direction = normals(gradient.length);
    const step = 1e-2;
    const moved = (sign: number) => ({ ...policy, [name]: policy[name].map((w, i) => w + sign * step * direction[i]!) });
    const expected = ((await valueAt(moved(1))) - (await valueAt(moved(-1)))) / (2 * step);
    const actual = gradient.reduce((sum, g, i) => sum + g * direction[i]!, 0);
    const size = Math.hypot(...gradient);
    assert.ok(size > 1e-2, "a gradient that is nothing would pass any test");
    assert.ok(Math.abs(actual - expected) < 1e-2 * size, `${name}: expected ${expected} along a direction, got ${actual}`);
  }
  pass.dispose();
}

const sum = (values: Float32Array) => values.reduce((a, b) => a + b, 0);
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

test("a preference loss is a function of numbers: DPO's gradient of the weights", () => {
  const [beta, referenceMargin] = [0.4, 0.3];
  return checkObjective((logps) => {
    const margin = sum(logps.subarray(0, 3)) - sum(logps.subarray(3)) - referenceMargin;
    const slope = -beta * sigmoid(-beta * margin);
    return {
      loss: -Math.log(sigmoid(beta * margin)),
      gradient: Float32Array.from({ length: 6 }, (_, i) => (i < 3 ? slope : -slope)),
    };
  }, 0);
});

test("two losses of one pass: ORPO's likelihood and odds ratio", () => {
  const lambda = 2;
  return checkObjective((logps) => {
    const [c, r] = [sum(logps.subarray(0, 3)) / 3, sum(logps.subarray(3)) / 3];
    const ratio = c - r - Math.log1p(-Math.exp(c)) + Math.log1p(-Math.exp(r));
    const slope = -lambda * sigmoid(-ratio);
    const gradient = Float32Array.from({ length: 6 }, (_, i) =>
      i < 3 ? slope / (1 - Math.exp(c)) / 3 : -slope / (1 - Math.exp(r)) / 3,
    );
    return { loss: -lambda * Math.log(sigmoid(ratio)), gradient };
  }, 1 / 3);
});

test("shapes that do not fit and temperatures that are none are refused", () => {
  const { hidden, weight, narrow, b } = leaves();
  const cut = targets.subarray(1);
  assert.throws(() => tokenLogProbs(hidden, weight, cut), /tokenLogProbs: expected 6 targets \(rows of hidden\), got 5/);
  assert.throws(() => tokenLogProbs(hidden, b, targets), /tokenLogProbs: expected hidden of shape \[S, 3\]/);
  assert.throws(() => tokenLogProbs(hidden, weight, targets, [{ narrow, weight, scale: 1 }]), ShapeError);
  assert.throws(() => tokenLogProbs(hidden, weight, new Int32Array(rows).fill(vocab)), RangeError);
  for (const temperature of [0, -1, Number.NaN, Number.POSITIVE_INFINITY])
    assert.throws(() => tokenLogProbs(hidden, weight, targets, [], { temperature }), ConfigError);
});
