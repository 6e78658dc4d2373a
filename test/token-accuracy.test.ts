/** compute_accuracy: LLaMA-Factory's accuracy of supervised tokens, the mean over rows. */
import assert from "node:assert/strict";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { evaluate } from "../src/evaluate/evaluate.js";
import type { EndEvent } from "../src/index.js";
import { packSequences } from "../src/models/token-batch.js";
import { NextTokenConfig, nextToken, nextTokenTask } from "../src/objectives/next-token.js";
import { lora } from "../src/tuners/lora/lora.js";
import { SharedBase } from "../src/tuners/shared-base.js";
import { engine } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { collect, makeFolder, tinyRecipe } from "./support/run.js";
import { assertEstimatedPeak } from "./support/step-peak.js";
import { exampleOf, loadTinyLlama, logitsOf, reference } from "./support/tiny-llama.js";

const task = nextTokenTask(NextTokenConfig.parse({ compute_accuracy: true }));
const sequences = reference.batches.flatMap(({ micro_batches }) => micro_batches.flat()).slice(0, 6);

/** metric.py, on the logits of each row by itself; labels are tokens the model does and does not find likeliest. */
async function byTheBook(model: Parameters<typeof logitsOf>[0], rows: readonly (typeof sequences)[number][]): Promise<number> {
  const vocab = model.shape.vocabSize;
  const shares: number[] = [];
  for (const { ids, supervised } of rows) {
    const logits = await logitsOf(model, packSequences([Int32Array.from(ids)]));
    const hits = ids.flatMap((id, t) => {
      if (t === 0 || supervised[t] !== 1) return [];
      const row = logits.subarray((t - 1) * vocab, t * vocab);
      return [row.indexOf(row.reduce((a, b) => Math.max(a, b))) === id ? 1 : 0];
    });
    if (hits.length > 0) shares.push(hits.reduce<number>((a, b) => a + b, 0) / hits.length);
  }
  return shares.reduce((a, b) => a + b, 0) / shares.length;
}

test("the mean over rows of the share of supervised tokens that are likeliest, whatever the batch; the loss keeps its bits", async () => {
  const { model } = await loadTinyLlama("tied");
  const vocab = model.shape.vocabSize;
  // Some labels become what the model says, so that there is something to count.
  const rows = [];
  for (const [i, { ids, supervised }] of sequences.entries()) {
    const logits = await logitsOf(model, packSequences([Int32Array.from(ids)]));
    const last = logits.subarray((ids.length - 2) * vocab, (ids.length - 1) * vocab);
    const likeliest = last.indexOf(last.reduce((a, b) => Math.max(a, b)));
    rows.push(
      i % 2 === 0 ? { ids: [...ids.slice(0, -1), likeliest], supervised: [...supervised.slice(0, -1), 1] } : { ids, supervised },
    );
  }
  rows.push({ ids: sequences[0]!.ids, supervised: sequences[0]!.supervised.map(() => 0) });
  const expected = await byTheBook(model, rows);
  assert.ok(expected > 0 && expected < 1);
  const examples = rows.map((row) => exampleOf(row));
  const base = new SharedBase(model);
  for (const batchSize of [1, 3]) {
    const { loss, metrics } = (await evaluate(base, null, task, examples, { batchSize }))!;
    assert.ok(Math.abs(Number(metrics!.accuracy) - expected) < 1e-9, `${metrics!.accuracy}, expected ${expected}`);
    assert.equal(loss, (await evaluate(base, null, nextToken, examples, { batchSize }))!.loss);
  }
});

test("the estimate of an evaluation with accuracy is the engine's peak, byte by byte", async () => {
  const before = engine.stats().liveBytes;
  const { model, files } = await loadTinyLlama("untied");
  const examples = sequences.map((sequence) => exampleOf(sequence));
  const tuning = lora.bind(lora.config.parse({}));
  tuning.apply(model, Rng.for(1, "test"));
  await assertEstimatedPeak(
    model,
    { parts: partsOf(files, tuning), task, rows: examples, evalRows: examples, compute: "f32" },
    before,
  );
});

test("a run tells eval_accuracy in events and files, and may be resumed with it", async () => {
  const folder = makeFolder();
  const settings = { val_size: 6, packing: false, save_strategy: "steps", save_steps: 2, max_steps: 4 };
  await collect(tinyRecipe(folder, settings));
  const events = await collect(
    tinyRecipe(folder, { ...settings, max_steps: 6, compute_accuracy: true, resume_from_checkpoint: true }),
  );
  const { results } = events.at(-1) as EndEvent;
  const accuracy = Number(results.eval_metrics!.accuracy);
  assert.ok(accuracy >= 0 && accuracy <= 1);
  const file = JSON.parse(readFileSync(join(folder, "out/eval_results.json"), "utf8"));
  assert.equal(file.eval_accuracy, accuracy);
  rmSync(folder, { recursive: true });
});
