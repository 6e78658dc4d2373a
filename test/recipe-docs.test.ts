import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";
import { everyMethod } from "../src/backends/index.js";
import { ConfigError } from "../src/errors.js";
import * as attune from "../src/index.js";
import { recipeDocs } from "../src/recipe/docs.js";
import { aliases } from "../src/recipe/foreign-keys.js";
import { type ForeignKeyList, withKeys } from "../src/recipe/from-llama-factory.js";
import { checkRecipe, parseRecipe } from "../src/recipe/parse.js";
import type { RecipeSettings } from "../src/recipe/recipe-settings.js";
import { axesOf, keySchemas, RecipeKeys } from "../src/recipe/schema.js";
import { recipeTypeSource } from "../src/recipe/type-source.js";

test("docs/recipe.md is what the schema gives", async () => {
  const written = await readFile(new URL("../../docs/recipe.md", import.meta.url), "utf8"); // from dist/test
  assert.ok(written === recipeDocs(everyMethod), "run: npm run build && node scripts/make-recipe-docs.mjs");
});

test("the type of recipes is what the schemas give, and completes and checks names and values", async () => {
  const written = await readFile(new URL("../../src/recipe/recipe-settings.ts", import.meta.url), "utf8");
  assert.ok(written === recipeTypeSource(everyMethod), "run: npm run build && node scripts/make-recipe-docs.mjs");
  const base = { model_name_or_path: "m", dataset: ["a.jsonl", "b.jsonl"], output_dir: "o" };
  const fine: RecipeSettings = {
    ...base,
    finetuning_type: "qlora",
    lora_rank: 4,
    lora_target: ["q_proj"],
    threads: 2,
    labels: null,
  };
  // @ts-expect-error: no such setting
  const misspelt: RecipeSettings = { ...base, lora_rnk: 4 };
  // @ts-expect-error: no such method
  const unknown: RecipeSettings = { ...base, finetuning_type: "lorra" };
  // @ts-expect-error: a number
  const text: RecipeSettings = { ...base, lora_rank: "4" };
  // @ts-expect-error: a recipe needs data
  const empty: RecipeSettings = { model_name_or_path: "m", output_dir: "o" };
  assert.equal(checkRecipe(fine, everyMethod).recipe.tuner.lora_rank, 4);
  for (const wrong of [misspelt, unknown, text, empty]) assert.throws(() => checkRecipe(wrong, everyMethod), ConfigError);
});

test("settings of unknown type become a typed recipe, which says the same and leaves nothing to notice", () => {
  const base = { model_name_or_path: "m", dataset: "d", output_dir: "o" };
  const methods = axesOf(everyMethod);
  const untyped: Record<string, unknown>[] = [
    ...methods.finetuning_type.map(({ name }) => ({ ...base, finetuning_type: name })),
    ...methods.stage.map(({ name }) => ({ ...base, stage: name })),
    { ...base, "learning-rate": 1e-4, warmup_steps: 3, val_size: 0.1, eval_steps: 5, neat_packing: true },
    { ...base, optim: "muon", lr_scheduler_type: "cosine_with_restarts", lr_scheduler_kwargs: { num_cycles: 2 }, bf16: true },
    { ...base, dataset: "a, b", lora_target: "q_proj,v_proj", overwrite_output_dir: true, report_to: "tensorboard" },
  ];
  // @ts-expect-error: nothing is known of these settings
  const unchecked: RecipeSettings = untyped[0]!;
  assert.equal(unchecked, untyped[0]);
  for (const settings of untyped) {
    const { recipe, notices } = attune.checkRecipe(settings);
    const once = checkRecipe(settings, everyMethod);
    assert.deepEqual(notices, once.notices);
    assert.deepEqual(checkRecipe(recipe, everyMethod), { recipe: once.recipe, notices: [] });
  }
  assert.throws(() => attune.checkRecipe({ ...base, lora_rnk: 4, seed: "x" }), /lora_rnk[\s\S]*seed: expected/);
});

test("every setting is documented once", () => {
  const lines = recipeDocs(everyMethod).split("\n");
  for (const key of [
    ...Object.keys(keySchemas(RecipeKeys)),
    "lora_rank",
    "freeze_trainable_layers",
    "threads",
    "compute_dtype",
  ]) {
    assert.equal(lines.filter((line) => line.startsWith(`| \`${key}\` |`)).length, 1, key);
  }
});

test("the methods of attune fit into one recipe", () => {
  const { recipe } = parseRecipe(undefined, ["model=m", "dataset=d", "output_dir=o", "lora_rank=3", "threads=2"], everyMethod);
  assert.equal(recipe.tuner.lora_rank, 3);
  assert.equal(recipe.backendConfig.threads, 2);
  const names = Object.values(axesOf(everyMethod))
    .flat()
    .flatMap(({ config }) => (config ? Object.keys(keySchemas(config)) : []));
  for (const name of names) assert.ok(!(name in RecipeKeys.shape), `${name} is a setting of every run, too`);
});

const fromDist = (path: string) => readFile(new URL(`../../${path}`, import.meta.url), "utf8");
const list: ForeignKeyList = JSON.parse(await fromDist("test/fixtures/llama-factory-keys.json")).keys;
const own = { model_name_or_path: "m", dataset: "d", output_dir: "o", learning_rate: 1e-4 };
/** What a recipe with these settings is refused for, a line each. */
const refusals = (settings: Readonly<Record<string, unknown>>) => {
  try {
    checkRecipe({ ...settings, ...own }, everyMethod);
    return [];
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.message.split("\n");
  }
};

test("the pages about LLaMA-Factory have its keys as attune knows them", async () => {
  for (const [page, language] of [
    ["docs/from-llama-factory.md", "en"],
    ["docs/from-llama-factory.zh.md", "zh"],
  ] as const) {
    const written = await fromDist(page);
    assert.ok(
      written === withKeys(written, list, everyMethod, language),
      "run: npm run build && node scripts/make-recipe-docs.mjs",
    );
    for (const key of Object.values(list).flatMap(Object.keys))
      assert.equal(written.split("\n").filter((line) => line.startsWith(`| \`${key}\` |`)).length, 1, `${page}: ${key}`);
  }
});

test("no key of LLaMA-Factory is unknown", () => {
  const keys = Object.values(list).flatMap(Object.keys);
  const refused = refusals(Object.fromEntries(keys.map((key) => [key, "?"])));
  assert.deepEqual(
    refused.filter((line) => line.includes("unknown setting")),
    [],
  );
  assert.ok(refused.length > 100, "a question mark is no value of most");
  assert.match(refusals({ learning_rte: 1 }).join(), /unknown setting/);
});

test("what LLaMA-Factory does where a key is not set is refused nowhere", () => {
  const elsewhere = ["EvaluationArguments", "GeneratingArguments"]; // its benchmarks and chats
  const groups = Object.entries(list).filter(([group]) => !elsewhere.includes(group));
  // `do_train` is what `attune train` is for; the other is an old name of per_device_train_batch_size.
  const { do_train: _, per_gpu_train_batch_size: __, ...defaults } = Object.assign({}, ...groups.map(([, keys]) => keys));
  assert.deepEqual(refusals(defaults), []);
  assert.equal(refusals({ ...defaults, use_galore: true, fp8: true }).length, 2);
});

test("a stage reads other trainers' names of its settings, which may mean something else under another stage", () => {
  const base = { model_name_or_path: "m", dataset: "d", output_dir: "o" };
  const trl = { beta: 0.3, loss_type: ["sigmoid", "sft"], label_smoothing: 0.1, truncation_mode: "keep_start" };
  const { recipe, notices } = checkRecipe({ ...base, ...trl, stage: "dpo" }, everyMethod);
  const { pref_beta, pref_loss, dpo_label_smoothing, truncation } = recipe.objective;
  assert.deepEqual([pref_beta, pref_loss, dpo_label_smoothing, truncation], [0.3, ["sigmoid", "sft"], 0.1, "keep_start"]);
  assert.ok(notices.includes("recipe: beta is read as pref_beta"));
  const kto = { stage: "kto", loss_type: "apo_zero_unpaired", desirable_weight: 2 };
  const { objective } = checkRecipe({ ...base, ...kto }, everyMethod).recipe;
  assert.deepEqual([objective.kto_loss, objective.kto_chosen_weight], ["apo_zero_unpaired", 2]);
  assert.throws(() => checkRecipe({ ...base, stage: "dpo", beta: 0.3, pref_beta: 0.1 }, everyMethod), /pref_beta is set twice/);
});

test("every other name of a setting is read as it", () => {
  const values: Readonly<Record<string, unknown>> = {
    ...{
      model_name_or_path: "m2",
      adapter_name_or_path: "a",
      finetuning_type: "freeze",
      dataset: ["d2"],
      val_size: 0.1,
      template: "qwen",
    },
    ...{ cutoff_len: 64, packing: true, train_on_prompt: true, per_device_train_batch_size: 2, num_train_epochs: 2 },
    ...{ lr_scheduler_type: "cosine", eval_strategy: "no", lora_rank: 4, lora_target: ["q_proj"], optim: "adamw_8bit" },
    ...{ additional_target: ["lm_head"], quantization_type: "fp4", double_quantization: false },
    ...{ early_stopping_steps: 3 },
  };
  /** What a setting does not go without. */
  const beside: Readonly<Record<string, object>> = {
    early_stopping_steps: { val_size: 0.1, load_best_model_at_end: true },
  };
  for (const [name, key] of Object.entries(aliases)) {
    const { [key]: _, ...others } = own as Record<string, unknown>;
    const { recipe, notices } = checkRecipe({ ...others, ...beside[key], [name]: values[key] }, everyMethod);
    const { tuner, ...common } = recipe;
    assert.deepEqual(({ ...common, ...tuner } as Record<string, unknown>)[key], values[key], name);
    assert.deepEqual(notices, [`recipe: ${name} is read as ${key}`]);
  }
});

test("what LLaMA-Factory's users write is read, and what would change nothing is told", () => {
  const text = `
### model
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
trust_remote_code: true
flash_attn: auto
quantization_bit: null
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
### dataset
dataset: identity,alpaca_en_demo
dataset_dir: data
template: qwen
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
packing: false
### output
output_dir: saves/qwen2.5-0.5b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]
include_num_input_tokens_seen: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
warmup_steps: 0
max_grad_norm: 1.0
optim: adamw_torch
bf16: true
fp16: false
ddp_timeout: 180000000
resume_from_checkpoint: null
use_galore: false
use_swanlab: false
infer_backend: huggingface
### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
`;
  const { recipe, notices } = parseRecipe({ text, file: "recipe.yaml" }, [], everyMethod);
  const { lora_rank, lora_target } = recipe.tuner;
  const { dataset, template, learning_rate, gradient_accumulation_steps, val_size, eval_strategy, eval_steps } = recipe;
  assert.deepEqual(
    {
      lora_rank,
      lora_target,
      dataset,
      template,
      learning_rate,
      gradient_accumulation_steps,
      val_size,
      eval_strategy,
      eval_steps,
    },
    {
      ...{ lora_rank: 8, lora_target: "q_proj,v_proj", dataset: ["identity", "alpaca_en_demo"], template: "qwen" },
      ...{ learning_rate: 1e-4, gradient_accumulation_steps: 8, val_size: 0.1, eval_strategy: "steps", eval_steps: 500 },
    },
  );
  assert.deepEqual(
    notices.map((notice) => /^recipe\.yaml:\d+: (\w+) is not needed: ./.exec(notice)?.[1]),
    [
      ...["trust_remote_code", "flash_attn", "overwrite_cache", "preprocessing_num_workers", "dataloader_num_workers"],
      ...["include_num_input_tokens_seen", "bf16", "fp16", "ddp_timeout", "use_swanlab", "infer_backend"],
      "per_device_eval_batch_size",
    ],
  );
});
