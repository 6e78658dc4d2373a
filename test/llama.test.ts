import assert from "node:assert/strict";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { differentiate } from "../src/core/tape.js";
import { scope } from "../src/core/tensor.js";
import type { Example } from "../src/data/example.js";
import type { ComputeType } from "../src/engine/kernels.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { continueSequences, packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import { full } from "../src/tuners/full/full.js";
import { tuners } from "../src/tuners/index.js";
import { applyAdapter, loadTuned, saveTuned } from "../src/tuners/tuned-files.js";
import type { Tuner } from "../src/tuners/tuner.js";
import { engine } from "./support/gradient-check.js";
import { exampleOf, loadTinyLlama, type Reference, readTensors, reference, tinyLlama } from "./support/tiny-llama.js";
import { trainSteps } from "./support/train-steps.js";

const sequences = reference.sequences.map(({ ids }) => Int32Array.from(ids));

/** Logits (T, V) of every token of a batch. */
async function logitsOf(model: CausalLM, batch = packSequences(sequences)): Promise<Float32Array> {
  const rows = Int32Array.from(batch.ids.keys());
  const logits = scope(() => model.logits(batch, rows));
  const values = await logits.read();
  logits.dispose();
  return values;
}

function assertClose(actual: Float32Array, expected: Float32Array, tolerance: number, what: string): void {
  assert.equal(actual.length, expected.length, what);
  const worst = actual.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0);
  assert.ok(worst <= tolerance, `${what}: largest difference ${worst}, allowed ${tolerance}`);
}

const relative = (actual: number, expected: number) => Math.abs(actual - expected) / Math.max(Math.abs(expected), 1e-12);

const joined = (tensors: Map<string, Float32Array>) =>
  Float32Array.from([...tensors.get("logits.0")!, ...tensors.get("logits.1")!]);

for (const isa of engine.info().tiers)
  for (const name of ["tied", "untied"] as const)
    test(`logits, loss and every gradient of ${name} equal PyTorch's on ${isa}`, async () => {
      engine.setIsa(isa);
      const { model } = await loadTinyLlama(name);
      assertClose(await logitsOf(model), joined(await readTensors(`logits-${name}.safetensors`)), 1e-4, "logits");

      full.apply(model, {}, new Rng(0));
      const batch = nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)));
      const loss = differentiate(() => nextToken.loss(model, batch));
      assert.ok(Math.abs((await loss.item()) / batch.count - reference.loss[name]) < 1e-5);
      const gradients =
        name === "tied" ? ["gradients-tied.safetensors"] : ["gradients-untied-1.safetensors", "gradients-untied-2.safetensors"];
      const expected = await readTensors(...gradients);
      const parameters = model.trainableParameters();
      assert.deepEqual([...parameters.keys()].sort(), [...expected.keys()].sort());
      for (const [key, parameter] of parameters) {
        const actual = (await parameter.value.grad!.read()).map((g) => g / batch.count);
        const size = Math.hypot(...expected.get(key)!);
        const distance = Math.hypot(...actual.map((g, i) => g - expected.get(key)![i]!));
        assert.ok(distance <= 1e-4 * size, `gradient of ${key}: relative distance ${distance / size}`);
      }
      model.dispose();
    });

for (const isa of engine.info().tiers)
  test(`products in bf16 change loss and gradients only as much as rounding must, on ${isa}`, async () => {
    engine.setIsa(isa);
    const run = async (compute: ComputeType) => {
      const { model } = await loadTinyLlama("untied", {}, compute);
      full.apply(model, {}, new Rng(0));
      const loss = differentiate(() =>
        nextToken.loss(model, nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)))),
      );
      const value = await loss.item();
      const gradients = new Map<string, Float32Array>();
      for (const [name, parameter] of model.trainableParameters()) gradients.set(name, await parameter.value.grad!.read());
      model.dispose();
      return { value, gradients };
    };
    const [exact, rounded] = [await run("f32"), await run("bf16")];
    assert.notEqual(rounded.value, exact.value);
    assert.ok(relative(rounded.value, exact.value) < 5e-3);
    for (const [name, gradient] of exact.gradients) {
      const distance = Math.hypot(...gradient.map((g, i) => g - rounded.gradients.get(name)![i]!)) / Math.hypot(...gradient);
      assert.ok(distance < 0.05, `gradient of ${name}: relative distance ${distance}`);
    }
  });

for (const [variant, { rope_parameters, older }] of Object.entries(reference.rope))
  test(`rotary positions, ${variant}, under new and old names of the settings`, async () => {
    const expected = (await readTensors("logits-rope.safetensors")).get(`logits.${variant}`)!;
    for (const changes of [{ rope_theta: null, rope_scaling: null, rope_parameters }, older]) {
      const { model } = await loadTinyLlama("tied", changes);
      const logits = await logitsOf(model, packSequences([sequences[1]!]));
      assertClose(logits.subarray(logits.length - expected.length), expected, 1e-4, variant);
      model.dispose();
    }
  });

test("packed sequences give what each gives alone; a cache gives what a whole pass gives", async () => {
  const { model } = await loadTinyLlama("tied");
  const packed = await logitsOf(model);
  const alone = Float32Array.from([
    ...(await logitsOf(model, packSequences([sequences[0]!]))),
    ...(await logitsOf(model, packSequences([sequences[1]!]))),
  ]);
  assertClose(packed, alone, 2e-5, "packed against alone");

  const cache = model.newCache(2, 128);
  const cut = (from: number, to?: number) => sequences.map((sequence) => sequence.subarray(from, to));
  const [first, second] = cut(0, 7).map((part) => part.length);
  assert.equal(first, second);
  const start = await logitsOf(model, continueSequences(cache, [1, 0], cut(0, 7)));
  const next = await logitsOf(model, continueSequences(cache, [1, 0], cut(7, 8)));
  const rest = await logitsOf(model, continueSequences(cache, [1, 0], cut(8)));
  const { vocabSize: vocab } = model.shape;
  const rowsOf = (values: Float32Array, from: number, count: number) => values.subarray(from * vocab, (from + count) * vocab);
  const lengths = sequences.map(({ length }) => length);
  const cached = lengths.flatMap((length, i) => [
    ...rowsOf(start, 7 * i, 7),
    ...rowsOf(next, i, 1),
    ...rowsOf(rest, i === 0 ? 0 : lengths[0]! - 8, length - 8),
  ]);
  assertClose(Float32Array.from(cached), packed, 2e-5, "cached against whole");
  cache.dispose();
  model.dispose();
});

/** Runs the reference's 20 steps through the training loop. */
async function runReference(model: CausalLM, training: Reference["full"], { splitSteps = true } = {}) {
  const rows: Example[] = [];
  const steps = reference.batches.map(({ micro_batches }) => {
    const numbered = micro_batches.map((batch) => batch.map((sequence) => rows.push(exampleOf(sequence)) - 1));
    return splitSteps ? numbered : [numbered.flat()];
  });
  return await trainSteps(model, rows, steps.flat(), splitSteps ? 2 : 1, training.settings);
}

async function assertTrainsLikePyTorch(model: CausalLM, training: Reference["full"], options = {}) {
  const events = await runReference(model, training, options);
  assert.equal(events.length, 20);
  for (const [i, event] of events.entries()) {
    assert.ok(
      relative(event.loss, training.loss[i]!) < 1e-4,
      `loss of step ${i + 1}: ${event.loss}, PyTorch ${training.loss[i]}`,
    );
    assert.ok(relative(event.gradNorm, training.grad_norm[i]!) < 1e-3, `gradient norm of step ${i + 1}`);
    assert.ok(Math.abs(event.learningRate - training.lr[i]!) < 1e-9, `learning rate of step ${i + 1}`);
    assert.equal(event.tokens, training.tokens[i]);
  }
}

for (const isa of engine.info().tiers)
  test(`20 steps of full fine-tuning follow PyTorch's on ${isa}`, async () => {
    engine.setIsa(isa);
    const { model } = await loadTinyLlama("tied");
    full.apply(model, {}, new Rng(0));
    await assertTrainsLikePyTorch(model, reference.full);
    model.dispose();
  });

test("20 LoRA steps from PEFT's adapter follow PEFT's, and end in the same adapter", async () => {
  const { model } = await loadTinyLlama("tied");
  await applyAdapter(join(tinyLlama, "adapter"), model, tuners, new Rng(0));
  await assertTrainsLikePyTorch(model, reference.lora);
  assertClose(
    await logitsOf(model),
    joined(await readTensors("logits-adapter-final.safetensors")),
    1e-3,
    "logits after training",
  );
  model.dispose();
});

test("accumulated micro-batches equal one batch", async () => {
  const { model } = await loadTinyLlama("tied");
  await applyAdapter(join(tinyLlama, "adapter"), model, tuners, new Rng(0));
  await assertTrainsLikePyTorch(model, reference.lora, { splitSteps: false });
  model.dispose();
});

test("checkpointed layers give the same losses, bit by bit", async () => {
  const run = async (gradientCheckpointing: boolean) => {
    const { model } = await loadTinyLlama("tied");
    model.gradientCheckpointing = gradientCheckpointing;
    await applyAdapter(join(tinyLlama, "adapter"), model, tuners, new Rng(0));
    const losses = (await runReference(model, reference.lora)).map(({ loss, gradNorm }) => [loss, gradNorm]);
    model.dispose();
    return losses;
  };
  assert.deepEqual(await run(true), await run(false));
});

test("one thread and two give the same bits", async () => {
  const run = async (threads: number) => {
    engine.setThreads(threads);
    const { model } = await loadTinyLlama("untied");
    full.apply(model, {}, new Rng(0));
    const losses = (await runReference(model, reference.full)).map(({ loss, gradNorm }) => [loss, gradNorm]);
    const logits = await logitsOf(model);
    model.dispose();
    return { losses, logits };
  };
  const { threads } = engine.info();
  try {
    assert.deepEqual(await run(1), await run(2));
  } finally {
    engine.setThreads(threads);
  }
});

test("PEFT's own adapter loads, and is nothing before training", async () => {
  const { model } = await loadTinyLlama("tied");
  const base = await logitsOf(model);
  await applyAdapter(join(tinyLlama, "adapter"), model, tuners, new Rng(0));
  assert.deepEqual(await logitsOf(model), base);
  const { model: tuned } = await loadTinyLlama("tied");
  await applyAdapter(join(tinyLlama, "adapter-final"), tuned, tuners, new Rng(0));
  assertClose(
    await logitsOf(tuned),
    joined(await readTensors("logits-adapter-final.safetensors")),
    1e-4,
    "PEFT's trained adapter",
  );
  model.dispose();
  tuned.dispose();
});

/** A tuner with settings, and how far step 0 may be from the base model: 0 where the promise is the same bits. */
interface Promised {
  readonly name: string;
  readonly tuner: Tuner;
  readonly settings?: Readonly<Record<string, unknown>>;
  readonly startTolerance?: number;
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
  { name: "lora in one layer", settings: { layers_to_transform: 1, layers_pattern: "layers" } },
].map((variant) => ({ tuner: tunerNamed("lora"), ...variant }));

/** Adapters begin near the base model, or as the base model itself where W↑ begins at 0, which is the default of the parallel kind. */
const adapterVariants: readonly Promised[] = [
  { name: "adapter_config pfeiffer", settings: { adapter_config: "pfeiffer" }, startTolerance: 0.5 },
  { name: "adapter_config parallel", settings: { adapter_config: "parallel" } },
  { name: "adapter with init_weights mam_adapter", settings: { init_weights: "mam_adapter" } },
].map((variant) => ({ tuner: tunerNamed("adapter"), ...variant }));

/** How far step 0 may be from the base model with a tuner's defaults, where it promises less than the same bits. */
const startTolerances: Readonly<Record<string, number>> = { adapter: 0.5 };

/** What every tuner promises: a new one in the list is covered by being there. */
for (const { name, tuner, settings = {}, startTolerance = 0 } of [
  ...tuners.map((tuner): Promised => ({ name: tuner.name, tuner, startTolerance: startTolerances[tuner.name] ?? 0 })),
  ...loraVariants,
  ...adapterVariants,
]) {
  const config = tuner.config.parse(settings);
  const prepared = async () => {
    const { model, files } = await loadTinyLlama("tied");
    const base = await logitsOf(model);
    tuner.apply(model, config, new Rng(7));
    return { model, files, base };
  };

  test(`${name}: step 0 equals the base model`, async () => {
    const { model, base } = await prepared();
    if (startTolerance === 0) assert.deepEqual(await logitsOf(model), base);
    else assertClose(await logitsOf(model), base, startTolerance, "step 0");
    model.dispose();
  });

  test(`${name}: only its own parameters get gradients, and the loss falls on a tiny set`, async () => {
    const { model } = await prepared();
    const events = await runReference(model, {
      ...reference.lora,
      settings: { ...reference.lora.settings, learning_rate: 1e-2 },
    });
    const mean = (part: typeof events) => part.reduce((sum, { loss }) => sum + loss, 0) / part.length;
    assert.ok(mean(events.slice(-5)) < 0.9 * mean(events.slice(0, 5)));
    const batch = nextToken.collate([exampleOf(reference.sequences[0]!)]);
    differentiate(() => nextToken.loss(model, batch)).dispose();
    for (const [path, parameter] of model.namedParameters())
      assert.equal(parameter.value.grad !== null, parameter.requiresGrad, path);
    model.dispose();
  });

  test(`${name}: saved, loaded into a fresh model, the logits are the same bits`, async () => {
    const { model, files } = await prepared();
    await runReference(model, reference.lora);
    const folder = await mkdtemp(join(tmpdir(), "attune-tuned-"));
    const origin = { name: "tiny", config: files.config };
    await saveTuned(folder, model, tuner, config, origin);
    const fresh = await prepared();
    await loadTuned(folder, fresh.model, tuner);
    assert.deepEqual(await logitsOf(fresh.model), await logitsOf(model));
    if (tuner.adapter !== undefined) {
      const { model: used } = await loadTinyLlama("tied");
      await applyAdapter(folder, used, tuners, new Rng(0));
      assertClose(await logitsOf(used), await logitsOf(model), 1e-5, "applied from its folder alone");
      used.dispose();
    }
    model.dispose();
    fresh.model.dispose();
  });

  if (tuner.merge !== undefined)
    test(`${name}: merged, the logits are those of the adapter`, async () => {
      const { model } = await prepared();
      await runReference(model, reference.lora);
      const separate = await logitsOf(model);
      tuner.merge!(model);
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
}
