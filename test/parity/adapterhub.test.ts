/**
 * Bottleneck adapters against AdapterHub's library. Runs with ATTUNE_ADAPTERHUB = a venv that has torch and adapters, which pins a transformers
 * of its own: `python3 -m venv VENV && VENV/bin/pip install torch adapters`.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import { openSafetensors, readEntry, toTensorEntry } from "../../src/io/safetensors.js";
import { temporaryFolder } from "../../src/io/testing/folders.js";
import { asCausalLM } from "../../src/models/causal-lm.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import { loadModel } from "../../src/models/load.js";
import { packSequences } from "../../src/models/token-batch.js";
import { adapter } from "../../src/tuners/adapter/adapter.js";
import { tuners } from "../../src/tuners/index.js";
import { trainModules } from "../../src/tuners/train-whole.js";
import { applyAdapter, saveTuned } from "../../src/tuners/tuned-files.js";
import { device, engine } from "../support/gradient-check.js";
import { reference, tinyLlama } from "../support/tiny-llama.js";

const venv = process.env.ATTUNE_ADAPTERHUB;
const skip = venv === undefined && "set ATTUNE_ADAPTERHUB to a venv with torch and adapters to run this";

function python(...args: string[]): void {
  const script = join(import.meta.dirname, "../../../test/parity/adapterhub.py");
  const env = { ...process.env, OMP_NUM_THREADS: "2", HF_HUB_OFFLINE: "1" };
  execFileSync(join(venv!, "bin/python"), [script, ...args], { env, stdio: ["ignore", "ignore", "pipe"] });
}

// The smallest of the models has 99 words and 64 places.
const sequences = reference.sequences.map(({ ids }) => Int32Array.from(ids.slice(0, 64), (id) => id % 99));

/** The library's logits, all sequences one behind the other. */
async function theirLogits(model: string, folder: string, scratch: string): Promise<Float32Array> {
  const [ids, out] = [join(scratch, "ids.json"), join(scratch, "logits.safetensors")];
  writeFileSync(ids, JSON.stringify(sequences.map((sequence) => [...sequence])));
  python("logits", "--model", model, "--adapter", folder, "--ids-file", ids, "--out", out);
  const { tensors } = await openSafetensors(out);
  const parts = await Promise.all(
    sequences.map(async (_, i) => new Float32Array((await readEntry(toTensorEntry(tensors.get(`logits.${i}`)!))).buffer)),
  );
  return Float32Array.from(parts.flatMap((part) => [...part]));
}

async function ourLogits(model: LanguageModel): Promise<Float32Array> {
  const batch = packSequences(sequences);
  const logits = scope(() =>
    model.head === null
      ? asCausalLM(model, "this test").logits(batch, Int32Array.from(batch.ids.keys()))
      : model.classLogits(batch),
  );
  const values = await logits.read();
  logits.dispose();
  return values;
}

function assertClose(actual: Float32Array, expected: Float32Array): void {
  assert.equal(actual.length, expected.length);
  const worst = actual.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0);
  assert.ok(worst <= 1e-4, `largest difference of logits: ${worst}`);
  console.log(`    largest difference of logits: ${worst.toExponential(1)}`);
}

async function open(folder: string): Promise<{ model: LanguageModel; config: Readonly<Record<string, unknown>> }> {
  const files = await openModelFolder(folder);
  return { model: await loadModel(device, files), config: files.config };
}

const kinds: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  houlsby: {},
  pfeiffer: { adapter_config: "pfeiffer" },
  parallel: { adapter_config: "parallel" },
  "norms and a learned factor": {
    reduction_factor: { 0: 8, default: 4 },
    non_linearity: "gelu",
    ln_before: true,
    ln_after: true,
    original_ln_before: true,
    scaling: "learned",
  },
  "no residual from before, one layer": {
    adapter_config: "pfeiffer",
    non_linearity: "gelu_new",
    original_ln_after: false,
    residual_before_ln: false,
    leave_out: [0],
  },
};

const fixtures = join(tinyLlama, "..");
const models: Readonly<Record<string, string>> = {
  Llama: join(tinyLlama, "untied"),
  "GPT-2": join(fixtures, "families/gpt2"),
  Qwen2: join(fixtures, "families/qwen2"),
  Qwen3: join(fixtures, "families/qwen3"),
  "Gemma 3": join(fixtures, "families/gemma3"),
  "Llama with classes": join(fixtures, "classifiers/llama"),
  "BERT with classes": join(fixtures, "classifiers/bert"),
};

/** What the library does as well: it cannot leave out the residual of most models, and takes wrong norms for Gemma's `original_ln_before`. */
function isPossible(family: string, settings: Readonly<Record<string, unknown>>): boolean {
  const { original_ln_after, original_ln_before } = config(settings);
  return (original_ln_after || /^(Llama|GPT-2)/.test(family)) && !(original_ln_before && family === "Gemma 3");
}

for (const [family, base] of Object.entries(models))
  for (const [kind, settings] of Object.entries(kinds)) {
    if (!isPossible(family, settings)) continue;
    test(`${family}, ${kind}: attune's adapter gives the same logits in AdapterHub`, { skip }, async (t) => {
      const scratch = temporaryFolder(t);
      const { model, config: modelConfig } = await open(base);
      const rng = new Rng(11);
      adapter.bind(config(settings)).apply(model, rng);
      trainModules(model, model.headModules);
      for (const { value } of model.trainableParameters().values())
        engine.write(
          value.id,
          0,
          Float32Array.from({ length: value.size }, () => 0.3 * rng.normal()),
        );
      const folder = join(scratch, "adapter");
      const taskType = model.head === null ? "CAUSAL_LM" : "SEQ_CLS";
      await saveTuned(folder, model, adapter.bind(config(settings)), { name: base, config: modelConfig, taskType });
      assertClose(await ourLogits(model), await theirLogits(base, folder, scratch));
      model.dispose();
    });

    if (config(settings).ln_before) continue; // the library cannot save that norm as safetensors: it has two names for one tensor
    test(`${family}, ${kind}: AdapterHub's adapter gives the same logits in attune`, { skip }, async (t) => {
      const scratch = temporaryFolder(t);
      const { adapter_config: _, ...theirs } = config(settings);
      const json = JSON.stringify(theirs).replace(/("scaling":\d+)/, "$1.0");
      writeFileSync(join(scratch, "config.json"), json);
      const folder = join(scratch, "adapter");
      python("save", "--model", base, "--config", join(scratch, "config.json"), "--with-head", "--out", folder);
      const { model } = await open(base);
      const { tuner } = await applyAdapter(folder, model, tuners, new Rng(0));
      assert.equal(tuner.name, "adapter");
      assertClose(await ourLogits(model), await theirLogits(base, folder, scratch));
      model.dispose();
    });
  }

function config(settings: Readonly<Record<string, unknown>>) {
  return adapter.config.parse(settings);
}
