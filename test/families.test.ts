/** Each family against transformers: test/fixtures/make_families.py made the models and the numbers. */
import assert from "node:assert/strict";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { SymbolicDevice } from "../src/core/symbolic.js";
import { differentiate } from "../src/core/tape.js";
import { scope, Tensor, unscoped } from "../src/core/tensor.js";
import { ModelError } from "../src/errors.js";
import { writeHfFolder } from "../src/export/hf-folder.js";
import { ggufShape } from "../src/io/gguf/config.js";
import { ggufModuleName } from "../src/io/gguf/names.js";
import { type GgufTensorSource, writeGguf } from "../src/io/gguf/writer.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import type { ModelFiles } from "../src/io/model-files.js";
import { openModel } from "../src/io/open-model.js";
import type { CausalLM } from "../src/models/causal-lm.js";
import { buildModel, loadModel, loadWeights, placeWeights } from "../src/models/load.js";
import { writeRandomModel } from "../src/models/random-model.js";
import { continueSequences, packSequences } from "../src/models/token-batch.js";
import { nextToken } from "../src/objectives/next-token.js";
import { chooseTemplate } from "../src/text/templates.js";
import { byteTokenizer } from "../src/text/tokenizer/byte-tokenizer.js";
import { full } from "../src/tuners/full/full.js";
import { saveTuned } from "../src/tuners/tuned-files.js";
import { assertClose } from "./support/assert-close.js";
import { families, familyFolder, readLogits, readReference, referenced } from "./support/families.js";
import { device, engine } from "./support/gradient-check.js";
import { lossOf } from "./support/loss-of.js";
import { exampleOf, logitsOf, reference, sequences } from "./support/tiny-llama.js";

/** Logits at the last 16 rows of each sequence. */
async function lastLogits(model: CausalLM): Promise<Float32Array[]> {
  const logits = await logitsOf(model);
  let end = 0;
  return sequences.map(({ length }) => {
    end += length;
    return logits.subarray((end - 16) * model.shape.vocabSize, end * model.shape.vocabSize);
  });
}

/** The values of a gradient as a file would hold them. */
async function storedValues(gradient: Tensor, isTransposed: boolean): Promise<Float32Array> {
  const values = await gradient.read();
  if (!isTransposed) return values;
  const [rows, columns] = gradient.shape as [number, number];
  return Float32Array.from(values, (_, i) => values[(i % rows) * columns + Math.floor(i / rows)]!);
}

for (const isa of engine.info().tiers)
  for (const { name, load } of referenced)
    test(`logits, loss and every gradient of ${name} equal PyTorch's on ${isa}`, async () => {
      engine.setIsa(isa);
      const { model } = await load();
      const expected = readReference(name);
      const logits = await readLogits(name);
      for (const [i, part] of (await lastLogits(model)).entries()) assertClose(part, logits[i]!, 1e-4, `logits ${i}`);

      full.bind({}).apply(model, new Rng(0));
      const batch = nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)));
      const loss = differentiate(() => lossOf(nextToken, model, batch));
      assert.ok(Math.abs((await loss.item()) / batch.counts.loss! - expected.loss) < 1e-5);
      const parameters = model.trainableParameters();
      assert.deepEqual([...parameters.keys()].sort(), Object.keys(expected.gradients).sort());
      for (const [key, { value, isStoredTransposed }] of parameters) {
        const gradient = (await storedValues(value.grad!, isStoredTransposed)).map((g) => g / batch.counts.loss!);
        const told = [
          Math.hypot(...gradient),
          gradient.reduce((sum, g, i) => sum + g * Math.cos(i), 0),
          gradient.reduce((sum, g, i) => sum + g * Math.sin(i), 0),
        ];
        const wanted = expected.gradients[key]!;
        for (const [i, number] of told.entries())
          assert.ok(Math.abs(number - wanted[i]!) <= 2e-4 * wanted[0] + 1e-7, `gradient of ${key}: ${told}, expected ${wanted}`);
      }
      model.dispose();
    });

for (const { name, load } of referenced) {
  test(`${name}: packed sequences give what each gives alone; a cache gives what a whole pass gives`, async () => {
    const { model } = await load();
    const packed = await logitsOf(model);
    const [first, second] = [
      await logitsOf(model, packSequences([sequences[0]!])),
      await logitsOf(model, packSequences([sequences[1]!])),
    ];
    assertClose(packed, Float32Array.from([...first!, ...second!]), 5e-5, "packed against alone");

    const cache = model.newCache(1);
    const pieces = [sequences[1]!.subarray(0, 9), sequences[1]!.subarray(9, 10), sequences[1]!.subarray(10)];
    const cached: number[] = [];
    for (const piece of pieces) cached.push(...(await logitsOf(model, continueSequences(cache, [0], [piece]))));
    assertClose(Float32Array.from(cached), second!, 5e-5, "cached against whole");
    cache.dispose();
    model.dispose();
  });

  test(`${name}: checkpointing changes no gradient`, async () => {
    const batch = nextToken.collate(reference.sequences.map((sequence) => exampleOf(sequence)));
    const gradients = async (gradientCheckpointing: boolean) => {
      const { model } = await load();
      model.gradientCheckpointing = gradientCheckpointing;
      full.bind({}).apply(model, new Rng(0));
      differentiate(() => lossOf(nextToken, model, batch)).dispose();
      const values: Float32Array[] = [];
      for (const [, { value }] of model.namedParameters()) values.push(await value.grad!.read());
      model.dispose();
      return values;
    };
    assert.deepEqual(await gradients(true), await gradients(false));
  });
}

for (const { name, load } of families)
  test(`${name}: tuned whole and saved, or exported, the folder is what its family reads`, async () => {
    const { model, files } = await load();
    full.bind({}).apply(model, new Rng(0));
    const expected = await logitsOf(model);
    const readsAlike = async (folder: string) => {
      const saved = await openModelFolder(folder);
      for (const [key, { shape }] of files.tensors) assert.deepEqual(saved.tensors.get(key)?.shape, shape, key);
      const again = (await loadModel(device, saved)) as CausalLM;
      assert.deepEqual(await logitsOf(again), expected);
      again.dispose();
    };
    const folder = await mkdtemp(join(tmpdir(), "attune-whole-"));
    await saveTuned(join(folder, "saved"), model, full.bind({}), { name, config: files.config });
    await readsAlike(join(folder, "saved"));
    const tokenizer = byteTokenizer();
    await mkdir(join(folder, "exported"));
    await writeHfFolder(
      join(folder, "exported"),
      model,
      files,
      { tokenizer, ...chooseTemplate(tokenizer) },
      { type: "f32", shardBytes: 5e9 },
    );
    await readsAlike(join(folder, "exported"));
    model.dispose();
    await rm(folder, { recursive: true });
  });

for (const { name, load } of families)
  test(`${name}: random weights of its shape are written and read again, and placed on the symbolic device`, async () => {
    const { model, files } = await load();
    model.dispose();
    const folder = await mkdtemp(join(tmpdir(), "attune-random-"));
    await writeRandomModel(folder, files.config, 1);
    const written = await openModelFolder(folder);
    const again = buildModel(device, written.config, folder);
    await loadWeights(again, written);
    again.dispose();
    const symbolic = new SymbolicDevice();
    placeWeights(buildModel(symbolic, files.config, folder), files);
    assert.ok(symbolic.cost.liveBytes > 0);
    await rm(folder, { recursive: true });
  });

for (const { name, load } of referenced.filter(({ name }) => name.startsWith("qwen")))
  test(`${name} comes back from GGUF`, async () => {
    const { model, files } = await load({ use_sliding_window: false, layer_types: null });
    const { architecture, metadata } = ggufShape(files.config, model.shape.vocabSize, "test");
    const tensors = [...files.tensors.values()].map(({ name: tensor, dtype, shape }): GgufTensorSource => {
      const [, path, kind] = /^(.*)\.(weight|bias)$/.exec(tensor)!;
      return { name: `${ggufModuleName(path!)}.${kind}`, dtype, shape, data: () => files.readTensor(tensor) };
    });
    const path = join(await mkdtemp(join(tmpdir(), "attune-gguf-")), "model.gguf");
    await writeGguf(path, { "general.architecture": { string: architecture }, ...metadata }, tensors);
    const again = (await loadModel(device, await openModel(path))) as CausalLM;
    assert.deepEqual(await logitsOf(again), await logitsOf(model));
    again.dispose();
    model.dispose();
  });

test("GPT-2 as the hub has it: names without their first part, causal masks among the weights", async () => {
  const files = await openModelFolder(familyFolder("gpt2"));
  const short = (name: string) => name.replace(/^transformer\./, "");
  const tensors = new Map([...files.tensors.values()].map((entry) => [short(entry.name), { ...entry, name: short(entry.name) }]));
  const mask = { ...tensors.get("h.0.ln_1.weight")! };
  for (const name of ["h.0.attn.bias", "h.1.attn.masked_bias"]) tensors.set(name, { ...mask, name });
  const hub: ModelFiles = { ...files, tensors, readTensor: (name) => files.readTensor(`transformer.${name}`) };
  const model = buildModel(device, files.config, "hub") as CausalLM;
  await loadWeights(model, hub);
  const [expected] = await readLogits("gpt2");
  assertClose((await lastLogits(model))[0]!, expected!, 1e-4, "logits");
  model.dispose();

  const left = { ...files, tensors: new Map([...files.tensors, ["transformer.h.0.attn.scale", mask]]) };
  const other = buildModel(device, files.config, "hub");
  await assert.rejects(loadWeights(other, left), /1 tensors belong to no layer .*: transformer\.h\.0\.attn\.scale/);
  other.dispose();
});

test("GPT-2 refuses a sequence longer than its positions", async () => {
  const { model } = await referenced.find(({ name }) => name === "gpt2")!.load();
  const long = packSequences([new Int32Array(128), new Int32Array(129)]);
  assert.throws(() => scope(() => model.hidden(long)), /learned 128 positions, and a sequence of 129 tokens needs more/);
  model.dispose();
});

test("Gemma scales embeddings by √C rounded to the type of the table", async () => {
  const { model } = await referenced.find(({ name }) => name === "gemma3")!.load({ hidden_size: 64 });
  const config = {
    ...(await openModelFolder(familyFolder("gemma3"))).config,
    hidden_size: 1152,
    num_hidden_layers: 1,
    layer_types: null,
  };
  const wide = buildModel(device, config, "wide") as CausalLM;
  const [, table] = [...wide.namedParameters()].find(([name]) => name === "model.embed_tokens.weight")!;
  for (const [dtype, scale] of [
    ["bf16", 34],
    ["f16", 33.9375],
    ["f32", Math.fround(Math.sqrt(1152))],
  ] as const) {
    const ones = Tensor.from(device, new Float32Array(259 * 1152).fill(1), [259, 1152]);
    table.value = unscoped(() => Tensor.empty(device, [259, 1152], dtype));
    device.kernels.convert(ones.id, "f32", table.value.id, dtype, ones.size);
    assert.equal((await scope(() => wide.tokenVectors(Int32Array.of(3))).read())[0], scale);
    ones.dispose();
  }
  wide.dispose();
  model.dispose();
});

test("older config keys mean the same", async () => {
  const gemma = referenced.find(({ name }) => name === "gemma3")!;
  const older = {
    rope_parameters: null,
    rope_theta: 1000000,
    rope_local_base_freq: 10000,
    rope_scaling: { rope_type: "linear", factor: 8 },
    layer_types: null,
    sliding_window_pattern: 3,
  };
  const qwen = referenced.find(({ name }) => name === "qwen2")!;
  for (const [family, changes] of [
    [gemma, older],
    [qwen, { layer_types: null, rope_parameters: null, rope_theta: 10000 }],
  ] as const) {
    const { model } = await family.load(changes);
    const expected = await readLogits(family.name);
    for (const [i, part] of (await lastLogits(model)).entries()) assertClose(part, expected[i]!, 1e-4, `${family.name} ${i}`);
    model.dispose();
  }
});

test("what a family cannot run is refused with the setting's name", async () => {
  const refused: readonly (readonly [name: string, changes: Record<string, unknown>, message: RegExp])[] = [
    ["qwen3", { layer_types: ["full_attention"] }, /layer_types has 1 entries for 2 layers/],
    ["qwen2", { num_key_value_heads: 3 }, /4 heads are not a multiple of 3 key\/value heads/],
    ["gemma3", { attn_logit_softcapping: 50 }, /attention scores are not capped here/],
    ["gemma3", { use_bidirectional_attention: true }, /attention that looks ahead/],
    ["gemma3", { hidden_activation: "mish" }, /expected one of relu, .*, got "mish"/],
    ["phi3", { rope_parameters: { rope_type: "longrope", long_factor: [1], short_factor: [1] } }, /longrope.* not supported/],
    ["phi3", { rope_parameters: { partial_rotary_factor: 0.75 } }, /partial_rotary_factor 0.75: only whole heads/],
    ["gpt2", { add_cross_attention: true }, /attention to an encoder is not supported/],
    ["gpt2", { n_head: 5 }, /n_embd is no multiple of n_head/],
  ];
  for (const [name, changes, message] of refused)
    await assert.rejects(referenced.find((family) => family.name === name)!.load(changes), (error) => {
      assert.ok(error instanceof ModelError);
      assert.match(error.message, message);
      return true;
    });
});

test("Gemma 3 with images is refused, with the way to its text part", () => {
  assert.throws(() => buildModel(device, { model_type: "gemma3" }, "here"), /here: .*text part.*Gemma3ForCausalLM/);
});
