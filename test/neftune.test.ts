/** NEFTune's noise on the vectors of tokens, against transformers' (test/fixtures/make_neftune.py made the numbers), and in whole runs. */
import assert from "node:assert/strict";
import { cpSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import type { Segment } from "../src/core/ops/attention.js";
import { embeddingNoise } from "../src/core/ops/embedding-noise.js";
import { Rng } from "../src/core/rng.js";
import { forward } from "../src/core/tape.js";
import { Tensor } from "../src/core/tensor.js";
import { ShapeError } from "../src/errors.js";
import type { StartEvent } from "../src/index.js";
import { packFamilies } from "../src/models/branches.js";
import { packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import { assemble } from "../src/train/assemble.js";
import { tuners } from "../src/tuners/index.js";
import { device, engine, randomValues, weightedSum } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { collect, hashOf, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { assertPeakOf } from "./support/step-peak.js";
import { exampleOf, loadTinyLlama, reference } from "./support/tiny-llama.js";

interface Case {
  readonly alpha: number;
  readonly length: number;
  readonly width: number;
  readonly largest: number;
  readonly rms: number;
}

const file = join(import.meta.dirname, "../../test/fixtures/neftune.json");
const { cases } = JSON.parse(readFileSync(file, "utf8")) as { readonly cases: readonly Case[] };

const sequencesOf = (...lengths: number[]) => packSequences(lengths.map((length) => new Int32Array(length))).segments;

/** The noise on zeros, which `alpha` and the lengths of the sequences say the size of. */
async function noiseOn(lengths: readonly number[], width: number, alpha: number, seed = 1): Promise<Float32Array> {
  return await noiseOver(sequencesOf(...lengths), width, alpha, seed);
}

async function noiseOver(segments: readonly Segment[], width: number, alpha: number, seed = 1): Promise<Float32Array> {
  const total = segments.reduce((sum, { qLength }) => sum + qLength, 0);
  const x = Tensor.from(device, new Float32Array(total * width), [total, width]);
  x.requiresGrad = true;
  const pass = forward(() => embeddingNoise(x, segments, alpha), new Rng(seed));
  const values = await pass.result.read();
  pass.dispose();
  return values;
}

for (const { alpha, length, width, largest, rms } of cases)
  test(`noise of alpha ${alpha} on ${length} vectors of ${width} is as large as transformers'`, async () => {
    const values = await noiseOn(Array(Math.ceil(400_000 / (length * width))).fill(length), width, alpha);
    const bound = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    assert.ok(Math.abs(bound / largest - 1) < 1e-3, `largest ${bound}, transformers' ${largest}`);
    const size = Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);
    assert.ok(Math.abs(size / rms - 1) < 5e-3, `root mean square ${size}, transformers' ${rms}`);
  });

test("each sequence of a pack has the noise of its own length", async () => {
  const [alpha, width] = [4, 256];
  const values = await noiseOn([4, 64], width, alpha);
  for (const [from, to, length] of [
    [0, 4, 4],
    [4, 68, 64],
  ] as const) {
    const bound = values.subarray(from * width, to * width).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    assert.ok(Math.abs((bound * Math.sqrt(length * width)) / alpha - 1) < 1e-2, `${length}: ${bound}`);
  }
  assert.deepEqual(await noiseOn([4, 64], width, alpha), values, "the same seed, the same noise");
  assert.notDeepEqual(await noiseOn([4, 64], width, alpha, 2), values);
});

test("an answer has the noise of its prompt and itself together, the prompt that of its longest answer", async () => {
  const [alpha, width] = [4, 256];
  const { input } = packFamilies([{ prompt: new Int32Array(4), answers: [3, 60, 12].map((length) => new Int32Array(length)) }]);
  const values = await noiseOver(input.segments, width, alpha);
  for (const [from, to, length] of [
    [0, 4, 64],
    [4, 7, 7],
    [7, 67, 64],
    [67, 79, 16],
  ] as const) {
    const bound = values.subarray(from * width, to * width).reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    assert.ok(Math.abs((bound * Math.sqrt(length * width)) / alpha - 1) < 1e-2, `${length}: ${bound}`);
  }
});

test("the gradient goes through as it is; outside training and for 0 there is no noise; other sequences are refused", async () => {
  const rng = new Rng(4);
  const x = Tensor.from(device, randomValues(rng, [6, 8]), [6, 8]);
  x.requiresGrad = true;
  const weights = Tensor.from(device, randomValues(rng, [6, 8]), [6, 8]);
  const pass = forward(() => weightedSum(embeddingNoise(x, sequencesOf(2, 4), 5), weights), new Rng(1));
  pass.backward([{ output: pass.result, seed: 1 }]);
  pass.dispose();
  assert.deepEqual(await x.grad!.read(), await weights.read());
  assert.equal(embeddingNoise(x, sequencesOf(2, 4), 5), x);
  forward(() => assert.equal(embeddingNoise(x, sequencesOf(2, 4), 0), x), new Rng(1)).dispose();
  assert.throws(() => forward(() => embeddingNoise(x, sequencesOf(2, 3), 5), new Rng(1)), ShapeError);
});

const rows = reference.sequences.map((sequence) => exampleOf(sequence));

for (const tuner of tuners)
  for (const gradientCheckpointing of [false, true])
    test(`${tuner.name}: with noise, the symbolic step has the engine's peak, checkpointing ${gradientCheckpointing}`, async () => {
      const { files, model } = await loadTinyLlama("tied");
      model.dispose();
      await engine.sync();
      const before = engine.stats().liveBytes;
      const parts = { ...partsOf(files, tuner.bind(tuner.config.parse({})), { gradientCheckpointing }), noiseAlpha: 5 };
      const start = { rng: new Rng(1), encode: () => Int32Array.of(1, 2, 3) };
      const trainee = await assemble(device, parts, { weightsFrom: null, start, hasNewHead: false });
      await assertPeakOf(trainee, { parts, task: nextToken, rows, evalRows: rows, compute: "f32" }, before);
    });

for (const { name } of tuners)
  test(`${name}: noise changes training and no evaluation, and resumes bit by bit`, async () => {
    const own = name === "lora" || name === "qlora" ? {} : { lora_dropout: undefined };
    const base = {
      ...own,
      finetuning_type: name,
      max_steps: 3,
      val_size: 4,
      eval_steps: 1,
      save_strategy: "steps",
      save_steps: 1,
    };
    const evaluations = (events: readonly { type: string }[]) =>
      events.flatMap((event) => (event.type === "eval" ? [(event as unknown as { evalLoss: number }).evalLoss] : []));
    const [plain, noisy] = [makeFolder(), makeFolder()];
    const without = await collect(tinyRecipe(plain, { ...base, learning_rate: 1e-30 }));
    const still = await collect(tinyRecipe(makeFolder(), { ...base, learning_rate: 1e-30, neftune_noise_alpha: 5 }));
    assert.notDeepEqual(trace(still), trace(without));
    assert.deepEqual(evaluations(still), evaluations(without), "held-out rows have no noise");

    const settings = { ...base, neftune_noise_alpha: 5 };
    const whole = trace(await collect(tinyRecipe(noisy, settings)));
    const folder = makeFolder();
    mkdirSync(join(folder, "out"));
    cpSync(join(noisy, "out/checkpoint-1"), join(folder, "out/checkpoint-1"), { recursive: true });
    const resumed = await collect(tinyRecipe(folder, { ...settings, resume_from_checkpoint: true }));
    assert.equal(resumed.find((event): event is StartEvent => event.type === "start")!.resumedFromStep, 1);
    assert.deepEqual(trace(resumed), whole.slice(1));
    const weights = name === "full" || name === "freeze" ? "out/model.safetensors" : "out/adapter_model.safetensors";
    if (name !== "adapter") assert.equal(hashOf(join(folder, weights)), hashOf(join(noisy, weights)));
    for (const one of [plain, noisy, folder]) rmSync(one, { recursive: true });
  });
