import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import type { LabelledExample } from "../data/example.js";
import { classesOf } from "../models/classes.js";
import { byteTokenizer } from "../text/tokenizer/byte-tokenizer.js";
import { classification } from "./classification/classification.js";
import type { DataSource, Objective } from "./objective.js";
import { piecesOf, pt } from "./pt/pt.js";

const tokenizer = byteTokenizer();

function sourceIn(folder: string, cutoffLen: number, warnings: string[] = []): DataSource {
  return {
    files: { datasetDir: folder },
    tokenize: { cutoffLen },
    tokenizer,
    chat: () => assert.fail("no chat is needed"),
    warn: (message) => warnings.push(message),
  };
}

function writeData(name: string, contents: string): string {
  const folder = mkdtempSync(join(tmpdir(), "attune-objectives-"));
  writeFileSync(join(folder, name), contents);
  return folder;
}

test("pt: in pieces of any length, every token of a document is predicted once, and its end", () => {
  const text = "The quick brown fox — 你好!";
  const end = tokenizer.eosId!;
  const whole = [end, ...tokenizer.encode(text, { special: false }), end];
  for (let length = 2; length <= whole.length + 1; length++) {
    const pieces = piecesOf(tokenizer.encode(text, { special: false }), "a.txt:1", tokenizer, length);
    assert.ok(pieces.every(({ ids }) => ids.length <= length && ids.length >= 2));
    const predicted = pieces.flatMap(({ ids, supervised }) => [...ids].filter((_, t) => supervised[t] === 1));
    assert.deepEqual(predicted, whole.slice(1), `pieces of ${length}`);
    for (const [i, { ids }] of pieces.entries()) if (i > 0) assert.equal(ids[0], pieces[i - 1]!.ids.at(-1));
  }
});

test("pt reads documents from files without a chat template", async () => {
  const folder = writeData("a.txt", "one\ntwo and more\n");
  const rows = await pt.read(["a.txt"], sourceIn(folder, 8), pt.config.parse({}));
  assert.deepEqual(
    rows.map(({ where, ids }) => [where, ids.length]),
    [
      ["a.txt:1", 5],
      ["a.txt:2", 8],
      ["a.txt:2", 7],
    ],
  );
});

test("pt reads control tokens as such, or spells them out, and says how many texts hold any", async () => {
  const folder = writeData("a.txt", "one<|im_end|>\ntwo\n");
  const read = async (settings: object) => {
    const told: string[] = [];
    const source = { ...sourceIn(folder, 100), warn: (message: string) => told.push(message) };
    const rows = await pt.read(["a.txt"], source, pt.config.parse(settings));
    return { lengths: rows.map(({ ids }) => ids.length), told };
  };
  const { lengths, told } = await read({});
  assert.deepEqual(lengths, [6, 5]);
  assert.match(told.join(), /1 of 2 texts hold control tokens, which are read as such/);
  const spelled = await read({ split_special_tokens: true });
  assert.deepEqual(spelled.lengths, [15, 5]);
  assert.match(spelled.told.join(), /1 of 2 texts hold control tokens; they are spelled out/);
});

const base = { model_type: "llama", architectures: ["LlamaForCausalLM"], hidden_size: 8 };
const rowsOf = (...labels: string[]) =>
  labels.map((label, i) => ({ ids: Int32Array.of(1), label, where: `row ${i + 1}`, tokens: 1 }));
const on = (base: Readonly<Record<string, unknown>>, heldOut: LabelledExample[] = [], said: string[] = []) => ({
  base,
  heldOut,
  tokenizer: byteTokenizer(),
  warn: (message: string) => said.push(message),
});
const configOf = (values: object = {}) => classification.config.parse(values);

test("classes: those of the data in a stable order, numbers by size; or those that the recipe names; or the base's own", () => {
  const classes = (labels: string[], config = {}, model: Record<string, unknown> = base) =>
    classesOf(classification.task(rowsOf(...labels), configOf(config), on(model)).modelConfig!);
  assert.deepEqual(classes(["10", "9", "10", "other", "-1"]), ["-1", "9", "10", "other"]);
  assert.deepEqual(classes(["b", "a"], { labels: "b, a ,c" }), ["b", "a", "c"]);
  assert.deepEqual(classes(["1"], { labels: [1, 0] }), ["1", "0"]);
  const own = { ...base, architectures: ["LlamaForSequenceClassification"], id2label: { 0: "no", 1: "yes" } };
  assert.deepEqual(classes(["yes"], {}, own), ["no", "yes"]);
  const { modelConfig } = classification.task(rowsOf("a", "b"), configOf(), on({ model_type: "gemma3_text", num_labels: 5 }));
  assert.deepEqual(modelConfig, {
    model_type: "gemma3_text",
    architectures: ["Gemma3TextForSequenceClassification"],
    id2label: { 0: "a", 1: "b" },
    label2id: { a: 0, b: 1 },
    problem_type: "single_label_classification",
  });
});

test("classes that do not fit are refused", () => {
  const own = { ...base, architectures: ["LlamaForSequenceClassification"], id2label: { 0: "no", 1: "yes" } };
  const cases = [
    [["a", "a"], {}, base, "DATA", /every row has the label "a"/],
    [["a", "b"], { labels: "a,c" }, base, "DATA", /row 2: the label "b" is none of labels: a, c/],
    [["a"], { labels: "a,a" }, base, "CONFIG", /a class is named twice/],
    [["yes", "maybe"], {}, own, "DATA", /row 2: the label "maybe" is none of the model's: no, yes/],
    [["yes"], { labels: "yes,no" }, own, "CONFIG", /the model is a classifier of no, yes/],
    [["1"], {}, { ...own, id2label: { 0: "1" } }, "CONFIG", /by its config\.json the model does not: it has 1 output\./],
    [
      ["no"],
      {},
      { ...own, problem_type: "regression" },
      "CONFIG",
      /problem_type is "regression", with 2 outputs\. Start from a base/,
    ],
    [
      ["no"],
      {},
      { ...own, problem_type: "multi_label_classification" },
      "CONFIG",
      /problem_type is "multi_label_classification"/,
    ],
    [["no"], {}, { ...own, problem_type: { a: 1 } }, "MODEL", /problem_type: expected regression, .*, got \{"a":1\}/],
  ] as const;
  for (const [labels, config, model, code, message] of cases)
    assert.throws(() => classification.task(rowsOf(...labels), configOf(config), on(model)), { code, message });
  assert.throws(() => classesOf({ ...own, id2label: { 1: "a" } }), { code: "MODEL", message: /id2label/ });
});

test("labels that nothing trains, or nothing measures, are told by name", () => {
  const said = (labels: string[], heldOut: string[], config = {}, model: Record<string, unknown> = base) => {
    const messages: string[] = [];
    classification.task(rowsOf(...labels), configOf(config), on(model, rowsOf(...heldOut), messages));
    return messages;
  };
  assert.deepEqual(said(["a", "b"], ["a", "b"]), []);
  assert.deepEqual(said(["a", "b"], []), []);
  assert.deepEqual(said(["a", "b"], ["a", "c", "b"]), [
    'only held-out rows have the label "c": no row that trains does, so the model learns never to answer so',
  ]);
  assert.deepEqual(said(["a", "b"], ["b"]), ['no held-out row has the label "a": evaluation says nothing of it']);
  assert.deepEqual(said(["a"], [], { labels: "a,b,c" }), ['no row has the labels "b", "c": the model learns never to answer so']);
  const own = { ...base, architectures: ["LlamaForSequenceClassification"], id2label: { 0: "no", 1: "yes" } };
  assert.deepEqual(said(["no"], ["no"], {}, own), ['no row has the label "yes": the model learns never to answer so']);
  const many = Array.from({ length: 9 }, (_, i) => String(i));
  assert.match(said(["0", "1"], many).join(), /the labels "2", "3", "4", "5", "6", … \(7 in all\)/);
});

test("stages without conversations leave bad rows out as well, and tell them", async () => {
  const text = (value: string) => JSON.stringify({ text: value, label: "a", id: 1 });
  const folder = writeData("a.jsonl", [text(""), "{", text("ok"), JSON.stringify({ label: "a" })].join("\n"));
  for (const objective of [classification, pt] as Objective[]) {
    const warnings: string[] = [];
    const source = sourceIn(folder, 99, warnings);
    const skipping = {
      ...source,
      files: { ...source.files, onBadRow: "skip" },
      tokenize: { ...source.tokenize, onBadRow: "skip" },
    } as const;
    const rows = await objective.read(["a.jsonl"], skipping, objective.config.parse({}));
    assert.deepEqual(
      rows.map(({ where }) => where),
      ["a.jsonl:3"],
    );
    assert.match(warnings.join("\n"), /2 of 4 rows are left out, .*\n.*1 of 2 rows are left out|3 of 4 rows are left out/);
    assert.match(warnings.join("\n"), /not used.*"id"/);
  }
});

test("classification cuts long texts with a word, and refuses one without tokens", async () => {
  const row = (text: string) => JSON.stringify({ text, label: "a" });
  const warnings: string[] = [];
  const folder = writeData("a.jsonl", [row("a long text"), row("short")].join("\n"));
  const rows = await classification.read(["a.jsonl"], sourceIn(folder, 6, warnings), configOf());
  assert.deepEqual(
    rows.map(({ ids }) => ids.length),
    [6, 5],
  );
  assert.match(warnings.join(), /1 of 2 rows are longer than cutoff_len = 6/);
  const empty = writeData("a.jsonl", row(""));
  await assert.rejects(classification.read(["a.jsonl"], sourceIn(empty, 6), configOf()), {
    code: "DATA",
    message: /a\.jsonl:1: the text has no tokens/,
  });
});
