import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { differentiate } from "../src/core/tape.js";
import type { ComputeType } from "../src/engine/kernels.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { continueSequences, packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import { full } from "../src/tuners/full/full.js";
import { tuners } from "../src/tuners/index.js";
import { applyAdapter } from "../src/tuners/tuned-files.js";
import { assertClose } from "./support/assert-close.js";
import { engine } from "./support/gradient-check.js";
import { lossOf } from "./support/loss-of.js";
import {
  exampleOf,
  loadTinyLlama,
  logitsOf,
  type Reference,
  readTensors,
  reference,
  runReference,
  sequences,
  tinyLlama,
} from "./support/tiny-llama.js";

const relative = (actual: number, expected: number) => Math.abs(actual - expected) / Math.max(Math.abs(expected), 1e-12);

const joined = (tensors: Map<string, Float32Array>) =>
  Float32Array.from([...tensors.get("logits.0")!, ...tensors.get("logits.1")!]);

for (const isa of engine.info().tiers)
  for (const name of ["tied", "untied"] as const)
    test(`logits, loss and every gradient of ${name} equal PyTorch's on ${isa}`, async () => {
      engine.setIsa(isa);
      const { model } = await loadTinyLlama(name);
      assertClose(await logitsOf(model), joined(await readTensors(`logits-${name}.safetensors`)), 1e-4, "logits");

      full.bind({}).apply(model, new Rng(0));
      const batch = nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)));
      const loss = differentiate(() => lossOf(nextToken, model, batch));
      assert.ok(Math.abs((await loss.item()) / batch.counts.loss! - reference.loss[name]) < 1e-5);
      const gradients =
        name === "tied" ? ["gradients-tied.safetensors"] : ["gradients-untied-1.safetensors", "gradients-untied-2.safetensors"];
      const expected = await readTensors(...gradients);
      const parameters = model.trainableParameters();
      assert.deepEqual([...parameters.keys()].sort(), [...expected.keys()].sort());
      for (const [key, parameter] of parameters) {
        const actual = (await parameter.value.grad!.read()).map((g) => g / batch.counts.loss!);
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
      full.bind({}).apply(model, new Rng(0));
      const loss = differentiate(() =>
        lossOf(nextToken, model, nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)))),
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

  const cache = model.newCache(2);
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
    full.bind({}).apply(model, new Rng(0));
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
    full.bind({}).apply(model, new Rng(0));
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
