/** Whole runs with each optimizer and schedule, as a recipe asks for them. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test, { describe } from "node:test";
import type { RunEvent, StepEvent } from "../src/index.js";
import type { OptimizerName } from "../src/optim/optimizers.js";
import { collect, makeFolder, tinyRecipe, trace } from "./support/run.js";

const stepsOf = (events: readonly RunEvent[]) => events.filter((event): event is StepEvent => event.type === "step");

const rates: Partial<Record<OptimizerName, Record<string, unknown>>> = {
  adamw_torch: { learning_rate: 1e-2 },
  adamw_8bit: { learning_rate: 1e-2 },
  adafactor: { learning_rate: 1e-2 },
  lion_32bit: { learning_rate: 2e-3 },
  muon: { learning_rate: 1e-2 },
  sgd: { learning_rate: 0.3, optim_args: "momentum=0.9" },
};

describe("the loss falls", () => {
  for (const [optim, settings] of Object.entries(rates))
    for (const method of [{ loraplus_lr_ratio: 4 }, { finetuning_type: "full", lora_dropout: undefined }])
      test(`${optim}, ${JSON.stringify(method)}`, async () => {
        const recipe = { optim, num_train_epochs: 10, max_grad_norm: 1, weight_decay: 0.01, ...settings, ...method };
        const losses = stepsOf(await collect(tinyRecipe(makeFolder(), recipe))).map(({ loss }) => loss);
        const meanOf = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
        const [first, last] = [meanOf(losses.slice(0, 4)), meanOf(losses.slice(-4))];
        assert.ok(last < 0.7 * first, `${first} to ${last}`);
      });
});

test("use_muon is optim: muon, bit by bit", async () => {
  const run = async (changes: Record<string, unknown>) => trace(await collect(tinyRecipe(makeFolder(), changes)));
  assert.deepEqual(await run({ use_muon: true }), await run({ optim: "muon" }));
  assert.notDeepEqual(await run({ use_muon: true }), await run({}));
});

test("a checkpoint of another optimizer is refused, and named", async () => {
  for (const [before, after] of [
    ["adamw_torch", "lion_32bit"],
    ["lion_32bit", "sgd"],
    ["sgd", "adafactor"],
    ["adamw_torch", "adamw_8bit"],
  ]) {
    const folder = makeFolder();
    const method = { finetuning_type: "full", lora_dropout: undefined, save_strategy: "steps", save_steps: 1, max_steps: 2 };
    await collect(tinyRecipe(folder, { ...method, optim: before }));
    const resumed = tinyRecipe(folder, { ...method, optim: after, resume_from_checkpoint: join(folder, "out/checkpoint-1") });
    await assert.rejects(collect(resumed), {
      code: "CHECKPOINT",
      message: /checkpoint-1\/optimizer\.safetensors: does not hold what this optimizer keeps: .* another optim/,
    });
  }
});

describe("the learning rate of a run", () => {
  const ratesOf = async (changes: object) => {
    const recipe = { learning_rate: 1e-3, max_steps: 8, packing: false, warmup_steps: 0, ...changes };
    return stepsOf(await collect(tinyRecipe(makeFolder(), recipe))).map(({ learningRate }) => learningRate * 1e3);
  };
  const isClose = (actual: readonly number[], expected: readonly number[]) =>
    assert.ok(
      actual.length === expected.length && actual.every((value, i) => Math.abs(value - expected[i]!) < 1e-12),
      `${actual}`,
    );

  test("follows lr_scheduler_kwargs", async () => {
    const stable = { decay_type: "linear", num_decay_steps: 4, min_lr_ratio: 0.2 };
    const rates = await ratesOf({ lr_scheduler_type: "warmup_stable_decay", lr_scheduler_kwargs: stable, warmup_steps: 2 });
    isClose(rates, [0.2, 0.6, 1, 1, 1, 0.8, 0.6, 0.4]);
    isClose(
      await ratesOf({ lr_scheduler_type: "polynomial", lr_scheduler_kwargs: { lr_end: 0, power: 2 } }),
      [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125].map((left) => left ** 2),
    );
  });

  test("rises over a share of the steps where warmup_steps is below 1", async () => {
    isClose(await ratesOf({ lr_scheduler_type: "constant_with_warmup", warmup_steps: 0.5 }), [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]);
  });

  test("is told where a schedule's stages are not the run's", async () => {
    const recipe = tinyRecipe(makeFolder(), {
      ...{ max_steps: 4, warmup_steps: 0, lr_scheduler_type: "warmup_stable_decay" },
      lr_scheduler_kwargs: { num_stable_steps: 1, num_decay_steps: 1 },
    });
    const told = (await collect(recipe)).flatMap((event) => (event.type === "notice" ? [event.message] : []));
    assert.match(
      told.join("\n"),
      /lr_scheduler_kwargs: 0 steps of warm-up, 1 at the peak and 1 of decay are not the 4 steps of the run/,
    );
  });
});
