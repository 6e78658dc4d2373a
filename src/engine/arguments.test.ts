import assert from "node:assert/strict";
import test from "node:test";
import type { Id } from "./kernels.js";
import { loadEngine } from "./load.js";
import { Block, kernelCalls, realNumbers, segments, shape, step } from "./testing/good-calls.js";

for (const [name, args] of Object.entries(kernelCalls)) {
  test(`${name} refuses every bad argument, and says which`, async () => {
    const engine = loadEngine();
    const call = engine[name as keyof typeof kernelCalls] as (...values: unknown[]) => void;
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
        if (realNumbers.has(argument)) continue;
        for (const bad of [-1, 2.5]) refuses(i, bad, "RangeError", new RegExp(`${argument} must be a whole number`));
        for (const bad of [2 ** 31 + 2, 2 ** 52, 2 ** 53 - 2])
          refuses(
            i,
            bad,
            "RangeError",
            /(needs \d+ bytes|numbers for each|elements are too many|headDim|whole number|are outside of)/,
          );
      } else if (typeof value === "boolean") {
        refuses(i, 1, "TypeError", new RegExp(argument));
      } else if (typeof value === "string") {
        refuses(i, "f64", "RangeError", new RegExp(`${argument} is "f64", expected`));
        refuses(i, "f".repeat(100), "RangeError", new RegExp(argument));
        refuses(i, `${value}\0`, "RangeError", new RegExp(argument));
      } else if (typeof value === "bigint") {
        for (const bad of [-1n, 2n ** 64n]) refuses(i, bad, "RangeError", new RegExp(argument));
        refuses(i, 1, "TypeError", new RegExp(argument));
      } else if (value instanceof Int32Array) {
        refuses(i, [...value], "TypeError", new RegExp(argument));
        refuses(i, Uint32Array.from(value), "TypeError", new RegExp(argument));
        if (argument === "segments") continue; // below
        refuses(i, Int32Array.of(0, 5, 0), "RangeError", new RegExp(`${argument}\\[1\\] is 5, expected 0 to 4`));
        refuses(i, Int32Array.of(0, 0, -1), "RangeError", new RegExp(`${argument}\\[2\\] is -1`));
      } else if (value instanceof Float64Array) {
        refuses(i, [...value], "TypeError", new RegExp(argument));
        refuses(i, Float32Array.from(value), "TypeError", new RegExp(argument));
        refuses(i, value.slice(1), "RangeError", new RegExp(argument));
        refuses(i, value.with(2, Number.NaN), "RangeError", new RegExp(`${argument}\\[2\\] must be a finite number`));
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

test("a view that begins between two numbers is refused, in every type", () => {
  const engine = loadEngine();
  const x = engine.alloc(1024);
  const fill = (offset: number) => engine.fill(engine.view(x, offset, 64), 0, 4);
  const expand = (type: "bf16" | "q8_0", offset: number) => engine.convert(engine.view(x, offset, 64), type, x, "f32", 32);
  for (const offset of [1, 2, 3, 61])
    assert.throws(() => fill(offset), /^RangeError: fill: y: block \d+ is a view .* multiple of 4/);
  for (const offset of [1, 3]) assert.throws(() => expand("bf16", offset), /convert: x: block \d+ is a view .* multiple of 2/);
  fill(4);
  expand("bf16", 2);
  expand("q8_0", 1);
  engine.free(x);
});

test("attention refuses segments that leave their arrays or share rows", () => {
  const engine = loadEngine();
  const x = engine.alloc(1 << 16);
  const forward = (...numbers: number[]) => engine.attention(x, x, x, x, x, Int32Array.from(numbers), shape, "f32");
  const backward = (...numbers: number[]) =>
    engine.attentionGrad(x, x, x, x, x, x, x, x, x, Int32Array.from(numbers), shape, "f32");
  for (const call of [forward, backward]) {
    assert.throws(() => call(0, 1, 0, 1), /segments must hold six numbers for each segment, got 4/);
    assert.throws(() => call(0, 7, 0, 7, 0, 0), /segment 0 .* does not lie inside 6 rows of q and 8 rows of k/);
    assert.throws(() => call(0, 1, 0, 1, 0, 0, 1, 1, 8, 1, 0, 0), /segment 1 .* does not lie inside/);
    assert.throws(() => call(-1, 1, 0, 1, 0, 0), /segment 0/);
    assert.throws(() => call(2 ** 31 - 1, 2 ** 31 - 1, 0, 1, 0, 0), /segment 0/);
    for (const [start, length] of [
      [-1, 1],
      [0, -1],
      [0, 9],
      [2 ** 31 - 1, 2 ** 31 - 1],
    ] as const)
      assert.throws(() => call(0, 1, 0, 1, start, length), /segment 0 .* prefixLength .* does not lie inside/);
    assert.throws(() => call(2, 2, 0, 2, 0, 0, 0, 3, 2, 3, 0, 0), /two segments share rows of q/);
  }
  assert.throws(() => backward(0, 2, 0, 4, 0, 0, 2, 2, 3, 4, 0, 0), /two segments share rows of k of their own/);
  backward(0, 2, 0, 4, 0, 0, 2, 2, 4, 4, 0, 4); // a prefix may be shared
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
