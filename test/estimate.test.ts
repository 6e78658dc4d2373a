import assert from "node:assert/strict";
import test from "node:test";
import { type BatchShape, estimateStep, type LargestBatches, type StepWork, smallestRemedy } from "../src/advise/estimate.js";
import { Rng } from "../src/core/rng.js";
import type { ModelFiles } from "../src/io/model-files.js";
import type { LanguageModel } from "../src/models/language-model.js";
import { nextToken } from "../src/objectives/next-token.js";
import type { OptimizerName } from "../src/optim/optimizers.js";
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
  return {
    parts: partsOf(files, tuner.bind(tuner.config.parse({}))),
    task: nextToken,
    rows,
    accumulationSteps: 1,
    evalRows: [],
    compute: "f32",
  };
}

const checkpointedWork = (work: StepWork): StepWork => ({ ...work, parts: { ...work.parts, gradientCheckpointing: true } });

interface EstimateCase extends Pick<StepWork, "compute"> {
  readonly gradientCheckpointing: boolean;
  readonly optim: OptimizerName;
  readonly tuner: Tuner;
  readonly settings?: Readonly<Record<string, unknown>>;
}

const cases: EstimateCase[] = tuners.flatMap((tuner) =>
  (["f32", "bf16"] as const).flatMap((compute) =>
    [false, true].map((gradientCheckpointing) => ({ tuner, compute, gradientCheckpointing, optim: "adamw_torch" as const })),
  ),
);
for (const optim of ["adamw_8bit", "adafactor", "lion_32bit", "muon", "sgd"] as const)
  for (const compute of ["f32", "bf16"] as const)
    for (const method of ["full", "lora"])
      cases.push({ tuner: tunerNamed(method), compute, gradientCheckpointing: false, optim });

for (const [name, settings] of [
  ["lora", { use_dora: true, lora_dropout: 0.1 }],
  ["lora", { pissa_init: true, pissa_iter: 2 }],
  ["lora", { additional_target: "lm_head", bias: "all" }],
  ["lora", { lora_target: "lm_head,embed_tokens,q_proj", lora_dropout: 0.1 }],
  ["qlora", { loftq_init: true, loftq_iter: 2, double_quantization: false }],
] as const)
  cases.push({ tuner: tunerNamed(name), settings, compute: "f32", gradientCheckpointing: true, optim: "adamw_torch" });

for (const { tuner, settings = {}, compute, gradientCheckpointing, optim } of cases)
  test(`${tuner.name} ${Object.keys(settings)}, ${compute}${gradientCheckpointing ? ", checkpointed" : ""}, ${optim}: the symbolic step has the engine's peak, byte by byte`, async () => {
    const before = engine.stats().liveBytes;
    const tuning = tuner.bind(tuner.config.parse(settings));
    const storing = (unread: LanguageModel) => tuning.storing?.(unread, () => {});
    const { model, files } = await loadTinyLlama("untied", {}, compute, storing);
    model.gradientCheckpointing = gradientCheckpointing;
    tuning.apply(model, new Rng(0));
    const parts = partsOf(files, tuning, { gradientCheckpointing, optim });
    await assertEstimatedPeak(model, { parts, task: nextToken, rows, evalRows: rows, compute }, before);
  });

test("where held-out rows need the most memory, the estimate is theirs, byte by byte", async () => {
  const before = engine.stats().liveBytes;
  const { model, files } = await loadTinyLlama("tied");
  const work = loraWork(files);
  work.parts.tuning.apply(model, new Rng(0));
  const evalRows = Array.from({ length: 40 }, () => rows).flat();
  assert.ok((await estimateStep({ ...work, evalRows })).peakBytes > (await estimateStep(work)).peakBytes);
  await assertEstimatedPeak(model, { ...work, evalRows }, before);
});

test("a step of several micro-batches costs each of them, and one update", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const work = loraWork(files);
  const [one, two, four] = await Promise.all([1, 2, 4].map((accumulationSteps) => estimateStep({ ...work, accumulationSteps })));
  assert.ok(two!.flops > 1.9 * one!.flops && two!.flops < 2 * one!.flops, `${two!.flops} against ${one!.flops}`);
  assert.equal(four!.flops - two!.flops, 2 * (two!.flops - one!.flops));
  assert.equal(four!.tokens, 4 * one!.tokens);
  assert.equal(
    [...four!.byKernel.values()].reduce((sum, { flops }) => sum + flops, 0),
    four!.flops,
  );
  model.dispose();
});

test("FLOPs of a LoRA step: twice the weights forward, as much for the inputs' gradients, and what the adapters add", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const work = loraWork(files);
  const linears = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 80); // two layers
  const tokens = rows.reduce((sum, { ids }) => sum + ids.length, 0);
  const supervised = rows.reduce((sum, row) => sum + row.supervised.reduce((a, b) => a + b, 0), 0);
  const least = 4 * tokens * linears + 4 * supervised * 64 * 259;
  const { flops } = await estimateStep(work);
  assert.ok(flops > least && flops < 2 * least, `${flops} against ${least}`);
  model.dispose();
});

/** The longest rows first, as the data of a run gives them; packed, whole rows in bins. */
const batchesOf = ({ batchSize, isPacked, cutoffLen }: BatchShape): LargestBatches => {
  const cut = rows.map((row) => (row.tokens > cutoffLen ? nextToken.shorten(row, cutoffLen) : row));
  const inOrder = cut.sort((a, b) => b.tokens - a.tokens);
  const count = isPacked ? batchSize * Math.floor(cutoffLen / inOrder[0]!.tokens) : batchSize;
  return { rows: inOrder.slice(0, count), evalRows: [] };
};

test("the smallest change that fits is named, and none where none does; what is named is true", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const shape = { batchSize: 4, isPacked: false, cutoffLen: 100 };
  const work = { ...loraWork(files), ...batchesOf(shape), accumulationSteps: 3 };
  const needed = async (changes: Partial<StepWork> = {}) => (await estimateStep({ ...work, ...changes })).peakBytes;
  const remedy = async (bytes: number) => {
    const found = await smallestRemedy(work, shape, batchesOf, bytes);
    return found && [found.change, found.peakBytes];
  };
  const longest = work.rows[0]!.tokens;
  const checkpointed = { parts: { ...work.parts, gradientCheckpointing: true } };
  const half = { ...batchesOf({ ...shape, batchSize: 2 }), accumulationSteps: 6 };
  const one = { ...batchesOf({ ...shape, batchSize: 1 }), accumulationSteps: 12 };
  const halfAsLong = { ...batchesOf({ ...shape, batchSize: 1, cutoffLen: Math.ceil(longest / 2) }), accumulationSteps: 12 };
  const [whole, ofHalf] = [await needed(), await needed(half)];
  const [bytes, both, single] = [
    await needed(checkpointed),
    await needed({ ...checkpointed, ...half }),
    await needed({ ...checkpointed, ...one }),
  ];
  assert.ok(whole > bytes && Math.min(bytes, ofHalf) > both && both > single, [whole, bytes, ofHalf, both, single].join());
  const ofHalves = "per_device_train_batch_size=2, gradient_accumulation_steps=6";
  const single12 = "gradient_checkpointing=true, per_device_train_batch_size=1";
  assert.deepEqual(await remedy(bytes), ["gradient_checkpointing=true", bytes]);
  if (ofHalf < bytes) assert.deepEqual(await remedy(bytes - 1), [ofHalves, ofHalf]);
  assert.deepEqual(await remedy(both), [`gradient_checkpointing=true, ${ofHalves}`, both]);
  assert.deepEqual(await remedy(single), [`${single12}, gradient_accumulation_steps=12`, single]);
  const shorter = await needed({ ...checkpointed, ...halfAsLong });
  assert.deepEqual(await remedy(shorter), [
    `${single12}, cutoff_len=${Math.ceil(longest / 2)}, gradient_accumulation_steps=12`,
    shorter,
  ]);
  assert.equal(await remedy(1000), undefined);
  model.dispose();
});

test("twice the accumulation is in what half the batch is said to need: under full, gradients stand already", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const full = tunerNamed("full");
  const shape = { batchSize: 2, isPacked: false, cutoffLen: 100 };
  const work = { ...loraWork(files), parts: partsOf(files, full.bind({})), ...batchesOf(shape) };
  const halved = { ...checkpointedWork(work), ...batchesOf({ ...shape, batchSize: 1 }) };
  const [one, two] = [await estimateStep(halved), await estimateStep({ ...halved, accumulationSteps: 2 })];
  assert.ok(two.peakBytes > 1.05 * one.peakBytes, `${two.peakBytes} against ${one.peakBytes}`);
  const remedy = await smallestRemedy(work, shape, batchesOf, one.peakBytes);
  assert.ok(remedy === undefined || !remedy.change.startsWith("per_device"), remedy?.change);
  model.dispose();
});

test("packed, a batch of one is a whole bin, not a row: what is advised fits", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const longest = Math.max(...rows.map(({ tokens }) => tokens));
  const shape = { batchSize: 4, isPacked: true, cutoffLen: 4 * longest };
  const work = checkpointedWork({ ...loraWork(files), ...batchesOf(shape) });
  const bin = { ...batchesOf({ ...shape, batchSize: 1 }), accumulationSteps: 4 };
  assert.equal(bin.rows.length, 4);
  const { peakBytes } = await estimateStep({ ...work, ...bin });
  const remedy = (await smallestRemedy(work, shape, batchesOf, peakBytes))!;
  assert.equal(remedy.change, "gradient_checkpointing=true, per_device_train_batch_size=1, gradient_accumulation_steps=4");
  assert.equal(remedy.peakBytes, peakBytes);
  const smaller = (await smallestRemedy(work, shape, batchesOf, peakBytes - 1))!;
  assert.match(smaller.change, /cutoff_len=|optim=adamw_8bit/);
  model.dispose();
});

test("8-bit moments are advised to AdamW; another optimizer is left as it is", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const full = tunerNamed("full");
  const shape = { batchSize: 1, isPacked: false, cutoffLen: 100 };
  const adviceFor = async (optim: OptimizerName) => {
    const work = checkpointedWork({ ...loraWork(files), parts: partsOf(files, full.bind({}), { optim }), ...batchesOf(shape) });
    const { peakBytes } = await estimateStep(work);
    return (await smallestRemedy(work, shape, batchesOf, peakBytes - 1))?.change ?? "";
  };
  assert.match(await adviceFor("adamw_torch"), /optim=adamw_8bit/);
  for (const optim of ["adamw_8bit", "adafactor", "lion_32bit", "muon", "sgd"] as const)
    assert.doesNotMatch(await adviceFor(optim), /optim/, optim);
  model.dispose();
});
