import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { Rng } from "../core/rng.js";
import { scope } from "../core/tensor.js";
import { loadEngine } from "../engine/load.js";
import { openModel } from "../io/open-model.js";
import { temporaryFolder } from "../io/testing/folders.js";
import { loadModel } from "../models/load.js";
import { packSequences } from "../models/token-batch.js";
import { loadTokenizer } from "../text/load-tokenizer.js";
import { lora } from "../tuners/lora/lora.js";
import { saveTuned } from "../tuners/tuned-files.js";
import { exportModel } from "./export.js";
import { openBase } from "./merged-model.js";
import { questionsOf, spread } from "./questions.js";
import { readAs, readersOf } from "./reader.js";
import { judged, overall, type Receipt, type Sayings } from "./receipt.js";

const base = join(import.meta.dirname, "../../../test/fixtures/tiny-llama/tied");
const reader = { program: "llama.cpp", arithmetic: "f32" } as const;

/** Answers, of which the first so many are right. */
const sayings = (loss: number, right: readonly boolean[], said = right.map(String)): Sayings => ({ loss, said, right });
const rightOnes = (count: number, of = 50) => Array.from({ length: of }, (_, i) => i < count);

test("a reading is refused where answers are lost beyond chance, and warned of where less is", () => {
  const before = sayings(0.2, rightOnes(22));
  const judge = (after: Sayings, along = 1) =>
    judged(reader, { baseLoss: 1.2, before, after, change: { along, size: 1, unchanged: 0.97 }, hasAnswers: true });

  const lost = judge(sayings(0.25, rightOnes(12)));
  assert.equal(lost.verdict, "refuse"); // the case that a table of logits called fine
  assert.match(lost.reasons[0]!, /^12 of 50 answers are right, and 22 were before \(10 lost, 0 gained\)$/);
  assert.deepEqual(lost.answers, { loss: 0.25, right: 12, lost: 10, gained: 0, changed: 0.2 });
  assert.equal(judge(sayings(0.2, rightOnes(21))).verdict, "pass");
  assert.equal(judge(sayings(0.2, rightOnes(20))).verdict, "warn");
  assert.equal(judge(sayings(0.2, rightOnes(22)), 0.1).verdict, "warn");
  assert.match(judge(sayings(0.2, rightOnes(22)), 0.1).reasons[0]!, /^10 % of the adapter's change is left.*97 % of them/);

  const swapped = rightOnes(22).map((right, i) => (i < 6 ? false : i >= 44 ? true : right));
  assert.equal(judge(sayings(0.2, swapped)).verdict, "pass", "six lost and six gained: chance"); // 24 % changed
  assert.equal(judge(sayings(0.9, rightOnes(22))).verdict, "refuse"); // 30 % of what was learnt
  assert.equal(judge(sayings(Number.NaN, rightOnes(22))).verdict, "refuse");
  assert.equal(judge(sayings(0.35, rightOnes(22))).verdict, "warn"); // 85 %
});

test("without rows only the change can warn, and another program's refusal is a warning", () => {
  const none: Sayings = { loss: null, said: [], right: [] };
  const of = (along: number) =>
    judged(reader, { baseLoss: null, before: none, after: none, change: { along, size: 1, unchanged: 1 }, hasAnswers: false });
  assert.deepEqual([of(1).verdict, of(0).verdict, of(1).answers], ["pass", "warn", null]);
  const verdict = (first: "pass" | "warn" | "refuse", second: "pass" | "warn" | "refuse") =>
    overall([
      { ...of(1), verdict: first },
      { ...of(1), verdict: second },
    ]);
  assert.deepEqual(
    [
      verdict("pass", "pass"),
      verdict("pass", "refuse"),
      verdict("pass", "warn"),
      verdict("refuse", "pass"),
      verdict("warn", "pass"),
    ],
    ["pass", "warn", "pass", "refuse", "warn"],
  );
});

test("the last answer of a row is asked for; a text without questions is gone on with", async () => {
  const tokenizer = await loadTokenizer(await openModel(base));
  const end = [...tokenizer.stopIds][0]!;
  const ids = Int32Array.of(1, 70, 71, 72, end, 73, 74, 75, end, 10);
  const row = { where: "", tokens: ids.length, ids, supervised: Uint8Array.of(0, 0, 0, 1, 1, 0, 0, 1, 1, 0) };
  const [question] = questionsOf([row], tokenizer, 5);
  assert.deepEqual([...question!.prompt], [1, 70, 71, 72, end, 73, 74]);
  assert.equal(question!.answer, tokenizer.decode(Int32Array.of(75)));
  assert.equal(question!.newTokens, 1 + 8);

  const text = {
    where: "",
    tokens: 20,
    ids: Int32Array.from({ length: 20 }, (_, i) => 60 + i),
    supervised: new Uint8Array(20).fill(1, 1),
  };
  const [toGoOn] = questionsOf([text], tokenizer, 5);
  assert.deepEqual([toGoOn!.prompt.length, toGoOn!.answer], [10, null]);
  assert.deepEqual(spread([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 4), [0, 2, 5, 7]);
  assert.deepEqual(spread([0, 1], 4), [0, 1]);
});

test("a reader rounds what goes into products as its program does", async () => {
  assert.deepEqual(
    (["f32", "f16", "bf16", "q8_0", "q4_k_m"] as const).map((type) => readersOf("gguf", type, "bf16")[0]!.rounds),
    ["nothing", "as weights", "as weights", "to 8 bits", "to 8 bits"],
  );
  assert.deepEqual(
    readersOf("hf", "f16", "bf16").map(({ program, compute }) => [program, compute]),
    [
      ["transformers", "f32"],
      ["attune", "bf16"],
    ],
  );
  const logits = async (change: (model: Parameters<typeof readAs>[0]) => void) => {
    const { model } = await openBase({ files: await openModel(base), storing: undefined });
    change(model);
    const ids = Int32Array.from({ length: 12 }, (_, i) => (i * 37) % 256);
    const result = scope(() => model.logits(packSequences([ids]), Int32Array.from(ids.keys())));
    const values = await result.read();
    for (const one of [result, model]) one.dispose();
    return values;
  };
  const exact = await logits(() => {});
  const differenceTo = (values: Float32Array) =>
    values.reduce((most, value, i) => Math.max(most, Math.abs(value - exact[i]!)), 0);
  assert.equal(differenceTo(await logits((model) => readAs(model, { rounds: "nothing" }))), 0);
  const inEight = differenceTo(await logits((model) => readAs(model, { rounds: "to 8 bits" })));
  assert.ok(inEight > 1e-4 && inEight < 0.5, `${inEight}`);
});

/** The folder of a run whose LoRA changed the weights by about `size` of theirs, with rows that it held out. */
async function runFolder(t: TestContext, size: number): Promise<string> {
  const folder = temporaryFolder(t);
  const data = join(folder, "rows.jsonl");
  const rows = Array.from({ length: 40 }, (_, i) => JSON.stringify({ instruction: `Where is cat ${i}?`, output: `on mat ${i}` }));
  writeFileSync(data, rows.join("\n"));
  const out = join(folder, "run");
  mkdirSync(out);
  const files = await openModel(base);
  const model = await loadModel({ kernels: loadEngine(), compute: "f32" }, files);
  const config = lora.config.parse({});
  lora.bind(config).apply(model, new Rng(1));
  const rng = new Rng(2);
  for (const [name, { value }] of model.trainableParameters())
    if (name.endsWith("lora_B.weight"))
      value.device.kernels.write(
        value.id,
        0,
        Float32Array.from({ length: value.size }, () => size * rng.normal()),
      );
  await saveTuned(out, model, lora.bind(config), { name: base, config: files.config });
  model.dispose();
  const recipe = { model_name_or_path: base, dataset: data, output_dir: out, val_size: 10, finetuning_type: "lora" };
  writeFileSync(join(out, "recipe.yaml"), JSON.stringify(recipe));
  return out;
}

const receiptIn = (folder: string) => JSON.parse(readFileSync(join(folder, "export_receipt.json"), "utf8")) as Receipt;

test("a receipt measures the written file with the rows that the run held out", async (t) => {
  const adapter = await runFolder(t, 0.02);
  const out = join(temporaryFolder(t), "out");
  const heard: number[] = [];
  const { receipt } = await exportModel({ adapter, to: "gguf", type: "f16", out, onCheck: (done) => heard.push(done) });
  assert.deepEqual(receiptIn(out), receipt);
  assert.deepEqual([receipt!.rows!.source, receipt!.rows!.loss, receipt!.rows!.answers], ["held-out", 10, 10]);
  assert.ok(receipt!.before.loss! > 0 && receipt!.before.baseLoss !== receipt!.before.loss);
  assert.deepEqual(heard.slice(-1), [30], "before, and two readers");
  const [first, own] = receipt!.readings;
  assert.deepEqual([first!.program, own!.program, first!.verdict], ["llama.cpp", "attune", "pass"]);
  assert.ok(Math.abs(first!.answers!.loss - receipt!.before.loss!) < 0.05);
  assert.ok(first!.change!.along > 0.99 && first!.change!.along < 1.01, JSON.stringify(first!.change));
  assert.match(receipt!.sha256["model.gguf"]!, /^[0-9a-f]{64}$/);
  assert.equal(receipt!.verdict, receipt!.readings[1]!.verdict === "refuse" ? "warn" : "pass");

  const unchecked = await exportModel({ adapter, to: "gguf", type: "f16", out: `${out}-2`, checkRows: 0 });
  assert.equal(unchecked.receipt!.rows, null);
  assert.equal(unchecked.receipt!.readings[0]!.answers, null);
});

test("a run's rows that are gone are told of, and the export is made without them", async (t) => {
  const adapter = temporaryFolder(t);
  cpSync(await runFolder(t, 0.02), adapter, { recursive: true });
  const recipe = join(adapter, "recipe.yaml");
  writeFileSync(recipe, readFileSync(recipe, "utf8").replace("rows.jsonl", "moved.jsonl"));
  const notices: string[] = [];
  const out = join(temporaryFolder(t), "out");
  const { receipt } = await exportModel({ adapter, to: "hf", type: "f32", out, onNotice: (message) => notices.push(message) });
  assert.equal(receipt!.rows, null);
  assert.match(notices.join("\n"), /rows cannot be read again.*--data.*moved\.jsonl/);
});

test("what rounding leaves of a change: a large one as it is, one below the steps of the type in noise", async (t) => {
  const along = async (size: number, type: "bf16" | "f16") => {
    const out = join(temporaryFolder(t), "out");
    const { receipt } = await exportModel({
      adapter: await runFolder(t, size),
      to: "gguf",
      type,
      out,
      checkRows: 0,
      force: true,
    });
    return receipt!.readings[0]!.change!;
  };
  // The fixture's weights are f32, so rounding is blind to their grid: what is small is noise, and in the mean still there.
  const [small, large] = [await along(1e-4, "bf16"), await along(0.1, "bf16")];
  assert.ok(small.size > 3, JSON.stringify(small));
  assert.ok(large.size < 1.2 && Math.abs(large.along - 1) < 0.02, JSON.stringify(large));
  assert.ok(small.unchanged > large.unchanged);
});
