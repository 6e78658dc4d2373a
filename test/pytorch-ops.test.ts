/** Every kernel that has a twin in PyTorch, against PyTorch's numbers, on every tier: test/fixtures/make_ops.py made them. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test, { describe } from "node:test";
import { tokenLogProbs } from "../src/core/ops/token-log-probs.js";
import { forward } from "../src/core/tape.js";
import { Tensor } from "../src/core/tensor.js";
import type { Activation, Id } from "../src/engine/kernels.js";
import { clipFactor } from "../src/optim/clip.js";
import { device, engine } from "./support/gradient-check.js";

interface Values {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}

/** Settings that some op has; each has its own of these. */
type Setting =
  | (
      | "m"
      | "n"
      | "k"
      | "scale"
      | "vocab"
      | "cols"
      | "rows"
      | "eps"
      | "heads"
      | "kvHeads"
      | "headDim"
      | "qRows"
      | "kRows"
      | "window"
    )
  | ("count" | "steps" | "lr" | "beta1" | "beta2" | "weightDecay" | "maxNorm" | "temperature");

interface Case extends Readonly<Record<Setting, number>> {
  readonly op: string;
  readonly name: string;
  readonly inputs: Readonly<Record<string, Values>>;
  readonly outputs: Readonly<Record<string, Values>>;
  readonly ids: readonly number[];
  readonly positions: readonly number[];
  readonly segments: readonly number[];
  readonly targets: readonly number[];
  readonly causal: boolean;
  readonly kind: Activation;
}

/** Blocks of one case: inputs are written, outputs are read by name. */
class Arrays {
  readonly #ids: Id[] = [];
  readonly #outputs = new Map<string, Id>();

  constructor(readonly fixture: Case) {}

  input(name: string): Id {
    const values = this.fixture.inputs[name];
    assert.ok(values, `${this.fixture.op} ${this.fixture.name} has no input ${name}`);
    return this.#write(Float32Array.from(values.data));
  }

  bits(name: string): Id {
    return this.#write(Uint16Array.from(this.fixture.inputs[name]!.data));
  }

  scratch(floats: number): Id {
    return this.#alloc(4 * floats);
  }

  output(name: string): Id {
    const id = this.#alloc(4 * this.fixture.outputs[name]!.data.length);
    this.#outputs.set(name, id);
    return id;
  }

  /** Says that `id` ends up holding the output `name`. */
  expect(name: string, id: Id): void {
    this.#outputs.set(name, id);
  }

  async check(tolerance: number): Promise<void> {
    for (const [name, id] of this.#outputs) {
      const actual = new Float32Array(this.fixture.outputs[name]!.data.length);
      await engine.read(id, 0, actual);
      assertAgrees(name, actual, this.fixture.outputs[name]!.data, tolerance);
    }
    for (const id of this.#ids) engine.free(id);
  }

  #write(data: Float32Array | Uint16Array): Id {
    const id = this.#alloc(data.byteLength);
    engine.write(id, 0, data);
    return id;
  }

  #alloc(bytes: number): Id {
    const id = engine.alloc(bytes);
    this.#ids.push(id);
    return id;
  }
}

function assertAgrees(name: string, actual: Float32Array, expected: readonly number[], tolerance: number): void {
  assert.equal(actual.length, expected.length, name);
  for (const [i, value] of actual.entries()) {
    const allowed = tolerance * Math.max(1, Math.abs(expected[i]!));
    assert.ok(Math.abs(value - expected[i]!) <= allowed, `${name}[${i}] is ${value}, PyTorch has ${expected[i]}`);
  }
}

const ints = (values: readonly number[]) => Int32Array.from(values);

/** How each op of the fixtures is run by the kernels. */
const runs: Readonly<Record<string, (arrays: Arrays, settings: Case) => void>> = {
  linear(arrays, { m, n, k, scale, inputs, outputs }) {
    const [x, dy] = [arrays.input("x"), arrays.input("dy")];
    const isHalf = "wBits" in inputs;
    const [w, type] = isHalf ? ([arrays.bits("wBits"), "bf16"] as const) : ([arrays.input("w"), "f32"] as const);
    const y = arrays.output("y");
    engine.matmul(x, w, type, y, m, n, k, scale, false, "f32");
    engine.matmulInputGrad(dy, w, type, arrays.output("dx"), m, n, k, scale, false, "f32");
    if ("dw" in outputs) engine.matmulWeightGrad(dy, x, arrays.output("dw"), m, n, k, scale, false, "f32");
    if (!("bias" in inputs)) return;
    engine.addBias(y, arrays.input("bias"), m, n);
    engine.biasGrad(dy, arrays.output("dbias"), m, n, false);
  },
  embedding(arrays, { ids, vocab, cols }) {
    engine.embedding(ints(ids), arrays.input("w"), "f32", arrays.output("y"), cols, vocab);
    const dw = arrays.output("dw");
    engine.fill(dw, 0, vocab * cols);
    engine.embeddingGrad(ints(ids), arrays.input("dy"), dw, cols, vocab);
  },
  rmsNorm(arrays, { rows, cols, eps }) {
    const [x, w, dy] = [arrays.input("x"), arrays.input("w"), arrays.input("dy")];
    const rstd = arrays.output("rstd");
    engine.rmsNorm(x, w, arrays.output("y"), rstd, rows, cols, eps, 0);
    engine.rmsNormGrad(dy, x, w, rstd, arrays.output("dx"), rows, cols, 0, false);
    engine.rmsNormWeightGrad(dy, x, rstd, arrays.output("dw"), rows, cols, false);
  },
  rope(arrays, { positions, heads, headDim, inputs }) {
    const table = arrays.input("table");
    const tableRows = inputs.table!.data.length / headDim;
    engine.rope(arrays.input("x"), arrays.output("y"), table, ints(positions), tableRows, heads, headDim, false);
    engine.rope(arrays.input("dy"), arrays.output("dx"), table, ints(positions), tableRows, heads, headDim, true);
  },
  attention(arrays, { segments, heads, kvHeads, headDim, qRows, kRows, scale, causal, window }) {
    const [q, k, v, dout] = ["q", "k", "v", "dout"].map((name) => arrays.input(name)) as [Id, Id, Id, Id];
    const [o, lse, dq, dk, dv] = ["o", "lse", "dq", "dk", "dv"].map((name) => arrays.output(name)) as [Id, Id, Id, Id, Id];
    const shape = { heads, kvHeads, headDim, qRows, kRows, scale, causal, window, dropout: 0, seed: 0n };
    const flat = ints(segments.flatMap((number, i) => (i % 4 === 3 ? [number, 0, 0] : [number]))); // none has a prefix
    engine.attention(q, k, v, o, lse, flat, shape, "f32");
    engine.attentionGrad(q, k, v, o, lse, dout, dq, dk, dv, flat, shape, "f32");
  },
  crossEntropy(arrays, { targets, vocab }) {
    const logits = arrays.input("logits");
    engine.crossEntropy(logits, ints(targets), arrays.output("losses"), vocab, 0, true);
    arrays.expect("dlogits", logits);
  },
  gated(arrays, { count, kind }) {
    const [gate, up] = [arrays.input("gate"), arrays.input("up")];
    engine.gated(gate, up, arrays.output("y"), kind, count);
    engine.gatedGrad(arrays.input("dy"), gate, up, arrays.output("dgate"), arrays.output("dup"), kind, count);
  },
  activation(arrays, { count, kind }) {
    const x = arrays.input("x");
    engine.activation(x, arrays.output("y"), kind, count);
    engine.activationGrad(arrays.input("dy"), x, arrays.output("dx"), kind, count, false);
  },
  layerNorm(arrays, { rows, cols, eps }) {
    const [x, w, dy] = [arrays.input("x"), arrays.input("w"), arrays.input("dy")];
    const [mean, rstd] = [arrays.scratch(rows), arrays.scratch(rows)];
    engine.layerNorm(x, w, arrays.input("b"), arrays.output("y"), mean, rstd, rows, cols, eps);
    engine.layerNormGrad(dy, x, w, mean, rstd, arrays.output("dx"), rows, cols, false);
    engine.layerNormWeightGrad(dy, x, mean, rstd, arrays.output("dw"), rows, cols, false);
    engine.biasGrad(dy, arrays.output("db"), rows, cols, false);
  },
  adamw(arrays, { steps, lr, beta1, beta2, eps, weightDecay, inputs }) {
    const count = inputs.p!.data.length;
    const [p, m, v] = [arrays.input("p"), arrays.output("m5"), arrays.output("v5")];
    for (const moment of [m, v]) engine.fill(moment, 0, count);
    const flaws = arrays.scratch(1);
    for (let step = 1; step <= steps; step++) {
      const corrections = { correction1: 1 - beta1 ** step, correction2: 1 - beta2 ** step };
      engine.adamw(p, arrays.input(`g${step}`), m, v, flaws, count, {
        lr,
        beta1,
        beta2,
        eps,
        weightDecay,
        ...corrections,
        gradScale: 1,
      });
    }
    arrays.expect("p5", p);
  },
};

/** Bit patterns stand in the fixtures as plain lists. */
const bitsOf = (values: unknown) => values as readonly number[];

const path = join(import.meta.dirname, "../../test/fixtures/ops.json");
const { cases } = JSON.parse(readFileSync(path, "utf8")) as { cases: Case[] };

for (const isa of engine.info().tiers)
  describe(`PyTorch's numbers on ${isa}`, () => {
    for (const fixture of cases) {
      const run = runs[fixture.op];
      if (run === undefined) continue; // others have tests of their own below
      test(`${fixture.op}: ${fixture.name}`, async () => {
        engine.setIsa(isa);
        const arrays = new Arrays(fixture);
        run(arrays, fixture);
        await arrays.check(1e-5);
      });
    }
    for (const { name, inputs, outputs, targets, scale, temperature } of cases.filter(({ op }) => op === "tokenLogProbs"))
      test(`tokenLogProbs: ${name}`, async () => {
        engine.setIsa(isa);
        const leaf = (input: string) => {
          const { data, shape } = inputs[input]!;
          const tensor = Tensor.from(device, data, shape);
          tensor.requiresGrad = true;
          return tensor;
        };
        const [hidden, weight, narrow, b] = [leaf("hidden"), leaf("weight"), leaf("narrow"), leaf("b")];
        const updates = [{ narrow, weight: b, scale }];
        const pass = forward(() => tokenLogProbs(hidden, weight, ints(targets), updates, { temperature }));
        pass.backward([{ output: pass.result, seed: Float32Array.from(inputs.dy!.data) }]);
        const of = { y: pass.result, dhidden: hidden.grad!, dweight: weight.grad!, dnarrow: narrow.grad!, db: b.grad! };
        for (const [output, tensor] of Object.entries(of)) assertAgrees(output, await tensor.read(), outputs[output]!.data, 1e-5);
        pass.dispose();
      });
    for (const { name, inputs, outputs } of cases.filter(({ op }) => op === "convert"))
      test(`convert: ${name}, bit by bit`, async () => {
        engine.setIsa(isa);
        const bits = Uint32Array.from(bitsOf(inputs.f32Bits));
        const x = engine.alloc(bits.byteLength);
        const y = engine.alloc(2 * bits.length);
        engine.write(x, 0, bits);
        for (const type of ["bf16", "f16"] as const) {
          engine.convert(x, "f32", y, type, bits.length);
          const actual = new Uint16Array(bits.length);
          await engine.read(y, 0, actual);
          const [exponent, fraction] = type === "bf16" ? [0x7f80, 0x7f] : [0x7c00, 0x3ff];
          const isNotANumber = (half: number) => (half & exponent) === exponent && (half & fraction) !== 0;
          for (const [i, half] of bitsOf(outputs[`${type}Bits`]).entries())
            assert.ok(
              actual[i] === half || (isNotANumber(actual[i]!) && isNotANumber(half)),
              `${type} of ${bits[i]!.toString(16)}: ${actual[i]} for ${half}`,
            );
        }
        engine.free(x);
        engine.free(y);
      });
  });

for (const { name, maxNorm, inputs, outputs } of cases.filter(({ op }) => op === "clip"))
  test(`clip: ${name}`, () => {
    const norm = Math.hypot(...inputs.a!.data, ...inputs.b!.data);
    assert.ok(Math.abs(norm - outputs.norm!.data[0]!) < 1e-5 * norm);
    for (const key of ["a", "b"])
      for (const [i, g] of inputs[key]!.data.entries())
        assert.ok(Math.abs(g * clipFactor(norm, maxNorm) - outputs[key]!.data[i]!) < 1e-6 * Math.max(1, Math.abs(g)));
  });

test("the fixtures hold only ops that are tested here", () => {
  const others = ["clip", "convert", "tokenLogProbs"];
  for (const { op } of cases) assert.ok(op in runs || others.includes(op), op);
});
