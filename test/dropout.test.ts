/** The dropout that a base's own config asks for, against PyTorch: test/fixtures/make_dropout.py made the numbers. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { differentiate } from "../src/core/tape.js";
import { scope } from "../src/core/tensor.js";
import type { Row } from "../src/data/example.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import type { ModelFiles } from "../src/io/model-files.js";
import type { LanguageModel } from "../src/models/language-model.js";
import { loadModel } from "../src/models/load.js";
import { writeRandomModel } from "../src/models/random-model.js";
import { classification } from "../src/objectives/classification/classification.js";
import { nextToken } from "../src/objectives/next-token.js";
import type { Task } from "../src/objectives/objective.js";
import { byteTokenizer } from "../src/text/tokenizer/byte-tokenizer.js";
import { full } from "../src/tuners/full/full.js";
import { bases, classifierFolder, examplesOf, readReference } from "./support/classifiers.js";
import { device, engine } from "./support/gradient-check.js";
import { lossOf } from "./support/loss-of.js";
import { partsOf } from "./support/parts.js";
import { type AnyRecipe, collect, hashOf, makeFolder, tinyRecipe, trace } from "./support/run.js";
import { assertEstimatedPeak } from "./support/step-peak.js";
import { exampleOf, reference } from "./support/tiny-llama.js";

const told = JSON.parse(readFileSync(join(import.meta.dirname, "../../test/fixtures/dropout.json"), "utf8")) as {
  readonly p: number;
  readonly draws: number;
  readonly losses: Readonly<Record<string, { readonly plain: number; readonly mean: number; readonly std: number }>>;
};
const cases = Object.keys(told.losses).map((name) => name.split(" ") as [family: string, key: string]);
const families = [...new Set(cases.map(([family]) => family))];
const keysOf = (family: string) => cases.flatMap(([other, key]) => (other === family ? [key] : []));

interface Work {
  readonly model: LanguageModel;
  readonly files: ModelFiles;
  readonly task: Task;
  readonly rows: readonly Row[];
}

/** A model whose config asks for dropout of each of `chances`, and of nothing else. */
async function load(family: string, chances: Readonly<Record<string, number>>): Promise<Work> {
  const folder = family === "bert" ? classifierFolder("bert") : bases[family]!;
  const opened = await openModelFolder(folder);
  const none = Object.fromEntries(keysOf(family).map((key) => [key, 0]));
  const files = { ...opened, config: { ...opened.config, ...none, ...chances } };
  const model = await loadModel(device, files);
  full.bind({}).apply(model, new Rng(0));
  if (family !== "bert") return { model, files, task: nextToken as Task, rows: reference.sequences.map((s) => exampleOf(s)) };
  const rows = examplesOf(readReference("bert"));
  const circumstances = { base: files.config, heldOut: [], tokenizer: byteTokenizer(), warn: assert.fail };
  return { model, files, task: classification.task(rows, classification.config.parse({}), circumstances) as Task, rows };
}

const meanLoss = async ({ model, task, rows }: Work, rng: Rng | null): Promise<number> => {
  const batch = task.collate(rows);
  const loss = rng === null ? scope(() => lossOf(task, model, batch)) : differentiate(() => lossOf(task, model, batch), rng);
  const value = await loss.item();
  loss.dispose();
  return value / batch.counts.loss!;
};

for (const [family, key] of cases)
  test(`${family}: ${key} changes the loss as in PyTorch`, async () => {
    const { plain, mean, std } = told.losses[`${family} ${key}`]!;
    const work = await load(family, { [key]: told.p });
    assert.deepEqual([...work.model.ownDropout], [[key, told.p]]);
    assert.ok(Math.abs((await meanLoss(work, null)) - plain) < 1e-4, "nothing is dropped in evaluation");
    const draws = 400;
    const losses: number[] = [];
    for (let seed = 0; seed < draws; seed++) {
      losses.push(await meanLoss(work, new Rng(seed)));
      work.model.zeroGrad();
    }
    const ours = losses.reduce((sum, loss) => sum + loss, 0) / draws;
    const spread = Math.sqrt(losses.reduce((sum, loss) => sum + (loss - ours) ** 2, 0) / (draws - 1));
    const uncertain = std * Math.sqrt(1 / draws + 1 / told.draws);
    assert.ok(Math.abs(ours - mean) < 4 * uncertain, `mean ${ours}, PyTorch's ${mean} ± ${uncertain}, without dropout ${plain}`);
    assert.ok(Math.abs(spread / std - 1) < 0.2, `standard deviation ${spread}, PyTorch's ${std}`);
    work.model.dispose();
  });

for (const family of families)
  test(`${family}: a seed gives the same bits again, checkpointed too; disabled it is as without`, async () => {
    const gradients = async (chance: number, { checkpointed = false, disabled = false } = {}) => {
      const work = await load(family, Object.fromEntries(keysOf(family).map((key) => [key, chance])));
      work.model.gradientCheckpointing = checkpointed;
      if (disabled) work.model.disableDropout();
      const values: Float32Array[] = [Float32Array.of(await meanLoss(work, new Rng(5)))];
      for (const [, { value }] of work.model.namedParameters()) if (value.grad !== null) values.push(await value.grad.read());
      work.model.dispose();
      return values;
    };
    const dropped = await gradients(0.2);
    assert.deepEqual(await gradients(0.2), dropped);
    assert.deepEqual(await gradients(0.2, { checkpointed: true }), dropped);
    const plain = await gradients(0);
    assert.notDeepEqual(dropped, plain);
    assert.deepEqual(await gradients(0.2, { disabled: true }), plain);
  });

for (const family of families)
  for (const gradientCheckpointing of [false, true])
    test(`${family}: the symbolic step has the engine's peak with dropout, byte by byte, checkpointing ${gradientCheckpointing}`, async () => {
      const before = engine.stats().liveBytes;
      const { model, files, task, rows } = await load(family, Object.fromEntries(keysOf(family).map((key) => [key, 0.1])));
      model.gradientCheckpointing = gradientCheckpointing;
      const parts = partsOf(files, full.bind({}), { gradientCheckpointing });
      const work = { parts, task, rows, evalRows: rows, compute: "f32" } as const;
      await assertEstimatedPeak(model, work, before);
    });

/** GPT-2 with random weights and a tokenizer. */
async function writeGpt2(folder: string): Promise<string> {
  const { config } = await openModelFolder(bases.gpt2!);
  await writeRandomModel(join(folder, "gpt2"), config, 1);
  return join(folder, "gpt2");
}

async function recipeOn(changes: Record<string, unknown>): Promise<AnyRecipe> {
  const folder = makeFolder();
  const model_name_or_path = await writeGpt2(folder);
  return tinyRecipe(folder, { model_name_or_path, finetuning_type: "full", lora_dropout: undefined, ...changes });
}

test("a run says that its base drops numbers, and disable_dropout leaves it out", async () => {
  const run = async (changes: Record<string, unknown>) => {
    const all = { packing: false, max_steps: 3, per_device_train_batch_size: 24, gradient_accumulation_steps: 1 };
    const events = await collect(await recipeOn({ ...all, learning_rate: 1e-12, ...changes }));
    const notices = events.flatMap((event) =>
      event.type === "notice" && /the dropout of its own/.test(event.message) ? [event.message] : [],
    );
    return { notices, losses: events.flatMap((event) => (event.type === "step" ? [event.loss] : [])) };
  };
  const on = await run({});
  assert.deepEqual(on.notices, [
    "the model trains with the dropout of its own config.json (embd_pdrop 0.1, attn_pdrop 0.1, resid_pdrop 0.1), as in transformers; " +
      "disable_dropout=true leaves it out",
  ]);
  assert.equal(new Set(on.losses).size, 3, "every step drops others");
  assert.deepEqual((await run({})).losses, on.losses);
  const off = await run({ disable_dropout: true });
  assert.deepEqual(off.notices, []);
  assert.ok(Math.max(...off.losses) - Math.min(...off.losses) < 1e-5, `${off.losses}`);
});

test("a resumed run drops what the uninterrupted one does, bit by bit", async () => {
  const recipe = await recipeOn({ save_strategy: "steps", save_steps: 3 });
  const out = recipe.output_dir as string;
  const expected = trace(await collect(recipe));
  const weights = hashOf(join(out, "model.safetensors"));
  const resume_from_checkpoint = join(out, "checkpoint-3");
  const resumed = await collect({ ...recipe, output_dir: `${out}-resumed`, resume_from_checkpoint });
  assert.deepEqual(trace(resumed), expected.slice(3));
  assert.equal(hashOf(join(`${out}-resumed`, "model.safetensors")), weights);
});
