import assert from "node:assert/strict";
import test from "node:test";
import { estimateStep, type StepWork, smallestRemedy } from "../src/advise/estimate.js";
import { Rng } from "../src/core/rng.js";
import type { ModelFiles } from "../src/io/model-files.js";
import type { LanguageModel } from "../src/models/language-model.js";
import { nextToken } from "../src/objectives/next-token.js";
import { tuners } from "../src/tuners/index.js";
import type { Tuner } from "../src/tuners/tuner.js";
import { engine } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { assertEstimatedPeak } from "./support/step-peak.js";
import { exampleOf, loadTinyLlama, reference } from "./support/tiny-llama.js";

const rows = Array.from({ length: 16 }, (_, i) => exampleOf(reference.sequences[i % 2]!));

const tunerNamed = (name: string) => tuners.find((tuner) => tuner.name === name)!;

function loraWork(files: ModelFiles): StepWork {
  const tuner = tunerNamed("lora");
  return { parts: partsOf(files, tuner.bind(tuner.config.parse({}))), task: nextToken, rows, compute: "f32" };
}

const checkpointedWork = (work: StepWork): StepWork => ({ ...work, parts: { ...work.parts, gradientCheckpointing: true } });

const unpacked = { batchSize: rows.length, isPacked: false };

interface EstimateCase extends Pick<StepWork, "compute"> {
  readonly gradientCheckpointing: boolean;
  readonly momentBits: 8 | 32;
  readonly tuner: Tuner;
  readonly settings?: Readonly<Record<string, unknown>>;
}

const cases: EstimateCase[] = tuners.flatMap((tuner) =>
  (["f32", "bf16"] as const).flatMap((compute) =>
    [false, true].map((gradientCheckpointing) => ({ tuner, compute, gradientCheckpointing, momentBits: 32 as const })),
  ),
);
cases.push({ tuner: tunerNamed("full"), compute: "f32", gradientCheckpointing: false, momentBits: 8 });

for (const [name, settings] of [
  ["lora", { use_dora: true, lora_dropout: 0.1 }],
  ["lora", { pissa_init: true, pissa_iter: 2 }],
  ["lora", { additional_target: "lm_head", bias: "all" }],
  ["lora", { lora_target: "lm_head,embed_tokens,q_proj", lora_dropout: 0.1 }],
  ["qlora", { loftq_init: true, loftq_iter: 2, double_quantization: false }],
] as const)
  cases.push({ tuner: tunerNamed(name), settings, compute: "f32", gradientCheckpointing: true, momentBits: 32 });

for (const { tuner, settings = {}, compute, gradientCheckpointing, momentBits } of cases)
  test(`${tuner.name} ${Object.keys(settings)}, ${compute}${gradientCheckpointing ? ", checkpointed" : ""}, moments of ${momentBits} bits: the symbolic step has the engine's peak, byte by byte`, async () => {
    const before = engine.stats().liveBytes;
    const tuning = tuner.bind(tuner.config.parse(settings));
    const storing = (unread: LanguageModel) => tuning.storing?.(unread, () => {});
    const { model, files } = await loadTinyLlama("untied", {}, compute, storing);
    model.gradientCheckpointing = gradientCheckpointing;
    tuning.apply(model, new Rng(0));
    const parts = partsOf(files, tuning, { gradientCheckpointing, bits: momentBits });
    const work: StepWork = { parts, task: nextToken, rows, compute };
    await assertEstimatedPeak(model, work, before);
  });

test("FLOPs of a LoRA step: twice the weights forward, as much for the inputs' gradients, and what the adapters add", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const work = loraWork(files);
  const linears = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 80); // two layers
  const tokens = rows.reduce((sum, { ids }) => sum + ids.length, 0);
  const supervised = rows.reduce((sum, row) => sum + row.supervised.reduce((a, b) => a + b, 0), 0);
  const least = 4 * tokens * linears + 4 * supervised * 64 * 259;
  const { flops } = estimateStep(work);
  assert.ok(flops > least && flops < 2 * least, `${flops} against ${least}`);
  model.dispose();
});

test("the smallest change that fits is named, and none where none does", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const work = loraWork(files);
  const { peakBytes } = estimateStep(work);
  const checkpointed = estimateStep(checkpointedWork(work)).peakBytes;
  assert.ok(checkpointed < peakBytes);
  assert.deepEqual(smallestRemedy(work, unpacked, peakBytes - 1), {
    change: "gradient_checkpointing=true",
    peakBytes: checkpointed,
  });
  assert.match(smallestRemedy(work, unpacked, checkpointed - 1)!.change, /per_device_train_batch_size/);
  assert.equal(smallestRemedy(work, unpacked, 1000), undefined);
  model.dispose();
});

test("packed, a batch of one is a whole bin, not a row: what is advised fits", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const work = checkpointedWork(loraWork(files));
  const ofBin = estimateStep({ ...work, rows: rows.slice(0, rows.length / 4) }).peakBytes; // four bins, each of whole rows
  const packed = { batchSize: 4, isPacked: true };
  const remedy = smallestRemedy(work, packed, ofBin)!;
  assert.equal(remedy.change, "gradient_checkpointing=true and per_device_train_batch_size=1");
  assert.equal(remedy.peakBytes, ofBin);
  assert.match(smallestRemedy(work, packed, ofBin - 1)!.change, /a quarter of cutoff_len/);
  model.dispose();
});
