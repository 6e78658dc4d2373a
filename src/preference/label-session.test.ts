import assert from "node:assert/strict";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { temporaryFolder } from "../io/testing/folders.js";
import { itemIdOf, type Judgement, LabelSession, type LabelSessionOptions, type Shown } from "./label-session.js";
import { type LabelItem, type LabelStore, openLabelStore } from "./label-store.js";

const assistant = (content: string) => [{ role: "assistant", content }];

function items(count: number): LabelItem[] {
  return Array.from({ length: count }, (_, i) => {
    const prompt = [{ role: "user", content: `question ${i}` }];
    const answers = { a: assistant(`A${i}`), b: assistant(`B${i}`) };
    return { id: itemIdOf({ prompt, answers }), prompt, answers, models: { a: "hash-of-a", b: null } };
  });
}

async function openStore(t: TestContext): Promise<LabelStore> {
  const store = await openLabelStore(join(temporaryFolder(t), "labels.jsonl"));
  t.after(() => store.close());
  return store;
}

function sessionOf(store: LabelStore, count: number, options: Partial<LabelSessionOptions> = {}): LabelSession {
  const session = new LabelSession(store, { rater: "ann", ...options });
  for (const item of items(count)) session.add(item);
  return session;
}

/** Labels all that is left; returns what was shown. */
async function labelAll(session: LabelSession, judge: (shown: Shown) => Judgement = () => "left"): Promise<Shown[]> {
  const all: Shown[] = [];
  for (let shown = session.next(); shown !== undefined; shown = session.next()) {
    all.push(shown);
    await session.judge(judge(shown), { ms: 10 });
  }
  return all;
}

test("every item is shown, one in ten again, and what is shown tells neither whose an answer is nor that it comes again", async (t) => {
  const store = await openStore(t);
  const session = sessionOf(store, 200);
  assert.equal(session.progress.left, 200);
  const shown = await labelAll(session);
  assert.equal(new Set(shown.map(({ prompt }) => prompt[0]!.content)).size, 200);
  assert.deepEqual(session.progress, { given: 220, repeats: 20, left: 0, pointless: 0 });
  for (const each of shown) assert.deepEqual(Object.keys(each).sort(), ["left", "prompt", "right"]);

  const rows = store.rows;
  assert.equal(rows.filter(({ repeat }) => repeat).length, 20);
  for (const [i, { id, repeat }] of rows.entries()) {
    if (!repeat) continue;
    const gap = i - rows.findIndex((row) => row.id === id);
    const isAtEnd = rows.slice(i).every((row) => row.repeat);
    assert(isAtEnd ? gap >= 4 : gap >= 10 && gap <= 21, `${gap}`);
  }
});

test("each answer stands left half of the time, in ten items as in ten thousand, in an order that nobody can guess", async (t) => {
  const store = await openStore(t);
  await labelAll(sessionOf(store, 400));
  const left = store.rows.map(({ shown }) => shown.left === "a");
  for (let count = 100; count <= left.length; count++) {
    const share = left.slice(0, count).filter(Boolean).length / count;
    assert(share >= 0.47 && share <= 0.53, `${share} of ${count}`);
  }
  for (let from = 0; from + 10 <= left.length; from += 10) assert.equal(left.slice(from, from + 10).filter(Boolean).length, 5);
  const changes = left.filter((each, i) => i > 0 && each !== left[i - 1]).length / (left.length - 1);
  assert(changes > 0.45 && changes < 0.66, `${changes}`);
  // Whoever always says "left" prefers nobody.
  const forA = store.rows.filter(({ label }) => label === "a").length / store.rows.length;
  assert(Math.abs(forA - 0.5) < 0.03);
  const other = await openStore(t);
  await labelAll(sessionOf(other, 400, { seed: 1 }));
  assert.notDeepEqual(
    other.rows.map(({ shown }) => shown.left === "a"),
    left,
  );
});

test("a session that ends anywhere goes on as if it had not", async (t) => {
  const whole = await openStore(t);
  const all = await labelAll(sessionOf(whole, 60));
  const store = await openStore(t);
  const parts: Shown[] = [];
  for (let i = 0; i < all.length; i++) {
    const session = sessionOf(store, 60); // a new one for each item
    parts.push(session.next()!);
    assert.deepEqual(session.next(), parts.at(-1), "asking twice changes nothing");
    await session.judge("left");
  }
  assert.deepEqual(parts, all);
  assert.equal(sessionOf(store, 60).next(), undefined);
});

test("what is said of left and right is stored as said of a and b", async (t) => {
  const store = await openStore(t);
  const session = sessionOf(store, 40, { repeats: 0 });
  const said: Judgement[] = ["left", "right", "tie", "both_bad"];
  let i = 0;
  await labelAll(session, () => said[i++ % 4]!);
  for (const [at, row] of store.rows.entries()) {
    const judgement = said[at % 4]!;
    const side = judgement === "left" || judgement === "right" ? row.shown[judgement] : judgement;
    assert.equal(row.label, side);
    if (row.label === "a" || row.label === "b") {
      assert.match(row.chosen![0]!.content, row.label === "a" ? /^A/ : /^B/);
      assert.match(row.rejected![0]!.content, row.label === "a" ? /^B/ : /^A/);
    }
    assert.deepEqual([row.rater, row.ms, row.models], ["ann", 10, { a: "hash-of-a", b: null }]);
    assert(!Number.isNaN(Date.parse(row.ts)));
  }
});

test("undo shows the same item again, the same way round, and goes back as far as one likes", async (t) => {
  const store = await openStore(t);
  const session = sessionOf(store, 30);
  const shown: Shown[] = [];
  for (let i = 0; i < 25; i++) {
    shown.push(session.next()!);
    await session.judge("left", { note: `note ${i}` });
  }
  const undone = session.next();
  for (let i = 24; i >= 0; i--) {
    assert.equal((await session.undo())!.note, `note ${i}`);
    assert.deepEqual(session.next(), shown[i]);
    assert.equal(session.progress.given, i);
  }
  assert.equal(await session.undo(), undefined);
  for (let i = 0; i < 25; i++) {
    assert.deepEqual(session.next(), shown[i]);
    await session.judge("right");
  }
  assert.deepEqual(session.next(), undone);
  await assert.rejects(new LabelSession(store, { rater: "ann" }).judge("left"), /call next\(\) first/);
});

test("each rater labels everything, and takes back only what is his own", async (t) => {
  const store = await openStore(t);
  const ann = await labelAll(sessionOf(store, 12));
  const bob = sessionOf(store, 12, { rater: "bob" });
  assert.equal(bob.progress.given, 0);
  assert.equal(await bob.undo(), undefined);
  const shown = await labelAll(bob);
  assert.equal(new Set(shown.map(({ prompt }) => prompt[0]!.content)).size, 12);
  assert.notDeepEqual(shown.slice(0, 12), ann.slice(0, 12), "in an order of left and right of his own");
});

test("equal and empty answers are counted, not shown; an item twice counts once; items may come late", async (t) => {
  const store = await openStore(t);
  const session = new LabelSession(store, { rater: "ann" });
  const [first, second, third] = items(3) as [LabelItem, LabelItem, LabelItem];
  const same = { ...first, id: "same", answers: { a: assistant("yes "), b: assistant("yes") } };
  const empty = { ...first, id: "empty", answers: { a: assistant(""), b: [] } };
  const half = { ...first, id: "half", answers: { a: assistant(""), b: assistant("x") } };
  assert.equal(session.next({ isMoreComing: true }), undefined);
  for (const item of [same, first, first, empty]) session.add(item);
  assert.deepEqual(session.progress, { given: 0, repeats: 0, left: 1, pointless: 2 });
  assert.equal(session.next()!.prompt, first.prompt);
  await session.judge("tie");
  assert.equal(session.next({ isMoreComing: true }), undefined);
  for (const item of [second, third, half]) session.add(item);
  assert.equal((await labelAll(session)).length, 3, "one empty answer is one that can lose");
});

test("so many items are shown again as is asked for", async (t) => {
  for (const [repeats, expected] of [
    [0, 0],
    [0.25, 25],
    [0.3, 30],
    [1, 100],
  ] as const) {
    const store = await openStore(t);
    await labelAll(sessionOf(store, 100, { repeats }));
    const again = store.rows.filter(({ repeat }) => repeat);
    // The last items may have no others behind them to be forgotten for.
    assert(again.length <= expected && again.length >= expected - 4, `${again.length} of ${expected}`);
    assert.equal(new Set(again.map(({ id }) => id)).size, again.length);
  }
});
