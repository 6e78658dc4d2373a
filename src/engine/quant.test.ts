import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { bytesOf, type DType, dtypes } from "./dtype.js";
import { loadEngine } from "./load.js";
import { randomWeights, storedElement } from "./testing/quant-reference.js";
import { Blocks, testKernel } from "./testing/testing.js";

const types = Object.keys(dtypes) as DType[];

for (const type of types) {
  const count = dtypes[type].block * 300; // more than a super-block
  const { bytes, values } = randomWeights(type, count, 5);
  testKernel(`${type} expands as its format says`, {
    async run(engine, blocks) {
      const y = blocks.empty(count * 4);
      engine.convert(blocks.of(bytes), type, y, "f32", count);
      return [await blocks.read(y, count)];
    },
    expected: () => [Float32Array.from(values)],
    tolerance: 0,
  });
}

test("GGUF's types expand as in gguf-py", async () => {
  // Made by test/fixtures/make_quant.py
  const fixture: Record<string, { blocks: string; values: string }> = JSON.parse(
    readFileSync(new URL("../../../test/fixtures/quant.json", import.meta.url), "utf8"),
  );
  const engine = loadEngine();
  assert.deepEqual(Object.keys(fixture).sort(), types.filter((type) => type !== "f32" && !/^(nf|fp)4/.test(type)).sort());
  for (const [name, { blocks, values }] of Object.entries(fixture)) {
    const type = name as DType;
    const stored = Buffer.from(blocks, "base64");
    const wanted = new Float32Array(new Uint8Array(Buffer.from(values, "base64")).buffer);
    assert.equal(bytesOf(type, wanted.length), stored.length);

    const memory = new Blocks(engine);
    const y = memory.empty(wanted.length * 4);
    engine.convert(memory.of(stored), type, y, "f32", wanted.length);
    const got = await memory.read(y, wanted.length);
    memory.freeAll();

    const view = new DataView(stored.buffer, stored.byteOffset, stored.byteLength);
    for (const [i, value] of wanted.entries()) {
      assert.ok(got[i] === value, `${type}: element ${i} is ${got[i]}, gguf-py says ${value}`);
      assert.ok(Math.fround(storedElement(type, view, i)) === value, `${type}: the tests' own reference is wrong at ${i}`);
    }
  }
});
