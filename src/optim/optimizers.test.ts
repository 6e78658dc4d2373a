import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { SymbolicDevice } from "../core/symbolic.js";
import { sizeOf, Tensor } from "../core/tensor.js";
import { loadEngine } from "../engine/load.js";
import { Parameter } from "../nn/module.js";
import { Optimizer, type RuleSettings } from "./optimizer.js";
import { type OptimizerName, optimizerNamed, optimizerNames } from "./optimizers.js";

/** Made by test/fixtures/make_optimizers.py, which says what each case holds. */
interface Fixture {
  readonly rates: readonly number[];
  /** Shape and weight decay of each weight. */
  readonly shapes: Readonly<Record<string, readonly [shape: number[], decay: number]>>;
  readonly cases: readonly (RuleSettings & {
    readonly title: string;
    readonly optim: OptimizerName;
    /** Of all weights, where it is not that of `shapes`. */
    readonly decay?: number;
    /** Products in bf16. */
    readonly isRounded?: boolean;
    readonly after: Readonly<Record<string, Readonly<Record<string, readonly number[]>>>>;
  })[];
}

const path = new URL("../../../test/fixtures/optimizers.json", import.meta.url); // from dist/src/optim
const { rates, shapes, cases } = JSON.parse(readFileSync(path, "utf8")) as Fixture;
const engine = loadEngine();
const device = { kernels: engine, compute: "f32" } as const;

/** `values` of make_optimizers.py. */
function values(count: number, salt: number, scale: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => (((i * i * 31 + i * 7919 + salt * 104729) % 1009) / 1009 - 0.5) * scale);
}

function gradientOf(name: string, salt: number, step: number): Float32Array {
  const [shape] = shapes[name]!;
  const gradient = values(sizeOf(shape), 100 + 10 * step + salt, 10 ** ((step % 3) - 2));
  const isSeen = (row: number) => row < step % 4 || (row - (step % 4)) % 2 !== 0;
  return name === "embed_tokens.weight" ? gradient.map((g, i) => (isSeen(Math.floor(i / shape[1]!)) ? g : 0)) : gradient;
}

/** Weights after some steps; each gradient comes as twice itself, and half of it counts. */
async function weightsAfter(steps: number, { optim, decay, ...settings }: Fixture["cases"][number]) {
  const names = Object.keys(shapes);
  const parameters = new Map(
    names.map((name, salt) => {
      const [shape] = shapes[name]!;
      return [name, new Parameter(shape, Tensor.from(device, values(sizeOf(shape), salt, 1), shape))];
    }),
  );
  const decays = new Map(names.map((name) => [name, decay ?? shapes[name]![1]]));
  const optimizer = new Optimizer(parameters, optimizerNamed(optim).ruleFor(settings), decays);
  for (let step = 0; step < steps; step++) {
    for (const [salt, [name, { value }]] of [...parameters].entries())
      value.grad = Tensor.from(
        device,
        gradientOf(name, salt, step).map((g) => 2 * g),
        value.shape,
      );
    optimizer.update(rates[step]!, 0.5);
  }
  assert.equal(await optimizer.flaws(), 0);
  const weights = new Map<string, Float32Array>();
  for (const [name, parameter] of parameters) {
    weights.set(name, await parameter.value.read());
    parameter.dispose();
  }
  optimizer.dispose();
  return weights;
}

for (const fixture of cases)
  test(`${fixture.optim}: the weights of ${fixture.title}, step by step`, async () => {
    const live = engine.stats().liveBytes;
    for (const [steps, expected] of Object.entries(fixture.after)) {
      const weights = await weightsAfter(Number(steps), fixture);
      const moved = rates.slice(0, Number(steps)).reduce((a, b) => a + b);
      for (const [name, values] of Object.entries(expected)) {
        // bf16 has three figures, and the iteration enlarges what is lost; in f32 a weight has seven, whatever it moved.
        const tolerance = fixture.isRounded === true ? 0.05 * moved : 4e-7;
        const worst = values.reduce((most, value, i) => Math.max(most, Math.abs(value - weights.get(name)![i]!)), 0);
        assert.ok(worst <= tolerance, `${name} after ${steps} steps: off by ${worst}, allowed ${tolerance}`);
      }
    }
    assert.equal(engine.stats().liveBytes, live, "nothing stays in memory");
  });

test("every optimizer has a case", () => {
  const tested = new Set(cases.map(({ optim }) => optimizerNamed(optim)));
  const bits8 = optimizerNamed("adamw_8bit"); // src/engine/bitsandbytes.test.ts
  for (const name of optimizerNames) assert.ok([...tested, bits8].includes(optimizerNamed(name)), name);
});

test("what is kept of a weight, under the names of checkpoints", () => {
  const bytes = (optim: OptimizerName, args: object = {}) => {
    const symbolic = new SymbolicDevice();
    const shaped = { "h.weight": [6, 4], "embed_tokens.weight": [5, 3], "h.bias": [6] };
    const parameters = new Map(
      Object.entries(shaped).map(([name, shape]) => [name, new Parameter(shape, Tensor.zeros(symbolic, shape))]),
    );
    const settings = { beta1: 0.9, beta2: 0.999, eps: 1e-8, args };
    const optimizer = new Optimizer(parameters, optimizerNamed(optim).ruleFor(settings), new Map());
    return Object.fromEntries([...optimizer.kept()].map(([name, { tensor }]) => [name, tensor.shape.join("×")]));
  };
  assert.deepEqual(bytes("sgd"), {});
  assert.deepEqual(bytes("sgd", { momentum: 0.9 }), {
    "h.weight.momentum": "6×4",
    "embed_tokens.weight.momentum": "5×3",
    "h.bias.momentum": "6",
  });
  assert.deepEqual(bytes("lion_32bit"), { "h.weight.m": "6×4", "embed_tokens.weight.m": "5×3", "h.bias.m": "6" });
  assert.deepEqual(bytes("adafactor"), {
    ...{ "h.weight.row": "6", "h.weight.column": "4", "embed_tokens.weight.row": "5", "embed_tokens.weight.column": "3" },
    "h.bias.v": "6",
  });
  assert.deepEqual(bytes("muon"), {
    ...{ "h.weight.momentum": "6×4", "embed_tokens.weight.m": "5×3", "embed_tokens.weight.v": "5×3" },
    ...{ "h.bias.m": "6", "h.bias.v": "6" },
  });
});

test("a weight that learns faster learns at its rate times the optimizer's", async () => {
  for (const name of optimizerNames) {
    const step = async (scale: number, rate: number) => {
      const parameter = new Parameter([5, 3], Tensor.from(device, values(15, 1, 1), [5, 3]));
      parameter.learningRateScale = scale;
      parameter.value.grad = Tensor.from(device, values(15, 2, 1), [5, 3]);
      const settings = { beta1: 0.9, beta2: 0.99, eps: 1e-8, args: {} };
      const optimizer = new Optimizer(new Map([["w", parameter]]), optimizerNamed(name).ruleFor(settings), new Map([["w", 0.1]]));
      optimizer.update(rate, 1);
      const after = await parameter.value.read();
      for (const part of [parameter, optimizer]) part.dispose();
      return after;
    };
    assert.deepEqual(await step(4, 0.01), await step(1, 0.04), name);
    assert.notDeepEqual(await step(4, 0.01), await step(1, 0.01), name);
  }
});

test("gradients that are one tensor for two weights are written by neither", async () => {
  for (const optim of ["sgd", "adafactor", "muon"] as const) {
    const tensor = () => Tensor.from(device, Float32Array.of(1, -2, 3, 4), [2, 2]);
    const parameters = new Map(["a", "b"].map((name) => [name, new Parameter([2, 2], tensor())]));
    const gradient = tensor();
    for (const { value } of parameters.values()) value.grad = gradient.alias();
    const optimizer = new Optimizer(
      parameters,
      optimizerNamed(optim).ruleFor({ beta1: 0, beta2: 0, eps: 0, args: {} }),
      new Map(),
    );
    optimizer.update(0.1, 0.5);
    const [a, b] = await Promise.all([...parameters.values()].map(({ value }) => value.read()));
    assert.deepEqual(a, b, optim);
    assert.deepEqual([...(await gradient.read())], [1, -2, 3, 4], optim);
    for (const part of [gradient, optimizer, ...parameters.values()]) part.dispose();
  }
});
