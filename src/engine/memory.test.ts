import assert from "node:assert/strict";
import test from "node:test";
import { EngineError } from "../errors.js";
import { loadEngine } from "./load.js";
import { randomSource } from "./testing/testing.js";

const MiB = 1 << 20;

test("blocks keep their contents through a storm of allocations", async () => {
  const engine = loadEngine();
  const next = randomSource(1);
  const before = engine.stats().liveBytes;
  const live: { id: number; bytes: number; mark: number }[] = [];
  let asked = 0;
  const check = async ({ id, bytes, mark }: (typeof live)[number]) => {
    const got = new Float32Array(bytes / 4);
    await engine.read(id, 0, got);
    assert.ok(
      got.every((value) => value === mark),
      `block ${id} of ${bytes} bytes was overwritten`,
    );
  };
  for (let round = 0; round < 2000; round++) {
    if (live.length > 0 && next() < 0.48) {
      const [block] = live.splice(Math.floor(next() * live.length), 1);
      if (round % 4 === 0) await check(block!);
      engine.free(block!.id);
      asked -= Math.ceil(block!.bytes / 64) * 64;
    } else {
      const bytes = 4 * (1 + Math.floor(next() < 0.1 ? next() * 700_000 : next() * 5000));
      const block = { id: engine.alloc(bytes), bytes, mark: round };
      engine.fill(block.id, round, bytes / 4);
      live.push(block);
      asked += Math.ceil(bytes / 64) * 64;
    }
    assert.equal(engine.stats().liveBytes - before, asked);
  }
  assert.equal(new Set(live.map(({ id }) => id)).size, live.length);
  for (const block of live) {
    await check(block);
    engine.free(block.id);
  }
  assert.equal(engine.stats().liveBytes, before);
});

test("neighbours that are freed become one block again", async () => {
  const engine = loadEngine();
  const ids = Array.from({ length: 32 }, () => engine.alloc(2 * MiB)); // fills a 64 MiB slab
  const { reservedBytes } = engine.stats();
  for (const i of [...ids.keys()].sort((a, b) => (a % 2) - (b % 2))) engine.free(ids[i]!); // every other one, then the rest
  const whole = engine.alloc(64 * MiB);
  await engine.sync();
  assert.ok(engine.stats().reservedBytes <= reservedBytes);
  engine.free(whole);
});

test("empty slabs go back to the system when larger ones are needed", async () => {
  const engine = loadEngine();
  for (let size = 70; size <= 490; size += 30) engine.free(engine.alloc(size * MiB));
  await engine.sync();
  assert.ok(engine.stats().reservedBytes < 800 * MiB, `${engine.stats().reservedBytes / MiB} MiB`);
});

test("the peak counts live blocks, not what is cached", () => {
  const engine = loadEngine();
  const start = engine.stats().liveBytes;
  engine.resetPeak();
  assert.equal(engine.stats().peakLiveBytes, start);
  const a = engine.alloc(100);
  const b = engine.alloc(1000);
  engine.free(a);
  const c = engine.alloc(64);
  assert.equal(engine.stats().liveBytes, start + 1024 + 64);
  assert.equal(engine.stats().peakLiveBytes, start + 128 + 1024);
  engine.free(b);
  engine.free(c);
  engine.resetPeak();
  assert.equal(engine.stats().peakLiveBytes, start);
});

test("a view keeps the memory alive, and may be freed first or last", async () => {
  const engine = loadEngine();
  const start = engine.stats().liveBytes;
  const block = engine.alloc(400);
  engine.fill(block, 1, 100);
  const view = engine.view(block, 40, 200);
  const nested = engine.view(view, 160, 40);
  engine.fill(nested, 2, 10);
  engine.free(view);
  engine.free(block);
  assert.equal(engine.stats().liveBytes, start + 448);
  const other = engine.alloc(400);
  engine.fill(other, 3, 100);
  const got = new Float32Array(10);
  await engine.read(nested, 0, got);
  assert.deepEqual([...got], new Array(10).fill(2));
  engine.free(nested);
  engine.free(other);
  assert.equal(engine.stats().liveBytes, start);
});

test("write and read take any view, at any offset", async () => {
  const engine = loadEngine();
  const block = engine.alloc(64);
  engine.write(block, 0, new Uint8Array(64));
  const source = Uint8Array.from({ length: 32 }, (_, i) => i);
  engine.write(block, 3, source.subarray(5, 9));
  engine.write(block, 20, new DataView(source.buffer, 30, 2));
  engine.write(block, 64, new Uint8Array(0));
  const bytes = new Uint8Array(64);
  await engine.read(block, 0, bytes);
  assert.deepEqual([...bytes.subarray(3, 7)], [5, 6, 7, 8]);
  assert.deepEqual([...bytes.subarray(19, 23)], [0, 30, 31, 0]);
  const doubles = new Float64Array(1);
  await engine.read(block, 56, doubles);
  assert.equal(doubles[0], 0);
  const shared = new Uint8Array(new SharedArrayBuffer(4));
  await engine.read(block, 3, shared);
  assert.deepEqual([...shared], [5, 6, 7, 8]);
  const part = new DataView(new ArrayBuffer(8), 4, 4);
  await engine.read(block, 3, part);
  assert.equal(part.getUint8(0), 5);
  engine.free(block);
});

test("a block that does not exist, or no longer, is refused by name", () => {
  const engine = loadEngine();
  const block = engine.alloc(64);
  engine.free(block);
  const again = engine.alloc(64); // takes the same place
  assert.notEqual(again, block);
  const gone = (name: string) => ({
    name: "RangeError",
    message: new RegExp(`${name}: there is no block ${block}, or it was freed`),
  });
  assert.throws(() => engine.free(block), gone("free: id"));
  assert.throws(() => engine.fill(block, 0, 1), gone("fill: y"));
  assert.throws(() => engine.add(again, block, again, 1), gone("add: b"));
  assert.throws(() => engine.view(block, 0, 1), gone("view: id"));
  assert.throws(() => engine.write(block, 0, new Uint8Array(1)), gone("write: id"));
  assert.throws(() => engine.read(block, 0, new Uint8Array(1)), gone("read: id"));
  for (const id of [0, -1, 1.5, Number.NaN, 2 ** 53, Number.POSITIVE_INFINITY]) {
    assert.throws(() => engine.free(id), RangeError, String(id));
  }
  assert.throws(() => engine.free("1" as unknown as number), {
    name: "TypeError",
    message: 'free: id must be a number, got "1"',
  });
  engine.free(again);
});

test("sizes and ranges are checked", () => {
  const engine = loadEngine();
  const block = engine.alloc(100);
  for (const bytes of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    assert.throws(() => engine.alloc(bytes), { name: "RangeError", message: /alloc: bytes must be a whole number of 0 or more/ });
    assert.throws(() => engine.view(block, bytes, 1), RangeError);
    assert.throws(() => engine.view(block, 0, bytes), RangeError);
    assert.throws(() => engine.write(block, bytes, new Uint8Array(1)), RangeError);
    assert.throws(() => engine.read(block, bytes, new Uint8Array(1)), RangeError);
  }
  assert.throws(() => engine.view(block, 90, 11), { message: "view: 11 bytes from offset 90 are beyond the block's 100" });
  assert.throws(() => engine.write(block, 100, new Uint8Array(1)), {
    message: "write: 1 bytes from offset 100 are beyond the block's 100",
  });
  assert.throws(() => engine.read(block, 1, new Uint8Array(100)), {
    message: "read: 100 bytes from offset 1 are beyond the block's 100",
  });
  assert.throws(() => engine.write(block, 0, [1] as unknown as Uint8Array), TypeError);
  assert.throws(() => engine.read(block, 0, undefined as unknown as Uint8Array), TypeError);
  assert.throws(
    () => engine.alloc(2 ** 50),
    (error: unknown) => error instanceof EngineError && /alloc: the system has no memory left/.test(error.message),
  );
  engine.free(engine.alloc(0));
  engine.free(block);
});

test("a read whose array is gone by then is refused, and harms nothing", async () => {
  const engine = loadEngine();
  const block = engine.alloc(4096);
  const target = new Uint8Array(4096);
  const read = engine.read(block, 0, target);
  structuredClone(target.buffer, { transfer: [target.buffer] });
  await assert.rejects(read, { name: "RangeError", message: /read: target was detached or resized/ });
  engine.free(block);
});
