import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { before } from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import type { Example } from "../../src/data/example.js";
import { type CombineOptions, combineAdapters } from "../../src/export/combine-adapters.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import { openSafetensors, readEntry, toTensorEntry } from "../../src/io/safetensors.js";
import type { CausalLM } from "../../src/models/causal-lm.js";
import { buildModel, loadWeights } from "../../src/models/load.js";
import { writeRandomModel } from "../../src/models/random-model.js";
import { packSequences } from "../../src/models/token-batch.js";
import { tuners } from "../../src/tuners/index.js";
import { lora } from "../../src/tuners/lora/lora.js";
import { updateAt } from "../../src/tuners/lora/targets.js";
import { applyAdapter, saveTuned } from "../../src/tuners/tuned-files.js";
import { device } from "../support/gradient-check.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { type StepSettings, trainSteps } from "../support/train-steps.js";

/** A Llama with a bias in every Linear, so that every option has something to change. */
const shape = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 97,
  hidden_size: 48,
  intermediate_size: 80,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  attention_bias: true,
  mlp_bias: true,
  tie_word_embeddings: false,
};

/** Adapters that attune makes: each trains a few steps, and real PEFT must compute the same with it. */
const made = {
  plain: {},
  rslora: { use_rslora: true },
  dora: { use_dora: true },
  "dora-rslora": { use_dora: true, use_rslora: true, lora_dropout: 0.1 },
  pissa: { pissa_init: true, lora_rank: 4 },
  "pissa-rslora": { pissa_init: true, use_rslora: true, rank_pattern: { q_proj: 2 } },
  loraplus: { loraplus_lr_ratio: 8 },
  "bias-all": { bias: "all", lora_target: "q_proj,v_proj" },
  "bias-lora": { bias: "lora_only", lora_target: "q_proj,v_proj", use_dora: true },
  whole: { additional_target: ["lm_head", "embed_tokens", "norm"] },
  patterns: {
    lora_target: ".*\\.(q_proj|v_proj|up_proj|down_proj)",
    exclude_modules: "down_proj",
    rank_pattern: { "layers\\.0\\..*": 2, up_proj: 5 },
    alpha_pattern: { q_proj: 3 },
    use_rslora: true,
  },
  "some-layers": { layers_to_transform: [0, 2] },
  head: { lora_target: "lm_head,embed_tokens,q_proj", use_rslora: true, rank_pattern: { embed_tokens: 3 } },
  "head-pissa": { lora_target: "lm_head,q_proj", pissa_init: true, lora_rank: 4 },
  "embedding-and-whole-head": { lora_target: "embed_tokens", additional_target: "lm_head", alpha_pattern: { embed_tokens: 5 } },
} as const;

/** Adapters that PEFT makes, under its own names of the settings; attune must compute the same with them. */
const targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const theirs = {
  "peft-rslora": { r: 4, lora_alpha: 8, target_modules: targets, use_rslora: true },
  "peft-dora": { r: 4, lora_alpha: 8, target_modules: targets, use_dora: true },
  "peft-regex": { r: 4, lora_alpha: 8, target_modules: ".*layers\\.[01].*\\.(q|up)_proj" },
  "peft-bias-all": { r: 4, lora_alpha: 8, target_modules: ["q_proj"], bias: "all" },
  "peft-bias-lora": { r: 4, lora_alpha: 8, target_modules: ["q_proj", "up_proj"], bias: "lora_only" },
  "peft-whole": { r: 4, lora_alpha: 8, target_modules: ["q_proj"], modules_to_save: ["lm_head", "norm", "embed_tokens"] },
  "peft-patterns": {
    ...{ r: 4, lora_alpha: 8, target_modules: targets, exclude_modules: ["o_proj"] },
    ...{ rank_pattern: { "layers.1.self_attn.q_proj": 7, "^.*mlp\\.up_proj": 3 }, alpha_pattern: { v_proj: 5 } },
  },
  "peft-layers": { r: 4, lora_alpha: 8, target_modules: targets, layers_to_transform: [1], layers_pattern: "layers" },
  "peft-head": { r: 4, lora_alpha: 8, target_modules: ["lm_head", "q_proj"], lora_dropout: 0.1 },
  "peft-embedding": { r: 4, lora_alpha: 8, target_modules: ["embed_tokens", "lm_head", "v_proj"], use_rslora: true },
  "peft-embedding-regex": {
    r: 4,
    lora_alpha: 8,
    target_modules: ".*(embed_tokens|down_proj)",
    rank_pattern: { embed_tokens: 2 },
  },
} as const;

/** Keys of `rank_pattern`, and paths of layers, of which PEFT's `get_pattern_key` says what belongs to what. */
const patternKeys = [
  ["q_proj"],
  ["proj"],
  ["^q_proj"],
  ["^.*q_proj"],
  ["layers.1.self_attn.q_proj", "q_proj"],
  ["q_proj", "layers.1.self_attn.q_proj"],
  ["(q|v)_proj"],
  ["q_proj|v_proj"],
  ["model"],
  ["lm_head"],
  [".*head"],
  ["layers.\\d.mlp\\..*", "model\\.layers\\.0\\..*"],
  ["self_attn"],
  ["v_proj$"],
  ["[kv]_proj", "layers.[0-9]+.mlp.up_proj"],
];
const patternPaths = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"].concat([
  "model.layers.10.self_attn.v_proj",
  "layers.0.self_attn.q_proj",
  "q_proj",
  "lm_head",
  "model.embed_tokens",
]);

/** Runs of ten steps whose losses must be PEFT's: from attune's start, or from PEFT's own where that is not chance (PiSSA). */
const trained = {
  dora: { settings: { use_dora: true, lora_rank: 4 }, from: null },
  rslora: { settings: { use_rslora: true, lora_rank: 4 }, from: null },
  head: { settings: { lora_target: "lm_head,embed_tokens,up_proj", lora_rank: 4 }, from: null },
  pissa: {
    settings: { pissa_init: true, pissa_iter: -1, lora_rank: 4, lora_alpha: 8 },
    from: { r: 4, lora_alpha: 8, target_modules: targets, init_lora_weights: "pissa" },
  },
} as const;

/** Combinations of the first two adapters here, and PEFT's words for them. dare draws at random: only with everything kept can it be compared. */
const combined: Readonly<Record<string, { adapters: (keyof typeof made)[]; weights: number[]; options: CombineOptions }>> = {
  linear: { adapters: ["loraplus", "rslora"], weights: [0.7, -0.4], options: { method: "linear" } },
  cat: { adapters: ["plain", "patterns", "some-layers"], weights: [0.7, -0.4, 1], options: { method: "cat" } },
  svd: { adapters: ["plain", "patterns", "some-layers"], weights: [0.7, -0.4, 1], options: { method: "svd", rank: 6 } },
  ties: { adapters: ["plain", "loraplus", "some-layers"], weights: [0.7, 0.4, 1], options: { method: "ties", density: 0.3 } },
  "ties-frequency": {
    adapters: ["plain", "loraplus"],
    weights: [0.7, 0.4],
    options: { method: "ties", density: 0.6, majoritySign: "frequency" },
  },
  dare: { adapters: ["plain", "loraplus"], weights: [0.7, 0.4], options: { method: "dare_linear", density: 1 } },
  "dare-ties": { adapters: ["plain", "loraplus"], weights: [0.7, 0.4], options: { method: "dare_ties", density: 1 } },
};

const folder = mkdtempSync(join(tmpdir(), "attune-lora-"));
const base = join(folder, "base");
const rng = new Rng(11);
const rows = Array.from({ length: 20 }, (_, i): Example => {
  const length = 8 + rng.below(12);
  return {
    ids: Int32Array.from({ length }, () => rng.below(shape.vocab_size)),
    supervised: Uint8Array.from({ length }, (_, t) => (t > 2 ? 1 : 0)),
    where: `row ${i}`,
    tokens: length,
  };
});
const sequences = rows.slice(0, 3).map(({ ids }) => ids);
const steps: StepSettings = { learning_rate: 5e-3, schedule: "constant", warmup_steps: 0, weight_decay: 0, max_grad_norm: 1 };
const microBatches = Array.from({ length: 10 }, (_, i) => [2 * i, 2 * i + 1]);

async function loadBase(): Promise<CausalLM> {
  const files = await openModelFolder(base);
  const model = buildModel(device, files.config, files.path) as CausalLM;
  await loadWeights(model, files);
  return model;
}

async function logitsOf(model: CausalLM): Promise<Float32Array> {
  const batch = packSequences(sequences);
  const logits = scope(() => model.logits(batch, Int32Array.from(batch.ids.keys())));
  const values = await logits.read();
  logits.dispose();
  return values;
}

/** The logits with an adapter from disk. */
async function logitsWith(path: string): Promise<Float32Array> {
  const model = await loadBase();
  await applyAdapter(path, model, tuners, new Rng(0));
  const logits = await logitsOf(model);
  model.dispose();
  return logits;
}

const origin = { name: base, config: shape };
const mine = new Map<string, Float32Array>();
const losses = new Map<string, number[]>();
let peft: { train: Record<string, number[]>; notes: Record<string, string[]>; patterns: string[][] };
let logits: Map<string, Float32Array>;

before(
  async () => {
    if (skipWithoutPeers) return;
    await writeRandomModel(base, shape, 1);
    for (const [name, settings] of Object.entries(made)) {
      const model = await loadBase();
      const config = lora.config.parse(settings);
      lora.bind(config).apply(model, new Rng(2));
      await trainSteps(model, rows, microBatches.slice(0, 5), 1, steps);
      mine.set(`load.${name}`, await logitsOf(model));
      await saveTuned(join(folder, name), model, lora.bind(config), origin);
      model.dispose();
    }
    const train: Record<string, unknown> = {};
    for (const [name, { settings, from }] of Object.entries(trained)) {
      const model = await loadBase();
      const config = lora.config.parse(settings);
      lora.bind(config).apply(model, new Rng(3));
      const start = join(folder, `start-${name}`);
      await saveTuned(start, model, lora.bind(config), origin);
      train[name] = from === null ? { adapter: start } : { config: from };
      const events = await trainSteps(model, rows, microBatches, 1, steps);
      losses.set(
        name,
        events.map(({ loss }) => loss),
      );
      model.dispose();
    }
    const combine: Record<string, unknown> = {};
    for (const [name, { adapters, weights, options }] of Object.entries(combined)) {
      const output = join(folder, `combined-${name}`);
      const paths = adapters.map((adapter) => join(folder, adapter));
      await combineAdapters(
        paths.map((path, i) => ({ path, weight: weights[i]! })),
        output,
        options,
      );
      mine.set(`combine.${name}`, await logitsWith(output));
      const { method, rank, density, majoritySign } = options;
      const words = { combination_type: method, svd_rank: rank, density, majority_sign_method: majoritySign };
      const given = Object.entries(words).filter(([, value]) => value !== undefined);
      combine[name] = { adapters: paths, weights, arguments: Object.fromEntries(given) };
    }
    const plain = ({ ids, supervised }: Example) => ({ ids: [...ids], supervised: [...supervised] });
    const work = {
      ids: sequences.map((ids) => [...ids]),
      load: Object.fromEntries(Object.keys(made).map((name) => [name, join(folder, name)])),
      make: theirs,
      train,
      steps: microBatches.map((batch) => ({ micro_batches: [batch.map((row) => plain(rows[row]!))] })),
      learning_rate: steps.learning_rate,
      combine,
      patterns: { keys: patternKeys, paths: patternPaths },
    };
    const out = join(folder, "peft");
    mkdirSync(out);
    writeFileSync(join(folder, "work.json"), JSON.stringify(work));
    const printed = runPython("peft_lora.py", ["--model", base, "--work", join(folder, "work.json"), "--out", out]);
    peft = JSON.parse(printed.trim().split("\n").at(-1)!);
    const file = await openSafetensors(join(out, "logits.safetensors"));
    logits = new Map();
    for (const [name, entry] of file.tensors) logits.set(name, new Float32Array((await readEntry(toTensorEntry(entry))).buffer));
    for (const name of Object.keys(theirs)) mine.set(`make.${name}`, await logitsWith(join(out, name)));
  },
  { timeout: 600_000 },
);

function assertSameLogits(key: string): void {
  const [ours, wanted] = [mine.get(key)!, logits.get(key)!];
  assert.equal(ours.length, wanted.length);
  const worst = ours.reduce((most, value, i) => Math.max(most, Math.abs(value - wanted[i]!)), 0);
  assert.ok(worst < 1e-4, `${key}: largest difference of a logit ${worst}`);
}

const skip = skipWithoutPeers;

for (const name of Object.keys(made))
  test(`PEFT computes the same with the adapter that attune trained: ${name}`, { skip }, () => {
    assertSameLogits(`load.${name}`);
    const notOfBase = peft.notes[name]!.filter((key) => !key.endsWith(".base_layer.weight")); // which PEFT saves along
    assert.deepEqual(notOfBase, [], "keys that differ after loading");
  });

for (const name of Object.keys(made))
  test(`loaded from its folder alone, attune computes the same: ${name}`, { skip }, async () => {
    const [again, before] = [await logitsWith(join(folder, name)), mine.get(`load.${name}`)!];
    const worst = again.reduce((most, value, i) => Math.max(most, Math.abs(value - before[i]!)), 0);
    assert.ok(worst < 2e-5, `largest difference of a logit ${worst}`);
  });

for (const name of Object.keys(theirs))
  test(`attune computes the same with PEFT's own adapter: ${name}`, { skip }, () => assertSameLogits(`make.${name}`));

test("keys of patterns belong to the layers that PEFT says", { skip }, () => {
  for (const [i, keys] of patternKeys.entries()) {
    const config = lora.config.parse({ lora_rank: 99, rank_pattern: Object.fromEntries(keys.map((key, j) => [key, j + 1])) });
    for (const [j, path] of patternPaths.entries()) {
      const found = keys.indexOf(peft.patterns[i]![j]!);
      assert.equal(updateAt(config, path).rank, found < 0 ? 99 : found + 1, `${keys} on ${path}`);
    }
  }
});

for (const name of Object.keys(trained))
  test(`ten steps of ${name} have PEFT's losses`, { skip }, () => {
    const [ours, wanted] = [losses.get(name)!, peft.train[name]!];
    assert.equal(ours.length, 10);
    for (const [i, loss] of ours.entries())
      assert.ok(Math.abs(loss - wanted[i]!) < 1e-5 * wanted[i]!, `step ${i + 1}: ${loss}, PEFT ${wanted[i]}`);
  });

for (const name of Object.keys(combined))
  test(`adapters combined by ${name} give what PEFT's add_weighted_adapter gives`, { skip }, () =>
    assertSameLogits(`combine.${name}`),
  );
