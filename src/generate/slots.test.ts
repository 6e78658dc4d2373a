import assert from "node:assert/strict";
import test from "node:test";
import { SymbolicDevice } from "../core/symbolic.js";
import { KVCache } from "../nn/kv-cache.js";
import { Slots } from "./slots.js";

const adapter = {};

function slotsOf(count: number): Slots {
  return new Slots(new KVCache(new SymbolicDevice(), { layers: 1, slots: count, width: 2 }), count);
}

const textOf = (first: number, length: number) => Int32Array.from({ length }, (_, i) => (i === 0 ? first : i));

/** Puts a text into a slot, as a request that has it as its prompt. Returns the slot and how much of the text stood somewhere already. */
function hold(slots: Slots, text: Int32Array): [slot: number, reused: number] {
  const match = slots.find(text, adapter);
  const slot = slots.take(match, adapter, 0)!;
  assert.equal(slots.reserve(new Map([[slot, text.length]])).size, 0);
  slots.cache.extend(slot, text.length - match.length);
  slots.append(slot, text.subarray(match.length));
  return [slot, match.length];
}

const knows = (slots: Slots, text: Int32Array) => slots.find(text, adapter).length === text.length - 1;

test("what ended keeps up to 8192 tokens together; the latest is kept whatever its length", () => {
  const slots = slotsOf(4);
  const texts = [1, 2, 3].map((first) => textOf(first, 4000));
  for (const text of texts) slots.release(hold(slots, text)[0]);
  assert.deepEqual(
    texts.map((text) => knows(slots, text)),
    [false, true, true],
  );
  const long = textOf(4, 9000);
  slots.release(hold(slots, long)[0]);
  assert.deepEqual(
    [...texts, long].map((text) => knows(slots, text)),
    [false, false, false, true],
  );
  slots.emptyFree();
  assert.ok(!knows(slots, long));
});

test("a text goes on in its slot if that loses no more than it gives, else in a copy; the oldest makes way", () => {
  const slots = slotsOf(3);
  const [first] = hold(slots, textOf(1, 100));
  assert.equal(slots.take({ slot: first, length: 50 }, adapter, 0), 1, "a slot in use is copied");
  slots.empty(1);
  slots.release(1);
  slots.release(first);
  assert.deepEqual(hold(slots, Int32Array.of(...textOf(1, 60), 7, 7)), [first, 60]);
  slots.release(first);
  assert.deepEqual(hold(slots, Int32Array.of(...textOf(1, 20), 8, 8)), [1, 20], "62 tokens are not lost for 20");
  slots.release(1);
  const [third] = hold(slots, textOf(5, 10));
  assert.equal(third, 2);
  slots.release(third);
  assert.deepEqual(hold(slots, textOf(6, 10)), [first, 0], "the slot that was used longest ago");
  assert.deepEqual(hold(slots, textOf(9, 10)), [1, 0]);
  assert.equal(hold(slots, textOf(10, 10))[0], third);
  assert.equal(slots.take({ slot: -1, length: 0 }, adapter, 0), null);
});
