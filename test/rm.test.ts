/** Reward models: the loss against hand values and finite differences, every tuner, the files that are left, and the verdict on held-out pairs. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { openSafetensors, readEntry } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { bradleyTerry } from "../src/objectives/rm/bradley-terry.js";
import { readGate } from "../src/objectives/rm/gate.js";
import type { EvalEvent, StepEvent } from "../src/runs/events.js";
import { tuners } from "../src/tuners/index.js";
import { collect, tinyRecipe, trace } from "./support/run.js";

const near = (actual: number, expected: number, allowed = 1e-9) =>
  assert.ok(Math.abs(actual - expected) <= allowed, `${actual}, expected ${expected}`);

test("the loss has its hand values: margin, centring, and TRL's metrics", () => {
  const scores = Float32Array.of(1, 0.5, -2, 1);
  const plain = bradleyTerry(scores, [0, 0], 0);
  near(plain.sum, Math.log(1 + Math.exp(-0.5)) + Math.log(1 + Math.exp(3)));
  const both = bradleyTerry(scores, [0.25, 1], 0.01);
  near(both.sum, Math.log(1 + Math.exp(-0.25)) + Math.log(1 + Math.exp(4)) + 0.01 * (1.5 ** 2 + 1));
  const { metrics } = both;
  assert.deepEqual(metrics.accuracy, { sum: 1, count: 2 });
  assert.deepEqual(metrics.margin, { sum: -2.5, count: 2 });
  assert.deepEqual([metrics.min_reward.sum, metrics.max_reward.sum, metrics.mean_reward], [-2, 1, { sum: 0.5, count: 4 }]);
  assert.equal(bradleyTerry(Float32Array.of(3, 3), [0], 0).metrics.accuracy.sum, 0, "a tie is wrong");
  const extreme = bradleyTerry(Float32Array.of(-900, 900, 900, -900), [0, 0], 0);
  near(extreme.sum, 1800);
  assert.ok([...extreme.gradient].every(Number.isFinite));
});

test("its gradient is that of finite differences", () => {
  const rng = new Rng(2);
  const scores = Float64Array.from({ length: 12 }, () => 2 * rng.normal());
  const margins = Array.from({ length: 6 }, () => rng.normal());
  const lossAt = (values: Float64Array) => bradleyTerry(values as unknown as Float32Array, margins, 0.05).sum;
  const { gradient } = bradleyTerry(Float32Array.from(scores), margins, 0.05);
  for (const i of scores.keys()) {
    const moved = (by: number) => lossAt(scores.map((value, j) => (i === j ? value + by : value)));
    near(gradient[i]!, (moved(1e-5) - moved(-1e-5)) / 2e-5, 1e-5);
  }
});

/** Pairs of short answers, of which the better one says what the rule wants. */
function writePairs(
  folder: string,
  count: number,
  answersOf: (i: number, rng: Rng) => readonly [chosen: string, rejected: string],
): string {
  const path = join(folder, "pairs.jsonl");
  const rng = new Rng(9);
  const rows = Array.from({ length: count }, (_, i) => {
    const [chosen, rejected] = answersOf(i, rng);
    return { prompt: `q${i}`, chosen, rejected };
  });
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

const words = ["one", "two", "six", "ten", "red", "sun", "map", "cup"];
const some = (rng: Rng, count: number) => Array.from({ length: count }, () => words[rng.below(words.length)]).join(" ");

/** The better answer has an exclamation mark; lengths say nothing. */
const marked = (_: number, rng: Rng) => {
  const [a, b] = [some(rng, 1 + rng.below(3)), some(rng, 1 + rng.below(3))];
  return [`${a}!`, `${b}.`] as const;
};

const rmRecipe = (folder: string, pairs: string, changes: Readonly<Record<string, unknown>> = {}) =>
  tinyRecipe(folder, {
    ...{ stage: "rm", dataset: [pairs], packing: false, lora_dropout: undefined, per_device_train_batch_size: 8 },
    ...{ gradient_accumulation_steps: 1, num_train_epochs: 2, learning_rate: 1e-2, warmup_steps: 0, ...changes },
  });

const rates: Readonly<Record<string, number>> = { full: 3e-3, freeze: 3e-3, "prefix-tuning": 3e-2, "p-tuning": 3e-2 };

for (const { name } of tuners)
  test(`${name}: a reward model trains through the ordinary loop, leaves its head in both forms, resumes, and is judged`, async (t) => {
    const folder = temporaryFolder(t);
    const recipe = rmRecipe(folder, writePairs(folder, 60, marked), {
      ...{ finetuning_type: name, learning_rate: rates[name] ?? 1e-2, val_size: 20, eval_strategy: "steps", eval_steps: 5 },
      ...{ save_strategy: "steps", save_steps: 6, num_train_epochs: 4 },
    });
    const events = await collect(recipe);
    const steps = events.filter((event): event is StepEvent => event.type === "step");
    const meanOf = (some: readonly StepEvent[]) => some.reduce((sum, { loss }) => sum + loss, 0) / some.length;
    const [first, last] = [meanOf(steps.slice(0, 5)), meanOf(steps.slice(-5))];
    assert.ok(last < 0.9 * first, `epochs' losses go from ${first} to ${last}`);
    assert.deepEqual(Object.keys(steps[0]!.metrics!).sort(), ["accuracy", "margin", "max_reward", "mean_reward", "min_reward"]);
    const evaluation = events.filter((event): event is EvalEvent => event.type === "eval").at(-1)!;
    const { accuracy, min_reward, mean_reward, max_reward } = evaluation.metrics as Record<string, number>;
    assert.ok(accuracy! >= 0 && min_reward! <= mean_reward! && mean_reward! <= max_reward!);
    const results = JSON.parse(readFileSync(join(folder, "out/eval_results.json"), "utf8")) as Record<string, number>;
    assert.equal(results.eval_accuracy, accuracy);

    for (const place of ["out", "out/checkpoint-6"]) {
      const { tensors } = await openSafetensors(join(folder, place, "value_head.safetensors"));
      const shapes = Object.fromEntries([...tensors].map(([key, { shape }]) => [key, shape]));
      assert.deepEqual(Object.keys(shapes).sort(), ["v_head.summary.bias", "v_head.summary.weight"]);
      assert.equal(shapes["v_head.summary.weight"]![0], 1);
      const names = readdirSync(join(folder, place));
      const own = await openSafetensors(
        join(folder, place, names.find((file) => /^(adapter_)?model\.safetensors$/.test(file)) ?? "model_head.safetensors"),
      );
      const score = [...own.tensors.values()].find((tensor) => /score\.weight$/.test(tensor.name))!;
      assert.deepEqual(await readEntry(score), await readEntry(tensors.get("v_head.summary.weight")!));
    }
    const gate = (await readGate(join(folder, "out")))!;
    assert.equal(gate.pairs, 20);
    near(gate.accuracy!, accuracy!);
    const [notice] = events.filter((event) => event.type === "notice" && /^reward model/.test(event.message));
    assert.ok(notice?.type === "notice" && notice.message.includes(gate.reason));

    const resumed = await collect({ ...recipe, resume_from_checkpoint: join(folder, "out/checkpoint-6") });
    assert.deepEqual(trace(resumed), trace(events).slice(6));
  });
