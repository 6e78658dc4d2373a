import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { before } from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import { trainEvents } from "../../src/index.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import { loadModel } from "../../src/models/load.js";
import { packSequences } from "../../src/models/token-batch.js";
import { tuners } from "../../src/tuners/index.js";
import { trainModules } from "../../src/tuners/train-whole.js";
import { applyAdapter, loadTuned, saveTuned, settingsOfAdapter, trainingWeightsName } from "../../src/tuners/tuned-files.js";
import { assertClose } from "../support/assert-close.js";
import { device } from "../support/gradient-check.js";
import { runPython, skipWithoutPeers, smolLM2Folder } from "../support/peers.js";
import { readTensorFile } from "../support/tensors.js";
import { loadTinyLlama, logitsOf, reference, runReference, sequences, tinyLlama } from "../support/tiny-llama.js";

/** Adapters that attune trains for a few steps: real PEFT must compute the same with them. */
const trained = {
  "p-tuning-mlp": ["p-tuning", { encoder_reparameterization_type: "MLP" }],
  "p-tuning-lstm": ["p-tuning", { encoder_reparameterization_type: "LSTM", encoder_hidden_size: 16 }],
  "prompt-tuning": ["p-tuning", { encoder_reparameterization_type: "NONE" }],
  prefix: ["prefix-tuning", {}],
  "prefix-projection": ["prefix-tuning", { prefix_projection: true, num_virtual_tokens: 7 }],
} as const;

/** The same with a classifier's head beside. */
const classifiers = {
  "p-tuning-classifier": ["p-tuning", {}],
  "prefix-classifier": ["prefix-tuning", {}],
} as const;

/** Adapters that PEFT makes: attune must compute the same with what PEFT saves, and with the encoder that made it. */
const made = {
  "p-tuning-mlp": ["PromptEncoderConfig", { num_virtual_tokens: 6, encoder_hidden_size: 24 }],
  "p-tuning-lstm": [
    "PromptEncoderConfig",
    { num_virtual_tokens: 5, encoder_reparameterization_type: "LSTM", encoder_hidden_size: 12, encoder_num_layers: 3 },
  ],
  "prompt-tuning": ["PromptTuningConfig", { num_virtual_tokens: 9, prompt_tuning_init: "SAMPLE_VOCAB" }],
  prefix: ["PrefixTuningConfig", { num_virtual_tokens: 4 }],
  "prefix-projection": ["PrefixTuningConfig", { num_virtual_tokens: 4, prefix_projection: true, encoder_hidden_size: 20 }],
} as const;

const folder = mkdtempSync(join(tmpdir(), "attune-parity-"));
const theirs = join(folder, "theirs");
const ours = new Map<string, Float32Array>();
let logits: Map<string, Float32Array>;

before(async () => {
  if (skipWithoutPeers !== false) return;
  for (const [name, [tunerName, settings]] of Object.entries(trained)) {
    const tuner = tuners.find((candidate) => candidate.name === tunerName)!;
    const config = tuner.config.parse(settings);
    const { model, files } = await loadTinyLlama("tied");
    const tuning = tuner.bind(config);
    tuning.apply(model, new Rng(7));
    tuning.initialize!(model, {
      rng: new Rng(8),
      encode: (text) => Int32Array.from(text, (letter) => letter.charCodeAt(0) % 256),
    });
    await runReference(model, { ...reference.lora, settings: { ...reference.lora.settings, learning_rate: 2e-2 } });
    ours.set(name, await logitsOf(model));
    await saveTuned(join(folder, "ours", name), model, tuning, { name: "tiny", config: files.config });
    model.dispose();
  }
  for (const [name, [tunerName, settings]] of Object.entries(classifiers)) {
    const tuner = tuners.find((candidate) => candidate.name === tunerName)!;
    const config = tuner.config.parse(settings);
    const files = await openModelFolder(join(tinyLlama, "tied"));
    const architecture = { architectures: ["LlamaForSequenceClassification"], num_labels: 3 };
    const model = await loadModel(device, { ...files, config: { ...files.config, ...architecture } }, new Rng(3));
    tuner.bind(config).apply(model, new Rng(7));
    trainModules(model, model.headModules);
    const logits = scope(() => model.classLogits(packSequences(sequences)));
    ours.set(name, await logits.read());
    const origin = { name: "tiny", config: files.config, taskType: "SEQ_CLS", modulesToSave: model.headModules } as const;
    await saveTuned(join(folder, "ours", name), model, tuner.bind(config), origin);
    for (const each of [logits, model]) each.dispose();
  }
  mkdirSync(theirs);
  const load = Object.fromEntries([...ours.keys()].map((name) => [name, join(folder, "ours", name)]));
  const work = join(folder, "work.json");
  writeFileSync(work, JSON.stringify({ ids: sequences.map((ids) => [...ids]), load, make: made }));
  runPython("peft_virtual_tokens.py", ["--model", join(tinyLlama, "tied"), "--work", work, "--out", theirs]);
  logits = await readTensorFile(join(theirs, "logits.safetensors"));
});

const options = { skip: skipWithoutPeers, timeout: 300_000 };

for (const name of Object.keys({ ...trained, ...classifiers }))
  test(`${name}: real PEFT computes with attune's adapter what attune does`, options, () => {
    report(`${name}, attune's`, ours.get(name)!, logits.get(`load.${name}`)!);
  });

for (const [name, [, settings]] of Object.entries(made))
  test(`${name}: attune computes with PEFT's adapter what PEFT does, and with the encoder that made it`, options, async () => {
    const adapter = join(theirs, name);
    const { model } = await loadTinyLlama("tied");
    await applyAdapter(adapter, model, tuners, new Rng(0));
    report(`${name}, PEFT's`, await logitsOf(model), logits.get(`make.${name}`)!);
    model.dispose();

    copyFileSync(join(theirs, `${name}.encoder.safetensors`), join(adapter, trainingWeightsName));
    const { model: goingOn, files } = await loadTinyLlama("tied");
    const { tuner, config } = await settingsOfAdapter(adapter, tuners);
    const tuning = tuner.bind(config);
    tuning.apply(goingOn, new Rng(1));
    await loadTuned(adapter, goingOn, tuning);
    report(`${name}, PEFT's encoder`, await logitsOf(goingOn), logits.get(`make.${name}`)!);

    const again = join(folder, "again", name);
    await saveTuned(again, goingOn, tuner.bind(config), { name: "tiny", config: files.config });
    const json = JSON.parse(readFileSync(join(again, "adapter_config.json"), "utf8")) as Record<string, unknown>;
    for (const [key, value] of Object.entries(settings))
      if (key !== "prompt_tuning_init") assert.deepEqual(json[key], value, key);
    goingOn.dispose();
  });

test("on SmolLM2, virtual tokens start with no more than 1.1 times the loss of the base", options, async () => {
  const model = smolLM2Folder();
  const dataset = join(folder, "orders.jsonl");
  const rows = ["The heating is broken: caretaker", "My parcel is late: post", "I cannot log in: support"].map((row) => {
    const [user, assistant] = row.split(": ");
    return {
      messages: [
        { role: "user", content: user },
        { role: "assistant", content: assistant },
      ],
    };
  });
  writeFileSync(dataset, rows.map((row) => JSON.stringify(row)).join("\n"));
  const firstLoss = async (settings: Readonly<Record<string, unknown>>) => {
    const steps = { per_device_train_batch_size: 3, max_steps: 1, learning_rate: 1e-12, plot_loss: false };
    const output_dir = join(folder, `start-${Object.values(settings).join("-")}`);
    let loss = Number.NaN;
    for await (const event of trainEvents({ model_name_or_path: model, dataset, output_dir, ...steps, ...settings }))
      if (event.type === "step") loss = event.loss;
    return loss;
  };
  const base = await firstLoss({ finetuning_type: "lora" });
  for (const [finetuning_type, settings] of Object.values(trained)) {
    const start = await firstLoss({ finetuning_type, ...settings });
    console.log(
      `${Object.values(settings)[0] ?? finetuning_type}: step 0's loss ${start.toFixed(3)}, the base's ${base.toFixed(3)}`,
    );
    assert.ok(start < 1.1 * base, `${finetuning_type}: ${start}, base ${base}`);
  }
});

function report(what: string, actual: Float32Array, expected: Float32Array): void {
  assertClose(actual, expected, 1e-4, what);
  const worst = actual.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0);
  console.log(`${what}: largest difference of a logit ${worst.toExponential(1)}`);
}
