import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { everyMethod } from "../src/backends/index.js";
import { readUse } from "../src/cli/recipe-use.js";
import { Rng } from "../src/core/rng.js";
import { SymbolicDevice } from "../src/core/symbolic.js";
import { scope } from "../src/core/tensor.js";
import { combineAdapters } from "../src/export/combine-adapters.js";
import { exportModel } from "../src/export/export.js";
import { Chat } from "../src/generate/chat.js";
import { Classifier } from "../src/generate/classifier.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { asCausalLM } from "../src/models/causal-lm.js";
import { loadModel } from "../src/models/load.js";
import { packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import { parseInference } from "../src/recipe/inference.js";
import { assemble, sketch } from "../src/train/assemble.js";
import { tuners } from "../src/tuners/index.js";
import { lora } from "../src/tuners/lora/lora.js";
import { SharedBase } from "../src/tuners/shared-base.js";
import { applyAdapter, openBaseAdapters } from "../src/tuners/tuned-files.js";
import { assertClose } from "./support/assert-close.js";
import { device, engine } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { collect, hashOf, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { assertPeakOf } from "./support/step-peak.js";
import { exampleOf, loadTinyLlama, logitsOf, reference, sequences, tinyLlama } from "./support/tiny-llama.js";

/** Trains an adapter into `folder/name`. */
async function trained(folder: string, name: string, settings: Readonly<Record<string, unknown>> = {}) {
  const output_dir = join(folder, name);
  const events = await collect(tinyRecipe(folder, { max_steps: 4, lora_dropout: 0, ...settings, output_dir }));
  return { path: output_dir, events };
}

const firstLoss = (events: Awaited<ReturnType<typeof collect>>) => events.find((event) => event.type === "step")!.loss;

/** Logits of the base with adapters, each merged before the next. */
async function logitsOver(...adapters: readonly string[]): Promise<Float32Array> {
  const { model } = await loadTinyLlama("tied");
  for (const [i, folder] of adapters.entries()) {
    const { tuning } = await applyAdapter(folder, model, tuners, new Rng(0));
    if (i + 1 < adapters.length) tuning.merge!(model);
  }
  const logits = await logitsOf(model);
  model.dispose();
  return logits;
}

/** The folder of an adapter without what lies below it. */
function alone(path: string, to: string): string {
  cpSync(path, to, { recursive: true });
  const file = join(to, "adapter_config.json");
  const { base_adapters: _, ...config } = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
  writeFileSync(file, JSON.stringify(config));
  return to;
}

const names = ["adapter_config.json", "adapter_model.safetensors"];
const hashes = (folder: string) => names.map((name) => hashOf(join(folder, name)));

test("a new adapter trains over old ones: it begins where they stand, keeps them as they are, and all that read it merge them first", async () => {
  const folder = makeFolder();
  const [one, two] = [
    await trained(folder, "one"),
    await trained(folder, "two", { lora_target: "q_proj,down_proj", seed: 7, use_dora: true }),
  ];
  const before = [one, two].map(({ path }) => hashes(path));
  const goesOn = await trained(folder, "goes-on", { adapter_name_or_path: one.path });
  const overOne = { adapter_name_or_path: one.path, create_new_adapter: true };
  const over = await trained(folder, "over-one", overOne);
  assert.ok(
    Math.abs(firstLoss(over.events) - firstLoss(goesOn.events)) < 1e-6,
    `${firstLoss(over.events)}, ${firstLoss(goesOn.events)}`,
  );
  assert.ok(
    Math.abs(firstLoss(over.events) - firstLoss(one.events)) > 1e-2,
    "the old adapter changes nothing: this test cannot fail",
  );
  assert.ok(over.events.some((event) => event.type === "notice" && /trained over .*one.*PEFT/.test(event.message)));

  const both = await trained(folder, "both", { adapter_name_or_path: `${one.path}, ${two.path}`, create_new_adapter: true });
  assert.deepEqual(
    [one, two].map(({ path }) => hashes(path)),
    before,
  );
  assert.deepEqual(
    [1, 2].map((n) => hashes(join(both.path, `base_adapters/${n}`))),
    before,
  );
  assert.deepEqual(readdirSync(join(both.path, "base_adapters/1")).sort(), names);
  const expected = await logitsOver(one.path, two.path, alone(both.path, join(folder, "both-alone")));
  rmSync(one.path, { recursive: true });
  rmSync(two.path, { recursive: true });
  assertClose(await logitsOver(both.path), expected, 1e-5, "both");
  assert.ok(readFileSync(join(both.path, "README.md"), "utf8").includes('for below in ["base_adapters/1","base_adapters/2"]:'));

  const third = await trained(folder, "third", { adapter_name_or_path: both.path, create_new_adapter: true });
  assert.ok(
    readFileSync(join(third.path, "README.md"), "utf8").includes(
      '["base_adapters/1/base_adapters/1","base_adapters/1/base_adapters/2","base_adapters/1"]',
    ),
  );
  const stacked = await logitsOver(both.path, alone(third.path, join(folder, "third-alone")));
  assertClose(await logitsOver(third.path), stacked, 1e-5, "third");

  const out = join(folder, "merged");
  await exportModel({ adapter: third.path, to: "hf", type: "f32", out, checkRows: 0 });
  const merged = asCausalLM(await loadModel(device, await openModelFolder(out)), "the test");
  assertClose(await logitsOf(merged), stacked, 1e-4, "exported");
  merged.dispose();
  const answer = async (options: Parameters<typeof Chat.open>[0]) => {
    const chat = await Chat.open({ ...options, compute: "f32" });
    try {
      return await chat.answerAll([[{ role: "user", content: "Where is the cat?" }]], { temperature: 0, maxNewTokens: 12 });
    } finally {
      chat.close();
    }
  };
  const model = join(tinyLlama, "tied");
  assert.deepEqual(await answer({ model, adapter: third.path }), await answer({ model: out }));
  assert.notDeepEqual(await answer({ model, adapter: third.path }), await answer({ model }));
  await assert.rejects(
    exportModel({ adapter: third.path, to: "gguf-lora", out: join(folder, "g") }),
    /trained over other adapters/,
  );
  await assert.rejects(
    combineAdapters([{ path: third.path, weight: 1 }], join(folder, "c"), { method: "cat" }),
    /trained over other adapters/,
  );
});

async function logitsUnder(base: SharedBase, name: string | null): Promise<Float32Array> {
  const batch = packSequences(sequences);
  const rows = Int32Array.from(batch.ids.keys());
  const logits = base.with(name, (model) => scope(() => asCausalLM(model, "the test").logits(batch, rows)));
  const values = await logits.read();
  logits.dispose();
  return values;
}

test("the recipe of such a run stands for what it made, in chat and export", async () => {
  const folder = makeFolder();
  const [one, two] = [await trained(folder, "one"), await trained(folder, "two", { seed: 7 })];
  const over = await trained(folder, "over", { adapter_name_or_path: `${one.path},${two.path}`, create_new_adapter: true });
  const file = join(over.path, "recipe.yaml");
  const { recipe } = parseInference({ text: readFileSync(file, "utf8"), file }, [], everyMethod);
  assert.equal(recipe.adapter_name_or_path, `${one.path},${two.path}`);
  const use = await readUse({ source: { text: readFileSync(file, "utf8"), file }, overrides: [] }, []);
  assert.deepEqual(use.result, { adapter: over.path });
  const text = "model_name_or_path: x\nadapter_name_or_path: a,b\ncreate_new_adapter: true\n";
  assert.throws(() => parseInference({ text, file: "chat.yaml" }, [], everyMethod), /chat\.yaml:2: .*one adapter, not several/);
});

for (const [method, settings] of [
  ["p-tuning", { num_virtual_tokens: 3 }],
  ["prefix-tuning", { num_virtual_tokens: 3 }],
  ["adapter", {}],
] as const)
  test(`${method} over a LoRA: what it is alone on the merged base, it is on a shared one`, async () => {
    const folder = makeFolder();
    const one = await trained(folder, "one");
    const over = await trained(folder, "over", {
      ...{ adapter_name_or_path: one.path, create_new_adapter: true, finetuning_type: method },
      ...{ packing: false, lora_dropout: undefined, ...settings },
    });
    const base = new SharedBase((await loadTinyLlama("tied")).model);
    await base.load("over", over.path);
    const ours = await logitsUnder(base, "over");
    base.dispose();
    assert.deepEqual(ours, await logitsOver(over.path));
    assert.notDeepEqual(ours, await logitsOver(alone(over.path, join(folder, "alone"))));
    assertClose(ours, await logitsOver(one.path, alone(over.path, join(folder, "alone"))), 1e-5, "merged by hand");
  });

test("on a shared base, an adapter with others below it leaves the base and its neighbours bit by bit as they are", async () => {
  const folder = makeFolder();
  const one = await trained(folder, "one", {
    lora_target: "embed_tokens,q_proj,lm_head",
    bias: "all",
    additional_target: "norm",
  });
  const over = await trained(folder, "over", {
    adapter_name_or_path: one.path,
    create_new_adapter: true,
    lora_target: "q_proj,v_proj",
  });
  const live = engine.stats().liveBytes;
  const { model } = await loadTinyLlama("tied");
  const bare = await logitsOf(model);
  const base = new SharedBase(model);
  await base.load("one", one.path);
  await base.load("over", over.path);
  const ofOne = await logitsOver(one.path);
  const ofOver = await logitsOver(over.path);
  const logits = (name: string | null) => logitsUnder(base, name);
  for (let turn = 0; turn < 2; turn++) {
    assert.deepEqual(await logits(null), bare);
    assert.deepEqual(await logits("one"), ofOne);
    assert.deepEqual(await logits("over"), ofOver);
  }
  base.remove("over");
  assert.deepEqual(await logits("one"), ofOne);
  assert.deepEqual(await logits(null), bare);
  base.dispose();
  await engine.sync();
  assert.equal(engine.stats().liveBytes, live);
});

test("a run over an old adapter that is resumed equals one that was not, and can be gone on from", async () => {
  const folder = makeFolder();
  const { path: old } = await trained(folder, "old");
  const settings = { adapter_name_or_path: old, create_new_adapter: true, lora_dropout: 0.1, max_steps: 6, num_train_epochs: 3 };
  const whole = await trained(folder, "whole", { ...settings, save_strategy: "steps", save_steps: 3 });
  const again = makeFolder();
  mkdirSync(join(again, "out"));
  cpSync(join(whole.path, "checkpoint-3"), join(again, "out/checkpoint-3"), { recursive: true });
  rmSync(old, { recursive: true });
  const more = { ...settings, resume_from_checkpoint: true, save_strategy: "steps", save_steps: 1, save_total_limit: 1 };
  const resumed = await trained(again, "out", more);
  assert.deepEqual(trace(resumed.events), trace(whole.events).slice(3));
  for (const name of [...names, ...names.map((each) => `base_adapters/1/${each}`)])
    assert.equal(hashOf(join(resumed.path, name)), hashOf(join(whole.path, name)), name);
  assert.ok(!existsSync(join(resumed.path, "checkpoint-3")));

  const next = await trained(folder, "next", { adapter_name_or_path: whole.path, max_steps: 1, learning_rate: 1e-9 });
  const last = whole.events.filter((event) => event.type === "step").at(-1)!;
  assert.ok(firstLoss(next.events) < 1.2 * last.loss, `${firstLoss(next.events)} after ${last.loss}`);
  assertClose(await logitsOver(next.path), await logitsOver(whole.path), 1e-5, "gone on from");
});

test("what cannot be stacked is refused before the run, with its reason", async () => {
  const folder = makeFolder();
  const { path: old } = await trained(folder, "old", { max_steps: 1 });
  const before = hashes(old);
  const { path: prompt } = await trained(folder, "prompt", {
    max_steps: 1,
    finetuning_type: "p-tuning",
    packing: false,
    lora_dropout: undefined,
  });
  const over = (settings: Readonly<Record<string, unknown>>) =>
    trained(folder, "refused", { adapter_name_or_path: old, create_new_adapter: true, lora_dropout: undefined, ...settings });
  await assert.rejects(over({ adapter_name_or_path: prompt }), /prompt: p-tuning cannot be merged/);
  await assert.rejects(
    trained(folder, "old", { adapter_name_or_path: old, create_new_adapter: true, overwrite_output_dir: true }),
    /lies in output_dir/,
  );
  assert.deepEqual(hashes(old), before);
  await assert.rejects(over({ finetuning_type: "full" }), /full trains the model itself and makes no adapter/);
  await assert.rejects(over({ finetuning_type: "qlora" }), /would quantize that base: export a merged model/);
  await assert.rejects(over({ adapter_name_or_path: `${old},${folder}/gone` }), /gone: no adapter here/);
  await assert.rejects(
    over({ create_new_adapter: false, adapter_name_or_path: `${old},${old}` }),
    /one adapter, not several: set create_new_adapter: true/,
  );
  const hostile = alone(old, join(folder, "hostile"));
  const file = join(hostile, "adapter_config.json");
  const config = JSON.parse(readFileSync(file, "utf8")) as object;
  writeFileSync(file, JSON.stringify({ ...config, base_adapters: ["../../old"] }));
  await assert.rejects(logitsOver(hostile), /base_adapters: expected a list/);
  writeFileSync(file, JSON.stringify({ ...config, base_adapters: ["base_adapters/1"] }));
  await assert.rejects(logitsOver(hostile), /base_adapters\/1: no adapter here/);
});

for (const [name, settings] of [
  ["lora", {}],
  ["dora", { use_dora: true }],
  ["pissa", { pissa_init: true, pissa_iter: 2 }],
  ["more than Linears", { additional_target: "lm_head", bias: "all" }],
] as const)
  test(`${name} over an old adapter needs what the estimate says, byte by byte`, async () => {
    const folder = makeFolder();
    const { path: old } = await trained(folder, "old", { max_steps: 1, lora_target: "q_proj,up_proj,embed_tokens" });
    const rows = Array.from({ length: 16 }, (_, i) => exampleOf(reference.sequences[i % 2]!));
    const files = await openModelFolder(join(tinyLlama, "untied"));
    const tuning = lora.bind(lora.config.parse(settings));
    const parts = { ...partsOf(files, tuning), baseAdapters: await openBaseAdapters([old], tuners) };
    const before = engine.stats().liveBytes;
    const start = { rng: new Rng(0), encode: () => new Int32Array() };
    const trainee = await assemble({ ...device, compute: "f32" }, parts, { weightsFrom: null, start, hasNewHead: false });
    assert.ok(sketch(new SymbolicDevice(), parts).parameters.size === trainee.parameters.size);
    await assertPeakOf(trainee, { parts, task: nextToken, rows, evalRows: rows, compute: "f32" }, before);
    await engine.sync();
    assert.equal(engine.stats().liveBytes, before);
  });

test("a classifier trains over an old adapter, and over an old classifier begins with its head", async () => {
  const folder = makeFolder();
  const rows = join(folder, "labels.jsonl");
  const texts = ["good", "fine", "bad", "poor"].map((text, i) => JSON.stringify({ text, label: i < 2 ? "yes" : "no" }));
  writeFileSync(rows, texts.join("\n"));
  const one = await trained(folder, "one");
  const settings = {
    stage: "classification",
    dataset: [rows],
    packing: false,
    max_steps: 8,
    num_train_epochs: 8,
    create_new_adapter: true,
  };
  const over = await trained(folder, "over", { ...settings, adapter_name_or_path: one.path });
  const again = await trained(folder, "again", {
    ...settings,
    adapter_name_or_path: over.path,
    learning_rate: 1e-9,
    max_steps: 1,
  });
  const scores = async (adapter: string) => {
    const classifier = await Classifier.open({ model: join(tinyLlama, "tied"), adapter, compute: "f32" });
    const found = await classifier.classify(["good", "bad"]);
    classifier.close();
    return Float32Array.from(found.flatMap(({ probabilities }) => Object.values(probabilities)));
  };
  const expected = await scores(over.path);
  assertClose(await scores(again.path), expected, 1e-5, "over a classifier");
  const without = await scores(alone(over.path, join(folder, "alone")));
  assert.ok(
    expected.some((value, i) => Math.abs(value - without[i]!) > 1e-3),
    "the old adapter changes nothing: this test cannot fail",
  );
  const back = { adapter_name_or_path: over.path, create_new_adapter: true };
  await assert.rejects(trained(folder, "back", back), /brings a head/);
});
