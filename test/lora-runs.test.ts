import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { ConfigError } from "../src/errors.js";
import { type CombineOptions, combineAdapters } from "../src/export/combine-adapters.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { readEntry } from "../src/io/safetensors.js";
import { loadModel } from "../src/models/load.js";
import { tuners } from "../src/tuners/index.js";
import { lora } from "../src/tuners/lora/lora.js";
import { applyAdapter, saveTuned } from "../src/tuners/tuned-files.js";
import { assertClose } from "./support/assert-close.js";
import { device } from "./support/gradient-check.js";
import { collect, hashOf, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { loadTinyLlama, logitsOf, reference, runReference, tinyLlama } from "./support/tiny-llama.js";

test("a QLoRA run says what it keeps whole, can be resumed, and can be gone on from", async () => {
  const folder = makeFolder();
  const recipe = { finetuning_type: "qlora", loftq_init: true, loftq_iter: 2, max_steps: 6, num_train_epochs: 3 };
  const whole = await collect(tinyRecipe(folder, { ...recipe, save_strategy: "steps", save_steps: 3 }));
  assert.ok(whole.some((event) => event.type === "notice" && /rows of 80 are not whole blocks of nf4/.test(event.message)));

  const again = makeFolder();
  mkdirSync(join(again, "out"));
  cpSync(join(folder, "out/checkpoint-3"), join(again, "out/checkpoint-3"), { recursive: true });
  const resumed = await collect(tinyRecipe(again, { ...recipe, resume_from_checkpoint: true }));
  assert.deepEqual(trace(resumed), trace(whole).slice(3));
  const weights = "out/adapter_model.safetensors";
  assert.equal(hashOf(join(again, weights)), hashOf(join(folder, weights)));

  for (const finetuning_type of ["qlora", "lora"]) {
    const output_dir = join(folder, `more-${finetuning_type}`);
    const more = { finetuning_type, quantization_bit: 4, adapter_name_or_path: join(folder, "out"), output_dir, max_steps: 1 };
    const events = await collect(tinyRecipe(folder, { ...recipe, ...more }));
    const [step] = events.filter((event) => event.type === "step");
    const last = whole.filter((event) => event.type === "step").at(-1)!;
    assert.ok(step!.loss < 1.2 * last.loss, `goes on at ${step!.loss} where it was at ${last.loss}`);
  }
});

test("a frozen run saves a whole model, which is a base again", async () => {
  const folder = makeFolder();
  await collect(tinyRecipe(folder, { finetuning_type: "freeze", freeze_trainable_layers: 1, max_steps: 2 }));
  const out = join(folder, "out");
  const model = await loadModel(device, await openModelFolder(out));
  const before = await tensorsOf(join(tinyLlama, "tied"));
  const after = await tensorsOf(out);
  assert.deepEqual([...after.keys()].sort(), [...before.keys()].sort());
  for (const [name, values] of after)
    assert.equal(Buffer.compare(values, before.get(name)!) === 0, !name.startsWith("model.layers.1."), name);
  model.dispose();
});

async function tensorsOf(folder: string): Promise<Map<string, Uint8Array>> {
  const tensors = new Map<string, Uint8Array>();
  for (const [name, entry] of (await openModelFolder(folder)).tensors) tensors.set(name, await readEntry(entry));
  return tensors;
}

/** Two adapters of different ranks, trained a little. */
async function makeAdapters(folder: string): Promise<string[]> {
  const paths: string[] = [];
  for (const [i, settings] of [{ lora_rank: 3 }, { lora_rank: 5, use_rslora: true, lora_target: "q_proj,up_proj" }].entries()) {
    const { model, files } = await loadTinyLlama("tied");
    const config = lora.config.parse(settings);
    lora.bind(config).apply(model, new Rng(i));
    await runReference(model, reference.lora);
    paths.push(join(folder, `adapter-${i}`));
    await saveTuned(paths[i]!, model, lora.bind(config), { name: "tiny", config: files.config });
    model.dispose();
  }
  return paths;
}

/** Logits of the base with an adapter. */
async function logitsWith(path: string): Promise<Float32Array> {
  const { model } = await loadTinyLlama("tied");
  await applyAdapter(path, model, tuners, new Rng(0));
  const logits = await logitsOf(model);
  model.dispose();
  return logits;
}

test("adapters combine: side by side exactly, to a lower rank nearly, and each alone is itself", async () => {
  const folder = makeFolder();
  const [first, second] = (await makeAdapters(folder)) as [string, string];
  const combine = async (weights: readonly [number, number], options: CombineOptions) => {
    const output = join(folder, `${options.method}-${weights}`);
    const adapters = [
      { path: first, weight: weights[0] },
      { path: second, weight: weights[1] },
    ];
    await combineAdapters(adapters, output, options);
    return await logitsWith(output);
  };
  assertClose(await combine([1, 0], { method: "cat" }), await logitsWith(first), 2e-5, "the first alone");
  assertClose(await combine([0, 1], { method: "svd", rank: 5 }), await logitsWith(second), 2e-5, "the second alone");
  const both = await combine([0.5, -2], { method: "cat" });
  assertClose(await combine([0.5, -2], { method: "svd", rank: 8 }), both, 5e-5, "all directions");
  const config = JSON.parse(readFileSync(join(folder, "cat-0.5,-2", "adapter_config.json"), "utf8"));
  assert.deepEqual([config.r, config.lora_alpha, config.use_rslora], [8, 8, false]);
});

test("adapters that cannot be combined are refused", async () => {
  const folder = makeFolder();
  const [first, second] = (await makeAdapters(folder)) as [string, string];
  const refused = (adapters: Parameters<typeof combineAdapters>[0], options: CombineOptions, message: RegExp) =>
    assert.rejects(
      combineAdapters(adapters, join(folder, "out"), options),
      (error) => error instanceof ConfigError && message.test(error.message),
    );
  const both = [
    { path: first, weight: 1 },
    { path: second, weight: 1 },
  ];
  await refused([], { method: "cat" }, /at least one adapter/);
  await refused(both, { method: "linear" }, /linear: expected adapters of one rank, got 3 and 5 .*choose svd or cat/);
  await refused([{ path: first, weight: Number.NaN }], { method: "cat" }, /expected a number as its weight/);
  await refused(both, { method: "ties", density: 0 }, /density: expected a share above 0/);
  const { model, files } = await loadTinyLlama("tied");
  const config = lora.config.parse({ use_dora: true });
  lora.bind(config).apply(model, new Rng(0));
  const dora = join(folder, "dora");
  await saveTuned(dora, model, lora.bind(config), { name: "tiny", config: files.config });
  model.dispose();
  await refused([{ path: dora, weight: 1 }], { method: "cat" }, /DoRA's change is not the product of two factors/);
});
