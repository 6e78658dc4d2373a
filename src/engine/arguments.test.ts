import assert from "node:assert/strict";
import test from "node:test";
import type { Id, Kernels, Memory } from "./kernels.js";
import { loadEngine } from "./load.js";

/** A call's arguments by name: sizes, flags and so on as they are, blocks by the number of f32 that they must hold. */
type Arguments = [
  name: string,
  value: Block | number | boolean | string | bigint | Int32Array | Record<string, number | boolean | bigint>,
][];

class Block {
  readonly floats: number;
  constructor(floats: number) {
    this.floats = floats;
  }
}

const f32s = (floats: number) => new Block(floats);
const shape = {
  qRows: 6,
  kRows: 8,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  scale: 0.25,
  causal: true,
  window: 0,
  dropout: 0,
  seed: 0n,
};
const segments = Int32Array.of(0, 2, 0, 3, 2, 4, 3, 5);
const q = f32s(6 * 4 * 16);
const k = f32s(8 * 2 * 16);
const lse = f32s(6 * 4);
const step = { lr: 1e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, correction1: 0.1, correction2: 0.01, gradScale: 1 };
const ids = Int32Array.of(4, 0, 4);
const products = (first: Arguments): Arguments => [
  ...first,
  ["m", 3],
  ["n", 5],
  ["k", 32],
  ["scale", 1],
  ["accumulate", false],
  ["compute", "f32"],
];

const calls: Record<Exclude<keyof Kernels, keyof Memory>, Arguments> = {
  matmul: products([
    ["x", f32s(96)],
    ["w", f32s(160)],
    ["wType", "f32"],
    ["y", f32s(15)],
  ]),
  matmulInputGrad: products([
    ["dy", f32s(15)],
    ["w", f32s(160)],
    ["wType", "f32"],
    ["dx", f32s(96)],
  ]),
  matmulWeightGrad: products([
    ["dy", f32s(15)],
    ["x", f32s(96)],
    ["dw", f32s(160)],
  ]),
  embedding: [
    ["ids", ids],
    ["w", f32s(5 * 7)],
    ["wType", "f32"],
    ["y", f32s(3 * 7)],
    ["cols", 7],
    ["vocab", 5],
  ],
  embeddingGrad: [
    ["ids", ids],
    ["dy", f32s(3 * 7)],
    ["dw", f32s(5 * 7)],
    ["cols", 7],
    ["vocab", 5],
  ],
  rmsNorm: [
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["y", f32s(14)],
    ["rstd", f32s(2)],
    ["rows", 2],
    ["cols", 7],
    ["eps", 1e-5],
    ["offset", 1],
  ],
  rmsNormGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["rstd", f32s(2)],
    ["dx", f32s(14)],
    ["rows", 2],
    ["cols", 7],
    ["offset", 1],
    ["accumulate", true],
  ],
  rmsNormWeightGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["rstd", f32s(2)],
    ["dw", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  layerNorm: [
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["b", f32s(7)],
    ["y", f32s(14)],
    ["mean", f32s(2)],
    ["rstd", f32s(2)],
    ["rows", 2],
    ["cols", 7],
    ["eps", 1e-5],
  ],
  layerNormGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["w", f32s(7)],
    ["mean", f32s(2)],
    ["rstd", f32s(2)],
    ["dx", f32s(14)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  layerNormWeightGrad: [
    ["dy", f32s(14)],
    ["x", f32s(14)],
    ["mean", f32s(2)],
    ["rstd", f32s(2)],
    ["dw", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  rope: [
    ["x", f32s(3 * 2 * 6)],
    ["y", f32s(3 * 2 * 6)],
    ["table", f32s(5 * 6)],
    ["positions", ids],
    ["tableRows", 5],
    ["heads", 2],
    ["headDim", 6],
    ["inverse", false],
  ],
  attention: [
    ["q", q],
    ["k", k],
    ["v", k],
    ["o", q],
    ["lse", lse],
    ["segments", segments],
    ["shape", shape],
    ["compute", "f32"],
  ],
  attentionGrad: [
    ["q", q],
    ["k", k],
    ["v", k],
    ["o", q],
    ["lse", lse],
    ["dout", q],
    ["dq", q],
    ["dk", k],
    ["dv", k],
    ["segments", segments],
    ["shape", shape],
    ["compute", "f32"],
  ],
  crossEntropy: [
    ["logits", f32s(15)],
    ["targets", ids],
    ["losses", f32s(3)],
    ["vocab", 5],
    ["gradient", true],
  ],
  fill: [
    ["y", f32s(9)],
    ["value", 1],
    ["count", 9],
  ],
  copy: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["count", 9],
  ],
  convert: [
    ["x", f32s(9)],
    ["xType", "f32"],
    ["y", f32s(9)],
    ["yType", "f32"],
    ["count", 9],
  ],
  quantize: [
    ["x", f32s(128)],
    ["xType", "f32"],
    ["y", f32s(18)],
    ["yType", "nf4_f32"],
    ["rows", 2],
    ["cols", 64],
  ],
  add: [
    ["a", f32s(9)],
    ["b", f32s(9)],
    ["y", f32s(9)],
    ["count", 9],
  ],
  scale: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["scale", 2],
    ["count", 9],
    ["accumulate", false],
  ],
  addBias: [
    ["y", f32s(14)],
    ["bias", f32s(7)],
    ["rows", 2],
    ["cols", 7],
  ],
  biasGrad: [
    ["dy", f32s(14)],
    ["dbias", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", false],
  ],
  activation: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["kind", "gelu"],
    ["count", 9],
  ],
  activationGrad: [
    ["dy", f32s(9)],
    ["x", f32s(9)],
    ["dx", f32s(9)],
    ["kind", "tanh"],
    ["count", 9],
    ["accumulate", true],
  ],
  gated: [
    ["gate", f32s(9)],
    ["up", f32s(9)],
    ["y", f32s(9)],
    ["kind", "silu"],
    ["count", 9],
  ],
  gatedGrad: [
    ["dy", f32s(9)],
    ["gate", f32s(9)],
    ["up", f32s(9)],
    ["dgate", f32s(9)],
    ["dup", f32s(9)],
    ["kind", "gelu_tanh"],
    ["count", 9],
  ],
  mul: [
    ["a", f32s(9)],
    ["b", f32s(9)],
    ["y", f32s(9)],
    ["count", 9],
    ["accumulate", true],
  ],
  copyColumns: [
    ["x", f32s(2 * 7)],
    ["xCols", 7],
    ["xStart", 2],
    ["y", f32s(2 * 9)],
    ["yCols", 9],
    ["yStart", 4],
    ["rows", 2],
    ["cols", 5],
    ["accumulate", true],
  ],
  dropout: [
    ["x", f32s(9)],
    ["y", f32s(9)],
    ["p", 0.5],
    ["seed", 1n],
    ["count", 9],
    ["accumulate", false],
  ],
  gatherRows: [
    ["x", f32s(5 * 7)],
    ["indices", ids],
    ["y", f32s(3 * 7)],
    ["xRows", 5],
    ["cols", 7],
  ],
  scatterRows: [
    ["x", f32s(3 * 7)],
    ["indices", ids],
    ["y", f32s(5 * 7)],
    ["yRows", 5],
    ["cols", 7],
    ["accumulate", true],
  ],
  sum: [
    ["x", f32s(9)],
    ["y", f32s(1)],
    ["count", 9],
    ["accumulate", false],
  ],
  sumSquares: [
    ["x", f32s(9)],
    ["y", f32s(1)],
    ["count", 9],
    ["accumulate", false],
  ],
  scaleRows: [
    ["x", f32s(14)],
    ["scale", f32s(2)],
    ["y", f32s(14)],
    ["rows", 2],
    ["cols", 7],
  ],
  scaleColumns: [
    ["x", f32s(14)],
    ["scale", f32s(7)],
    ["y", f32s(14)],
    ["rows", 2],
    ["cols", 7],
  ],
  rowDots: [
    ["a", f32s(14)],
    ["b", f32s(14)],
    ["y", f32s(2)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  columnDots: [
    ["a", f32s(14)],
    ["b", f32s(14)],
    ["y", f32s(7)],
    ["rows", 2],
    ["cols", 7],
    ["accumulate", true],
  ],
  divideSqrt: [
    ["x", f32s(14)],
    ["squares", f32s(14)],
    ["y", f32s(14)],
    ["count", 14],
  ],
  svd: [
    ["x", f32s(14)],
    ["u", f32s(4)],
    ["s", f32s(2)],
    ["rows", 2],
    ["cols", 7],
  ],
  adamw: [
    ["p", f32s(9)],
    ["g", f32s(9)],
    ["m", f32s(9)],
    ["v", f32s(9)],
    ["flaws", f32s(1)],
    ["count", 9],
    ["step", step],
  ],
  adamw8bit: [
    ["p", f32s(257)],
    ["g", f32s(257)],
    ["m", f32s(130)],
    ["v", f32s(130)],
    ["flaws", f32s(1)],
    ["count", 257],
    ["step", step],
  ],
};

const numbers = new Set(["scale", "eps", "value", "p", "offset"]); // any finite number, not a size

for (const [name, args] of Object.entries(calls)) {
  test(`${name} refuses every bad argument, and says which`, async () => {
    const engine = loadEngine();
    const call = engine[name as keyof typeof calls] as (...values: unknown[]) => void;
    const blocks: Id[] = [];
    const values = args.map(([, value]) => {
      if (!(value instanceof Block)) return value;
      blocks.push(engine.alloc(value.floats * 4));
      engine.fill(blocks.at(-1)!, 0, value.floats);
      return blocks.at(-1)!;
    });
    const freed = engine.alloc(1 << 20);
    engine.free(freed);

    const refuses = (i: number, bad: unknown, kind: "RangeError" | "TypeError", what: RegExp) => {
      const message = new RegExp(`^${name}: .*${what.source}`);
      assert.throws(
        () => call(...values.with(i, bad as Id)),
        { name: kind, message },
        `${name}: ${args[i]![0]} = ${String(bad)}`,
      );
    };

    for (const [i, [argument, value]] of args.entries()) {
      refuses(i, undefined, "TypeError", new RegExp(argument));
      if (value instanceof Block) {
        const small = engine.alloc(value.floats * 4 - 1);
        refuses(
          i,
          small,
          "RangeError",
          new RegExp(`${argument} needs ${value.floats * 4} bytes .*, but block ${small} has ${value.floats * 4 - 1}`),
        );
        engine.free(small);
        refuses(i, freed, "RangeError", new RegExp(`${argument}: there is no block ${freed}, or it was freed`));
        refuses(i, Number.NaN, "RangeError", new RegExp(argument));
      } else if (typeof value === "number") {
        for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) refuses(i, bad, "RangeError", new RegExp(argument));
        refuses(i, String(value), "TypeError", new RegExp(argument));
        if (numbers.has(argument)) continue;
        for (const bad of [-1, 2.5]) refuses(i, bad, "RangeError", new RegExp(`${argument} must be a whole number`));
        for (const bad of [2 ** 31 + 2, 2 ** 52, 2 ** 53 - 2])
          refuses(i, bad, "RangeError", /(needs \d+ bytes|elements are too many|headDim|whole number|are outside of)/);
      } else if (typeof value === "boolean") {
        refuses(i, 1, "TypeError", new RegExp(argument));
      } else if (typeof value === "string") {
        refuses(i, "f64", "RangeError", new RegExp(`${argument} is "f64", expected`));
        refuses(i, "f".repeat(100), "RangeError", new RegExp(argument));
      } else if (typeof value === "bigint") {
        for (const bad of [-1n, 2n ** 64n]) refuses(i, bad, "RangeError", new RegExp(argument));
        refuses(i, 1, "TypeError", new RegExp(argument));
      } else if (value instanceof Int32Array) {
        refuses(i, [...value], "TypeError", new RegExp(argument));
        refuses(i, Uint32Array.from(value), "TypeError", new RegExp(argument));
        if (argument === "segments") continue; // below
        refuses(i, Int32Array.of(0, 5, 0), "RangeError", new RegExp(`${argument}\\[1\\] is 5, expected 0 to 4`));
        refuses(i, Int32Array.of(0, 0, -1), "RangeError", new RegExp(`${argument}\\[2\\] is -1`));
      } else {
        for (const [property, good] of Object.entries(value)) {
          const path = new RegExp(`${argument}\\.${property}`);
          refuses(i, { ...value, [property]: undefined }, "TypeError", path);
          if (typeof good === "number") refuses(i, { ...value, [property]: Number.NaN }, "RangeError", path);
        }
      }
    }
    call(...values); // the good ones are accepted
    await engine.sync();
    for (const id of blocks) engine.free(id);
  });
}

test("particular numbers are refused", () => {
  const engine = loadEngine();
  const x = engine.alloc(1024);
  assert.throws(() => engine.rmsNorm(x, x, x, x, 1, 1, -1, 0), /rmsNorm: eps must be 0 or more/);
  assert.throws(() => engine.layerNorm(x, x, x, x, x, x, 1, 1, -1), /layerNorm: eps must be 0 or more/);
  assert.throws(() => engine.copyColumns(x, 4, 3, x, 9, 0, 2, 2, false), /xStart: columns 3 to 5 are outside of 4/);
  assert.throws(() => engine.copyColumns(x, 4, 0, x, 3, 5, 2, 0, false), /yStart: columns 5 to 5 are outside of 3/);
  assert.throws(() => engine.rope(x, x, x, Int32Array.of(0), 1, 1, 3, false), /rope: headDim must be even, got 3/);
  for (const p of [-0.1, 1])
    assert.throws(() => engine.dropout(x, x, p, 0n, 1, false), /dropout: p must be at least 0 and less than 1/);
  assert.throws(
    () => engine.adamw(x, x, x, x, x, 1, { ...step, beta1: 1 }),
    /adamw: step.beta1 must be at least 0 and less than 1/,
  );
  assert.throws(() => engine.adamw(x, x, x, x, x, 1, { ...step, correction2: 0 }), /adamw: step.correction2 must be more than 0/);
  assert.throws(
    () => engine.matmul(x, x, "q4_k", x, 1, 1, 32, 1, false, "f32"),
    /matmul: w: a row of 32 is no whole number of q4_k blocks of 256/,
  );
  engine.free(x);
});

test("attention refuses segments that leave their arrays or share rows", () => {
  const engine = loadEngine();
  const x = engine.alloc(1 << 16);
  const forward = (...numbers: number[]) => engine.attention(x, x, x, x, x, Int32Array.from(numbers), shape, "f32");
  const backward = (...numbers: number[]) =>
    engine.attentionGrad(x, x, x, x, x, x, x, x, x, Int32Array.from(numbers), shape, "f32");
  for (const call of [forward, backward]) {
    assert.throws(() => call(0, 1, 0), /segments must hold four numbers for each segment, got 3/);
    assert.throws(() => call(0, 7, 0, 7), /segment 0 .* does not lie inside 6 rows of q and 8 rows of k/);
    assert.throws(() => call(0, 1, 0, 1, 1, 1, 8, 1), /segment 1 .* does not lie inside/);
    assert.throws(() => call(-1, 1, 0, 1), /segment 0/);
    assert.throws(() => call(2 ** 31 - 1, 2 ** 31 - 1, 0, 1), /segment 0/);
    assert.throws(() => call(2, 2, 0, 2, 0, 3, 2, 3), /two segments share rows of q/);
  }
  assert.throws(() => backward(0, 2, 0, 4, 2, 2, 3, 4), /two segments share rows of k/);
  const wrong = { ...shape, kvHeads: 3 };
  assert.throws(() => engine.attention(x, x, x, x, x, segments, wrong, "f32"), /heads must be a multiple of kvHeads/);
  engine.free(x);
});

test("code that runs while arguments are read cannot pull memory away", async () => {
  const engine = loadEngine();
  const ids = [0, 0, 0, 0].map(() => engine.alloc(256 << 20)) as [Id, Id, Id, Id];
  const trap = {
    ...step,
    get lr() {
      engine.free(ids[0]);
      engine.free(engine.alloc(600 << 20)); // would give the empty slab back to the system
      return 1e-3;
    },
  };
  assert.throws(() => engine.adamw(...ids, ids[3], 1 << 20, trap), /adamw: p: there is no block/);
  const thrower = {
    ...step,
    get eps(): number {
      throw new SyntaxError("from a getter");
    },
  };
  assert.throws(() => engine.adamw(...ids, ids[3], 1, thrower), { name: "SyntaxError", message: "from a getter" });
  await engine.sync();
  for (const id of ids.slice(1)) engine.free(id);
});
