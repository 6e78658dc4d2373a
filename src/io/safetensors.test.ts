import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { ModelError } from "../errors.js";
import {
  indexFileName,
  openSafetensors,
  openShardedSafetensors,
  readEntry,
  readHeader,
  readPieces,
  type TensorSource,
  toTensorEntry,
  writeSafetensors,
  writeShardedSafetensors,
} from "./safetensors.js";
import { mutate, repetitions, seededIntegers, temporaryFolder } from "./testing/folders.js";

const bytesOfFloats = (...values: number[]) => new Uint8Array(new Float32Array(values).buffer);

function floats(name: string, shape: number[], values: number[]): TensorSource {
  return { name, dtype: "f32", shape, data: () => bytesOfFloats(...values) };
}

/** A file with this header (an object, JSON text or bytes) before the data. */
function fileWith(header: unknown, data = 0, declared?: bigint): Buffer {
  const json = Buffer.isBuffer(header) ? header : Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(declared ?? BigInt(json.length));
  return Buffer.concat([length, json, Buffer.alloc(data)]);
}

async function refusal(t: TestContext, bytes: Uint8Array): Promise<string> {
  const path = join(temporaryFolder(t), "x.safetensors");
  writeFileSync(path, bytes);
  let message = "";
  await assert.rejects(openSafetensors(path), (error) => {
    assert(error instanceof ModelError, String(error));
    assert(error.message.includes(path), "the message names the file");
    message = error.message;
    return true;
  });
  return message;
}

test("what is written is read back: names, types, shapes, bytes, metadata", async (t) => {
  const path = join(temporaryFolder(t), "model.safetensors");
  const half = new Uint8Array([1, 2, 3, 4, 5, 6]);
  await writeSafetensors(
    path,
    [
      { name: "b.half", dtype: "bf16", shape: [3], data: async () => half },
      floats("a.weight", [2, 2], [1, 2, 3, 4]),
      floats("__proto__", [], [7]),
      floats("empty", [0, 5], []),
    ],
    { metadata: { format: "pt" } },
  );
  const file = await openSafetensors(path);
  assert.deepEqual([...file.metadata], [["format", "pt"]]);
  assert.deepEqual([...file.tensors.keys()].sort(), ["__proto__", "a.weight", "b.half", "empty"]);
  const weight = toTensorEntry(file.tensors.get("a.weight")!);
  assert.deepEqual({ dtype: weight.dtype, shape: weight.shape, bytes: weight.bytes }, { dtype: "f32", shape: [2, 2], bytes: 16 });
  assert.equal(Math.min(...[...file.tensors.values()].map(({ offset }) => offset)) % 8, 0, "data begins aligned");
  assert.deepEqual(await readEntry(weight), bytesOfFloats(1, 2, 3, 4));
  assert.deepEqual(await readEntry(file.tensors.get("b.half")!), half);
  assert.deepEqual(await readEntry(file.tensors.get("__proto__")!), bytesOfFloats(7));
});

test("the writer holds one tensor at a time and refuses wrong entries without touching the old file", async (t) => {
  const folder = temporaryFolder(t);
  const path = join(folder, "model.safetensors");
  const order: string[] = [];
  const source = (name: string): TensorSource => ({
    ...floats(name, [1], [1]),
    data: async () => {
      order.push(name);
      return bytesOfFloats(1);
    },
  });
  await writeSafetensors(path, [source("b"), source("a")]);
  assert.deepEqual(order, ["a", "b"]);
  const before = readFileSync(path);

  await assert.rejects(writeSafetensors(path, [floats("a", [2], [1])]), /"a" should have 8 bytes, got 4/);
  await assert.rejects(writeSafetensors(path, [source("a"), source("a")]), /two tensors named "a"/);
  await assert.rejects(writeSafetensors(path, [floats("a", [-1], [1])]), /impossible shape/);
  await assert.rejects(writeSafetensors(path, [floats("a", [2 ** 40, 2 ** 40], [1])]), /impossible shape/);
  assert.deepEqual(readFileSync(path), before);
  assert.deepEqual(readdirSync(folder), ["model.safetensors"], "nothing is left over");
});

test("a tensor goes to a file and comes back in pieces that share a buffer", async (t) => {
  const path = join(temporaryFolder(t), "model.safetensors");
  const inPieces = (third: number): TensorSource => ({
    ...floats("a", [5], []),
    async *data() {
      const buffer = new Float32Array(2);
      for (const piece of [[1, 2], [third, 4], [5]]) {
        buffer.set(piece);
        yield new Uint8Array(buffer.buffer, 0, 4 * piece.length);
      }
    },
  });
  await writeSafetensors(path, [inPieces(3), floats("b", [1], [6])]);
  const entry = toTensorEntry((await openSafetensors(path)).tensors.get("a")!);
  assert.deepEqual(await readEntry(entry), bytesOfFloats(1, 2, 3, 4, 5));
  const read: number[][] = [];
  for await (const piece of readPieces(entry, new Uint8Array(8))) read.push([...new Float32Array(piece.slice().buffer)]);
  assert.deepEqual(read, [[1, 2], [3, 4], [5]]);

  await assert.rejects(writeSafetensors(path, [inPieces(Number.NaN)]), /number 2 of tensor "a" is not finite/);
  await assert.rejects(writeSafetensors(path, [{ ...inPieces(3), shape: [4] }]), /"a" should have 16 bytes, got 20/);
  assert.deepEqual(await readEntry(entry), bytesOfFloats(1, 2, 3, 4, 5), "the old file stays");
});

test("shards and their index are written and read", async (t) => {
  const folder = temporaryFolder(t);
  const tensors = [floats("a", [2], [1, 2]), floats("b", [2], [3, 4]), floats("c", [4], [5, 6, 7, 8])];
  const names = await writeShardedSafetensors(folder, tensors, { maxShardBytes: 16 });
  assert.deepEqual(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", indexFileName]);
  const read = await openShardedSafetensors(join(folder, indexFileName));
  assert.deepEqual([...read.keys()], ["a", "b", "c"]);
  assert.deepEqual(await readEntry(read.get("c")!), bytesOfFloats(5, 6, 7, 8));

  const single = temporaryFolder(t);
  assert.deepEqual(await writeShardedSafetensors(single, tensors, { maxShardBytes: 1e9 }), ["model.safetensors"]);
});

test("an index must name plain files and agree with its shards", async (t) => {
  const folder = temporaryFolder(t);
  await writeSafetensors(join(folder, "s.safetensors"), [floats("a", [1], [1]), floats("b", [1], [2])]);
  const indexPath = join(folder, indexFileName);
  const open = async (index: unknown) => {
    writeFileSync(indexPath, typeof index === "string" ? index : JSON.stringify(index));
    return await openShardedSafetensors(indexPath);
  };
  await open({ weight_map: { a: "s.safetensors", b: "s.safetensors" } });
  for (const name of [
    "../s.safetensors",
    "/s.safetensors",
    "x/s.safetensors",
    "..\\s.safetensors",
    ".safetensors",
    "s.bin",
    "",
    "a\0.safetensors",
    1,
    null,
  ]) {
    await assert.rejects(open({ weight_map: { a: name, b: "s.safetensors" } }), /plain file name/, String(name));
  }
  await assert.rejects(open({ weight_map: { a: "s.safetensors", c: "s.safetensors" } }), /"c" is not in s\.safetensors/);
  await assert.rejects(open({ weight_map: { a: "s.safetensors" } }), /"b" is not in/);
  await assert.rejects(open({ weight_map: { a: "gone.safetensors", b: "s.safetensors" } }), /gone\.safetensors: no such file/);
  await assert.rejects(open({}), /no weight_map/);
  await assert.rejects(open('{"weight_map":{"a":"s.safetensors","a":"s.safetensors"}}'), /duplicate key/);
  await assert.rejects(open("{"), ModelError);
});

test("hostile headers are refused for their own reason", async (t) => {
  const tensor = (over: object) => ({ a: { dtype: "F32", shape: [1], data_offsets: [0, 4], ...over } });
  const text = (info: string) => `{"a":${info}}`;
  const cases: [Uint8Array, RegExp][] = [
    [Buffer.alloc(0), /fewer than 8/],
    [Buffer.alloc(7), /fewer than 8/],
    [fileWith("", 0, 0n), /begin with/],
    [fileWith("{}", 0, 2n ** 63n), /more than the limit/],
    [fileWith("{}", 0, 2n ** 64n - 1n), /more than the limit/],
    [fileWith("{}", 0, 100_000_001n), /more than the limit/],
    [fileWith("{}", 0, 3n), /the file has 2 after/],
    [fileWith("{}", 1), /end at byte 10, the file at 11/],
    [fileWith("[]"), /begin with/],
    [fileWith(" {}"), /begin with/],
    [fileWith("{}\0"), /strict JSON/],
    [fileWith(Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])), /not UTF-8/],
    [fileWith(`{"a":${"[".repeat(100_000)}`), /nested too deeply/],
    [fileWith('{"a":1,"a":1}'), /duplicate key "a"/],
    [fileWith('{"__proto__":{},"__proto__":{}}'), /duplicate key "__proto__"/],
    [fileWith('{"__proto__":{"x":1}}'), /"__proto__": unknown type/],
    [fileWith({ __metadata__: { a: 1 } }), /not an object of strings/],
    [fileWith({ __metadata__: [] }), /not an object of strings/],
    [fileWith({ a: null }), /"a": not an object/],
    [fileWith(tensor({ dtype: "F31" }), 4), /unknown type F31/],
    [fileWith(tensor({ dtype: "toString" }), 4), /unknown type/],
    [fileWith(tensor({ dtype: ["F32"] }), 4), /unknown type/],
    [fileWith(tensor({ shape: 1 }), 4), /shape is not/],
    [fileWith(tensor({ shape: [-1] }), 4), /shape is not/],
    [fileWith(text('{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}'), 4), /shape is not/],
    [fileWith(text('{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}'), 4), /shape is not/],
    [fileWith(text('{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}'), 4), /shape is not/],
    [fileWith(text('{"dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,4]}'), 4), /overflows/],
    [fileWith(text('{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}'), 4), /size overflows/],
    [fileWith(tensor({ dtype: "F4" }), 4), /whole byte/],
    [fileWith(tensor({ data_offsets: [0] }), 4), /not a pair/],
    [fileWith(tensor({ data_offsets: [0, 4, 8] }), 4), /not a pair/],
    [fileWith(tensor({ data_offsets: [-4, 0] }), 4), /not a pair/],
    [fileWith(tensor({ data_offsets: [4, 0] }), 4), /do not lie/],
    [fileWith(tensor({ data_offsets: [4, 8] }), 4), /do not lie/],
    [fileWith(text('{"dtype":"F32","shape":[1],"data_offsets":[9007199254740992,9007199254740996]}'), 4), /do not lie/],
    [fileWith(tensor({ data_offsets: [0, 2] }), 4), /needs 4 bytes, data_offsets give 2/],
    [fileWith(tensor({ data_offsets: [4, 8] }), 8), /leaves a hole/],
    [fileWith({ ...tensor({}), b: { dtype: "F32", shape: [1], data_offsets: [2, 6] } }, 6), /"b".*overlaps/],
    [fileWith({ ...tensor({}), b: { dtype: "F32", shape: [1], data_offsets: [0, 4] } }, 4), /overlaps/],
    [fileWith(tensor({}), 5), /the file at/],
    [Buffer.from("504b03040000000000000000", "hex"), /pickle/],
    [Buffer.from("800595000000000000000000", "hex"), /pickle/],
  ];
  for (const [bytes, reason] of cases) assert.match(await refusal(t, bytes), reason);
});

test("odd headers that the reference library takes are taken", async (t) => {
  const path = join(temporaryFolder(t), "x.safetensors");
  const good: [string, number, number][] = [
    ["{}", 0, 0],
    ["{}   \n", 0, 0],
    ['{"__metadata__":null}', 0, 0],
    ['{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"extra":[{}]}}', 4, 1],
    ['{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}', 0, 1],
    ['{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]},"b":{"dtype":"I64","shape":[1],"data_offsets":[4,12]}}', 12, 2],
  ];
  for (const [header, data, count] of good) {
    writeFileSync(path, fileWith(header, data));
    assert.equal((await openSafetensors(path)).tensors.size, count, header);
  }
  const stored = (await openSafetensors(path)).tensors.get("b")!;
  assert.throws(() => toTensorEntry(stored), /"b" has type I64; attune reads F32, F16, BF16/);
  assert.equal((await readEntry(stored)).length, 8, "its bytes can be read all the same");
});

test("a file that shrinks after it was opened, and one that is missing", async (t) => {
  const path = join(temporaryFolder(t), "x.safetensors");
  await writeSafetensors(path, [floats("a", [2], [1, 2])]);
  const entry = (await openSafetensors(path)).tensors.get("a")!;
  truncateSync(path, statSync(path).size - 1);
  await assert.rejects(readEntry(entry), /became shorter/);
  const readAll = async () => {
    for await (const _ of readPieces(toTensorEntry(entry), new Uint8Array(4)));
  };
  await assert.rejects(readAll(), /became shorter/);
  await assert.rejects(openSafetensors(`${path}.gone`), /no such file/);
  await assert.rejects(openSafetensors(temporaryFolder(t)), ModelError);
});

test("a large header is read in a moment", async (t) => {
  const path = join(temporaryFolder(t), "x.safetensors");
  const header: Record<string, unknown> = {};
  for (let i = 0; i < 50_000; i++)
    header[`model.layers.${i}.weight`] = { dtype: "F32", shape: [1], data_offsets: [i * 4, i * 4 + 4] };
  writeFileSync(path, fileWith(header, 200_000));
  const start = performance.now();
  assert.equal((await openSafetensors(path)).tensors.size, 50_000);
  assert(performance.now() - start < 3000);
});

test("damaged files are refused or consistent, never a crash", async (t) => {
  const path = join(temporaryFolder(t), "x.safetensors");
  await writeSafetensors(path, [floats("a", [2, 2], [1, 2, 3, 4]), floats("b", [1], [5])], { metadata: { k: "v" } });
  const original = readFileSync(path);
  const random = seededIntegers(1);
  let refused = 0;
  const count = repetitions(50_000, 5_000_000);
  for (let i = 0; i < count; i++) {
    const bytes = mutate(original, random);
    const read = async (target: Uint8Array, position: number) => {
      assert(target.length <= Math.max(8, bytes.length), "memory is bounded by the file");
      const part = bytes.subarray(position, position + target.length);
      target.set(part);
      return part.length;
    };
    try {
      const { tensors } = await readHeader(path, { size: bytes.length, read });
      for (const { offset, bytes: length } of tensors.values()) assert(offset + length <= bytes.length);
    } catch (error) {
      assert(error instanceof ModelError, `case ${i}: ${String(error)}`);
      refused++;
    }
  }
  assert(refused > count / 2);
});
