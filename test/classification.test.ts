/** Classifiers: against transformers (test/fixtures/make_classifiers.py), and what every tuner promises for them on every family. */
import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { Rng } from "../src/core/rng.js";
import { differentiate } from "../src/core/tape.js";
import { scope } from "../src/core/tensor.js";
import { ModelError } from "../src/errors.js";
import { type Classification, Classifier } from "../src/generate/classifier.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { scoringOf } from "../src/models/classes.js";
import type { LanguageModel } from "../src/models/language-model.js";
import { loadModel } from "../src/models/load.js";
import { packSequences } from "../src/models/token-batch.js";
import { pt } from "../src/objectives/pt/pt.js";
import { sft } from "../src/objectives/sft/sft.js";
import { loadTokenizer } from "../src/text/load-tokenizer.js";
import { full } from "../src/tuners/full/full.js";
import { tuners } from "../src/tuners/index.js";
import { trainModules } from "../src/tuners/train-whole.js";
import { applyAdapter, loadTuned, saveTuned } from "../src/tuners/tuned-files.js";
import { assertClose } from "./support/assert-close.js";
import { bases, classifierFolder, classifierOn, examplesOf, readReference } from "./support/classifiers.js";
import { device, engine } from "./support/gradient-check.js";
import { lossOf } from "./support/loss-of.js";
import { partsOf } from "./support/parts.js";
import { assertEstimatedPeak } from "./support/step-peak.js";
import { readTensorFile } from "./support/tensors.js";
import { trainSteps } from "./support/train-steps.js";

const references = { bert: readReference("bert"), llama: readReference("llama") };

async function logitsOf(model: LanguageModel, rows: readonly { ids: Int32Array }[]): Promise<Float32Array> {
  const logits = scope(() => model.classLogits(packSequences(rows.map(({ ids }) => ids))));
  const values = await logits.read();
  logits.dispose();
  return values;
}

for (const isa of engine.info().tiers)
  for (const name of ["bert", "llama"] as const)
    test(`${name}: tokens, logits, loss and every gradient of a classifier equal PyTorch's on ${isa}`, async () => {
      engine.setIsa(isa);
      const reference = references[name];
      const examples = examplesOf(reference);
      const { model, task, files } = await classifierOn(classifierFolder(name), examples);
      const tokenizer = await loadTokenizer(files);
      for (const { text, ids } of reference.rows) assert.deepEqual([...tokenizer.encodeFramed(text)], ids, text);
      assertClose(
        await logitsOf(model, examples),
        Float32Array.from(reference.rows.flatMap(({ logits }) => logits)),
        1e-4,
        "logits",
      );

      full.bind({}).apply(model, new Rng(0));
      const loss = differentiate(() => lossOf(task, model, task.collate(examples)));
      assert.ok(Math.abs((await loss.item()) - reference.loss) < 1e-4);
      loss.dispose();
      const parameters = model.trainableParameters();
      assert.deepEqual([...parameters.keys()].sort(), Object.keys(reference.gradients).sort());
      for (const [key, { value }] of parameters) {
        const gradient = await value.grad!.read();
        const told = [
          Math.hypot(...gradient),
          gradient.reduce((sum, g, i) => sum + g * Math.cos(i), 0),
          gradient.reduce((sum, g, i) => sum + g * Math.sin(i), 0),
        ];
        const wanted = reference.gradients[key]!;
        const allowed = 2e-4 * wanted[0] + 1e-5; // the key's bias has no gradient but rounding
        for (const [i, number] of told.entries())
          assert.ok(Math.abs(number - wanted[i]!) <= allowed, `${key}: ${told}, expected ${wanted}`);
      }
      model.dispose();
    });

test("hidden states of BERT equal PyTorch's, under the names of new and of the oldest files", async () => {
  const expected = await readTensorFile(join(classifierFolder("bert-base"), "hidden.safetensors"));
  const rows = examplesOf(references.bert).map(({ ids }) => ids);
  for (const folder of ["bert-base", "old-bert"]) {
    const model = await loadModel(device, await openModelFolder(classifierFolder(folder)));
    const hidden = scope(() => model.hidden(packSequences(rows)));
    assertClose(await hidden.read(), Float32Array.from(rows.flatMap((_, i) => [...expected.get(`hidden.${i}`)!])), 1e-4, folder);
    hidden.dispose();
    model.dispose();
  }
});

test("a checkpoint without pooler gets a new one, which trains with the head under every tuner", async () => {
  const examples = examplesOf(references.bert);
  const { files, task } = await classifierOn(bases.bert!, examples);
  const tensors = new Map([...files.tensors].filter(([name]) => !name.startsWith("pooler.")));
  const model = await loadModel(device, { ...files, tensors }, new Rng(3));
  assert.deepEqual(model.headModules, ["classifier", "bert.pooler"]);
  model.freeze();
  trainModules(model, model.headModules);
  const trained = [...model.trainableParameters().keys()].sort();
  assert.deepEqual(trained, ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]);
  differentiate(() => lossOf(task, model, task.collate(examples))).dispose();
  for (const [name, { value }] of model.trainableParameters()) assert.ok(value.grad !== null, name);
  model.dispose();
  await assert.rejects(loadModel(device, { ...files, tensors }), ModelError, "without an Rng nothing begins anew");
});

test("packed texts give what each gives alone", async () => {
  for (const name of ["bert", "llama"] as const) {
    const examples = examplesOf(references[name]);
    const { model } = await classifierOn(classifierFolder(name), examples);
    const alone: number[] = [];
    for (const example of examples) alone.push(...(await logitsOf(model, [example])));
    assertClose(await logitsOf(model, examples), Float32Array.from(alone), 2e-5, name);
    model.dispose();
  }
});

test("what predicts tokens refuses encoders and classifiers", async () => {
  const bert = await loadModel(device, await openModelFolder(bases.bert!));
  assert.throws(() => sft.check!(bert), /stage sft needs a model that predicts the next token, and this is an encoder/);
  bert.dispose();
  const { model } = await classifierOn(bases.llama!, examplesOf(references.llama));
  assert.throws(() => pt.check!(model), /stage pt needs .* this is a classifier/);
  model.dispose();
});

/** A copy of a classifier whose config.json is changed. */
function changedClassifier(t: TestContext, name: "bert" | "llama", changes: Readonly<Record<string, unknown>>): string {
  const folder = temporaryFolder(t);
  cpSync(classifierFolder(name), folder, { recursive: true });
  const path = join(folder, "config.json");
  const config = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  writeFileSync(path, JSON.stringify({ ...config, ...changes }));
  return folder;
}

test("a classifier's scores are those of transformers' pipeline: by problem_type", async (t) => {
  const { text, logits } = references.llama.rows[0]!;
  const sigmoid = logits.map((x) => 1 / (1 + Math.exp(-x)));
  const weights = logits.map(Math.exp);
  const softmax = weights.map((weight) => weight / weights.reduce((a, b) => a + b));
  for (const [problem_type, expected] of [
    ["regression", logits],
    ["multi_label_classification", sigmoid],
    ["single_label_classification", softmax],
    [null, softmax],
  ] as const) {
    const classifier = await Classifier.open({ model: changedClassifier(t, "llama", { problem_type }), compute: "f32" });
    const [{ label, probabilities }] = (await classifier.classify([text])) as [Classification];
    assertClose(Float32Array.from(Object.values(probabilities)), Float32Array.from(expected), 1e-4, String(problem_type));
    assert.equal(label, classifier.classes[logits.indexOf(Math.max(...logits))]);
    classifier.close();
  }
  await assert.rejects(Classifier.open({ model: changedClassifier(t, "llama", { problem_type: "sorting" }) }), {
    code: "MODEL",
    message: /problem_type: expected regression, .*, got "sorting"/,
  });
  assert.throws(() => scoringOf({ problem_type: "single_label_classification" }, 1), /needs several classes/);
  assert.deepEqual([scoringOf({}, 1), scoringOf({ problem_type: "regression" }, 1)], ["sigmoid", "none"]);
});

const settings = { learning_rate: 1e-2, schedule: "constant", warmup_steps: 0, weight_decay: 0, max_grad_norm: 1 } as const;

for (const [family, folder] of Object.entries(bases))
  for (const tuner of tuners) {
    const tuning = tuner.bind(tuner.config.parse({}));
    const examples = examplesOf(family === "bert" ? references.bert : references.llama);
    const prepared = async () => {
      const opened = await classifierOn(folder, examples);
      tuning.apply(opened.model, new Rng(7));
      trainModules(opened.model, opened.model.headModules);
      return opened;
    };

    test(`${family}, ${tuner.name}: a classifier trains, is saved and comes back`, async () => {
      const before = engine.stats().liveBytes;
      const { model, task, files } = await prepared();
      model.disableDropout(); // four rows are to be learned by heart
      const head = model.headModules[0]!;
      const events = await trainSteps(
        model,
        examples,
        Array.from({ length: 30 }, () => [0, 1, 2, 3]),
        1,
        settings,
        task,
      );
      assert.ok(events.at(-1)!.loss < 0.6 * events[0]!.loss, `the loss goes from ${events[0]!.loss} to ${events.at(-1)!.loss}`);

      differentiate(() => lossOf(task, model, task.collate(examples))).dispose();
      for (const [name, { value, requiresGrad }] of model.namedParameters())
        assert.equal(value.grad !== null, requiresGrad, name);
      assert.ok(model.trainableParameters().has(`${head}.weight`));

      const out = await mkdtemp(join(tmpdir(), "attune-classifier-"));
      const origin = { name: folder, config: files.config, taskType: "SEQ_CLS", modulesToSave: model.headModules } as const;
      await saveTuned(out, model, tuning, origin);
      const logits = await logitsOf(model, examples);
      const fresh = await prepared();
      await loadTuned(out, fresh.model, tuning);
      assert.deepEqual(await logitsOf(fresh.model, examples), logits);
      fresh.model.dispose();

      const saved =
        tuner.adapter === undefined
          ? await loadModel(device, await openModelFolder(out))
          : (await classifierOn(folder, examples)).model;
      if (tuner.adapter !== undefined) await applyAdapter(out, saved, tuners, new Rng(0));
      assertClose(await logitsOf(saved, examples), logits, 1e-5, "as others find it");
      saved.dispose();
      model.dispose();
      assert.equal(engine.stats().liveBytes, before, "nothing is left in memory");
    });
  }

for (const tuner of tuners)
  for (const compute of ["f32", "bf16"] as const)
    test(`${tuner.name}, ${compute}: the symbolic step of a classifier has the engine's peak, byte by byte`, async () => {
      const before = engine.stats().liveBytes;
      const examples = examplesOf(references.bert);
      const tuning = tuner.bind(tuner.config.parse({}));
      const { model, task, files } = await classifierOn(bases.bert!, examples, compute);
      tuning.apply(model, new Rng(0));
      trainModules(model, model.headModules);
      const work = { parts: partsOf(files, tuning), task, rows: examples, evalRows: examples, compute };
      await assertEstimatedPeak(model, work, before);
    });
