/** Whole runs of the stages that learn from their own answers: from a recipe, through a stop, to what is saved. */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import type { RunEvent } from "../src/index.js";
import { openSafetensors, readEntry, toTensorEntry } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import type { EvalEvent, StepEvent } from "../src/runs/events.js";
import { collect, hashOf, tinyRecipe, trace } from "./support/run.js";

function writePrompts(folder: string): string {
  const path = join(folder, "prompts.jsonl");
  const rows = Array.from({ length: 12 }, (_, i) => ({ prompt: `What is ${i} and ${i}?`, answer: String(2 * i) }));
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

function recipeOf(folder: string, stage: string, changes: Readonly<Record<string, unknown>> = {}) {
  return tinyRecipe(folder, {
    ...{ stage, dataset: [writePrompts(folder)], packing: false, val_size: 4, max_new_tokens: 6, num_train_epochs: 3 },
    ...{ per_device_train_batch_size: 2, gradient_accumulation_steps: 2, save_strategy: "steps", eval_strategy: "steps" },
    ...{
      save_steps: 4,
      eval_steps: 4,
      rewards: [
        { type: "regex", pattern: "[a-z]" },
        { type: "length", max: 4, weight: 0.5 },
      ],
    },
    ...changes,
  });
}

const stages: Record<string, object> = {
  ppo: { ppo_epochs: 2, ppo_buffer_size: 2, ppo_score_norm: true, lora_dropout: 0.1 },
  grpo: { num_generations: 3, num_iterations: 2, beta: 0.05 },
  rloo: { num_generations: 3 },
};

for (const [stage, settings] of Object.entries(stages))
  for (const method of ["lora", "full"])
    test(`${stage} under ${method}: a recipe trains, evaluates by reward, and goes on from a checkpoint as if it had not stopped`, async (t) => {
      const folder = temporaryFolder(t);
      const own = method === "full" ? { lora_dropout: undefined, learning_rate: 1e-3, finetuning_type: "full" } : {};
      const recipe = recipeOf(folder, stage, { ...settings, ...own });
      const events = await collect(recipe);
      const [first] = events.filter((event): event is StepEvent => event.type === "step");
      const metrics = first!.metrics as Record<string, number>;
      for (const name of ["reward", "rewards/regex/mean", "rewards/length/std", "entropy", "kl", "completions/mean_length"])
        assert.ok(Number.isFinite(metrics[name]), `${name}: ${metrics[name]}`);
      const evals = events.filter((event): event is EvalEvent => event.type === "eval");
      assert.ok(evals.length >= 2);
      for (const { evalLoss, metrics } of evals) assert.equal(evalLoss, -(metrics!.reward as number));

      const out = join(folder, "out");
      const saved = ["adapter_model.safetensors", "model.safetensors", "value_head.safetensors"].filter((name) =>
        existsSync(join(out, name)),
      );
      const hashes = saved.map((name) => hashOf(join(out, name)));
      const resumed = await collect({ ...recipe, resume_from_checkpoint: join(out, "checkpoint-4") });
      assert.deepEqual(trace(resumed), trace(events).slice(4));
      assert.deepEqual(metricsOf(resumed), metricsOf(events).slice(4));
      assert.deepEqual(
        saved.map((name) => hashOf(join(out, name))),
        hashes,
      );
      assert.deepEqual(saved.includes("value_head.safetensors"), stage === "ppo");
      if (stage !== "ppo") return;
      const { tensors } = await openSafetensors(join(out, "value_head.safetensors"));
      assert.deepEqual(
        [...tensors].map(([name, { shape }]) => [name, shape]),
        [
          ["v_head.summary.bias", [1]],
          ["v_head.summary.weight", [1, 64]],
        ],
      );
      const [bias] = new Float32Array((await readEntry(toTensorEntry(tensors.get("v_head.summary.bias")!))).buffer);
      assert.notEqual(bias, 0, "the value head has learned");
      const policy = await openSafetensors(join(out, method === "full" ? "model.safetensors" : "adapter_model.safetensors"));
      assert.ok(
        [...policy.tensors.keys()].every((name) => !/value|v_head|score|beside/.test(name)),
        "a policy is no value model",
      );
    });

const metricsOf = (events: readonly RunEvent[]) => events.flatMap((event) => (event.type === "step" ? [event.metrics] : []));

test("what is drawn by is what is scored by: cuts of the distribution are refused by name", async (t) => {
  const folder = temporaryFolder(t);
  for (const [key, value] of Object.entries({ top_p: 0.9, top_k: 20, repetition_penalty: 1.1, do_sample: false }))
    await assert.rejects(collect(recipeOf(folder, "ppo", { [key]: value })), {
      ...{ code: "CONFIG", message: new RegExp(`${key}: expected (1|0|true), got ${value}`) },
    });
});

test("a stage that nobody judges does not begin", async (t) => {
  const folder = temporaryFolder(t);
  for (const stage of Object.keys(stages))
    await assert.rejects(collect(recipeOf(folder, stage, { rewards: [] })), {
      code: "CONFIG",
      message: /learns from rewards, and the recipe has none/,
    });
});

test("the best evaluation is that of the highest reward", async (t) => {
  const folder = temporaryFolder(t);
  const recipe = recipeOf(folder, "grpo", { load_best_model_at_end: true, metric_for_best_model: "reward", beta: 0.01 });
  const events = await collect(recipe);
  const rewards = events.flatMap((event) => (event.type === "eval" ? [event.metrics!.reward as number] : []));
  const results = JSON.parse(readFileSync(join(folder, "out/all_results.json"), "utf8")) as Record<string, number>;
  assert.equal(results.eval_reward, Math.max(...rewards));
});
