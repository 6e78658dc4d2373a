/** Adapters from strangers: whatever stands in adapter_config.json or its weights, they load or are refused by name, soon and in little memory. */
import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { Rng } from "../src/core/rng.js";
import { AttuneError } from "../src/errors.js";
import { openSafetensors, readEntry, toTensorEntry, writeSafetensors } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { tuners } from "../src/tuners/index.js";
import { applyAdapter, saveTuned, settingsOfAdapter } from "../src/tuners/tuned-files.js";
import { engine } from "./support/gradient-check.js";
import { loadTinyLlama } from "./support/tiny-llama.js";

/** What can stand in the place of any value. */
const values: readonly unknown[] = [
  ...[0, -1, 1, 7, 0.5, 1e9, 1e15, 1e300, -1e300],
  ...[null, true, false, "", "x", "all", "(a+)+$", "9".repeat(5000)],
  ...[[], [1], ["q_proj"], [[[]]], {}, { a: 1 }, { default: 1e-9 }, { "(a*)*b": 3 }, { q_proj: 1e9 }, { toString: {} }],
];

/** An adapter of each method that has a format, as it is by default, and the names of all keys that its library may write. */
const methods = ["lora", "p-tuning", "prefix-tuning", "adapter"] as const;

async function saved(t: TestContext, method: (typeof methods)[number], settings: object = {}): Promise<string> {
  const folder = temporaryFolder(t);
  const tuner = tuners.find(({ name }) => name === method)!;
  const { model, files } = await loadTinyLlama("tied");
  const config = tuner.config.parse(settings);
  tuner.bind(config).apply(model, new Rng(1));
  await saveTuned(folder, model, tuner.bind(config), { name: "base", config: files.config });
  model.dispose();
  return folder;
}

/** Both ways to read an adapter; the first error of each, which must be one of attune's own. */
async function tried(folder: string, what: string): Promise<string[]> {
  const said: string[] = [];
  const liveBytes = engine.stats().liveBytes;
  const start = performance.now();
  engine.resetPeak();
  const attempt = async (work: () => Promise<unknown>) => {
    try {
      await work();
    } catch (error) {
      assert.ok(error instanceof AttuneError, `${what}: ${error instanceof Error ? error.stack : error}`);
      assert.ok(error.message.length < 2000, `${what}: an error of ${error.message.length} characters`);
      said.push(error.message);
    }
  };
  await attempt(async () => {
    const { model } = await loadTinyLlama("tied");
    try {
      await applyAdapter(folder, model, tuners, new Rng(0));
    } finally {
      model.dispose();
    }
  });
  await attempt(() => settingsOfAdapter(folder, tuners));
  assert.ok(performance.now() - start < 10_000, `${what}: took ${performance.now() - start} ms`);
  assert.ok(engine.stats().peakLiveBytes - liveBytes < 2 ** 28, `${what}: took ${engine.stats().peakLiveBytes} bytes`);
  return said;
}

const keysOf: Readonly<Record<(typeof methods)[number], readonly string[]>> = {
  lora: [
    ...[
      "r",
      "lora_alpha",
      "lora_dropout",
      "bias",
      "rank_pattern",
      "alpha_pattern",
      "use_rslora",
      "use_dora",
      "init_lora_weights",
    ],
    ...["modules_to_save", "target_modules", "layers_to_transform", "exclude_modules", "eva_config", "target_parameters"],
    ...[
      "lora_bias",
      "ensure_weight_tying",
      "trainable_token_indices",
      "layer_replication",
      "auto_mapping",
      "megatron_core",
      "new",
    ],
  ],
  "p-tuning": [
    ...["num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout", "encoder_reparameterization_type"],
    ...["token_dim", "num_transformer_submodules"],
  ],
  "prefix-tuning": ["num_virtual_tokens", "encoder_hidden_size", "prefix_projection", "num_layers"],
  adapter: [
    ...["mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "is_parallel", "scaling", "original_ln_before"],
    ...[
      "original_ln_after",
      "residual_before_ln",
      "ln_before",
      "ln_after",
      "dropout",
      "leave_out",
      "init_weights",
      "architecture",
      "new",
    ],
  ],
};

for (const method of methods)
  test(`${method}: any value under any key of adapter_config.json loads or is refused by name`, async (t) => {
    const folder = await saved(t, method);
    const path = join(folder, "adapter_config.json");
    const json = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
    assert.deepEqual(await tried(folder, "unchanged"), []);
    const nested = (key: string) => method === "adapter" && keysOf.adapter.includes(key);
    for (const key of [...keysOf[method], "peft_type", "config", "name", "base_model_name_or_path", "task_type"])
      for (const value of values) {
        const inner = json.config as object;
        const changed = nested(key) ? { ...json, config: { ...inner, [key]: value } } : { ...json, [key]: value };
        writeFileSync(path, JSON.stringify(changed));
        await tried(folder, `${key} = ${JSON.stringify(value).slice(0, 100)}`);
      }
    writeFileSync(path, `${'{"a":'.repeat(100_000)}1${"}".repeat(100_000)}`);
    assert.match((await tried(folder, "deep JSON"))[0]!, /adapter_config\.json/);
  });

test("weights that are no numbers, of another shape, missing or left over are refused by their names", async (t) => {
  const folder = await saved(t, "lora", { lora_target: "q_proj" });
  const path = join(folder, "adapter_model.safetensors");
  const file = await openSafetensors(path);
  const tensors = await Promise.all(
    [...file.tensors.values()].map(async (stored) => ({ ...toTensorEntry(stored), bytes: await readEntry(stored) })),
  );
  const [first, second] = [tensors[0]!, tensors[1]!];
  const variant = async (change: (all: typeof tensors) => typeof tensors) => {
    const copy = temporaryFolder(t);
    cpSync(folder, copy, { recursive: true });
    await writeSafetensors(
      join(copy, "adapter_model.safetensors"),
      change(tensors).map(({ name, shape, bytes }) => ({ name, shape, dtype: "f32" as const, data: () => bytes })),
    );
    return tried(copy, "weights");
  };
  const [name, own] = [first.name, first.name.replace("base_model.model.", "")];
  const poisoned = temporaryFolder(t);
  cpSync(folder, poisoned, { recursive: true });
  const bytes = readFileSync(path);
  bytes.writeFloatLE(Number.NaN, first.offset + 4 * 3);
  writeFileSync(join(poisoned, "adapter_model.safetensors"), bytes);
  const notFinite = await tried(poisoned, "not finite");
  assert.match(notFinite[0]!, new RegExp(`tensor ${name}: value 3 is not a finite number`));
  const reshaped = await variant((all) => [{ ...first, shape: [1, first.shape[0]! * first.shape[1]!] }, ...all.slice(1)]);
  assert.match(reshaped[0]!, new RegExp(`of another shape: ${own}`));
  assert.match((await variant((all) => all.filter((each) => each !== second)))[0]!, /missing: model\.layers\.0/);
  const more = await variant((all) => [...all, { ...first, name: `${name}.more` }]);
  assert.match(more[0]!, new RegExp(`left over: ${own}\\.more`));
  assert.match((await variant(() => []))[0]!, /none of the 0 tensors/);
});
