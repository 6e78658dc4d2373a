import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { differentiate } from "../src/core/tape.js";
import { scope, type Tensor, unscoped } from "../src/core/tensor.js";
import { ConfigError, ModelError } from "../src/errors.js";
import { openSafetensors, readEntry, toTensorEntry, writeSafetensors } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { asCausalLM } from "../src/models/causal-lm.js";
import type { LanguageModel } from "../src/models/language-model.js";
import { packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import { tuners } from "../src/tuners/index.js";
import { SharedBase } from "../src/tuners/shared-base.js";
import { applyAdapter, saveTuned } from "../src/tuners/tuned-files.js";
import { engine } from "./support/gradient-check.js";
import { lossOf } from "./support/loss-of.js";
import { poisonFile } from "./support/poison-file.js";
import { exampleOf, loadTinyLlama, reference, tinyLlama } from "./support/tiny-llama.js";

const hub = join(tinyLlama, "../tiny-adapterhub");
const batch = packSequences(reference.sequences.map(({ ids }) => Int32Array.from(ids)));

async function logitsOf(model: LanguageModel): Promise<Float32Array> {
  return await read(logitsNow(model));
}

function logitsNow(model: LanguageModel): Tensor {
  return scope(() => asCausalLM(model, "the test").logits(batch, Int32Array.from(batch.ids.keys())));
}

async function read(logits: Tensor): Promise<Float32Array> {
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

  const shared = new SharedBase(model);
  const under = (name: string | null) => read(shared.with(name, logitsNow));
  for (const [name, folder] of folders) {
    const { tuner } = await shared.load(name, folder);
    assert.ok(tuners.includes(tuner));
    assert.deepEqual(await logitsOf(model), base, `the base after loading ${name}`);
  }
  assert.deepEqual(shared.names, [...folders.keys()]);

  const expected = new Map<string | null, Float32Array>([[null, base]]);
  for (const [name, folder] of folders) expected.set(name, await alone(folder));
  for (const name of [...expected.keys(), ...[...expected.keys()].reverse(), null]) {
    assert.deepEqual(await under(name), expected.get(name), String(name));
    assert.deepEqual(await logitsOf(model), base, `the base after ${name}`);
  }
  for (const [name, logits] of expected) if (name !== null) assert.notDeepEqual(logits, base, name);

  for (const name of shared.names) shared.remove(name);
  await engine.sync();
  assert.deepEqual(shared.names, []);
  assert.deepEqual(
    [...model.namedModules()].map(([path, module]) => [path, module]),
    parts,
  );
  assert.equal(engine.stats().liveBytes, liveBytes);
  assert.deepEqual(await logitsOf(model), base);
  shared.dispose();
});

test("an adapter is loaded while another is in use, of which nobody notices", async () => {
  const { model } = await loadTinyLlama("tied");
  const shared = new SharedBase(model);
  await shared.load("a", join(tinyLlama, "adapter-final"));
  const under = (name: string | null) => read(shared.with(name, logitsNow));
  const expected = await under("a");
  const loading = shared.load("b", join(hub, "pfeiffer"));
  assert.throws(() => shared.with("b", () => {}), ConfigError); // not there before all of it is
  assert.deepEqual(await under("a"), expected);
  await loading;
  assert.deepEqual(await under("a"), expected);
  assert.notDeepEqual(await under("b"), expected);
  shared.dispose();
});

test("with: nested, an error on the way, a body that waits: what was in use before is in use again", async () => {
  const { model } = await loadTinyLlama("tied");
  const base = await logitsOf(model);
  const shared = new SharedBase(model);
  await shared.load("a", join(tinyLlama, "adapter-final"));
  await shared.load("b", join(hub, "pfeiffer"));
  const a = await read(shared.with("a", logitsNow));
  const inside = shared.with("a", (model) => {
    const reference = shared.with(null, logitsNow);
    assert.throws(() => shared.with("b", () => assert.fail("no")), /no/);
    return { reference, own: logitsNow(model) };
  });
  assert.deepEqual(await read(inside.reference), base);
  assert.deepEqual(await read(inside.own), a);
  assert.throws(() => shared.with("a", async () => {}), /must not wait/);
  assert.deepEqual(await logitsOf(model), base);
  shared.dispose();
});

test("who holds an adapter uses it to the end: its name is free at once, its memory when the last has let go", async () => {
  const { model } = await loadTinyLlama("tied");
  await logitsOf(model); // makes the table of rotations
  const shared = new SharedBase(model);
  const liveBytes = engine.stats().liveBytes;
  await shared.load("a", join(tinyLlama, "adapter-final"));
  const expected = await read(shared.with("a", logitsNow));
  const [one, other] = [shared.hold("a"), shared.hold("a")];
  assert.equal(one.adapter, other.adapter);
  shared.remove("a");
  assert.throws(() => shared.hold("a"), ConfigError);
  await shared.load("a", join(hub, "pfeiffer"));
  assert.notDeepEqual(await read(shared.with("a", logitsNow)), expected);
  one.release();
  one.release();
  assert.deepEqual(await read(other.with(logitsNow)), expected);
  other.release();
  const left = shared.hold("a");
  shared.remove("a");
  left.release();
  await engine.sync();
  assert.equal(engine.stats().liveBytes, liveBytes);
  shared.dispose();
});

const tunerNamed = (name: string) => tuners.find((tuner) => tuner.name === name)!;
const bound = (name: string, settings = {}) => {
  const tuner = tunerNamed(name);
  return tuner.bind(tuner.config.parse(settings));
};
const nextTokens = nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)));

for (const gradientCheckpointing of [false, true])
  test(`gradients of one never reach another, and the base can be asked inside a forward pass; checkpointing ${gradientCheckpointing}`, async () => {
    const { model } = await loadTinyLlama("tied");
    model.gradientCheckpointing = gradientCheckpointing;
    const base = await logitsOf(model);
    const shared = new SharedBase(model);
    shared.add("policy", bound("lora"), { rng: new Rng(1) });
    shared.add("other", bound("adapter"), { rng: new Rng(2) });
    const gradients = async (ask: boolean) => {
      let reference: Tensor | null = null;
      const loss = differentiate(() =>
        shared.with("policy", (model) => {
          if (ask) reference = unscoped(() => shared.with(null, logitsNow));
          return lossOf(nextToken, model, nextTokens);
        }),
      );
      loss.dispose();
      if (reference !== null) assert.deepEqual(await read(reference), base);
      const found = new Map<string, Float32Array>();
      for (const [name, parameter] of shared.parametersOf("policy")) {
        found.set(name, await parameter.value.grad!.read());
        parameter.zeroGrad();
      }
      return found;
    };
    const [alone, asked] = [await gradients(false), await gradients(true)];
    assert.ok(alone.size > 0 && [...alone.values()].some((values) => values.some((value) => value !== 0)));
    assert.deepEqual(asked, alone);
    for (const { value } of shared.parametersOf("other").values()) assert.equal(value.grad, null);
    for (const [name, { value }] of model.namedParameters()) assert.equal(value.grad, null, name);
    shared.dispose();
  });

test("a policy, a reward model and a value model on one base, each with the head that is its own", async () => {
  const before = engine.stats().liveBytes;
  const { model } = await loadTinyLlama("tied");
  const base = await logitsOf(model);
  const shared = new SharedBase(model);
  shared.add("policy", bound("lora"), { rng: new Rng(1) });
  for (const [i, name] of ["reward", "value"].entries())
    shared.add(name, bound("lora"), { rng: new Rng(2), head: { outputs: 1, rng: new Rng(3 + i) } });
  assert.equal(
    shared.with("policy", ({ head }) => head),
    null,
  );
  const scores = await Promise.all(
    ["reward", "value"].map((name) => read(shared.with(name, (m) => scope(() => m.classLogits(batch))))),
  );
  assert.equal(scores[0]!.length, batch.segments.length);
  assert.notDeepEqual(scores[0], scores[1]);
  for (const name of ["reward", "value"]) {
    assert.ok(shared.parametersOf(name).has("score.weight"));
    assert.deepEqual(
      shared.with(name, ({ headModules }) => headModules),
      ["score"],
    );
    assert.deepEqual(await read(shared.with(name, logitsNow)), base, "with a head it still predicts tokens");
  }
  assert.ok(![...shared.parametersOf("policy").keys()].some((name) => name.startsWith("score")));
  assert.deepEqual(model.headModules, []);
  assert.throws(() => shared.with("reward", () => shared.with(null, (m) => m.classLogits(batch))), ModelError);
  shared.dispose();
  await engine.sync();
  assert.equal(engine.stats().liveBytes, before);
});

for (const name of ["full", "freeze"])
  test(`${name} changes the base in place, and then it is gone; kept, it is bit by bit what it was`, async () => {
    const trained = async (keepsBase: boolean) => {
      const { model } = await loadTinyLlama("tied");
      const base = await logitsOf(model);
      const liveBytes = engine.stats().liveBytes;
      const shared = new SharedBase(model);
      shared.add("default", bound(name), { rng: new Rng(1), keepsBase });
      const parameters = shared.parametersOf("default");
      const loss = differentiate(() => shared.with("default", (model) => lossOf(nextToken, model, nextTokens)));
      loss.dispose();
      const names = [...parameters.keys()];
      for (const { value } of parameters.values()) engine.scale(value.grad!.id, value.id, -0.1, value.size, true);
      const logits = await read(shared.with("default", logitsNow));
      assert.notDeepEqual(logits, base);
      if (keepsBase) assert.deepEqual(await read(shared.with(null, logitsNow)), base);
      else {
        assert.throws(() => shared.with(null, () => {}), /train in their places, as "default".*keepsBase/);
        assert.throws(() => shared.add("b", bound("lora"), { rng: new Rng(1) }), /nothing can train beside them/);
      }
      for (const parameter of parameters.values()) parameter.zeroGrad();
      shared.remove("default");
      await engine.sync();
      if (keepsBase) assert.equal(engine.stats().liveBytes, liveBytes);
      shared.dispose();
      return { names, logits };
    };
    assert.deepEqual(await trained(true), await trained(false));
  });

test("refused, with nothing changed: names that are taken or not there, folders without adapters, adapters of another shape", async (t) => {
  const { model } = await loadTinyLlama("tied");
  const base = await logitsOf(model);
  const liveBytes = engine.stats().liveBytes;
  const shared = new SharedBase(model);
  await shared.load("a", join(hub, "pfeiffer"));
  const under = () => read(shared.with("a", logitsNow));
  const adapted = await under();

  const refused = async (action: Promise<unknown>, kind: typeof ConfigError | typeof ModelError, message: RegExp) => {
    await assert.rejects(action, (error: Error) => error instanceof kind && message.test(error.message));
    assert.deepEqual(await under(), adapted);
  };
  await refused(shared.load("a", join(hub, "houlsby")), ConfigError, /there is an adapter "a" already/);
  await refused(shared.load("b", tinyLlama), ModelError, /no adapter here/);
  const folder = temporaryFolder(t);
  await cp(join(hub, "houlsby"), folder, { recursive: true });
  const config = { mh_adapter: true, output_adapter: true, reduction_factor: 4, non_linearity: "relu" };
  await writeFile(join(folder, "adapter_config.json"), JSON.stringify({ name: "made", config, version: "adapters.1.3.0" }));
  await refused(
    shared.load("b", folder),
    ModelError,
    /of another shape: model\.layers\.0\.attention_residual\.adapter_down\.0\.weight/,
  );
  const farLayer = { ...config, reduction_factor: 16, leave_out: [7] };
  await writeFile(
    join(folder, "adapter_config.json"),
    JSON.stringify({ name: "made", config: farLayer, version: "adapters.1.3.0" }),
  );
  await refused(shared.load("b", folder), ConfigError, /leave_out: expected numbers of layers from 0 to 1, got 7/);
  assert.throws(() => shared.with("c", () => {}), /there is no adapter "c"; there are: a/);
  assert.throws(() => shared.remove("c"), ConfigError);

  shared.remove("a");
  await engine.sync();
  assert.equal(engine.stats().liveBytes, liveBytes);
  assert.deepEqual(await logitsOf(model), base);
  assert.throws(() => shared.with("a", () => {}), /there is no adapter "a"; there are none/);
  shared.dispose();
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
  const shared = new SharedBase(fresh);
  await assert.rejects(shared.load("a", folder), /not a finite number/);
  await engine.sync();
  assert.equal(engine.stats().liveBytes, liveBytes);
  assert.deepEqual(shared.names, []);
  assert.deepEqual(await logitsOf(fresh), base);
  shared.dispose();
});
