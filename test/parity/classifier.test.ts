/** Encoders and classifiers against transformers and PEFT. */
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../src/core/rng.js";
import { scope } from "../../src/core/tensor.js";
import { Classifier } from "../../src/generate/classifier.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import { type PlainDType, readEntry, type TensorSource, writeSafetensors } from "../../src/io/safetensors.js";
import { loadModel } from "../../src/models/load.js";
import { packSequences } from "../../src/models/token-batch.js";
import { loadTokenizer } from "../../src/text/load-tokenizer.js";
import { tuners } from "../../src/tuners/index.js";
import { trainModules } from "../../src/tuners/train-whole.js";
import { applyAdapter, saveTuned } from "../../src/tuners/tuned-files.js";
import { assertClose } from "../support/assert-close.js";
import { bases, classifierFolder, classifierOn, examplesOf, readReference } from "../support/classifiers.js";
import { device } from "../support/gradient-check.js";
import { runPython, skipWithoutPeers } from "../support/peers.js";
import { readTensorFile } from "../support/tensors.js";
import { trainSteps } from "../support/train-steps.js";

const skip = skipWithoutPeers;
const folder = () => mkdtempSync(join(tmpdir(), "attune-classifier-"));

/** Latin, Chinese, accents, emoji, nothing at all, and noise of rare characters. */
function manyTexts(): string[] {
  const rng = new Rng(1);
  const blocks = [
    [0x20, 0x7f],
    [0xa0, 0x600],
    [0x4e00, 0x9fff],
    [0x1f300, 0x1f600],
    [0x2000, 0x2100],
  ] as const;
  const noise = () =>
    Array.from({ length: 30 }, () => {
      const [from, to] = blocks[rng.below(blocks.length)]!;
      return String.fromCodePoint(from + rng.below(to - from));
    }).join("");
  const written = [
    ...["The quick brown fox jumps over the lazy dog.", "unaffable ".repeat(100), "Café naïve ÅÉÎ", "don't: 1,000.50 $5 a_b"],
    ...["你好，世界！今天天气很好。", "日本語 テスト", "한국어 텍스트", "नमस्ते दुनिया", "مرحبا بالعالم", "Ὀδυσσεύς İstanbul ß"],
    ...[
      "",
      "  ",
      "tab\tnew\nline",
      "e\u0301 combining",
      "hello\u200bworld\u00ad",
      "😀 👩‍👩‍👧 ﬁ ½ ²",
      "\u3000wide\u0000null\ufffd",
      "𠀀 𝒳",
    ],
  ];
  return [...written, ...Array.from({ length: 120 }, noise)];
}

test("all-MiniLM-L6-v2: token ids and hidden states are those of transformers", { skip, timeout: 600_000 }, async () => {
  const path = runPython("classifier.py", ["minilm"]).trim();
  const texts = manyTexts();
  const work = folder();
  writeFileSync(join(work, "texts.json"), JSON.stringify(texts));
  runPython("classifier.py", ["hidden", "--model", path, "--texts", join(work, "texts.json"), "--out", join(work, "out")]);
  const expected = await readTensorFile(join(work, "out"));

  const files = await openModelFolder(path);
  const tokenizer = await loadTokenizer(files);
  const model = await loadModel(device, files);
  const rows = texts.map((text) => tokenizer.encodeFramed(text, 128));
  for (const [i, ids] of rows.entries()) assert.deepEqual([...ids], [...expected.get(`ids.${i}`)!], JSON.stringify(texts[i]));
  const hidden = scope(() => model.hidden(packSequences(rows)));
  const values = await hidden.read();
  let at = 0;
  for (const [i, ids] of rows.entries()) {
    const size = ids.length * model.shape.width;
    assertClose(values.subarray(at, at + size), expected.get(`hidden.${i}`)!, 1e-4, JSON.stringify(texts[i]));
    at += size;
  }
  hidden.dispose();
  model.dispose();
});

/** Logits of transformers for texts, with an adapter that PEFT loads if one is given. */
async function theirLogits(texts: readonly string[], model: string, more: readonly string[] = []): Promise<Float32Array> {
  const work = folder();
  writeFileSync(join(work, "texts.json"), JSON.stringify(texts));
  runPython("classifier.py", [
    "logits",
    "--model",
    model,
    ...more,
    "--texts",
    join(work, "texts.json"),
    "--out",
    join(work, "out"),
  ]);
  const found = await readTensorFile(join(work, "out"));
  return Float32Array.from(texts.flatMap((_, i) => [...found.get(`logits.${i}`)!]));
}

for (const family of ["bert", "llama"] as const)
  for (const method of ["lora", "full", "p-tuning", "prefix-tuning"] as const)
    test(`${family}, ${method}: a trained classifier loads in transformers and PEFT with the same logits`, {
      skip,
      timeout: 600_000,
    }, async () => {
      const reference = readReference(family);
      const examples = examplesOf(reference);
      const texts = reference.rows.map(({ text }) => text);
      const { model, task, files } = await classifierOn(bases[family]!, examples);
      const tuner = tuners.find(({ name }) => name === method)!;
      const config = tuner.config.parse({});
      tuner.bind(config).apply(model, new Rng(7));
      trainModules(model, model.headModules);
      const settings = { learning_rate: 1e-2, schedule: "constant", warmup_steps: 0, weight_decay: 0, max_grad_norm: 1 } as const;
      await trainSteps(
        model,
        examples,
        Array.from({ length: 10 }, () => [0, 1, 2, 3]),
        1,
        settings,
        task,
      );
      const logits = scope(() => model.classLogits(packSequences(examples.map(({ ids }) => ids))));
      const ours = await logits.read();

      const out = folder();
      const origin = {
        name: bases[family]!,
        config: files.config,
        taskType: "SEQ_CLS",
        modulesToSave: model.headModules,
      } as const;
      await saveTuned(out, model, tuner.bind(config), origin);
      for (const { name, contents } of (await loadTokenizer(files)).files()) writeFileSync(join(out, name), contents);
      const theirs =
        method === "full"
          ? await theirLogits(texts, out)
          : await theirLogits(texts, bases[family]!, ["--adapter", out, "--labels", "3"]);
      assertClose(ours, theirs, 1e-4, "logits");
      logits.dispose();
      model.dispose();
    });

for (const family of ["bert", "llama"] as const)
  test(`${family}: a classifier adapter of PEFT's own loads here with the same logits`, { skip, timeout: 600_000 }, async () => {
    const base = bases[family]!;
    const out = join(folder(), "adapter");
    runPython("classifier.py", ["adapter", "--model", base, "--labels", "3", "--out", out]);
    const { rows } = readReference(family);
    const theirs = await theirLogits(
      rows.map(({ text }) => text),
      base,
      ["--adapter", out, "--labels", "3"],
    );

    const { model } = await classifierOn(base, examplesOf(readReference(family)));
    await applyAdapter(out, model, tuners, new Rng(0));
    const logits = scope(() => model.classLogits(packSequences(rows.map(({ ids }) => Int32Array.from(ids)))));
    assertClose(await logits.read(), theirs, 1e-4, "logits");
    logits.dispose();
    model.dispose();

    const classifier = await Classifier.open({ model: base, adapter: out, compute: "f32" });
    assert.deepEqual(classifier.classes, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    const [first] = await classifier.classify([rows[0]!.text]);
    const best = theirs.subarray(0, 3).indexOf(Math.max(...theirs.subarray(0, 3)));
    assert.equal(first!.label, `LABEL_${best}`);
    classifier.close();
  });

for (const problem of ["regression", "multi_label_classification", "single_label_classification", null])
  for (const outputs of problem === "single_label_classification" ? [3] : [1, 3])
    test(`scores are those of the text-classification pipeline: ${problem}, ${outputs} outputs`, {
      skip,
      timeout: 600_000,
    }, async () => {
      const work = folder();
      cpSync(classifierFolder("bert"), work, { recursive: true });
      const names = ["one", "two", "three"].slice(0, outputs);
      const config = {
        ...JSON.parse(readFileSync(join(work, "config.json"), "utf8")),
        ...{ problem_type: problem, id2label: { ...names }, label2id: Object.fromEntries(names.map((name, i) => [name, i])) },
      };
      const rng = new Rng(outputs);
      const head = (name: string, shape: number[]): TensorSource => {
        const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => rng.normal());
        return { name: `classifier.${name}`, dtype: "f32", shape, data: () => new Uint8Array(values.buffer) };
      };
      const base = await openModelFolder(work);
      const kept = [...base.tensors.values()].filter(({ name }) => !name.startsWith("classifier."));
      const weights = kept.map(
        (entry): TensorSource => ({ ...entry, dtype: entry.dtype as PlainDType, data: () => readEntry(entry) }),
      );
      const sources = [...weights, head("weight", [outputs, config.hidden_size]), head("bias", [outputs])];
      const values = await Promise.all(sources.map(async (source) => [source, await source.data()] as const));
      writeFileSync(join(work, "config.json"), JSON.stringify(config));
      await writeSafetensors(
        join(work, "model.safetensors"),
        values.map(([source, data]) => ({ ...source, data: () => data })),
        { metadata: { format: "pt" } },
      );
      const texts = readReference("bert").rows.map(({ text }) => text);
      writeFileSync(join(work, "texts.json"), JSON.stringify(texts));
      const theirs = JSON.parse(runPython("classifier.py", ["scores", "--model", work, "--texts", join(work, "texts.json")])) as {
        first: { label: string; score: number }[];
        all: { label: string; score: number }[][];
      };
      const classifier = await Classifier.open({ model: work, compute: "f32" });
      const ours = await classifier.classify(texts);
      for (const [i, { label, probabilities }] of ours.entries()) {
        assert.equal(label, theirs.first[i]!.label);
        for (const { label: name, score } of theirs.all[i]!)
          assert.ok(Math.abs(probabilities[name]! - score) < 1e-5, `${name}: ${probabilities[name]} for ${score}`);
      }
      classifier.close();
    });
