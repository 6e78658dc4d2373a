import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { scope } from "../src/core/tensor.js";
import { ConfigError, ModelError } from "../src/errors.js";
import { openSafetensors, readEntry, toTensorEntry, writeSafetensors } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { packSequences } from "../src/models/token-batch.js";
import { AdapterSet } from "../src/tuners/adapter-set.js";
import { tuners } from "../src/tuners/index.js";
import { applyAdapter, saveTuned } from "../src/tuners/tuned-files.js";
import { engine } from "./support/gradient-check.js";
import { poisonFile } from "./support/poison-file.js";
import { loadTinyLlama, reference, tinyLlama } from "./support/tiny-llama.js";

const hub = join(tinyLlama, "../tiny-adapterhub");
const batch = packSequences(reference.sequences.map(({ ids }) => Int32Array.from(ids)));

async function logitsOf(model: CausalLM): Promise<Float32Array> {
  const logits = scope(() => model.logits(batch, Int32Array.from(batch.ids.keys())));
  const values = await logits.read();
  logits.dispose();
  return values;
}

/** What one adapter gives on a model of its own. */
async function alone(folder: string): Promise<Float32Array> {
  const { model } = await loadTinyLlama("tied");
  await applyAdapter(folder, model, tuners, new Rng(0));
  const logits = await logitsOf(model);
  model.dispose();
  return logits;
}

/** A folder for every method that has adapters, made with its defaults. */
async function folderOf(tuner: (typeof tuners)[number], folder: string, settings = {}): Promise<string> {
  const { model, files } = await loadTinyLlama("tied");
  const config = tuner.config.parse(settings);
  const rng = new Rng(5);
  tuner.bind(config).apply(model, rng);
  for (const { value } of model.trainableParameters().values())
    engine.write(
      value.id,
      0,
      Float32Array.from({ length: value.size }, () => 0.3 * rng.normal()),
    );
  await saveTuned(folder, model, tuner.bind(config), { name: "tiny", config: files.config });
  model.dispose();
  return folder;
}

/** Adds what PEFT saves along with the change of an output projection: the weight itself, here another. */
async function withBaseLayer(folder: string): Promise<string> {
  const path = join(folder, "adapter_model.safetensors");
  const { tensors } = await openSafetensors(path);
  const kept = await Promise.all(
    [...tensors.values()].map(async (stored) => [toTensorEntry(stored), await readEntry(stored)] as const),
  );
  const [vocabSize, width] = [259, 64];
  const rng = new Rng(9);
  const weight = Float32Array.from({ length: vocabSize * width }, () => rng.normal());
  await writeSafetensors(path, [
    ...kept.map(([{ name, shape }, data]) => ({ name, shape, dtype: "f32" as const, data: () => data })),
    {
      ...{ name: "base_model.model.lm_head.base_layer.weight", shape: [vocabSize, width], dtype: "f32" },
      data: () => new Uint8Array(weight.buffer),
    },
  ]);
  return folder;
}

test("every method beside the others: each gives what it gives alone, and the base is as if there were none", async (t) => {
  const root = temporaryFolder(t);
  const folders = new Map([["with a head of its own", join(hub, "houlsby")]]);
  for (const tuner of tuners)
    if (tuner.adapter !== undefined) folders.set(tuner.name, await folderOf(tuner, join(root, tuner.name)));
  const lora = tuners.find(({ name }) => name === "lora")!;
  const ends = { lora_target: "lm_head,embed_tokens" };
  folders.set("lora of both ends", await folderOf(lora, join(root, "both ends"), ends));
  folders.set("with a base layer of its own", await withBaseLayer(await folderOf(lora, join(root, "base layer"), ends)));
  const { model } = await loadTinyLlama("tied");
  const base = await logitsOf(model);
  const parts = [...model.namedModules()].map(([path, module]) => [path, module] as const);
  const liveBytes = engine.stats().liveBytes;

  const adapters = new AdapterSet(model);
  for (const [name, folder] of folders) {
    const { tuner } = await adapters.add(name, folder);
    assert.ok(tuners.includes(tuner));
    assert.equal(adapters.current, null);
    assert.deepEqual(await logitsOf(model), base, `the base after loading ${name}`);
  }
  assert.deepEqual(adapters.names, [...folders.keys()]);

  const expected = new Map<string | null, Float32Array>([[null, base]]);
  for (const [name, folder] of folders) expected.set(name, await alone(folder));
  const order = [...expected.keys(), ...[...expected.keys()].reverse(), null];
  for (const name of order) {
    adapters.use(name);
    assert.equal(adapters.current, name);
    assert.deepEqual(await logitsOf(model), expected.get(name), String(name));
  }
  for (const [name, logits] of expected) if (name !== null) assert.notDeepEqual(logits, base, name);

  adapters.dispose();
  await engine.sync();
  assert.deepEqual(adapters.names, []);
  assert.deepEqual(
    [...model.namedModules()].map(([path, module]) => [path, module]),
    parts,
  );
  assert.equal(engine.stats().liveBytes, liveBytes);
  assert.deepEqual(await logitsOf(model), base);
  model.dispose();
});

test("an adapter is loaded and removed while another is in use, of which nobody notices", async () => {
  const { model } = await loadTinyLlama("tied");
  const adapters = new AdapterSet(model);
  await adapters.add("a", join(tinyLlama, "adapter-final"));
  adapters.use("a");
  const expected = await logitsOf(model);
  const adding = adapters.add("b", join(hub, "pfeiffer"));
  assert.throws(() => adapters.use("b"), ConfigError); // not there before all of it is
  assert.deepEqual(await logitsOf(model), expected);
  await adding;
  assert.equal(adapters.current, "a");
  adapters.remove("b");
  assert.deepEqual(await logitsOf(model), expected);
  adapters.remove("a");
  assert.equal(adapters.current, null);
  model.dispose();
});

test("refused, with nothing changed: names that are taken or not there, folders without adapters, adapters of another shape", async (t) => {
  const { model } = await loadTinyLlama("tied");
  const base = await logitsOf(model);
  const liveBytes = engine.stats().liveBytes;
  const adapters = new AdapterSet(model);
  await adapters.add("a", join(hub, "pfeiffer"));
  adapters.use("a");
  const adapted = await logitsOf(model);

  const refused = async (action: Promise<unknown>, kind: typeof ConfigError | typeof ModelError, message: RegExp) => {
    await assert.rejects(action, (error: Error) => error instanceof kind && message.test(error.message));
    assert.deepEqual(await logitsOf(model), adapted);
  };
  await refused(adapters.add("a", join(hub, "houlsby")), ConfigError, /there is an adapter "a" already/);
  await refused(adapters.add("b", tinyLlama), ModelError, /no adapter here/);
  const folder = temporaryFolder(t);
  await cp(join(hub, "houlsby"), folder, { recursive: true });
  const config = { mh_adapter: true, output_adapter: true, reduction_factor: 4, non_linearity: "relu" };
  await writeFile(join(folder, "adapter_config.json"), JSON.stringify({ name: "made", config, version: "adapters.1.3.0" }));
  await refused(
    adapters.add("b", folder),
    ModelError,
    /of another shape: model\.layers\.0\.attention_residual\.adapter_down\.0\.weight/,
  );
  const farLayer = { ...config, reduction_factor: 16, leave_out: [7] };
  await writeFile(
    join(folder, "adapter_config.json"),
    JSON.stringify({ name: "made", config: farLayer, version: "adapters.1.3.0" }),
  );
  await refused(adapters.add("b", folder), ConfigError, /leave_out: expected numbers of layers from 0 to 1, got 7/);
  assert.throws(() => adapters.use("c"), /there is no adapter "c"; there are: a/);
  assert.throws(() => adapters.remove("c"), ConfigError);

  adapters.dispose();
  await engine.sync();
  assert.equal(engine.stats().liveBytes, liveBytes);
  assert.deepEqual(await logitsOf(model), base);
  assert.throws(() => adapters.use("a"), /there is no adapter "a"; there are none/);
  model.dispose();
});

test("weights that are damaged are found while they are read, and leave no trace", async (t) => {
  const folder = temporaryFolder(t);
  await cp(join(hub, "pfeiffer"), folder, { recursive: true });
  const { model } = await loadTinyLlama("tied");
  const { config } = await applyAdapter(folder, model, tuners, new Rng(0));
  const tuner = tuners.find(({ name }) => name === "adapter")!;
  const save = (path: string) => saveTuned(path, model, tuner.bind(config), { name: "tiny", config: {} });
  await save(folder);
  await poisonFile(join(folder, "adapter.safetensors"), "", Number.NaN);
  const [parameter] = model.trainableParameters().values();
  engine.write(parameter!.value.id, 0, Float32Array.of(Number.NaN));
  await assert.rejects(save(join(folder, "not written")), { code: "DIVERGED" });
  model.dispose();

  const { model: fresh } = await loadTinyLlama("tied");
  const base = await logitsOf(fresh);
  const liveBytes = engine.stats().liveBytes;
  const adapters = new AdapterSet(fresh);
  await assert.rejects(adapters.add("a", folder), /not a finite number/);
  await engine.sync();
  assert.equal(engine.stats().liveBytes, liveBytes);
  assert.deepEqual(adapters.names, []);
  assert.deepEqual(await logitsOf(fresh), base);
  fresh.dispose();
});
