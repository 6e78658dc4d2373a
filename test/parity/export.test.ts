/**
 * What leaves, in the programs that it leaves for: GGUF files in llama.cpp (ATTUNE_LLAMA), Hugging Face folders in transformers (ATTUNE_PEERS).
 * An adapter is trained on the quickstart's rows first, so that its answers have something to say.
 */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { after, before } from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import { exportModel } from "../../src/export/export.js";
import { decodeAll } from "../../src/generate/decoder.js";
import { greedy } from "../../src/generate/sampling.js";
import { train } from "../../src/index.js";
import { readGgufHeader } from "../../src/io/gguf-header.js";
import { openModel } from "../../src/io/open-model.js";
import { readEntry } from "../../src/io/safetensors.js";
import { asCausalLM, type CausalLM } from "../../src/models/causal-lm.js";
import { loadModel } from "../../src/models/load.js";
import { packSequences } from "../../src/models/token-batch.js";
import type { Message } from "../../src/text/chat-template.js";
import { loadTokenizer } from "../../src/text/load-tokenizer.js";
import { renderPrompt } from "../../src/text/supervised.js";
import { chooseTemplate } from "../../src/text/templates.js";
import { tuners } from "../../src/tuners/index.js";
import { applyAdapter } from "../../src/tuners/tuned-files.js";
import { device } from "../support/gradient-check.js";
import { llamaAnswers, skipWithoutLlama } from "../support/llama.js";
import { runPython, skipWithoutPeers, smolLM2Folder } from "../support/peers.js";

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
  return (await decodeAll(model, requests, requests.length)).map(({ ids }) => [...ids]);
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

for (const type of ["q8_0", "q4_0", "q4_k_m"] as const)
  test(`a GGUF file in ${type} has the types and the very bytes that llama.cpp's quantizer gives`, {
    skip: skipWithoutPeers,
    timeout: 600_000,
  }, async () => {
    const wide = join((await exported("gguf", "f32")).out, "model.gguf");
    const theirs = join(folder, `llama-${type}.gguf`);
    runPython("gguf_quantize.py", [wide, theirs, type]);
    const ours = join((await exported("gguf", type)).out, "model.gguf");
    const tensorsOf = (path: string) => new Map(readGgufHeader(path).tensors.map((tensor) => [tensor.name, tensor]));
    const [mine, other] = [tensorsOf(ours), tensorsOf(theirs)];
    assert.deepEqual([...mine.keys()].sort(), [...other.keys()].sort());
    for (const [name, tensor] of mine) {
      const reference = other.get(name)!;
      assert.equal(tensor.dtype, reference.dtype, name);
      const [a, b] = [await readEntry({ ...tensor, file: ours }), await readEntry({ ...reference, file: theirs })];
      assert.ok(Buffer.compare(a, b) === 0, `${name}: other bytes than llama.cpp's`);
    }
  });

test("transformers loads a merged folder, with attune's logits and template", {
  skip: skipWithoutPeers,
  timeout: 600_000,
}, async () => {
  const { out } = await exported("hf", "f32");
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
