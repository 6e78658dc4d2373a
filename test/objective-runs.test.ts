/** Whole runs of the objectives beside sft: what they leave behind, that they resume bit by bit, and that what they made can be used. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { stringify } from "yaml";
import { Chat, Classifier, type EndEvent, type EvalEvent, type Metrics, type StartEvent } from "../src/index.js";
import { bases } from "./support/classifiers.js";
import { type AnyRecipe, collect, hashOf, makeFolder, trace } from "./support/run.js";
import { tinyLlama } from "./support/tiny-llama.js";

const bin = join(import.meta.dirname, "../../bin/attune.js");

const dishes = ["soup", "tea", "noodle"];
const labels = ["good", "bad"];

/** 48 short reviews of two classes. */
function writeReviews(folder: string): string {
  const path = join(folder, "reviews.jsonl");
  const tables = Array.from({ length: 8 }, (_, i) => i + 1);
  const rows = dishes.flatMap((dish) =>
    tables.flatMap((table) => labels.map((label) => ({ text: `${table}: the ${dish} was ${label}!`, label }))),
  );
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

function reviewRecipe(folder: string, changes: Readonly<Record<string, unknown>> = {}): AnyRecipe {
  return {
    stage: "classification",
    model_name_or_path: bases.bert!,
    dataset: [writeReviews(folder)],
    output_dir: join(folder, "out"),
    val_size: 12,
    lora_dropout: 0.1,
    per_device_train_batch_size: 4,
    gradient_accumulation_steps: 2,
    num_train_epochs: 2,
    learning_rate: 1e-2,
    warmup_steps: 2,
    logging_steps: 1,
    eval_strategy: "epoch",
    save_strategy: "no",
    plot_loss: false,
    compute_dtype: "f32",
    ...changes,
  };
}

const json = (path: string) => JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;

test("an adapter that is computed from what trained, as PiSSA's, holds a classifier's head once, and classifies", async () => {
  const folder = makeFolder();
  await collect(reviewRecipe(folder, { max_steps: 2, pissa_init: true, pissa_iter: 2 }));
  const classifier = await Classifier.open({ model: bases.bert!, adapter: join(folder, "out") });
  assert.equal((await classifier.classify(["1: the tea was bad!"])).length, 1);
  classifier.close();
});

test("a classifier run reports accuracy, F1 and every class, in its events and its files", async () => {
  const folder = makeFolder();
  const events = await collect(reviewRecipe(folder, { num_train_epochs: 12 }));
  const evaluations = events.filter((event): event is EvalEvent => event.type === "eval");
  assert.equal(evaluations.length, 12);
  const steps = events.filter((event) => event.type === "step");
  assert.ok(
    steps.every((step) => !("supervisedTokens" in step)),
    "labels belong to rows, not to tokens",
  );
  const last = evaluations.at(-1)!.metrics as { accuracy: number; f1: number; classes: Record<string, Metrics> };
  assert.ok(last.accuracy > 0.9, `accuracy ${last.accuracy}`);
  assert.deepEqual(Object.keys(last.classes), ["bad", "good"]);
  assert.equal(Number(last.classes.bad!.support) + Number(last.classes.good!.support), 12);

  const out = join(folder, "out");
  const results = json(join(out, "eval_results.json"));
  assert.equal(results.eval_accuracy, last.accuracy);
  assert.deepEqual(results.eval_classes, last.classes);
  const all = json(join(out, "all_results.json"));
  assert.equal(all.eval_f1, last.f1);
  assert.ok(!("num_supervised_tokens" in all));
  assert.equal(
    all.num_input_tokens_seen,
    steps.reduce((sum, { tokens }) => sum + tokens, 0),
  );
  assert.equal(Math.round(Number(all.train_samples_per_second) * Number(all.train_runtime)), 12 * 36);
  assert.equal((events.at(-1) as EndEvent).results.eval_metrics!.accuracy, last.accuracy);
  const logged = readFileSync(join(out, "trainer_log.jsonl"), "utf8").trim().split("\n");
  assert.equal((JSON.parse(logged.at(-1)!) as { eval_accuracy: number }).eval_accuracy, last.accuracy);
  const { task_type, modules_to_save } = json(join(out, "adapter_config.json"));
  assert.deepEqual([task_type, modules_to_save], ["SEQ_CLS", ["classifier"]]);

  const classifier = await Classifier.open({ model: bases.bert!, adapter: out });
  const texts = Array.from({ length: 20 }, (_, i) => `9: the tea was ${labels[i % 2]}!`);
  const found = await classifier.classify(texts);
  assert.deepEqual(
    found.map(({ label }) => label),
    texts.map((_, i) => labels[i % 2]),
  );
  for (const { probabilities } of found) assert.ok(Math.abs(probabilities.bad! + probabilities.good! - 1) < 1e-6);
  classifier.close();
});

for (const [name, changes] of Object.entries({
  "bert, lora": {},
  "llama, full": { model_name_or_path: bases.llama!, finetuning_type: "full", lora_dropout: undefined },
  "bert, prefix-tuning": { finetuning_type: "prefix-tuning", lora_dropout: undefined },
}))
  test(`${name}: a classifier run resumes bit by bit, its head included`, async () => {
    const whole = makeFolder();
    const recipe = { ...changes, save_strategy: "steps", save_steps: 3 };
    const expected = trace(await collect(reviewRecipe(whole, recipe)));
    const folder = makeFolder();
    mkdirSync(join(folder, "out"));
    cpSync(join(whole, "out/checkpoint-3"), join(folder, "out/checkpoint-3"), { recursive: true });
    const resumed = await collect(reviewRecipe(folder, { ...recipe, resume_from_checkpoint: true }));
    assert.equal(resumed.find((event): event is StartEvent => event.type === "start")!.resumedFromStep, 3);
    assert.deepEqual(trace(resumed), expected.slice(3));
    const weights = name === "llama, full" ? "out/model.safetensors" : "out/adapter_model.safetensors";
    assert.equal(hashOf(join(folder, weights)), hashOf(join(whole, weights)));
    assert.deepEqual(json(join(folder, "out/eval_results.json")), json(join(whole, "out/eval_results.json")));
  });

test("a classifier that was trained whole is a base like any other: it trains on, keeps its classes, and is no chat", async () => {
  const folder = makeFolder();
  const whole = { model_name_or_path: bases.llama!, finetuning_type: "full", lora_dropout: undefined };
  await collect(reviewRecipe(folder, { ...whole, learning_rate: 3e-3 }));
  const out = join(folder, "out");
  assert.deepEqual(json(join(out, "config.json")).architectures, ["LlamaForSequenceClassification"]);
  const classifier = await Classifier.open({ model: out });
  assert.deepEqual(classifier.classes, ["bad", "good"]);
  classifier.close();
  await assert.rejects(Chat.open({ model: out }), /a chat needs a model that predicts the next token, and this is a classifier/);

  const more = reviewRecipe(folder, { model_name_or_path: out, output_dir: join(folder, "more"), num_train_epochs: 1 });
  const again = (await collect(more)).filter((event) => event.type === "step");
  assert.ok(again[0]!.loss < 0.6, `it begins where it was: ${again[0]!.loss}`);
  const both = await Classifier.open({ model: out, adapter: join(folder, "more") });
  assert.deepEqual(both.classes, ["bad", "good"]);
  both.close();
});

test("rows as long as the model has positions, virtual tokens counted in", async () => {
  const folder = makeFolder();
  const path = join(folder, "long.jsonl");
  writeFileSync(path, ["good", "bad"].map((label) => JSON.stringify({ text: `${label} `.repeat(80), label })).join("\n"));
  const recipe = reviewRecipe(folder, { dataset: [path], val_size: 0, eval_strategy: "no", num_train_epochs: 1 });
  const events = await collect({ ...recipe, finetuning_type: "p-tuning", lora_dropout: undefined, num_virtual_tokens: 10 });
  const notices = events.flatMap((event) => (event.type === "notice" ? [event.message] : []));
  assert.ok(
    notices.some((message) => message.startsWith("cutoff_len is 54 here")),
    notices.join("\n"),
  );
  assert.ok(notices.some((message) => message.startsWith("2 of 2 rows are longer than cutoff_len = 54")));
});

test("what an objective needs of a model is said before any data is read", async () => {
  const folder = makeFolder();
  const recipe = reviewRecipe(folder, { stage: "sft", dataset: ["nowhere.jsonl"] });
  await assert.rejects(collect(recipe), { code: "MODEL", message: /stage sft needs a model that predicts the next token/ });
});

test("as a user types it: train, then classify", () => {
  const folder = makeFolder();
  const path = join(folder, "recipe.yaml");
  writeFileSync(path, stringify(reviewRecipe(folder, { num_train_epochs: 12, eval_strategy: "steps", eval_steps: 40 })));
  const attune = (...args: string[]) =>
    spawnSync(process.execPath, [bin, ...args], { encoding: "utf8", input: "the soup was bad!\n" });
  const trained = attune("train", path);
  assert.equal(trained.status, 0, trained.stderr);
  assert.match(trained.stdout, /held-out loss [\d.]+, accuracy [\d.]+, f1 [\d.]+/);
  assert.match(trained.stdout, /classes +precision +recall +f1 +support\n +bad +[\d.]+ +[\d.]+ +[\d.]+ +\d+\n +good /);
  assert.match(trained.stdout, /attune(?:\.js)? classify --model \S+ --adapter \S+out/);
  const found = attune("classify", "--model", bases.bert!, "--adapter", join(folder, "out"));
  assert.equal(found.status, 0, found.stderr);
  assert.match(found.stdout, /^bad\t[\d.]+\tthe soup was bad!\n$/);
  const chat = attune("classify", "--model", bases.bert!, "text");
  assert.equal(chat.status, 2);
  assert.match(chat.stderr, /is no classifier/);
});

test("pt: plain text is learned in full sequences, and resumes bit by bit", async () => {
  const recipeIn = (folder: string, changes: Readonly<Record<string, unknown>> = {}): AnyRecipe => {
    const path = join(folder, "texts.txt");
    const line = (i: number) => `line ${i}: ${"the cat sat on the mat. ".repeat(1 + (i % 5))}`;
    writeFileSync(path, Array.from({ length: 20 }, (_, i) => line(i)).join("\n"));
    return {
      stage: "pt",
      model_name_or_path: bases.llama!,
      dataset: [path],
      output_dir: join(folder, "out"),
      val_size: 2,
      cutoff_len: 64,
      per_device_train_batch_size: 2,
      num_train_epochs: 6,
      learning_rate: 1e-2,
      save_strategy: "steps",
      save_steps: 20,
      plot_loss: false,
      compute_dtype: "f32",
      ...changes,
    };
  };
  const whole = makeFolder();
  const events = await collect(recipeIn(whole, { mask_history: true }));
  const said = events.map((event) => (event.type === "notice" ? event.message : "")).join("\n");
  assert.match(said, /mask_history changes nothing: stage pt reads no conversations/);
  const steps = events.filter((event) => event.type === "step");
  assert.ok(steps.at(-1)!.loss < 0.6 * steps[0]!.loss);
  const sizes = steps.slice(0, 5).map(({ tokens }) => tokens);
  assert.ok(Math.max(...sizes) > 100 && Math.max(...sizes) <= 128, `two full sequences a step: ${sizes}`);
  const folder = makeFolder();
  mkdirSync(join(folder, "out"));
  cpSync(join(whole, "out/checkpoint-20"), join(folder, "out/checkpoint-20"), { recursive: true });
  assert.deepEqual(trace(await collect(recipeIn(folder, { resume_from_checkpoint: true }))), trace(events).slice(20));
});

test("label_smoothing_factor reaches classification and pre-training", async () => {
  for (const changes of [{}, { stage: "pt", model_name_or_path: join(tinyLlama, "tied"), cutoff_len: 32 }]) {
    const losses = async (factor: number) => {
      const more = { max_steps: 1, lora_dropout: 0, disable_dropout: true, label_smoothing_factor: factor };
      const events = await collect(reviewRecipe(makeFolder(), { ...changes, ...more }));
      return events.flatMap((event) => (event.type === "step" ? [event.loss] : event.type === "eval" ? [event.evalLoss] : []));
    };
    const [plain, smoothed] = [await losses(0), await losses(0.5)];
    assert.equal(plain.length, 2);
    for (const [i, loss] of smoothed.entries()) assert.notEqual(loss, plain[i], JSON.stringify(changes));
  }
});
