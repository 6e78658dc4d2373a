import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import type { Example } from "../../src/data/example.js";
import { openModel } from "../../src/io/open-model.js";
import { openSafetensors, readEntry, toTensorEntry } from "../../src/io/safetensors.js";
import { asCausalLM } from "../../src/models/causal-lm.js";
import { buildModel, loadWeights } from "../../src/models/load.js";
import { packSequences } from "../../src/models/token-batch.js";
import { tuners } from "../../src/tuners/index.js";
import { loadTuned, saveTuned } from "../../src/tuners/tuned-files.js";
import { device } from "../support/gradient-check.js";
import { runPython, skipWithoutPeers, smolLM2Folder } from "../support/peers.js";
import { trainSteps } from "../support/train-steps.js";

const steps = 20;
const rng = new Rng(5);
/** Two sequences a step, of different lengths and with different parts supervised. */
const rows = Array.from({ length: 2 * steps }, (_, i): Example => {
  const length = 12 + rng.below(20);
  const prompt = 1 + rng.below(length - 4);
  return {
    ids: Int32Array.from({ length }, () => 20 + rng.below(40_000)),
    supervised: Uint8Array.from({ length }, (_, t) => (t >= prompt ? 1 : 0)),
    where: `row ${i}`,
    tokens: length,
  };
});

function writeBatches(folder: string): string {
  const path = join(folder, "batches.json");
  const sequence = ({ ids, supervised }: Example) => ({ ids: [...ids], supervised: [...supervised] });
  const batches = Array.from({ length: steps }, (_, i) => ({ micro_batches: [rows.slice(2 * i, 2 * i + 2).map(sequence)] }));
  writeFileSync(path, JSON.stringify({ steps: batches }));
  return path;
}

async function loadSmolLM2() {
  const files = await openModel(smolLM2Folder());
  const model = asCausalLM(buildModel(device, files.config, files.path), "the test");
  await loadWeights(model, files);
  return { model, files };
}

const learningRates = { lora: 1e-3, full: 1e-5 } as const;

for (const method of ["lora", "full"] as const)
  test(`${steps} steps of ${method} on SmolLM2-135M follow PyTorch's losses within 1e-4`, {
    skip: skipWithoutPeers,
    timeout: 1_200_000,
  }, async () => {
    const folder = mkdtempSync(join(tmpdir(), "attune-parity-"));
    const tuner = tuners.find(({ name }) => name === method)!;
    const tuning = tuner.bind(tuner.config.parse({}));
    const { model, files } = await loadSmolLM2();
    tuning.apply(model, new Rng(1));
    const base = { name: smolLM2Folder(), config: files.config };
    const start = join(folder, "start");
    await saveTuned(start, model, tuning, base);

    const args = ["--model", smolLM2Folder(), "--method", method, "--batches", writeBatches(folder), "--threads", "2"];
    const schedule = ["--learning-rate", String(learningRates[method]), "--schedule", "cosine", "--warmup-steps", "2"];
    const adapter = method === "lora" ? ["--adapter", start] : [];
    const theirs = JSON.parse(runPython("torch_train.py", [...args, ...schedule, ...adapter])) as {
      loss: number[];
      grad_norm: number[];
    };

    const microBatches = Array.from({ length: steps }, (_, i) => [2 * i, 2 * i + 1]);
    const settings = {
      learning_rate: learningRates[method],
      schedule: "cosine",
      warmup_steps: 2,
      weight_decay: 0,
      max_grad_norm: 1,
    } as const;
    const events = await trainSteps(model, rows, microBatches, 1, settings);
    let worst = 0;
    for (const event of events) {
      const expected = theirs.loss[event.step - 1]!;
      worst = Math.max(worst, Math.abs(event.loss - expected) / expected);
      assert.ok(worst < 1e-4, `step ${event.step}: loss ${event.loss}, PyTorch ${expected}`);
    }
    console.log(`${method}: largest relative difference of a loss over ${steps} steps: ${worst.toExponential(1)}`);
    model.dispose();
  });

test("an adapter that attune trained gives the same logits in real PEFT, and after loading here", {
  skip: skipWithoutPeers,
  timeout: 600_000,
}, async () => {
  const folder = mkdtempSync(join(tmpdir(), "attune-parity-"));
  const lora = tuners.find(({ name }) => name === "lora")!;
  const tuning = lora.bind(lora.config.parse({}));
  const { model, files } = await loadSmolLM2();
  tuning.apply(model, new Rng(2));
  const noise = new Rng(3);
  for (const [name, { value }] of model.trainableParameters())
    if (name.includes("lora_B"))
      device.kernels.write(
        value.id,
        0,
        Float32Array.from({ length: value.size }, () => 0.02 * noise.normal()),
      );
  await saveTuned(folder, model, tuning, { name: smolLM2Folder(), config: files.config });

  const ids = rows.slice(0, 2).map((row) => row.ids);
  const logitsOf = async () => {
    const batch = packSequences(ids);
    const logits = scope(() => model.logits(batch, Int32Array.from(batch.ids.keys())));
    const values = await logits.read();
    logits.dispose();
    return values;
  };
  const mine = await logitsOf();
  await loadTuned(folder, model, tuning);
  assert.deepEqual(await logitsOf(), mine);

  const out = join(folder, "logits.safetensors");
  runPython("peft_logits.py", [
    "--model",
    smolLM2Folder(),
    "--adapter",
    folder,
    ...ids.flatMap((row) => ["--ids", row.join()]),
    "--out",
    out,
  ]);
  const { tensors } = await openSafetensors(out);
  const parts = await Promise.all(
    [0, 1].map(async (i) => new Float32Array((await readEntry(toTensorEntry(tensors.get(`logits.${i}`)!))).buffer)),
  );
  const theirs = Float32Array.from(parts.flatMap((part) => [...part]));
  assert.equal(theirs.length, mine.length);
  const worst = mine.reduce((most, value, i) => Math.max(most, Math.abs(value - theirs[i]!)), 0);
  console.log(`largest difference of a logit: ${worst.toExponential(1)}`);
  assert.ok(worst < 1e-3, `largest difference ${worst}`);
  model.dispose();
});
