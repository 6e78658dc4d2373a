import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { appendFileSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { readPairs, readUnpaired } from "../data/preference-rows.js";
import { byteChat } from "../data/preview.js";
import { CheckpointError, DataError, NoSpaceError } from "../errors.js";
import { repetitions, seededIntegers, smallDisk, temporaryFolder } from "../io/testing/folders.js";
import { itemOf, type Label, type LabelItem, type LabelRow, labels, openLabelStore, readLabels, rowOf } from "./label-store.js";

const item = (id: string, length = 5): LabelItem => ({
  id,
  prompt: [{ role: "user", content: `What is ${id}? 你好` }],
  answers: { a: [{ role: "assistant", content: "a".repeat(length) }], b: [{ role: "assistant", content: "b\n\u2028" }] },
  models: { a: "c0ffee", b: null },
  sampling: { temperature: 0.7 },
  seed: { a: 1, b: 2 },
});

const row = (id: string, label: Label = "a", length = 5): LabelRow =>
  rowOf(item(id, length), { label, shown: { left: "b", right: "a" }, rater: "ann", ms: 1200, ts: "2026-11-25T15:00:00.000Z" });

test("rows come back as they were given, in order", async (t) => {
  const path = join(temporaryFolder(t), "deep", "er", "labels.jsonl");
  const store = await openLabelStore(path);
  const rows = labels.map((label, i) => ({ ...row(`q${i}`, label), note: "why\nnot" }));
  await Promise.all(rows.map((each) => store.append(each)));
  await store.close();
  assert.deepEqual((await readLabels(path)).rows, rows);
  const again = await openLabelStore(path);
  assert.deepEqual(again.rows, rows);
  await again.append(row("q9"));
  await again.close();
  assert.equal((await readLabels(path)).rows.length, 5);
  assert.equal(readFileSync(path, "utf8").split("\n").length, 6, "a line each");
});

test("only what a pair may be trained from has chosen and rejected; the item can be had from every row", () => {
  for (const label of labels)
    for (const repeat of [undefined, true] as const) {
      const shown = { left: "a", right: "b" } as const;
      const said = rowOf(item("q"), { label, shown, rater: "ann", ms: 1, ts: "", ...(repeat && { repeat }) });
      const isPair = (label === "a" || label === "b") && !repeat;
      assert.deepEqual([said.chosen !== null, said.rejected !== null, said.answers === undefined], Array(3).fill(isPair));
      assert.deepEqual(itemOf(said), item("q"));
    }
  assert.equal(row("q", "a").chosen![0]!.content, "aaaaa");
  assert.equal(row("q", "b").rejected![0]!.content, "aaaaa");
});

test("stages rm, dpo and kto read a store as it is: ties, two bad answers and second showings are no pairs", async (t) => {
  const folder = temporaryFolder(t);
  const store = await openLabelStore(join(folder, "labels.jsonl"));
  for (const [i, label] of labels.entries()) await store.append(row(`q${i}`, label));
  await store.append({ ...rowOf(item("q0"), { ...row("q0", "b"), repeat: true }), note: "changed my mind" });
  await store.close();

  const notices: string[] = [];
  const chat = byteChat();
  const source = {
    files: { datasetDir: folder },
    tokenize: { cutoffLen: 2048 },
    chat: () => chat,
    warn: (message: string) => notices.push(message),
  };
  const text = (ids: Int32Array) => chat.tokenizer.decode(ids);
  const pairs = await readPairs(["labels.jsonl"], source, "keep_start");
  assert.deepEqual(
    pairs.map(({ chosen, rejected }) => [text(chosen), text(rejected)]),
    [
      ["aaaaa", "b\n\u2028"],
      ["b\n\u2028", "aaaaa"],
    ],
  );
  assert.match(text(pairs[0]!.prompt), /What is q0\? 你好/);
  const told = notices.join("\n");
  assert.match(told, /3 of 5 rows are left out.*1 that are ties \(.*:3\); .*two bad answers.*:4.*; .*shown a second time \(.*:5/);
  assert.doesNotMatch(told, /not used/, "every column is known");

  notices.length = 0;
  const single = await readUnpaired(["labels.jsonl"], source, "keep_start");
  assert.deepEqual(
    single.map(({ answer, isGood }) => [text(answer), isGood]),
    [
      ["aaaaa", true],
      ["b\n\u2028", false],
      ["b\n\u2028", true],
      ["aaaaa", false],
      ["aaaaa", false],
      ["b\n\u2028", false],
    ],
  );
  assert.match(notices.join("\n"), /2 of 5 rows are left out/);
});

test("undo takes the last row away, also one of an earlier day, and the file is as if it had never been", async (t) => {
  const path = join(temporaryFolder(t), "labels.jsonl");
  const store = await openLabelStore(path);
  await store.append(row("q1"));
  const before = readFileSync(path);
  await store.append(row("q2", "tie"));
  await store.close();
  const again = await openLabelStore(path);
  assert.deepEqual(await again.undo(), row("q2", "tie"));
  assert.deepEqual(readFileSync(path), before);
  await again.append(row("q3"));
  assert.deepEqual(
    (await readLabels(path)).rows.map(({ id }) => id),
    ["q1", "q3"],
  );
  for (let i = 0; i < 2; i++) await again.undo();
  assert.equal(await again.undo(), undefined);
  assert.equal(readFileSync(path, "utf8"), "");
  await again.close();
});

test("a torn last line is cut off at any byte, and told; readers pass over it", async (t) => {
  const path = join(temporaryFolder(t), "labels.jsonl");
  const store = await openLabelStore(path);
  for (const id of ["q1", "q2"]) await store.append(row(id));
  await store.close();
  const whole = readFileSync(path);
  const second = whole.indexOf("\n") + 1;
  const edges = [...Array(12).keys()];
  const cuts = [...edges.map((i) => second + i), second + 60, second + 111, ...edges.map((i) => whole.length - i)];
  for (const length of cuts) {
    for (const zeros of length % 9 === 0 ? [0, 7] : [0]) {
      writeFileSync(path, Buffer.concat([whole.subarray(0, length), Buffer.alloc(zeros)]));
      const isWhole = length >= whole.length - 1 && zeros === 0;
      const read = await readLabels(path);
      assert.deepEqual(
        read.rows.map(({ id }) => id),
        isWhole ? ["q1", "q2"] : ["q1"],
      );
      assert.equal(read.tornBytes, isWhole ? 0 : length + zeros - second);
      const notices: string[] = [];
      const opened = await openLabelStore(path, { onNotice: (message) => notices.push(message) });
      assert.equal(opened.rows.length, isWhole ? 2 : 1);
      await opened.append(row("q3"));
      await opened.close();
      assert.deepEqual(
        (await readLabels(path)).rows.map(({ id }) => id),
        isWhole ? ["q1", "q2", "q3"] : ["q1", "q3"],
      );
      const isTold = !isWhole && length + zeros > second;
      assert.equal(notices.length, isTold ? 1 : 0, `${length}`);
      if (isTold) assert.match(notices[0]!, /labels\.jsonl: the last \d+ bytes were half a row/);
    }
  }
});

test("a file that is no store is named with its line and stays as it is", async (t) => {
  const folder = temporaryFolder(t);
  const path = join(folder, "labels.jsonl");
  const good = `${JSON.stringify(row("q1"))}\n`;
  const half = { ...row("q2"), chosen: null };
  const broken: [text: string, message: RegExp][] = [
    ["my diary, without a newline", /labels\.jsonl:1: this is no row of a label store: not valid JSON/],
    [`${good}{"prompt": "x"}\n`, /labels\.jsonl:2: .*id: /],
    [`${good}{"id": "x"\n${good}`, /labels\.jsonl:2: .*not valid JSON/],
    [`${good.replace('"label":"a"', '"label":"left"')}`, /:1: .*label: /],
    [`${JSON.stringify(half)}\n`, /:1: .*expected chosen and rejected/],
    [`${good.replace('"left":"b"', '"left":"a"')}`, /the same answer stands left and right/],
    ["[]\n", /:1:/],
    ["null\n", /:1:/],
  ];
  for (const [text, message] of broken) {
    writeFileSync(path, text);
    for (const read of [openLabelStore, readLabels])
      await assert.rejects(read(path), (error) => error instanceof DataError && message.test(error.message));
    assert.equal(readFileSync(path, "utf8"), text);
    assert.deepEqual(readdirSync(folder), ["labels.jsonl"], "the lock is given back");
  }
  writeFileSync(path, `\n${good}\n\n`);
  assert.equal((await readLabels(path)).rows.length, 1, "blank lines are none");
  await assert.rejects(openLabelStore(folder), (error) => error instanceof DataError || error instanceof CheckpointError);
  await assert.rejects(openLabelStore("/proc/none/labels.jsonl"), CheckpointError);
  assert.deepEqual(await readLabels(join(folder, "none.jsonl")), { rows: [], tornBytes: 0 });
});

test("one process at a time writes; a file that another program changes, replaces or deletes meanwhile is refused", async (t) => {
  const folder = temporaryFolder(t);
  const path = join(folder, "labels.jsonl");
  const store = await openLabelStore(path);
  await assert.rejects(openLabelStore(path), /labels\.jsonl: process \d+ on host .* has been writing to it since/);
  await store.append(row("q1"));
  const { size } = { size: readFileSync(path).length };
  appendFileSync(path, "x");
  await assert.rejects(store.append(row("q2")), /another program wrote to it/);
  truncateSync(path, size);
  await store.append(row("q2"));
  writeFileSync(`${path}.new`, readFileSync(path));
  renameSync(`${path}.new`, path);
  await assert.rejects(store.append(row("q3")), /was replaced by another file/);
  rmSync(path);
  await assert.rejects(store.undo(), CheckpointError);
  await store.close();
  await (await openLabelStore(path)).close();
  assert(!existsSync(`${path}.lock`));
});

test("a full disk is told, and the rows before it stay", async (t) => {
  const disk = smallDisk(t);
  if (disk === undefined) return;
  const path = join(disk, "labels.jsonl");
  const store = await openLabelStore(path);
  await store.append(row("q0"));
  await assert.rejects(async () => {
    for (let i = 1; i < 100; i++) await store.append(row(`q${i}`, "a", 50_000));
  }, NoSpaceError);
  const { rows, tornBytes } = await readLabels(path);
  assert(rows.length > 5 && tornBytes === 0);
  assert.deepEqual(rows, store.rows);
  await store.append(row("small"));
  await store.close();
});

const storeModule = new URL("label-store.js", import.meta.url).href;

/** Appends rows of up to a megabyte and says how many are in the store. */
function writer(path: string): ChildProcess {
  const source = `import { openLabelStore } from ${JSON.stringify(storeModule)};
    import { writeSync } from "node:fs";
    const store = await openLabelStore(process.argv[1], { onNotice: (message) => writeSync(1, "notice\\n") });
    writeSync(1, store.rows.length + "\\n");
    for (let i = store.rows.length; ; i++) {
      if (store.rows.length > 30) while (await store.undo());
      const content = String.fromCharCode(97 + (i % 26)).repeat(1 + ((i * 7919) % 1000) ** 2);
      const answers = [[{ role: "assistant", content }], [{ role: "assistant", content: "no" }]];
      await store.append({ id: "q" + store.rows.length, prompt: [], chosen: answers[0], rejected: answers[1], label: "a",
        shown: { left: "a", right: "b" }, rater: "ann", ms: content.length, ts: "" });
      writeSync(1, store.rows.length + "\\n");
    }`;
  return spawn(process.execPath, ["--input-type=module", "-e", source, path], { stdio: ["ignore", "pipe", "inherit"] });
}

test("kill -9 at any moment loses no row that was stored and leaves no half one", async (t) => {
  const path = join(temporaryFolder(t), "labels.jsonl");
  const random = seededIntegers(12);
  const kills = repetitions(15, 1000);
  let [stored, torn, wasTorn] = [0, 0, false];
  for (let i = 0; i < kills; i++) {
    const child = writer(path);
    let output = "";
    child.stdout!.on("data", (chunk) => {
      output += chunk;
    });
    const ended = new Promise((resolve) => child.on("close", resolve));
    while (!/\d\n/.test(output)) await sleep(2);
    await sleep(random(25));
    child.kill("SIGKILL");
    await ended;
    const said = output.split("\n").filter((line) => line !== "");
    assert.equal(
      said.includes("notice"),
      torn > 0 && stored >= 0 && wasTorn,
      "a torn row is told when the store is opened again",
    );
    const counts = said.filter((line) => line !== "notice").map(Number);
    const { rows, tornBytes } = await readLabels(path);
    wasTorn = tornBytes > 0;
    if (wasTorn) torn++;
    const last = counts.at(-1)!;
    // Between what was said last and the kill one row more may be stored, or an undo under way (31 rows to none).
    assert(rows.length === last || rows.length === last + 1 || last === 31, `${rows.length} rows, ${last} were said`);
    for (const [at, { id, ms, chosen }] of rows.entries()) {
      assert.equal(id, `q${at}`);
      assert.equal(chosen![0]!.content, chosen![0]!.content[0]!.repeat(ms), "whole");
    }
    stored += rows.length;
  }
  t.diagnostic(`${kills} kills, ${torn} of them tore a row, ${stored} rows read whole`);
  assert(stored > 0);
});
