import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { bytesOf, type DType } from "./dtype.js";
import { loadEngine } from "./load.js";
import { Blocks, randomFloats, testKernel } from "./testing/testing.js";

interface Fixture {
  readonly shape: [rows: number, cols: number];
  readonly values: string;
  readonly blocks: Readonly<Record<string, string>>;
}

/** Made by test/fixtures/make_quantized.py with ggml itself. */
const fixture = JSON.parse(readFileSync(new URL("../../../test/fixtures/quantized.json", import.meta.url), "utf8")) as Fixture;
const [rows, cols] = fixture.shape;
const values = new Float32Array(new Uint8Array(Buffer.from(fixture.values, "base64")).buffer);

for (const [name, blocks] of Object.entries(fixture.blocks)) {
  const type = name as DType;
  testKernel(`${type} gets the very bits that ggml gives`, {
    async run(engine, memory) {
      const bytes = new Uint8Array(bytesOf(type, values.length));
      const y = memory.empty(bytes.length);
      engine.quantize(memory.of(values), "f32", y, type, rows, cols);
      await engine.read(y, 0, bytes);
      return [Float32Array.from(bytes)];
    },
    expected: () => [Uint8Array.from(Buffer.from(blocks, "base64"))],
    tolerance: 0,
  });

  test(`${type}: the error is that of its number of bits, over more than one task's work`, async () => {
    const engine = loadEngine();
    const memory = new Blocks(engine);
    const x = randomFloats(256 * 100, 3);
    const y = memory.empty(bytesOf(type, x.length));
    const back = memory.empty(x.length * 4);
    engine.quantize(memory.of(x), "f32", y, type, 100, 256);
    engine.convert(y, type, back, "f32", x.length);
    const got = await memory.read(back, x.length);
    memory.freeAll();
    const error = Math.hypot(...got.map((value, i) => value - x[i]!)) / Math.hypot(...x);
    const most = { q8_0: 0.006, q6_k: 0.021, q5_0: 0.05, q4_k: 0.08, q4_1: 0.09, q4_0: 0.1 }[name]!;
    assert.ok(error < most && error > most / 4, `${type} is off by ${error}, expected at most ${most}`);
  });
}

test("numbers that are not finite give some block, and no crash", async () => {
  const engine = loadEngine();
  const memory = new Blocks(engine);
  const x = Float32Array.from({ length: 1024 }, (_, i) => [Number.NaN, Number.POSITIVE_INFINITY, -3e38, 3e38, 0.5][i % 5]!);
  for (const name of Object.keys(fixture.blocks)) {
    const type = name as DType;
    engine.quantize(memory.of(x), "f32", memory.empty(bytesOf(type, x.length)), type, 4, 256);
  }
  await engine.sync();
  memory.freeAll();
});

test("types that nothing is quantized to are refused", () => {
  const engine = loadEngine();
  const memory = new Blocks(engine);
  const x = memory.of(new Float32Array(256));
  for (const type of ["q5_1", "q5_k", "f16"] as const)
    assert.throws(() => engine.quantize(x, "f32", memory.empty(1024), type, 1, 256), { name: "RangeError" });
  memory.freeAll();
});
