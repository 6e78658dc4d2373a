import assert from "node:assert/strict";
import test from "node:test";
import { loadEngine } from "../engine/load.js";
import { randomSource } from "../engine/testing/testing.js";
import { BlockMemory, type Chunk } from "./block-memory.js";

test("the engine takes from the system what the model of its allocator says, after each of many calls", async () => {
  const engine = loadEngine();
  const memory = new BlockMemory();
  assert.equal(engine.stats().reservedBytes, 0, "the engine of this process was not used before");
  const next = randomSource(1);
  const live: { id: number; chunk: Chunk; bytes: number }[] = [];
  const most = [2_000, 200_000, 3_000_000, 80_000_000];
  const sizes = Array.from({ length: 40 }, (_, i) => 4 * Math.ceil((next() * most[i % most.length]!) / 4)); // few, so that equal ones meet
  let [reserved, blocks] = [0, 0];
  for (let call = 0; call < 4000; call++) {
    const chosen = live[Math.floor(next() * live.length)];
    if (chosen !== undefined && (next() < 0.48 || memory.live > 1e9)) {
      live.splice(live.indexOf(chosen), 1);
      engine.free(chosen.id);
      memory.giveBack(chosen.chunk);
    } else if (chosen !== undefined && next() < 0.2) {
      chosen.chunk.holders++;
      live.push({ ...chosen, id: engine.view(chosen.id, 0, chosen.bytes) });
    } else {
      const bytes = sizes[Math.floor(next() * sizes.length)]!;
      live.push({ bytes, id: engine.alloc(bytes), chunk: memory.take(bytes) });
      blocks++;
    }
    if (call % 50 === 0) await engine.sync(); // what is given back goes in the order of the stream
    const stats = engine.stats();
    assert.equal(stats.liveBytes, memory.live);
    if (call % 50 === 0) assert.equal(stats.reservedBytes, memory.reserved, `after ${call} calls`);
    reserved = Math.max(reserved, memory.reserved);
  }
  assert.ok(blocks > 1000 && reserved > 5e8, "slabs of both kinds came and went");
  assert.equal(engine.stats().peakLiveBytes, memory.peak);
  assert.ok(memory.residentPeak <= reserved);
  for (const { id } of live) engine.free(id);
});

test("pages count once they are touched, and no longer when their slab has gone back", () => {
  const memory = new BlockMemory();
  const page = 2 * 2 ** 20;
  const first = memory.take(page);
  assert.deepEqual([memory.reserved, memory.resident], [32 * page, page]);
  memory.giveBack(first);
  assert.equal(memory.resident, page, "the engine keeps what is free");
  memory.giveBack(memory.take(page + 64));
  assert.equal(memory.resident, 2 * page);
  const large = memory.take(40 * page);
  assert.deepEqual([memory.reserved, memory.resident, memory.residentPeak], [40 * page, 40 * page, 40 * page]);
  memory.giveBack(large);
});
