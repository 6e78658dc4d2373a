import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

interface Row {
  readonly messages: readonly { readonly role: string; readonly content: string }[];
}

const folder = fileURLToPath(new URL("../../examples/quickstart/", import.meta.url));
const readRows = (name: string): Row[] =>
  readFileSync(join(folder, name), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Row);
const train = readRows("train.jsonl");
const heldOut = readRows("heldout.jsonl");

const message = (row: Row): string => row.messages[1]!.content;
const answer = (row: Row): Record<string, string | number> => JSON.parse(row.messages[2]!.content);

/** The wording of a message: what is left when its values are taken out. */
function wordsOf(row: Row): string[] {
  const { name, item } = answer(row);
  const rest = message(row).replaceAll(String(name), " ").replaceAll(String(item), " ");
  return rest.toLowerCase().match(/[a-z']{2,}/g) ?? [];
}

test("the committed files are what the generator makes", () => {
  const made = mkdtempSync(join(tmpdir(), "attune-quickstart-"));
  try {
    const { status, stderr } = spawnSync(process.execPath, [join(folder, "make-data.mjs"), made], { encoding: "utf8" });
    assert.equal(status, 0, stderr);
    for (const name of ["train.jsonl", "heldout.jsonl"]) {
      assert.equal(readFileSync(join(made, name), "utf8"), readFileSync(join(folder, name), "utf8"), name);
    }
  } finally {
    rmSync(made, { recursive: true });
  }
});

test("every row is a short exchange whose answer is one line of JSON with its keys in order", () => {
  assert.equal(train.length, 440);
  assert.equal(heldOut.length, 50);
  for (const row of [...train, ...heldOut]) {
    assert.deepEqual(
      row.messages.map(({ role }) => role),
      ["system", "user", "assistant"],
    );
    const { name, count, size, item, time } = answer(row);
    assert.equal(row.messages[2]!.content, JSON.stringify({ name, count, size, item, time }));
    const text = message(row);
    assert.ok(text.length < 140, text);
    for (const value of [name, size, item, time]) assert.ok(typeof value === "string" && text.includes(value), text);
    assert.ok(Number.isInteger(count) && Number(count) >= 1 && Number(count) <= 6, text);
    assert.match(String(time), /^\d{1,2}(:\d\d)?( ?[ap]m)?$/);
  }
});

test("no held-out message is in the training file, and no message occurs twice", () => {
  const messages = [...train, ...heldOut].map(message);
  assert.equal(new Set(messages).size, messages.length);
});

test("every held-out message is worded in a way that training never shows", () => {
  const trained = new Set(train.flatMap(wordsOf));
  for (const row of heldOut) {
    const newWords = wordsOf(row).filter((word) => !trained.has(word));
    assert.ok(newWords.length > 0, `nothing is new in "${message(row)}"`);
  }
});

test("held-out names and items are kept out of training, and most held-out rows have one", () => {
  const values = (rows: Row[], key: "name" | "item") =>
    new Set(rows.map((row) => answer(row)[key]).filter((value) => value !== null));
  const newValues = (key: "name" | "item") => [...values(heldOut, key)].filter((value) => !values(train, key).has(value!));
  const names = newValues("name");
  const items = newValues("item");
  assert.ok(names.length >= 10, names.join());
  assert.ok(items.length >= 5, items.join());

  const trainText = train.map(message).join("\n");
  for (const value of [...names, ...items]) assert.ok(!new RegExp(`\\b${value}\\b`).test(trainText), String(value));
  const withNewValue = heldOut.filter((row) => names.includes(answer(row).name!) || items.includes(answer(row).item!));
  assert.ok(withNewValue.length >= heldOut.length / 2, `${withNewValue.length} of ${heldOut.length}`);
});
