import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { temporaryFolder } from "../io/testing/folders.js";
import { drawingKey, readItems } from "./label-items.js";
import { labelReport } from "./label-report.js";
import { type Label, type LabelItem, type LabelRow, openLabelStore, rowOf } from "./label-store.js";

const says = (content: string) => [{ role: "assistant", content }];
const asks = (content: string) => [{ role: "user", content }];

const itemNamed = (
  id: string,
  models: LabelItem["models"] | null = { a: "new", b: null },
  a = "short",
  b = "longer answer",
): LabelItem => ({
  id,
  prompt: asks(id),
  answers: { a: says(a), b: says(b) },
  ...(models && { models }),
});

let clock = 0;
const row = (item: LabelItem, label: Label, more: Partial<LabelRow> = {}): LabelRow =>
  rowOf(item, {
    label,
    shown: { left: "a", right: "b" },
    rater: "ann",
    ms: 1000,
    ts: new Date(clock++).toISOString(),
    ...more,
  });

test("a report counts labels, raters and what trains", () => {
  const [q1, q2, q3, q4] = ["q1", "q2", "q3", "q4"].map((id) => itemNamed(id)) as [LabelItem, LabelItem, LabelItem, LabelItem];
  const rows = [
    row(q1, "a", { ms: 3000 }),
    row(q2, "b"),
    row(q3, "tie"),
    row(q4, "both_bad"),
    row(q1, "a", { repeat: true }),
    row(q2, "a", { repeat: true }),
    row(q1, "a", { rater: "bob", shown: { left: "b", right: "a" } }),
    row(q2, "a", { rater: "bob" }),
    row(q3, "both_bad", { rater: "bob" }),
  ];
  const report = labelReport([...rows, rows[0]!], { rounds: 50 });
  assert.equal(report.labels, 7, "a row that is there twice counts once");
  assert.equal(report.items, 4);
  assert.deepEqual(report.counts, { a: 3, b: 1, tie: 1, both_bad: 2 });
  assert.deepEqual(report.trains, { pairs: 4, good: 4, bad: 8, ties: 1, repeats: 2, conflicts: 1 });

  const [ann, bob] = report.raters;
  assert.deepEqual([ann!.rater, ann!.labels, ann!.medianMs], ["ann", 4, 1000]);
  assert.deepEqual([ann!.consistency.hits, ann!.consistency.of], [1, 2]);
  assert.deepEqual([ann!.left.hits, ann!.left.of], [3, 4]); // a, b, then a, a at the second showing
  assert.deepEqual([bob!.left.hits, bob!.left.of, bob!.consistency.of], [1, 2, 0]);

  const { agreement } = report;
  assert.equal(agreement!.items, 3);
  assert.deepEqual([agreement!.raw.hits, agreement!.raw.of], [2, 3], "a tie and two bad answers say the same");
  assert.deepEqual([agreement!.rawWithoutTies.hits, agreement!.rawWithoutTies.of], [1, 2]);
  // p_o = 2/3; ann: a, b, neither; bob: a, a, neither: p_e = (1·2 + 1·0 + 1·1) / 9 = 1/3
  assert.equal(agreement!.cohen!.toFixed(12), "0.500000000000");

  assert.deepEqual([report.longerWins.hits, report.longerWins.of], [1, 4]);
  const [ranking] = report.rankings;
  assert.deepEqual(
    ranking!.plain.ratings.map(({ model, wins, comparisons }) => [model, wins, comparisons]),
    [
      ["new", 4.5, 7],
      ["base", 2.5, 7],
    ],
  );
});

test("models that were never compared are ranked apart; where nobody knows whose answers they are, none are", () => {
  const rows = [
    row(itemNamed("q1", { a: "m1", b: "m2" }), "a"),
    row(itemNamed("q2", { a: "m2", b: "m1" }), "a"),
    row(itemNamed("q3", { a: "m3", b: "m4" }), "a"),
    row(itemNamed("q4", { a: "m5", b: "m4" }), "a"),
    row(itemNamed("q5", null), "a"),
    row(itemNamed("q6", { a: "m9", b: "m9" }), "a"),
  ];
  const { rankings } = labelReport(rows, { rounds: 20 });
  assert.deepEqual(
    rankings.map(({ plain }) => plain.ratings.map(({ model }) => model).sort()),
    [
      ["m1", "m2"],
      ["m3", "m4", "m5"],
    ],
  );
  assert.deepEqual(labelReport(rows.slice(4)).rankings, []);
  const nothing = labelReport([]);
  assert.deepEqual([nothing.labels, nothing.raters.length, nothing.agreement], [0, 0, undefined]);
});

test("a model that is only longer is no better at equal length", () => {
  const rows = Array.from({ length: 200 }, (_, i) => {
    // The longer answer wins three of four times; new is longer three of four times.
    const isLonger = i % 4 !== 0;
    const longerWins = Math.floor(i / 4) % 4 !== 0;
    const [a, b] = isLonger ? ["x".repeat(30), "x".repeat(10)] : ["x".repeat(10), "x".repeat(30)];
    return row(itemNamed(`q${i}`, { a: "new", b: null }, a, b), isLonger === longerWins ? "a" : "b");
  });
  const [ranking] = labelReport(rows, { rounds: 20 }).rankings;
  assert(ranking!.plain.ratings[0]!.rating > 1040);
  assert(Math.abs(ranking!.atEqualLength!.ratings[0]!.rating - 1000) < 2);
});

test("items to label are read from rows of many forms, and prompts without answers are told apart", async (t) => {
  const path = join(temporaryFolder(t), "items.jsonl");
  const forms: object[] = [
    { prompt: "Q", answers: ["one", "two"] },
    { prompt: asks("Q"), answers: { a: says("one"), b: says("two") } },
    { instruction: "Q", answer_a: "one", answer_b: "two" },
    { messages: asks("Q"), response_a: "one", response_b: "two" },
    { prompt: "Q", chosen: "one", rejected: "two" },
    { prompt: asks("Q"), chosen: says("one"), rejected: says("two") },
    { chosen: [...asks("Q"), ...says("one")], rejected: [...asks("Q"), ...says("two")] },
    {
      conversations: [{ from: "human", value: "Q" }],
      chosen: { from: "gpt", value: "one" },
      rejected: { from: "gpt", value: "two" },
    },
  ];
  const ids = new Set<string>();
  for (const form of forms) {
    writeFileSync(path, `${JSON.stringify(form)}\n`);
    const { items, unanswered } = await readItems(path);
    assert.equal(unanswered.length, 0, JSON.stringify(form));
    const [{ id, prompt, answers }] = items as [LabelItem];
    assert.deepEqual([prompt, answers], [asks("Q"), { a: says("one"), b: says("two") }], JSON.stringify(form));
    ids.add(id);
  }
  assert.equal(ids.size, 1, "the same item, however it is written");

  writeFileSync(
    path,
    [{ prompt: "P" }, { messages: [...asks("Q"), ...says("gold")] }, forms[0]].map((each) => JSON.stringify(each)).join("\n"),
  );
  const mixed = await readItems(path);
  assert.deepEqual([mixed.unanswered, mixed.items.length], [[asks("P"), asks("Q")], 1]);

  for (const [bad, message] of [
    [{ prompt: "Q", answers: ["one"] }, /items\.jsonl:1: expected two answers to compare, got 1/],
    [{ prompt: "Q", answers: ["one", "two", "three"] }, /got 3/],
    [{ prompt: "Q", answer_a: "one" }, /got 1/],
    [{ prompt: "Q", answers: [1, 2] }, /as text or messages/],
  ] as const) {
    writeFileSync(path, JSON.stringify(bad));
    await assert.rejects(readItems(path), message);
  }
});

test("a label store gives another rater the same items, whichever answer won", async (t) => {
  const path = join(temporaryFolder(t), "labels.jsonl");
  const store = await openLabelStore(path);
  const given = ["q1", "q2", "q3"].map((id) => ({ ...itemNamed(id), sampling: { temperature: 1 }, seed: { a: 1, b: 2 } }));
  for (const [i, label] of (["a", "b", "tie"] as const).entries()) await store.append(row(given[i]!, label));
  await store.close();
  const { items } = await readItems(path);
  assert.deepEqual(items, given);
  assert.equal(drawingKey(given[0]!.prompt, given[0]!), drawingKey(items[0]!.prompt, items[0]!));
  assert.notEqual(drawingKey(given[0]!.prompt, given[0]!), drawingKey(given[1]!.prompt, given[1]!));
});
