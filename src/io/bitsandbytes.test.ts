import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { loadEngine } from "../engine/load.js";
import { Blocks } from "../engine/testing/testing.js";
import { type FourBitWeight, gatherFourBitWeights, isFourBit } from "./bitsandbytes.js";
import { openSafetensors } from "./safetensors.js";
import { temporaryFolder } from "./testing/folders.js";

/** Made by test/fixtures/make_bnb.py. */
type FourBitCase = Record<"q" | "absmax" | "codes" | "scales" | "sha256" | "sha256_f32", string> & { offset: number };
const fixture: { dynamic_map: string; nf4: FourBitCase; fp4: FourBitCase } = JSON.parse(
  readFileSync(new URL("../../../test/fixtures/bnb.json", import.meta.url), "utf8"),
);

type Part = [name: string, dtype: string, shape: number[], bytes: Uint8Array];

const bytesIn = (base64: string) => new Uint8Array(Buffer.from(base64, "base64"));
const floatBytes = (values: readonly number[]) => new Uint8Array(Float32Array.from(values).buffer);
const shape = [2, 130 * 64];
const maps = {
  nf4: [
    ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334],
    ...[-0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
    ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
  ],
  fp4: [0, 0.0625, 8, 12, 4, 6, 2, 3, -0, -0.0625, -8, -12, -4, -6, -2, -3].map((value) => Math.fround(value / 12)),
};

/** What transformers writes for a weight `w` with the fixture's contents; `state` is added to the JSON. */
function partsOf(kind: "nf4" | "fp4", isDouble: boolean, state: object = {}): Part[] {
  const { q, absmax, codes, scales, offset } = fixture[kind];
  const nested = isDouble ? { nested_blocksize: 256, nested_dtype: "float32", nested_offset: offset } : {};
  const json = Buffer.from(JSON.stringify({ quant_type: kind, blocksize: 64, dtype: "bfloat16", shape, ...nested, ...state }));
  return [
    ["w", "U8", [8320, 1], bytesIn(q)],
    isDouble ? ["w.absmax", "U8", [260], bytesIn(codes)] : ["w.absmax", "F32", [260], bytesIn(absmax)],
    ["w.quant_map", "F32", [16], floatBytes(maps[kind])],
    [`w.quant_state.bitsandbytes__${kind}`, "U8", [json.length], json],
    ...(isDouble
      ? ([
          ["w.nested_absmax", "F32", [2], bytesIn(scales)],
          ["w.nested_quant_map", "F32", [256], bytesIn(fixture.dynamic_map)],
        ] satisfies Part[])
      : []),
    ["norm", "F32", [2], floatBytes([1, 2])],
  ];
}

async function gather(t: TestContext, parts: readonly Part[]) {
  let end = 0;
  const header = Object.fromEntries(
    parts.map(([name, dtype, shape, bytes]) => {
      const begin = end;
      end += bytes.length;
      return [name, { dtype, shape, data_offsets: [begin, end] }];
    }),
  );
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const path = join(temporaryFolder(t), "model.safetensors");
  writeFileSync(path, Buffer.concat([length, json, ...parts.map(([, , , bytes]) => bytes)]));
  return await gatherFourBitWeights((await openSafetensors(path)).tensors);
}

async function hashOfNumbers({ entry, read }: FourBitWeight): Promise<string> {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const count = entry.shape[0]! * entry.shape[1]!;
  const wide = blocks.empty(count * 4);
  engine.convert(blocks.of(await read()), entry.dtype, wide, "f32", count);
  const values = await blocks.read(wide, count);
  blocks.freeAll();
  return createHash("sha256").update(new Uint8Array(values.buffer)).digest("hex");
}

for (const kind of ["nf4", "fp4"] as const)
  for (const isDouble of [true, false])
    test(`${kind}${isDouble ? " with double quantization" : ""}: parts become one weight with bitsandbytes' numbers`, async (t) => {
      const { weights, others } = await gather(t, partsOf(kind, isDouble));
      assert.deepEqual([...weights.keys()], ["w"]);
      assert.deepEqual([...others.keys()], ["norm"]);
      const weight = weights.get("w")!;
      assert.deepEqual(
        [weight.entry.name, weight.entry.dtype, weight.entry.shape],
        ["w", isDouble ? kind : `${kind}_f32`, shape],
      );
      assert.equal(await hashOfNumbers(weight), isDouble ? fixture[kind].sha256 : fixture[kind].sha256_f32);
    });

test("another dynamic map is worked into absmax", async (t) => {
  const parts = partsOf("nf4", true);
  const map = new Float32Array(bytesIn(fixture.dynamic_map).buffer);
  const codes = bytesIn(fixture.nf4.codes);
  const unused = map.findIndex((_, code) => !codes.includes(code));
  map[unused] = -1;
  parts.find(([name]) => name === "w.nested_quant_map")![3] = new Uint8Array(map.buffer);
  const weight = (await gather(t, parts)).weights.get("w")!;
  assert.equal(weight.entry.dtype, "nf4_f32");
  assert.equal(await hashOfNumbers(weight), fixture.nf4.sha256, "no block uses what was changed");
});

test("damaged weights are refused, by name", async (t) => {
  const without = (name: string) => partsOf("nf4", true).filter(([part]) => part !== name);
  const refused = (parts: readonly Part[], message: RegExp) =>
    assert.rejects(gather(t, parts), (error: Error) => error.name === "ModelError" && message.test(error.message));
  await refused(without("w"), /4-bit weight "w": has no w\./);
  await refused(without("w.absmax"), /has no w\.absmax/);
  await refused(without("w.nested_quant_map"), /has no w\.nested_quant_map/);
  await refused(without("w.nested_absmax"), /w\.absmax has 260 bytes of U8, expected 1040 of F32/);
  await refused(partsOf("nf4", true, { shape: [2, 96] }), /rows of 96 are no whole blocks of 64/);
  await refused(partsOf("nf4", true, { shape: [3, 130 * 64] }), /w has 8320 bytes of U8, expected 12480/);
  await refused(partsOf("nf4", true, { shape: [2] }), /quant_state.*shape/s);
  await refused(partsOf("nf4", true, { blocksize: 128 }), /quant_state.*blocksize/s);
  await refused(partsOf("nf4", true, { nested_offset: undefined }), /has no nested_offset/);
  await refused(partsOf("nf4", true, { quant_type: "fp4" }), /quant_map is not bitsandbytes' own of fp4/);
  const broken = partsOf("nf4", true);
  broken.find(([name]) => name.includes("quant_state"))![3].fill(0x7b);
  await refused(broken, /quant_state.*not valid JSON/s);
});

test("only 4-bit weights of bitsandbytes are taken for such", () => {
  assert.ok(isFourBit({ quant_method: "bitsandbytes", load_in_4bit: true, bnb_4bit_quant_type: "nf4" }));
  for (const other of [null, {}, { quant_method: "gptq" }, { quant_method: "bitsandbytes", load_in_8bit: true }])
    assert.ok(!isFourBit(other));
});
