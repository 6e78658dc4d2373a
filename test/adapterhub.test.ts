import assert from "node:assert/strict";
import { cp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { scope } from "../src/core/tensor.js";
import { ModelError } from "../src/errors.js";
import { adapterHub } from "../src/io/adapters/adapterhub.js";
import { openSafetensors, readEntry, toTensorEntry, writeSafetensors } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { packSequences } from "../src/models/token-batch.js";
import { tuners } from "../src/tuners/index.js";
import { applyAdapter, saveTuned } from "../src/tuners/tuned-files.js";
import { loadTinyLlama, reference, tinyLlama } from "./support/tiny-llama.js";

/** Made by test/fixtures/make_adapterhub.py, which says what is in it. */
const fixtures = join(tinyLlama, "../tiny-adapterhub");
const ids = Int32Array.from(reference.sequences[1]!.ids);

async function expectedLogits(name: string): Promise<Float32Array> {
  const { tensors } = await openSafetensors(join(fixtures, "logits.safetensors"));
  return new Float32Array((await readEntry(toTensorEntry(tensors.get(name)!))).buffer);
}

const kinds = ["houlsby", "pfeiffer", "parallel", "norms", "no-residual", "parallel-norm"];

for (const name of kinds)
  test(`an adapter that AdapterHub has saved gives its logits here, and leaves with the same weights: ${name}`, async (t) => {
    const { model, files } = await loadTinyLlama("tied");
    const { tuner, config } = await applyAdapter(join(fixtures, name), model, tuners, new Rng(0));
    assert.equal(tuner.name, "adapter");
    const rows = Int32Array.from({ length: 8 }, (_, i) => ids.length - 8 + i);
    const logits = scope(() => model.logits(packSequences([ids]), rows));
    const expected = await expectedLogits(name);
    const actual = await logits.read();
    const worst = actual.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0);
    assert.equal(actual.length, expected.length);
    assert.ok(worst <= 1e-4, `largest difference of logits ${worst}`);

    const folder = temporaryFolder(t);
    await saveTuned(folder, model, tuner.bind(config), { name: "tiny", config: files.config });
    const [theirs, ours] = [await adapterHub.open(join(fixtures, name)), await adapterHub.open(folder)];
    assert.deepEqual([...ours.tensors.keys()].sort(), [...theirs.tensors.keys()].sort());
    for (const key of ours.tensors.keys()) assert.deepEqual(await ours.readTensor(key), await theirs.readTensor(key), key);
    const saved = JSON.parse(await readFile(join(folder, "adapter_config.json"), "utf8"));
    const original = JSON.parse(await readFile(join(fixtures, name, "adapter_config.json"), "utf8"));
    for (const [key, value] of Object.entries(saved.config)) assert.deepEqual(value, original.config[key], key);
    for (const key of ["hidden_size", "model_class", "model_type", "version"]) assert.deepEqual(saved[key], original[key], key);
    logits.dispose();
    model.dispose();
  });

test("a whole factor is written as a number that the library takes for one", async (t) => {
  const { model, files } = await loadTinyLlama("tied");
  const { tuner, config } = await applyAdapter(join(fixtures, "parallel"), model, tuners, new Rng(0));
  const folder = temporaryFolder(t);
  await saveTuned(folder, model, tuner.bind(config), { name: "tiny", config: files.config });
  assert.match(await readFile(join(folder, "adapter_config.json"), "utf8"), /"scaling": 4\.0,/);
  model.dispose();
});

test("a norm before the bottleneck is saved under both of the library's names, and read under either", async (t) => {
  const folder = temporaryFolder(t);
  const { model, files } = await loadTinyLlama("tied");
  const tuner = tuners.find(({ name }) => name === "adapter")!;
  const config = tuner.config.parse({ adapter_config: "pfeiffer", ln_before: true });
  tuner.bind(config).apply(model, new Rng(2));
  await saveTuned(folder, model, tuner.bind(config), { name: "tiny", config: files.config });
  const path = join(folder, "adapter.safetensors");
  const { tensors } = await openSafetensors(path);
  const place = "model.layers.1.output_adapters.adapters.attune";
  const names = [...tensors.keys()].filter((name) => name.startsWith(`${place}.`)).map((name) => name.slice(place.length + 1));
  assert.deepEqual(names.sort(), [
    ...["adapter_down.0.bias", "adapter_down.0.weight", "adapter_down.1.bias", "adapter_down.1.weight"],
    ...["adapter_norm_before.bias", "adapter_norm_before.weight", "adapter_up.bias", "adapter_up.weight"],
  ]);
  const kept = [...tensors.values()].filter(({ name }) => !name.includes("adapter_down.0."));
  await writeSafetensors(
    path,
    kept.map((stored) => ({ ...toTensorEntry(stored), dtype: "f32", data: () => readEntry(stored) })),
  );
  const again = await adapterHub.open(folder);
  assert.deepEqual([...again.tensors.keys()].sort(), [...model.trainableParameters().keys()].sort());
  model.dispose();
});

/** A copy of a fixture whose adapter_config.json is changed. */
async function changed(folder: string, change: (json: { config: Record<string, unknown>; [key: string]: unknown }) => void) {
  await cp(join(fixtures, "pfeiffer"), folder, { recursive: true });
  const path = join(folder, "adapter_config.json");
  const json = JSON.parse(await readFile(path, "utf8"));
  change(json);
  await writeFile(path, JSON.stringify(json));
}

async function refused(folder: string, message: RegExp): Promise<void> {
  const { model } = await loadTinyLlama("tied");
  const apply = applyAdapter(folder, model, tuners, new Rng(0));
  await assert.rejects(apply, (error: Error) => error instanceof ModelError && message.test(error.message));
  model.dispose();
}

for (const [what, key, value, message] of [
  ["PHM layers", "phm_layer", true, /"phm_layer" is set to something attune does not know/],
  ["invertible adapters", "inv_adapter", "nice", /"inv_adapter" is set/],
  ["gates", "use_gating", true, /"use_gating" is set/],
  ["a setting of the future", "twist", 3, /"twist" is set/],
  ["another method", "architecture", "lora", /reads bottleneck adapters, this is "lora"/],
  ["an unknown function", "non_linearity", "leakyrelu", /non_linearity/],
  ["a factor for each feature", "scaling", "channel", /scaling/],
  ["no residual", "original_ln_after", false, /nothing adds the residual/],
  ["a bottleneck of another width", "reduction_factor", 8, /of another shape: model\.layers\.0\.mlp_residual/],
  ["adapters that the file does not have", "mh_adapter", true, /missing: model\.layers\.0\.attention_residual/],
  ["adapters that the config does not have", "leave_out", [1], /left over: model\.layers\.1\.mlp_residual/],
] as const)
  test(`refused: ${what}`, async (t) => {
    const folder = temporaryFolder(t);
    await changed(folder, ({ config }) => {
      config[key] = value;
    });
    await refused(folder, message);
  });

test("refused: another adapter's tensors, no name, a pickle, no weights", async (t) => {
  const folder = temporaryFolder(t);
  await changed(folder, (json) => {
    json.name = "other";
  });
  await refused(folder, /does not belong to the bottleneck adapter "other"/);
  await changed(folder, (json) => {
    json.name = null;
  });
  await refused(folder, /expected the adapter's name/);
  await changed(folder, () => {});
  await rename(join(folder, "adapter.safetensors"), join(folder, "pytorch_adapter.bin"));
  await refused(folder, /pickle/);
  await rm(join(folder, "pytorch_adapter.bin"));
  await refused(folder, /adapter\.safetensors/);
});

test("refused: a head that AdapterHub has built", async (t) => {
  const folder = temporaryFolder(t);
  await cp(join(fixtures, "houlsby"), folder, { recursive: true });
  await writeFile(join(folder, "head_config.json"), JSON.stringify({ config: { head_type: "classification" } }));
  await refused(folder, /with_head=False/);
});

test("files without a version have functions under their old names", async (t) => {
  const folder = temporaryFolder(t);
  for (const [old, now] of [
    ["gelu", "gelu_new"],
    ["gelu_orig", "gelu"],
    ["Swish", "swish"],
  ] as const) {
    await changed(folder, (json) => {
      delete json.version;
      json.config.non_linearity = old;
    });
    const { model } = await loadTinyLlama("tied");
    const { config } = await applyAdapter(folder, model, tuners, new Rng(0));
    assert.equal((config as { non_linearity: string }).non_linearity, now);
    model.dispose();
  }
});
