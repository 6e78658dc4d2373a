import assert from "node:assert/strict";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { differentiate } from "../src/core/tape.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import type { StoreWeight } from "../src/models/load.js";
import { continueSequences, packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import type { StepEvent } from "../src/runs/events.js";
import type { Trainee } from "../src/train/assemble.js";
import { loadCheckpoint, saveCheckpoint } from "../src/train/checkpoint.js";
import { noProgress, type Progress, train } from "../src/train/loop.js";
import { StepPlan } from "../src/train/step-plan.js";
import { tuners } from "../src/tuners/index.js";
import { quantizedBase } from "../src/tuners/quantized-base.js";
import { applyAdapter, loadTuned, saveTuned, settingsOfAdapter } from "../src/tuners/tuned-files.js";
import type { Tuner } from "../src/tuners/tuner.js";
import { assertClose } from "./support/assert-close.js";
import { type Family, families, llama } from "./support/families.js";
import { engine } from "./support/gradient-check.js";
import { lossOf } from "./support/loss-of.js";
import { exampleOf, logitsOf, reference, runReference, sequences } from "./support/tiny-llama.js";
import { traineeOf } from "./support/trainee.js";

/** A tuner with settings, and how far step 0 may be from the base model: 0 where the promise is the same bits. */
interface Promised {
  readonly name: string;
  readonly tuner: Tuner;
  /** Llama where not given. */
  readonly family?: Family;
  /** How the base is stored, where that is not the tuner's to say. */
  readonly storing?: (model: CausalLM) => StoreWeight;
  readonly settings?: Readonly<Record<string, unknown>>;
  readonly startTolerance?: number;
  /** False where the adapter is for the base as its files have it, and training used another. */
  readonly fitsWholeBase?: boolean;
  /** With which the loss falls, and to what share of what it was at first. */
  readonly learningRate?: number;
  readonly fallsTo?: number;
}

const tunerNamed = (name: string) => tuners.find((tuner) => tuner.name === name)!;

/** The variants of LoRA; each tuner with its defaults is covered by being in the list of tuners. */
const loraVariants: readonly Promised[] = [
  { name: "lora with use_rslora", settings: { use_rslora: true, lora_rank: 4 } },
  { name: "lora with use_dora", settings: { use_dora: true }, startTolerance: 5e-5 },
  { name: "lora with pissa_init", settings: { pissa_init: true }, startTolerance: 5e-5 },
  { name: "lora with loraplus_lr_ratio", settings: { loraplus_lr_ratio: 4 } },
  { name: "lora with additional_target lm_head", settings: { additional_target: "lm_head" } },
  { name: "lora with additional_target embed_tokens", settings: { additional_target: ["embed_tokens", "model.norm"] } },
  {
    name: "lora with patterns",
    settings: {
      lora_target: ".*\\.(q|v|up)_proj",
      exclude_modules: "layers.1.self_attn.v_proj",
      rank_pattern: { "layers\\.0\\..*": 2, up_proj: 5 },
      alpha_pattern: { q_proj: 3 },
    },
  },
  { name: "lora with quantization_bit", settings: { quantization_bit: 4, quantization_type: "fp4", double_quantization: false } },
  {
    name: "qlora with a whole lm_head",
    tuner: tunerNamed("qlora"),
    settings: { additional_target: "lm_head,layers.1.mlp.up_proj", use_dora: true },
    startTolerance: 5e-5,
  },
  {
    name: "qlora with loftq_init",
    tuner: tunerNamed("qlora"),
    settings: { loftq_init: true, loftq_iter: 2 },
    startTolerance: Number.POSITIVE_INFINITY, // near to the base before it was quantized, which lora.test.ts measures
    fitsWholeBase: false,
  },
  { name: "lora in one layer", settings: { layers_to_transform: 1, layers_pattern: "layers" } },
  { name: "lora of lm_head and embed_tokens", settings: { lora_target: "lm_head,embed_tokens,q_proj", lora_dropout: 0.1 } },
  { name: "lora of embed_tokens with a whole lm_head", settings: { lora_target: "embed_tokens", additional_target: "lm_head" } },
  { name: "pissa of lm_head", settings: { lora_target: "lm_head", pissa_init: true }, startTolerance: 5e-5 },
].map((variant) => ({ tuner: tunerNamed("lora"), ...variant }));

const freezeVariants: readonly Promised[] = [
  { name: "freeze of the MLP of the first layer", settings: { freeze_trainable_layers: -1, freeze_trainable_modules: "mlp" } },
  { name: "freeze with extra modules", settings: { freeze_trainable_layers: 1, freeze_extra_modules: ["norm", "lm_head"] } },
].map((variant) => ({ tuner: tunerNamed("freeze"), ...variant }));

/** Adapters begin near the base model, or as the base model itself where W↑ begins at 0, which is the default of the parallel kind. */
const adapterVariants: readonly Promised[] = [
  { name: "adapter_config pfeiffer", settings: { adapter_config: "pfeiffer" }, startTolerance: 0.5 },
  { name: "adapter_config parallel", settings: { adapter_config: "parallel" } },
  { name: "adapter with init_weights mam_adapter", settings: { init_weights: "mam_adapter" } },
].map((variant) => ({ tuner: tunerNamed("adapter"), ...variant }));

/** Encoders other than the default, and none. */
const virtualTokenVariants: readonly Promised[] = [
  {
    name: "p-tuning with an LSTM",
    tuner: tunerNamed("p-tuning"),
    settings: { encoder_reparameterization_type: "LSTM", encoder_hidden_size: 8, encoder_dropout: 0.1 },
  },
  {
    name: "p-tuning without encoder",
    tuner: tunerNamed("p-tuning"),
    settings: { encoder_reparameterization_type: "NONE" },
    learningRate: 0.1,
  },
  { name: "prefix-tuning with prefix_projection", tuner: tunerNamed("prefix-tuning"), settings: { prefix_projection: true } },
];

/** How far step 0 may be from the base model with a tuner's defaults, where it promises less than the same bits. */
const startTolerances: Readonly<Record<string, number>> = { adapter: 0.5 };

/** With which the loss of a random model falls, where it takes more than the others need: virtual tokens reach the answer on long ways only. */
const learningRates: Readonly<Record<string, number>> = { "p-tuning": 0.03, "prefix-tuning": 0.1 };

const rows = reference.batches.flatMap(({ micro_batches }) => micro_batches.flat()).map((sequence) => exampleOf(sequence));
const totalSteps = 6;
const plan = new StepPlan(() => Array.from({ length: 2 * totalSteps }, (_, i) => [i, i + 1]), {
  accumulationSteps: 2,
  epochs: 1,
  maxSteps: 0,
});
/** Trains up to step `until`, and returns what each step gave. */
async function trainUntil(until: number, trainee: Trainee, progress: Progress): Promise<number[][]> {
  const stop = new AbortController();
  const steps: StepEvent[] = [];
  for await (const event of train({
    trainee,
    task: nextToken,
    trainRows: rows,
    evalRows: [],
    plan,
    settings: {
      learningRate: 1e-2,
      schedule: "cosine",
      warmupSteps: 1,
      maxGradNorm: 1,
      seed: 1,
      evalSteps: 0,
      saveSteps: 0,
      evalBatchSize: 1,
    },
    progress,
    save: () => assert.fail("nothing is to be saved"),
    signal: stop.signal,
  }))
    if (event.type === "step" && steps.push(event) && progress.step === until) stop.abort();
  return steps.map(({ loss, gradNorm }) => [loss, gradNorm]);
}

const temporaryFolder = () => mkdtemp(join(tmpdir(), "attune-tuned-"));

/** Each tuner, as it is by default, on each family. Gemma's window of 5 hides virtual tokens from nearly every token: they change less there. */
const defaults = families.flatMap((family) =>
  tuners.map((tuner): Promised => {
    const name = family === llama ? tuner.name : `${tuner.name} on ${family.name}`;
    const startTolerance = startTolerances[tuner.name] ?? 0;
    const learningRate = learningRates[tuner.name] ?? 1e-2;
    return { name, tuner, family, startTolerance, learningRate, fallsTo: name === "p-tuning on gemma3" ? 0.97 : 0.9 };
  }),
);

/** Every method that leaves the base alone, on a base that is stored in 4 bits. */
const onFourBits = tuners
  .filter(({ adapter }) => adapter !== undefined)
  .map((tuner): Promised => {
    const storing = (model: CausalLM) =>
      quantizedBase(model, { quantization_bit: 4, quantization_type: "nf4", double_quantization: true }, () => {});
    const [startTolerance, learningRate] = [startTolerances[tuner.name] ?? 0, learningRates[tuner.name] ?? 1e-2];
    return { name: `${tuner.name} on 4 bits`, tuner, storing, startTolerance, learningRate };
  });

/** What every tuner promises on every family: a new one in its list is covered by being there. */
for (const {
  name,
  tuner,
  family = llama,
  settings = {},
  startTolerance = 0,
  fitsWholeBase = true,
  learningRate = 1e-2,
  fallsTo = 0.9,
  storing,
} of [...defaults, ...onFourBits, ...loraVariants, ...freezeVariants, ...adapterVariants, ...virtualTokenVariants]) {
  const config = tuner.config.parse(settings);
  const load = (tuning = tuner.bind(config)) => family.load({}, "f32", storing ?? ((model) => tuning.storing?.(model, () => {})));
  const prepared = async () => {
    const tuning = tuner.bind(config);
    const { model, files } = await load(tuning);
    const base = await logitsOf(model);
    tuning.apply(model, new Rng(7));
    return { model, files, tuning, base };
  };

  test(`${name}: step 0 equals the base model, unless virtual tokens change it at once`, async () => {
    const { model, base } = await prepared();
    if (model.virtualTokens > 0) assert.notDeepEqual(await logitsOf(model), base);
    else if (startTolerance === 0) assert.deepEqual(await logitsOf(model), base);
    else assertClose(await logitsOf(model), base, startTolerance, "step 0");
    model.dispose();
  });

  test(`${name}: only its own parameters get gradients, and the loss falls on a tiny set`, async () => {
    const { model } = await prepared();
    const events = await runReference(model, {
      ...reference.lora,
      settings: { ...reference.lora.settings, learning_rate: learningRate },
    });
    const mean = (part: typeof events) => part.reduce((sum, { loss }) => sum + loss, 0) / part.length;
    const [first, last] = [mean(events.slice(0, 5)), mean(events.slice(-5))];
    assert.ok(last < fallsTo * first, `from ${first} to ${last}`);
    const batch = nextToken.collate([exampleOf(reference.sequences[0]!)]);
    differentiate(() => lossOf(nextToken, model, batch)).dispose();
    for (const [path, parameter] of model.namedParameters())
      assert.equal(parameter.value.grad !== null, parameter.requiresGrad, path);
    model.dispose();
  });

  test(`${name}: saved, loaded into a fresh model, the logits are the same bits`, async () => {
    const { model, files, tuning } = await prepared();
    await runReference(model, reference.lora);
    const folder = await temporaryFolder();
    const origin = { name: "tiny", config: files.config };
    await saveTuned(folder, model, tuning, origin);
    const fresh = await prepared();
    await loadTuned(folder, fresh.model, fresh.tuning);
    assert.deepEqual(await logitsOf(fresh.model), await logitsOf(model));
    if (tuner.adapter !== undefined) {
      const { model: used } = await load();
      await applyAdapter(folder, used, tuners, new Rng(0));
      if (fitsWholeBase) assertClose(await logitsOf(used), await logitsOf(model), 1e-5, "applied from its folder alone");
      used.dispose();

      const found = await settingsOfAdapter(folder, [tuner, ...tuners]);
      assert.equal(found.tuner, tuner);
      const ofRun = (tuner.ofRun ?? []).map((key) => [key, (config as Record<string, unknown>)[key]]);
      const itsTuning = tuner.bind({ ...(found.config as object), ...Object.fromEntries(ofRun) });
      const { model: goingOn } = await load(itsTuning);
      itsTuning.apply(goingOn, new Rng(8));
      await loadTuned(folder, goingOn, itsTuning);
      assert.deepEqual([...goingOn.trainableParameters().keys()], [...model.trainableParameters().keys()]);
      assert.deepEqual(await logitsOf(goingOn), await logitsOf(model), "going on from the adapter");
      goingOn.dispose();
    }
    model.dispose();
    fresh.model.dispose();
  });

  if (tuner.bind(config).merge !== undefined)
    test(`${name}: merged, the logits are those of the adapter`, async () => {
      const { model, tuning } = await prepared();
      await runReference(model, reference.lora);
      const separate = await logitsOf(model);
      tuning.merge!(model);
      assertClose(await logitsOf(model), separate, 1e-3, "merged");
      assert.ok([...model.namedParameters()].every(([path]) => !path.includes("lora")));
      model.dispose();
    });

  test(`${name}: nothing is left in memory`, async () => {
    const before = engine.stats().liveBytes;
    const { model } = await prepared();
    await runReference(model, reference.lora);
    model.dispose();
    assert.equal(engine.stats().liveBytes, before);
  });

  test(`${name}: packed sequences give what each gives alone; a cache gives what a whole pass gives`, async () => {
    const { model } = await prepared();
    await runReference(model, reference.lora);
    const packed = await logitsOf(model);
    const alone: number[] = [];
    for (const sequence of sequences) alone.push(...(await logitsOf(model, packSequences([sequence]))));
    assertClose(packed, Float32Array.from(alone), 2e-5, "packed against alone");

    const cache = model.newCache(2);
    const cut = (from: number, to?: number) => sequences.map((sequence) => sequence.subarray(from, to));
    const parts = [cut(0, 7), cut(7, 8), cut(8)];
    const logits: Float32Array[] = [];
    for (const part of parts) logits.push(await logitsOf(model, continueSequences(cache, [1, 0], part)));
    const { vocabSize } = model.shape;
    const cached = sequences.flatMap((_, i) =>
      parts.flatMap((part, j) => {
        const start = i === 0 ? 0 : part[0]!.length;
        return [...logits[j]!.subarray(start * vocabSize, (start + part[i]!.length) * vocabSize)];
      }),
    );
    assertClose(Float32Array.from(cached), packed, 2e-5, "cached against whole");
    cache.dispose();
    model.dispose();
  });

  test(`${name}: checkpointed layers give the same losses, bit by bit`, async () => {
    const run = async (gradientCheckpointing: boolean) => {
      const { model } = await prepared();
      model.gradientCheckpointing = gradientCheckpointing;
      const trainee = traineeOf(model, { weightDecay: 0.01 });
      const losses = await trainUntil(3, trainee, noProgress());
      trainee.dispose();
      model.dispose();
      return losses;
    };
    assert.deepEqual(await run(true), await run(false));
  });

  test(`${name}: a resumed run equals an uninterrupted one, bit by bit`, async () => {
    const { model, files, tuning } = await prepared();
    const [trainee, progress] = [traineeOf(model, { weightDecay: 0.01 }), noProgress()];
    const { optimizer } = trainee;
    await trainUntil(3, trainee, progress);
    const checkpoint = join(await temporaryFolder(), "checkpoint-3");
    const writeModel = (path: string) => saveTuned(path, model, tuning, { name: "tiny", config: files.config });
    await saveCheckpoint(checkpoint, { writeModel, optimizer, progress, work: "work", startedAt: new Date(0) });
    const rest = await trainUntil(totalSteps, trainee, progress);

    const { model: resumed } = await prepared();
    await loadTuned(checkpoint, resumed, tuning);
    const [itsTrainee, itsProgress] = [traineeOf(resumed, { weightDecay: 0.01 }), noProgress()];
    await loadCheckpoint(checkpoint, itsTrainee.optimizer, itsProgress, "work");
    assert.deepEqual(await trainUntil(totalSteps, itsTrainee, itsProgress), rest);
    assert.deepEqual(await logitsOf(resumed), await logitsOf(model));
    for (const part of [model, trainee, resumed, itsTrainee]) part.dispose();
  });
}
