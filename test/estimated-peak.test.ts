import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { llama, randomBase, type Stage, train, type Work } from "../bench/recipes.js";

const base = randomBase("llama", llama, [192, 6, 20_000]);
const rows = { count: 12, least: 500, most: 900 };
const shared = { compute_dtype: "f32", max_steps: 2, cutoff_len: 2000, plot_loss: false };

const works: (Pick<Work, "settings" | "held"> & { readonly stage?: Stage })[] = [
  { settings: { finetuning_type: "lora", per_device_train_batch_size: 4 }, held: null },
  { settings: { finetuning_type: "full", gradient_accumulation_steps: 2, gradient_checkpointing: true }, held: null },
  { settings: { finetuning_type: "qlora", per_device_train_batch_size: 2 }, held: { count: 4, least: 1500, most: 1800 } },
  { stage: "dpo", settings: { finetuning_type: "lora", per_device_train_batch_size: 2 }, held: null },
  { stage: "dpo", settings: { finetuning_type: "full", precompute_ref_log_probs: true }, held: null },
  {
    stage: "grpo",
    settings: {
      rewards: [{ type: "length", min: 1, max: 20 }],
      num_generations: 8,
      max_new_tokens: 300,
      beta: 0.1,
      gradient_accumulation_steps: 2,
      seed: 3,
    },
    held: null,
  },
  { settings: { do_predict: true, max_new_tokens: 400, max_steps: 1 }, held: { count: 16, least: 800, most: 1000 } },
];

test("what a run says before its first step of its process's peak is true within a tenth", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "attune-estimates-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const model = await base.make(join(folder, "model"));
  for (const [i, { settings, held, stage = "sft" }] of works.entries()) {
    const work: Work = { base, stage, train: rows, held, settings: { stage, ...shared, ...settings } };
    const { predictedBytes, measuredBytes } = await train(work, model, join(folder, `${i}`));
    const ratio = predictedBytes / measuredBytes;
    assert.ok(Math.abs(ratio - 1) < 0.1, `${JSON.stringify(settings)}: ${ratio} of ${measuredBytes} bytes`);
  }
});
