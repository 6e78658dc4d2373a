import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { SymbolicDevice } from "../src/core/symbolic.js";
import { differentiate } from "../src/core/tape.js";
import { scope, Tensor, unscoped } from "../src/core/tensor.js";
import type { StartEvent } from "../src/index.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { buildModel } from "../src/models/load.js";
import { packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import { tuners } from "../src/tuners/index.js";
import { type PTuningConfig, pTuning } from "../src/tuners/p-tuning/p-tuning.js";
import { prefixTuning } from "../src/tuners/prefix-tuning/prefix-tuning.js";
import { loadTuned, saveTuned, settingsOfAdapter, trainingWeightsName } from "../src/tuners/tuned-files.js";
import { assertClose } from "./support/assert-close.js";
import { families } from "./support/families.js";
import { lossOf } from "./support/loss-of.js";
import { collect, makeFolder, tinyRecipe } from "./support/run.js";
import { exampleOf, loadTinyLlama, logitsOf, reference, sequences } from "./support/tiny-llama.js";

const variants = [
  { tuner: pTuning, settings: { encoder_reparameterization_type: "MLP", encoder_hidden_size: 6 } },
  { tuner: pTuning, settings: { encoder_reparameterization_type: "LSTM", encoder_hidden_size: 6 } },
  { tuner: pTuning, settings: { encoder_reparameterization_type: "NONE" } },
  { tuner: prefixTuning, settings: { prefix_projection: false } },
  { tuner: prefixTuning, settings: { prefix_projection: true, encoder_hidden_size: 6 } },
] as const;

/** Without the width that makes an encoder small: it is fitted as users have it. */
const atFullWidth = ({ encoder_hidden_size: _, ...others }: Readonly<Record<string, unknown>>) => others;

/** Tokens of a text, one for each letter. */
const encode = (text: string) => Int32Array.from(text, (letter) => letter.charCodeAt(0) - 64);

for (const { tuner, settings } of variants)
  test(`${tuner.name} ${Object.values(settings)[0]}: gradients against finite differences of the loss`, async () => {
    const { model } = await loadTinyLlama("tied");
    tuner.bind(tuner.config.parse({ num_virtual_tokens: 3, ...settings }) as never).apply(model, new Rng(3));
    const batch = nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)));
    const lossAt = async () => {
      const loss = scope(() => lossOf(nextToken, model, batch));
      const value = await loss.item();
      loss.dispose();
      return value;
    };
    differentiate(() => lossOf(nextToken, model, batch)).dispose();
    const rng = new Rng(4);
    for (const [name, { value }] of model.trainableParameters()) {
      const gradient = await value.grad!.read();
      const before = await value.read();
      const direction = before.map(() => rng.normal());
      const expected = gradient.reduce((sum, g, i) => sum + g * direction[i]!, 0);
      const step = 2e-3;
      const at = (distance: number) => {
        model.device.kernels.write(
          value.id,
          0,
          before.map((x, i) => x + distance * direction[i]!),
        );
        return lossAt();
      };
      const actual = ((await at(step)) - (await at(-step))) / (2 * step);
      await at(0);
      const size = Math.hypot(...gradient);
      assert.ok(size > 0, `${name} has a gradient`);
      assert.ok(
        Math.abs(actual - expected) < 0.005 * size + 0.015,
        `${name}: ${expected} along a direction, differences give ${actual}`,
      );
    }
    model.dispose();
  });

/** Logits of a sequence, without those of its first `skipped` tokens. */
async function logitsAfter(model: CausalLM, ids: Int32Array, skipped: number): Promise<Float32Array> {
  return (await logitsOf(model, packSequences([ids]))).subarray(skipped * model.shape.vocabSize);
}

for (const family of families)
  for (const { tuner, settings } of variants)
    test(`${tuner.name} ${Object.values(settings)[0]} of ${family.name}: virtual tokens that start as a text are what the model would read, cut or repeated`, async () => {
      const ids = sequences[0]!;
      for (const [text, count, read] of [
        ["TEXTS", 5, "TEXTS"],
        ["AB", 5, "ABABA"],
        ["ABCDEFGH", 3, "ABC"],
      ] as const) {
        const { model } = await family.load();
        const expected = await logitsAfter(model, Int32Array.of(...encode(read), ...ids), count);
        const start = { prompt_tuning_init: "TEXT", prompt_tuning_init_text: text };
        const tuning = tuner.bind(tuner.config.parse({ num_virtual_tokens: count, ...start, ...atFullWidth(settings) }) as never);
        tuning.apply(model, new Rng(1));
        tuning.initialize!(model, { rng: new Rng(2), encode });
        const isDirect = !("encoder_hidden_size" in settings); // an encoder is fitted, which rounds
        assertClose(await logitsAfter(model, ids, 0), expected, isDirect ? 1e-4 : 1e-2, text);
        model.dispose();
      }
    });

/** Tokens of any text, one for each letter. */
const encodeAny = (text: string) => Int32Array.from(text, (letter) => letter.charCodeAt(0) % 256);

for (const family of families)
  for (const { tuner, settings } of variants)
    test(`${tuner.name} ${Object.values(settings)[0]} of ${family.name} begins near the base, and all that trains gets a gradient`, async () => {
      const { model } = await family.load();
      const batch = nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)));
      const lossNow = async () => {
        const loss = scope(() => lossOf(nextToken, model, batch));
        const value = await loss.item();
        loss.dispose();
        return value;
      };
      const base = await lossNow();
      const tuning = tuner.bind(tuner.config.parse(atFullWidth(settings)) as never);
      tuning.apply(model, new Rng(3));
      tuning.initialize!(model, { rng: new Rng(4), encode: encodeAny });
      const start = await lossNow();
      assert.ok(start < 1.1 * base, `base ${base}, step 0 ${start}`);
      differentiate(() => lossOf(nextToken, model, batch)).dispose();
      for (const [name, { value }] of model.trainableParameters())
        assert.ok(
          (await value.grad!.read()).some((g) => g !== 0),
          `${name} has a gradient`,
        );
      model.dispose();
    });

test("virtual tokens may start as tokens of the vocabulary", async () => {
  const { model } = await loadTinyLlama("tied");
  const settings = { prompt_tuning_init: "SAMPLE_VOCAB", encoder_reparameterization_type: "NONE" };
  const tuning = pTuning.bind(pTuning.config.parse(settings));
  tuning.apply(model, new Rng(1));
  tuning.initialize!(model, { rng: new Rng(2), encode });
  const width = model.shape.width;
  const [vectors, table] = [
    await scope(() => model.prompt!.forward()).read(),
    await [...model.namedParameters()][0]![1].value.read(),
  ];
  const all = new Set(
    Array.from({ length: model.shape.vocabSize }, (_, id) => table.subarray(id * width, (id + 1) * width).join()),
  );
  for (let i = 0; i < 20; i++) assert.ok(all.has(vectors.subarray(i * width, (i + 1) * width).join()), `virtual token ${i}`);
  model.dispose();
});

test("a text that virtual tokens will not start as is refused", () => {
  const problem = (tuner: typeof pTuning | typeof prefixTuning, settings: object) =>
    tuner.config.safeParse(settings).error?.issues[0]?.message ?? "";
  for (const tuner of [pTuning, prefixTuning]) {
    for (const prompt_tuning_init of ["RANDOM", "SAMPLE_VOCAB"])
      assert.match(problem(tuner, { prompt_tuning_init, prompt_tuning_init_text: "x" }), /is for prompt_tuning_init: TEXT, not /);
    assert.equal(problem(tuner, { prompt_tuning_init_text: "x" }), "");
    assert.equal(problem(tuner, { prompt_tuning_init: "RANDOM" }), "");
  }
});

test("a text without tokens is refused", async () => {
  const { model } = await loadTinyLlama("tied");
  const tuning = prefixTuning.bind(prefixTuning.config.parse({ prompt_tuning_init: "TEXT", prompt_tuning_init_text: " " }));
  tuning.apply(model, new Rng(1));
  assert.throws(() => tuning.initialize!(model, { rng: new Rng(2), encode: () => new Int32Array() }), /makes no tokens/);
  model.dispose();
});

test("training goes on only from weights that fit; without them, as prompt tuning", async () => {
  const { model, files } = await loadTinyLlama("tied");
  const tuning = pTuning.bind(pTuning.config.parse({}));
  tuning.apply(model, new Rng(1));
  const folder = await mkdtemp(join(tmpdir(), "attune-tuned-"));
  await saveTuned(folder, model, tuning, { name: "tiny", config: files.config });

  const { model: other } = await loadTinyLlama("tied");
  pTuning.bind(pTuning.config.parse({ encoder_hidden_size: 7 })).apply(other, new Rng(1));
  await assert.rejects(
    loadTuned(folder, other, tuning),
    /training_weights\.safetensors: .*of another shape: prompt\.mlp_head\.0\.weight/,
  );

  await rm(join(folder, trainingWeightsName));
  await assert.rejects(
    loadTuned(folder, other, tuning),
    /missing: prompt\.mlp_head\.0\.weight/,
    "the adapter alone lacks the encoder",
  );
  const { config: found } = await settingsOfAdapter(folder, tuners);
  assert.equal((found as PTuningConfig).encoder_reparameterization_type, "NONE", "it goes on as prompt tuning");

  await saveTuned(folder, model, tuning, { name: "tiny", config: files.config });
  const { model: plain } = await loadTinyLlama("tied");
  const asPromptTuning = pTuning.bind(found as PTuningConfig);
  asPromptTuning.apply(plain, new Rng(1));
  await saveTuned(folder, plain, asPromptTuning, { name: "tiny", config: files.config });
  await loadTuned(folder, plain, asPromptTuning); // not from the encoder that was saved in the same place before
  plain.dispose();
  for (const each of [model, other]) each.dispose();
});

/** A run in a folder of its own, without the settings of LoRA. */
function runOf(changes: Readonly<Record<string, unknown>>) {
  const { lora_dropout: _, ...recipe } = tinyRecipe(makeFolder(), { packing: false, max_steps: 2, ...changes });
  return collect(recipe);
}

test("a run counts virtual tokens among the model's positions", async () => {
  const cut = await runOf({ finetuning_type: "prefix-tuning", num_virtual_tokens: 64, cutoff_len: 96 });
  assert.ok(cut.some((event) => event.type === "notice" && /cutoff_len is 64 here/.test(event.message)));
  await assert.rejects(
    runOf({ finetuning_type: "p-tuning", num_virtual_tokens: 127 }),
    /num_virtual_tokens: 127 leave no room for text in the model's 128 positions: choose fewer/,
  );
});

test("a run goes on from an adapter's encoder, with its settings", async () => {
  const output_dir = join(makeFolder(), "first");
  const encoder = { finetuning_type: "p-tuning", encoder_hidden_size: 5, num_virtual_tokens: 4 };
  await runOf({ ...encoder, output_dir });
  const start = (await runOf({ finetuning_type: "p-tuning", adapter_name_or_path: output_dir })).find(
    ({ type }) => type === "start",
  );
  const width = 64;
  const parameters = 4 * width + (5 * width + 5) + (5 * 5 + 5) + (width * 5 + width);
  assert.equal((start as StartEvent).trainableParams, parameters);
  await assert.rejects(
    runOf({ finetuning_type: "prefix-tuning", adapter_name_or_path: output_dir }),
    /is of method "p-tuning", and finetuning_type is "prefix-tuning"/,
  );
});

const llama2 = {
  model_type: "llama",
  hidden_size: 4096,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  intermediate_size: 11008,
  vocab_size: 32000,
  max_position_embeddings: 4096,
};

for (const [tuner, most] of [
  [pTuning, 0.001],
  [prefixTuning, 0.01],
] as const)
  test(`${tuner.name} trains less than ${100 * most} % of Llama-2-7B`, () => {
    const model = buildModel(new SymbolicDevice("f32"), llama2, "Llama-2-7B");
    for (const [, parameter] of model.namedParameters())
      parameter.value = unscoped(() => Tensor.empty(model.device, parameter.shape, "bf16"));
    tuner.bind(tuner.config.parse({}) as never).apply(model, new Rng(1));
    const sizeOf = (parameters: Iterable<[string, { size: number }]>) =>
      [...parameters].reduce((sum, [, { size }]) => sum + size, 0);
    const share = sizeOf(model.trainableParameters()) / sizeOf(model.namedParameters());
    assert.ok(share > 1e-5 && share < most, `share ${share}`);
  });
