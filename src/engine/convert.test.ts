import assert from "node:assert/strict";
import test from "node:test";
import type { DType } from "./dtype.js";
import { loadEngine } from "./load.js";
import { Blocks, randomFloats, testKernel } from "./testing/testing.js";

/** Rounds to nearest, ties to even, at `digits` significant bits, with f16's subnormals and overflow if asked. */
function round(value: number, digits: number, half: boolean): number {
  if (value === 0 || !Number.isFinite(value)) return value;
  let exponent = Math.floor(Math.log2(Math.abs(value)));
  if (half) exponent = Math.max(exponent, -14);
  const unit = 2 ** (exponent - digits + 1);
  const scaled = value / unit;
  const below = Math.floor(scaled);
  const rest = scaled - below;
  const rounded = (rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below) * unit;
  return half && Math.abs(rounded) > 65504 ? Math.sign(rounded) * Number.POSITIVE_INFINITY : rounded;
}

const special = [0, 1, -1, 65504, 65519.99, 65520, 1e6, -1e6, 6e-8, 2.9e-8, 3e-8, 6.1e-5, 1.00048828125, 1.00146484375, 0.1];
for (const count of [1, 7, 255, 257, 16385]) {
  const x = randomFloats(count, count, 10);
  x.set(special.slice(0, count));

  for (const [type, digits] of [
    ["f16", 11],
    ["bf16", 8],
  ] as const) {
    testKernel(`convert ${count} from f32 to ${type} and back`, {
      async run(engine, blocks) {
        const wide = blocks.of(x);
        const narrow = blocks.empty(count * 2);
        const back = blocks.empty(count * 4);
        engine.convert(wide, "f32", narrow, type, count);
        engine.convert(narrow, type, back, "f32", count);
        return [(await blocks.read(back, count)).map((value) => Math.max(-1e9, Math.min(1e9, value)))];
      },
      expected: () => [Array.from(x, (value) => Math.max(-1e9, Math.min(1e9, round(value, digits, type === "f16"))))],
      tolerance: 0,
    });
  }
}

test("convert keeps NaN, infinities and the sign of zero", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const values = Float32Array.of(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0, 0, -1e-30);
  for (const type of ["f16", "bf16", "f32"] as const) {
    const narrow = blocks.empty(values.length * 4);
    const back = blocks.empty(values.length * 4);
    engine.convert(blocks.of(values), "f32", narrow, type, values.length);
    engine.convert(narrow, type, back, "f32", values.length);
    const got = await blocks.read(back, values.length);
    assert.deepEqual([...got].slice(0, 5), [...values].slice(0, 5), type);
    assert.ok(got[5]! <= 0 && (type === "f16" ? Object.is(got[5], -0) : got[5] !== 0), type);
  }
  blocks.freeAll();
});

test("convert expands a Q8_0 block", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const block = new Uint8Array(34);
  new DataView(block.buffer).setUint16(0, 0x3800, true); // 0.5 as f16
  for (let i = 0; i < 32; i++) block[2 + i] = i - 16;
  const y = blocks.empty(32 * 4);
  engine.convert(blocks.of(block), "q8_0", y, "f32", 32);
  assert.deepEqual(
    [...(await blocks.read(y, 32))],
    Array.from({ length: 32 }, (_, i) => (i - 16) / 2),
  );
  blocks.freeAll();
});

test("convert refuses what it cannot do", () => {
  const engine = loadEngine();
  const x = engine.alloc(4096);
  const y = engine.alloc(4096);
  assert.throws(() => engine.convert(x, "f32", y, "q8_0", 32), /convert: cannot convert f32 to q8_0/);
  assert.throws(() => engine.convert(x, "q8_0", y, "f16", 32), /convert: cannot convert q8_0 to f16/);
  assert.throws(() => engine.convert(x, "q8_0", y, "f32", 33), /no whole number of q8_0 blocks of 32/);
  assert.throws(() => engine.convert(x, "q9_9" as DType, y, "f32", 32), /xType is "q9_9", expected one of f32, f16/);
  assert.throws(() => engine.convert(x, "f32", x, "f16", 32), /x and y must be two blocks/);
  engine.free(x);
  engine.free(y);
});
