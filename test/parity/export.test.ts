/**
 * What leaves, in the programs that it leaves for: GGUF files in llama.cpp (ATTUNE_LLAMA), Hugging Face folders in transformers (ATTUNE_PEERS).
 * An adapter is trained on the quickstart's rows first, so that its answers have something to say.
 */
import assert from "node:assert/strict";
import { copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import { exportModel } from "../../src/export/export.js";
import { decodeAll } from "../../src/generate/decoder.js";
import { greedy } from "../../src/generate/sampling.js";
import { train } from "../../src/index.js";
import { readGgufHeader } from "../../src/io/gguf/header.js";
import { openModel } from "../../src/io/open-model.js";
import { readEntry } from "../../src/io/safetensors.js";
import { asCausalLM, type CausalLM } from "../../src/models/causal-lm.js";
import { loadModel } from "../../src/models/load.js";
import { writeRandomModel } from "../../src/models/random-model.js";
import { packSequences } from "../../src/models/token-batch.js";
import type { Message } from "../../src/text/chat-template.js";
import { loadTokenizer } from "../../src/text/load-tokenizer.js";
import { renderPrompt } from "../../src/text/supervised.js";
import { chooseTemplate } from "../../src/text/templates.js";
import { tuners } from "../../src/tuners/index.js";
import { lora } from "../../src/tuners/lora/lora.js";
import { SharedBase } from "../../src/tuners/shared-base.js";
import { applyAdapter, saveTuned } from "../../src/tuners/tuned-files.js";
import { device } from "../support/gradient-check.js";
import { llamaAnswers, skipWithoutLlama } from "../support/llama.js";
import { runPython, skipWithoutPeers, smolLM2Folder } from "../support/peers.js";
import { tinyLlama } from "../support/tiny-llama.js";

const answerTokens = 32;
const chats: readonly (readonly Message[])[] = [
  "two flat whites and a croissant to table 4",
  "What is the capital of France?",
  "Write a haiku about autumn.",
  "Explain why the sky is blue.",
].map((content) => [{ role: "user", content }]);

let folder: string;
let adapter: string;
let prompts: Int32Array[];

before(async () => {
  if (skipWithoutPeers) return;
  folder = mkdtempSync(join(tmpdir(), "attune-export-"));
  adapter = join(folder, "adapter");
  await train({
    model_name_or_path: smolLM2Folder(),
    dataset: [join(import.meta.dirname, "../../../examples/quickstart/train.jsonl")],
    output_dir: adapter,
    max_steps: 8,
    learning_rate: 5e-4,
    cutoff_len: 256,
    per_device_train_batch_size: 2,
    val_size: 0,
    save_strategy: "no",
    plot_loss: false,
  });
  const tokenizer = await loadTokenizer(await openModel(smolLM2Folder()));
  const { template } = chooseTemplate(tokenizer);
  prompts = chats.map((chat) => renderPrompt({ tokenizer, template }, { messages: chat }));
});

after(() => folder && rmSync(folder, { recursive: true }));

/** Runs `use` on a model of attune's in f32, perhaps with the adapter on it. */
async function withModel<T>(path: string, adapterFolder: string | undefined, use: (model: CausalLM) => Promise<T>): Promise<T> {
  const model = asCausalLM(await loadModel(device, await openModel(path)), "the test");
  try {
    if (adapterFolder !== undefined) await applyAdapter(adapterFolder, model, tuners, new Rng(0));
    return await use(model);
  } finally {
    model.dispose();
  }
}

/** The likeliest tokens after each prompt, past the end of the answer as well. */
async function answersOf(model: CausalLM): Promise<number[][]> {
  const requests = prompts.map((prompt) => ({
    ...{ prompt, maxNewTokens: answerTokens, stopIds: new Set<number>(), sampling: greedy, seed: 0 },
  }));
  return (await decodeAll(new SharedBase(model), requests, requests.length)).map(({ ids }) => [...ids]);
}

async function exported(to: "hf" | "gguf" | "gguf-lora", type?: "f32" | "f16" | "q8_0" | "q4_0" | "q4_k_m", withAdapter = true) {
  const out = join(folder, `${to}-${type}-${withAdapter}`);
  const adapterFolder = withAdapter ? adapter : undefined;
  const known = existsSync(out) ? null : await exportModel({ model: smolLM2Folder(), adapter: adapterFolder, to, type, out });
  return { out, drift: known?.drift };
}

const promptLists = () => prompts.map((prompt) => [...prompt]);
const skip = skipWithoutPeers || skipWithoutLlama;

test("a merged GGUF file in F16 answers in llama.cpp as attune does, and a GGUF adapter on the base's file as well", {
  skip,
  timeout: 600_000,
}, async () => {
  const ours = await withModel(smolLM2Folder(), adapter, answersOf);
  const untrained = await withModel(smolLM2Folder(), undefined, answersOf);
  assert.notDeepEqual(ours, untrained, "the adapter changes nothing: this test cannot fail");

  const merged = await exported("gguf", "f16");
  const texts = ["<|im_start|>user\nIt's 12:30, naïve — 你好 🙂\n\n  x<|im_end|>\n", "Hello  world"];
  const theirs = await llamaAnswers(join(merged.out, "model.gguf"), promptLists(), answerTokens, { texts });
  assert.deepEqual(theirs.answers, ours);
  const tokenizer = await loadTokenizer(await openModel(smolLM2Folder()));
  assert.deepEqual(
    theirs.ids,
    texts.map((text) => [...tokenizer.encode(text, { special: true })]),
  );

  const base = await exported("gguf", "f16", false);
  const { out } = await exported("gguf-lora");
  const onBase = await llamaAnswers(join(base.out, "model.gguf"), promptLists(), answerTokens, {
    adapter: join(out, "adapter.gguf"),
  });
  assert.deepEqual(onBase.answers, ours);
  const baseAlone = await llamaAnswers(join(base.out, "model.gguf"), promptLists(), answerTokens);
  assert.deepEqual(baseAlone.answers, untrained);
});

for (const type of ["q8_0", "q4_0", "q4_k_m"] as const)
  test(`a merged GGUF file in ${type} loads in llama.cpp and answers sensibly`, { skip, timeout: 600_000 }, async (t) => {
    const { out, drift } = await exported("gguf", type);
    const path = join(out, "model.gguf");
    const { answers } = await llamaAnswers(path, promptLists(), answerTokens);
    const ours = await withModel(path, undefined, answersOf);
    const agree = (a: readonly number[], b: readonly number[]) => {
      const first = a.findIndex((token, i) => token !== b[i]);
      return first < 0 ? a.length : first;
    };
    const sameStart = answers.map((answer, i) => agree(answer, ours[i]!));
    t.diagnostic(
      `drift ${drift?.maxLogitDifference.toPrecision(3)}; first tokens as attune's: ${sameStart.join(", ")} of ${answerTokens}`,
    );
    // llama.cpp rounds activations to 8 bits before it multiplies, so answers part sooner or later.
    assert.ok(sameStart.filter((count) => count >= 3).length >= 3, `llama.cpp answers otherwise: ${sameStart}`);
  });

/** Compares a quantized file of attune's with what llama.cpp's quantizer makes of the file in f32. Returns the type of each tensor. */
async function assertQuantizedAlike(wide: string, ours: string, type: string): Promise<ReadonlyMap<string, string>> {
  const theirs = `${ours}.llama`;
  runPython("gguf_quantize.py", [process.env.ATTUNE_LLAMA!, wide, theirs, type]);
  const tensorsOf = (path: string) => new Map(readGgufHeader(path).tensors.map((tensor) => [tensor.name, tensor]));
  const [mine, other] = [tensorsOf(ours), tensorsOf(theirs)];
  assert.deepEqual([...mine.keys()].sort(), [...other.keys()].sort());
  for (const [name, tensor] of mine) {
    const reference = other.get(name)!;
    assert.equal(tensor.dtype, reference.dtype, name);
    const [a, b] = [await readEntry({ ...tensor, file: ours }), await readEntry({ ...reference, file: theirs })];
    assert.ok(Buffer.compare(a, b) === 0, `${name}: other bytes than llama.cpp's`);
  }
  return new Map([...mine].map(([name, { dtype }]) => [name, dtype]));
}

for (const type of ["q8_0", "q4_0", "q4_k_m"] as const)
  test(`a GGUF file in ${type} has the types and the very bytes that llama.cpp's quantizer gives`, {
    skip,
    timeout: 600_000,
  }, async () => {
    const wide = join((await exported("gguf", "f32")).out, "model.gguf");
    await assertQuantizedAlike(wide, join((await exported("gguf", type)).out, "model.gguf"), type);
  });

for (const [what, settings] of [
  ["tied", {}],
  ["tied, of which lm_head was trained apart", { additional_target: "lm_head" }],
  ["tied, of which embed_tokens was trained apart", { additional_target: "embed_tokens" }],
] as const)
  test(`a mixture's bits are llama.cpp's for a base that is ${what}`, { skip, timeout: 600_000 }, async () => {
    const base = mkdtempSync(join(folder, "base-"));
    const config = {
      ...{ architectures: ["LlamaForCausalLM"], model_type: "llama", vocab_size: 259, hidden_size: 256, intermediate_size: 512 },
      ...{ num_hidden_layers: 9, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128 },
      ...{ rms_norm_eps: 1e-5, tie_word_embeddings: true },
    };
    await writeRandomModel(base, config, 1);
    for (const name of ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
      copyFileSync(join(tinyLlama, "tied", name), join(base, name));
    const trained = join(base, "adapter");
    await withModel(base, undefined, async (model) => {
      const rng = new Rng(2);
      const settled = lora.config.parse(settings);
      lora.bind(settled).apply(model, rng);
      for (const [, { value }] of model.trainableParameters()) {
        const values = (await value.read()).map((number) => number + 0.02 * rng.normal());
        value.device.kernels.write(value.id, 0, values);
      }
      await saveTuned(trained, model, lora.bind(settled), { name: base, config });
    });
    const file = async (type: "f32" | "q4_0" | "q4_k_m") => {
      const out = join(base, type);
      await exportModel({ model: base, adapter: trained, to: "gguf", type, out, maxDrift: 1e9 });
      return join(out, "model.gguf");
    };
    const isUntied = "additional_target" in settings;
    const wide = await file("f32");
    for (const [type, plain] of [
      ["q4_0", "q4_0"],
      ["q4_k_m", "q4_k"],
    ] as const) {
      const types = await assertQuantizedAlike(wide, await file(type), type);
      assert.equal(types.get("output.weight"), isUntied ? "q6_k" : undefined);
      assert.equal(types.get("token_embd.weight"), isUntied ? plain : "q6_k");
    }
  });

test("transformers loads a merged folder in several files, with attune's logits and template", {
  skip: skipWithoutPeers,
  timeout: 600_000,
}, async () => {
  const out = join(folder, "hf-f32-in-shards");
  await exportModel({ model: smolLM2Folder(), adapter, to: "hf", type: "f32", out, shardBytes: 2e8 });
  assert.ok(existsSync(join(out, "model.safetensors.index.json")));
  const idsPath = join(folder, "ids.json");
  writeFileSync(idsPath, JSON.stringify({ ids: promptLists(), chats }));
  const theirs = JSON.parse(runPython("export.py", [out, idsPath])) as { logits: number[][]; chats: number[][] };
  assert.deepEqual(theirs.chats, promptLists());
  await withModel(smolLM2Folder(), adapter, async (model) => {
    for (const [i, prompt] of prompts.entries()) {
      const logits = scope(() => model.logits(packSequences([prompt]), Int32Array.of(prompt.length - 1)));
      const ours = await logits.read();
      logits.dispose();
      const worst = ours.reduce((largest, value, j) => Math.max(largest, Math.abs(value - theirs.logits[i]![j]!)), 0);
      assert.ok(worst < 1e-3, `prompt ${i}: logits differ by ${worst}`);
    }
  });
});
