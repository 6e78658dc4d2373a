import assert from "node:assert/strict";
import test from "node:test";
import type { Device } from "../core/device.js";
import { Rng } from "../core/rng.js";
import { scope, Tensor } from "../core/tensor.js";
import { loadEngine } from "../engine/load.js";
import { EngineError } from "../errors.js";
import { KVCache } from "./kv-cache.js";

const kernels = loadEngine();
const device: Device = { kernels, compute: "f32" };
const shape = { layers: 2, slots: 5, width: 3 };

/** What a cache should hold: for each slot the numbers of its virtual tokens and tokens. */
class Expected {
  readonly slots = Array.from({ length: shape.slots }, () => ({ virtual: [] as number[], tokens: [] as number[] }));
  #next = 0;

  numbers(count: number): number[] {
    return Array.from({ length: count }, () => ++this.#next);
  }
}

function storeAt(cache: KVCache, first: number, numbers: readonly number[]): void {
  const rows = Int32Array.from(numbers, (_, i) => first + i);
  scope(() => {
    for (let layer = 0; layer < shape.layers; layer++) {
      const of = (sign: number) =>
        Tensor.from(
          device,
          numbers.flatMap((number) => Array(shape.width).fill(sign * (number + layer / 2))),
          [numbers.length, shape.width],
        );
      cache.store(layer, of(1), of(-1), rows);
    }
  });
}

async function assertHolds(cache: KVCache, expected: Expected): Promise<void> {
  const spans: [number, number][] = [];
  for (const [slot, { virtual, tokens }] of expected.slots.entries()) {
    assert.equal(cache.lengthOf(slot), tokens.length);
    if (tokens.length === 0) continue;
    const numbers = [...virtual, ...tokens];
    const start = cache.startOf(slot);
    spans.push([start, start + numbers.length]);
    for (let layer = 0; layer < shape.layers; layer++)
      for (const [i, tensor] of cache.layer(layer).entries()) {
        const values = (await tensor.read()).subarray(start * shape.width, (start + numbers.length) * shape.width);
        const wanted = numbers.flatMap((number) => Array(shape.width).fill((i === 0 ? 1 : -1) * (number + layer / 2)));
        assert.deepEqual([...values], wanted, `slot ${slot}, layer ${layer}`);
      }
  }
  spans.sort(([a], [b]) => a - b);
  for (const [i, [start]] of spans.entries()) assert.ok(i === 0 || start >= spans[i - 1]![1], "no two slots share rows");
}

/** Does one thing at random to a cache and to what it should hold. */
function doSomething(cache: KVCache, expected: Expected, rng: Rng): void {
  const index = rng.below(shape.slots);
  const slot = expected.slots[index]!;
  const store = (count: number) => {
    const tokens = expected.numbers(count);
    const first = cache.extend(index, count);
    if (slot.tokens.length === 0) storeAt(cache, cache.startOf(index), slot.virtual);
    storeAt(cache, first, tokens);
    slot.tokens.push(...tokens);
  };
  switch (rng.below(6)) {
    case 0:
      slot.virtual = expected.numbers(rng.below(4));
      slot.tokens = [];
      cache.begin(index, slot.virtual.length);
      break;
    case 1: {
      const length = rng.below(slot.tokens.length + 1);
      cache.truncate(index, length);
      slot.tokens.length = length;
      break;
    }
    case 2: {
      const to = (index + 1 + rng.below(shape.slots - 1)) % shape.slots;
      const length = rng.below(slot.tokens.length + 1);
      cache.fork(index, to, length);
      expected.slots[to] = { virtual: [...slot.virtual], tokens: slot.tokens.slice(0, length) };
      break;
    }
    case 3:
      if (rng.below(3) > 0) break;
      cache.clear(index);
      slot.tokens = [];
      break;
    case 4: {
      const all = expected.slots.map(({ tokens }, i) => [i, tokens.length + rng.below(30)] as const);
      cache.reserve(new Map(all.filter(() => rng.below(2) > 0)));
      break;
    }
    default:
      store(1 + rng.below(rng.below(3) > 0 ? 3 : 40));
  }
}

test("slots hold what was stored, whatever else is stored, moved, cut, copied and cleared", async () => {
  for (let seed = 0; seed < 40; seed++) {
    const rng = new Rng(seed);
    const cache = new KVCache(device, shape);
    const expected = new Expected();
    for (let i = 0; i < 60; i++) {
      doSomething(cache, expected, rng);
      await assertHolds(cache, expected);
    }
    cache.dispose();
  }
});

test("rows are as many as are needed, and go back to the system with the last slot", async () => {
  const before = kernels.stats().liveBytes;
  const cache = new KVCache(device, { layers: 1, slots: 8, width: 64 });
  const bytes = async () => {
    await kernels.sync();
    return kernels.stats().liveBytes - before;
  };
  const rowBytes = 2 * 64 * 4;
  cache.reserve(new Map([0, 1, 2, 3].map((slot) => [slot, 10])));
  assert.equal(await bytes(), 40 * rowBytes);
  cache.reserve(new Map([[1, 10]]));
  assert.equal(await bytes(), 40 * rowBytes);
  cache.clear(1);
  cache.clear(2);
  cache.reserve(new Map([[4, 20]])); // into the gap of both
  assert.equal(await bytes(), 40 * rowBytes);
  cache.reserve(new Map([[3, 15]])); // the last one grows where it is
  assert.equal(await bytes(), 45 * rowBytes);
  for (const slot of [0, 3, 4]) cache.clear(slot);
  assert.ok((await bytes()) <= 2 * 64);
  cache.dispose();
  assert.equal(await bytes(), 0);
});

test("where memory is short, nothing has changed, and it works as before once there is some", async () => {
  let allowed = Number.POSITIVE_INFINITY;
  const short: Device = {
    compute: "f32",
    kernels: new Proxy(kernels, {
      get(target, name) {
        if (name === "alloc")
          return (size: number) => {
            if (--allowed < 0) throw new EngineError("the system has no memory left");
            return target.alloc(size);
          };
        const value = Reflect.get(target, name);
        return typeof value === "function" ? value.bind(target) : value;
      },
    }),
  };
  for (let failing = 0; failing < 2 * shape.layers; failing++) {
    const cache = new KVCache(short, shape);
    const expected = new Expected();
    for (const slot of [0, 1]) {
      const tokens = expected.numbers(4);
      storeAt(cache, cache.extend(slot, 4), tokens);
      expected.slots[slot]!.tokens = tokens;
    }
    allowed = failing;
    assert.throws(() => cache.extend(0, 100), EngineError);
    await assertHolds(cache, expected);
    allowed = 0;
    assert.throws(() => cache.fork(0, 2, 4), EngineError);
    await assertHolds(cache, expected);
    allowed = Number.POSITIVE_INFINITY;
    cache.fork(0, 2, 4);
    expected.slots[2]!.tokens = expected.slots[0]!.tokens;
    await assertHolds(cache, expected);
    cache.dispose();
  }
});

test("refused: more tokens than a slot holds", () => {
  const cache = new KVCache(device, shape);
  cache.extend(0, 3);
  assert.throws(() => cache.truncate(0, 4), { name: "ShapeError", message: /slot 0 holds 3 tokens/ });
  assert.throws(() => cache.fork(0, 1, 4), { name: "ShapeError", message: /slot 0 holds 3 tokens/ });
  assert.throws(() => cache.fork(0, 0, 1), { name: "ShapeError" });
  cache.dispose();
});
