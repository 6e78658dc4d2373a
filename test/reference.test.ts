/** What a run compares its policy with: exactly what training began from, whatever trains; another model; asked once and kept. */
import assert from "node:assert/strict";
import { copyFileSync, cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { Rng } from "../src/core/rng.js";
import type { PairRow } from "../src/data/preference-rows.js";
import { exportModel } from "../src/export/export.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { openSafetensors } from "../src/io/safetensors.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import { objectives } from "../src/objectives/index.js";
import type { Objective } from "../src/objectives/objective.js";
import type { EvalEvent, RunEvent, StepEvent } from "../src/runs/events.js";
import { assemble } from "../src/train/assemble.js";
import { tuners } from "../src/tuners/index.js";
import { openTuned, settingsOfAdapter } from "../src/tuners/tuned-files.js";
import { device, engine } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { collect, tinyRecipe, trace } from "./support/run.js";
import { assertPeakOf } from "./support/step-peak.js";
import { tinyLlama } from "./support/tiny-llama.js";
import { toyDpo, toyTask } from "./support/toy-dpo.js";

(objectives as Objective<never, never>[]).push(toyDpo as unknown as Objective<never, never>);

type Settings = Readonly<Record<string, unknown>>;

function writePairs(folder: string): string {
  const path = join(folder, "pairs.jsonl");
  const rows = Array.from({ length: 10 }, (_, i) => ({
    ...{ instruction: `Where is animal ${i}?`, input: "", chosen: `on the mat${"!".repeat(i)}`, rejected: "dogs bark" },
  }));
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

/** An adapter or a model that stage sft made. */
async function imitator(folder: string, name: string, settings: Settings = {}): Promise<string> {
  const output_dir = join(folder, name);
  const known = { max_steps: 4, lora_dropout: undefined, learning_rate: 0.02, ...settings };
  await collect(tinyRecipe(folder, { ...known, output_dir }));
  return output_dir;
}

const pairRecipe = (folder: string, settings: Settings = {}) =>
  tinyRecipe(folder, {
    ...{ stage: "toy-dpo", dataset: [writePairs(folder)], val_size: 4, packing: false, lora_dropout: undefined },
    ...{ per_device_train_batch_size: 2, gradient_accumulation_steps: 1, lr_scheduler_type: "constant", warmup_steps: 0 },
    ...settings,
  });

const stepsOf = (events: readonly RunEvent[]) => events.filter((event): event is StepEvent => event.type === "step");
const evalsOf = (events: readonly RunEvent[]) => events.filter((event): event is EvalEvent => event.type === "eval");
const noticesOf = (events: readonly RunEvent[]) => events.flatMap((event) => (event.type === "notice" ? [event.message] : []));
const startOf = (events: readonly RunEvent[]) => events.find((event) => event.type === "start")!;

interface Beginning {
  readonly what: string;
  readonly begin: (folder: string) => Promise<Settings>;
}

const continued = (what: string, settings: Settings): Beginning => ({
  what: `${what}, continued`,
  begin: async (folder) => ({ ...settings, adapter_name_or_path: await imitator(folder, "sft", settings) }),
});

async function merged(folder: string): Promise<string> {
  const out = join(folder, "merged");
  await exportModel({ adapter: await imitator(folder, "to-merge"), to: "hf", type: "f32", out, checkRows: 0 });
  return out;
}

const beginnings: Beginning[] = [
  { what: "a new adapter", begin: async () => ({}) },
  {
    what: "a new adapter over an old one",
    begin: async (folder) => ({ adapter_name_or_path: await imitator(folder, "sft"), create_new_adapter: true }),
  },
  { what: "a new adapter on a merged model", begin: async (folder) => ({ model_name_or_path: await merged(folder) }) },
  { what: "a new adapter on a base in 4 bits", begin: async () => ({ finetuning_type: "qlora" }) },
  {
    what: "full, of a merged model",
    begin: async (folder) => ({ finetuning_type: "full", model_name_or_path: await merged(folder) }),
  },
  { what: "freeze", begin: async () => ({ finetuning_type: "freeze" }) },
  continued("lora", {}),
  continued("dora of all that can train", { use_dora: true, bias: "all" }),
  continued("lora and a whole output projection", { additional_target: "lm_head" }),
  continued("qlora", { finetuning_type: "qlora" }),
  continued("prefix-tuning", { finetuning_type: "prefix-tuning" }),
  continued("p-tuning", { finetuning_type: "p-tuning" }),
  continued("adapter", { finetuning_type: "adapter" }),
];

/** As another adapter over one that is trained over a third. */
beginnings.push({
  what: "an adapter over another, continued",
  begin: async (folder) => {
    const below = { adapter_name_or_path: await imitator(folder, "one"), create_new_adapter: true };
    return { adapter_name_or_path: await imitator(folder, "two", { ...below, seed: 7 }) };
  },
});

for (const { what, begin } of beginnings)
  test(`${what}: the policy begins as its reference, which stays what it was, in evaluations too`, async (t) => {
    const folder = temporaryFolder(t);
    const settings = await begin(folder);
    const events = await collect(
      pairRecipe(folder, { learning_rate: 0.01, max_steps: 20, eval_strategy: "steps", eval_steps: 5, ...settings }),
    );
    const [first, ...others] = stepsOf(events);
    assert.ok(Math.abs(first!.loss - Math.LN2) < 1e-6, `the loss of the first step is ${first!.loss}`);
    assert.ok(Math.abs(first!.metrics!["rewards/margins"] as number) < 1e-6);
    assert.ok(
      others.some(({ loss }) => Math.abs(loss - Math.LN2) > 0.01),
      "nothing moves: this test cannot fail",
    );
    const evals = evalsOf(events);
    const said = evals.map(({ metrics }) => metrics!["logps/reference"]);
    assert.equal(evals.length, 4);
    assert.deepEqual(
      said,
      said.map(() => said[0]),
      "the reference has changed",
    );
    assert.match(startOf(events).reference!.sha256, /^[0-9a-f]{64}$/);
  });

/** An evaluation before any step, in which neither dropout nor noise may be. */
const onlyEvaluates = { do_train: false, do_eval: true };

test("what the policy drops, its own and the base's, never touches the reference, nor an evaluation", async (t) => {
  const folder = temporaryFolder(t);
  const adapter = await imitator(folder, "sft");
  const noisy = { adapter_name_or_path: adapter, neftune_noise_alpha: 20 };
  dropIn(join(adapter, "adapter_config.json"), { lora_dropout: 0.3 });
  const [evaluation] = evalsOf(await collect(pairRecipe(folder, { ...noisy, ...onlyEvaluates })));
  assert.ok(Math.abs(evaluation!.evalLoss - Math.LN2) < 1e-6);
  assert.ok(Math.abs(evaluation!.metrics!["rewards/margins"] as number) < 1e-6);

  const oneRow = { max_steps: 6, learning_rate: 1e-9, max_samples: 1, val_size: 0, per_device_train_batch_size: 1 };
  const steps = stepsOf(
    await collect(pairRecipe(folder, { ...noisy, ...oneRow, num_train_epochs: 6, overwrite_output_dir: true })),
  );
  const reference = steps.map(({ metrics }) => metrics!["logps/reference"] as number);
  assert.deepEqual(
    reference,
    reference.map(() => reference[0]),
  );
  assert.ok(new Set(steps.map(({ loss }) => loss)).size > 1, "nothing is dropped: this test cannot fail");
  const plain = stepsOf(
    await collect(pairRecipe(folder, { ...oneRow, max_steps: 1, adapter_name_or_path: adapter, overwrite_output_dir: true })),
  );
  assert.equal(plain[0]!.metrics!["logps/reference"], reference[0]);
});

function dropIn(file: string, changes: Settings): void {
  writeFileSync(file, JSON.stringify({ ...(JSON.parse(readFileSync(file, "utf8")) as object), ...changes }));
}

test("a resumed run has the reference of the first, not of its checkpoint; another one in its place is refused", async (t) => {
  const folder = temporaryFolder(t);
  const adapter_name_or_path = await imitator(folder, "sft");
  dropIn(join(adapter_name_or_path, "adapter_config.json"), { lora_dropout: 0.1 });
  const recipe = pairRecipe(folder, { adapter_name_or_path, max_steps: 8, save_strategy: "steps", save_steps: 3 });
  const events = await collect(recipe);
  const resume = { ...recipe, resume_from_checkpoint: join(folder, "out/checkpoint-3") };
  const resumed = await collect(resume);
  assert.deepEqual(trace(resumed), trace(events).slice(3));
  assert.deepEqual(startOf(resumed).reference, startOf(events).reference);
  const { results } = events.findLast((event) => event.type === "end")!;
  assert.equal(results.reference_sha256, startOf(events).reference!.sha256);
  assert.ok(
    readFileSync(join(folder, "out/README.md"), "utf8").includes(
      `| tied + sft |\n| sha256 of what it was compared with | \`${results.reference_sha256}\``,
    ),
  );
  assert.equal(
    (JSON.parse(readFileSync(join(folder, "out/all_results.json"), "utf8")) as Settings).reference_sha256,
    results.reference_sha256,
  );

  await imitator(folder, "sft", { overwrite_output_dir: true, seed: 3 });
  await assert.rejects(collect(resume), { code: "CHECKPOINT", message: /was made with other data.* or with another reference/ });
});

test("an adapter in output_dir cannot be the reference: the run would write over it", async (t) => {
  const folder = temporaryFolder(t);
  await imitator(folder, "out");
  for (const adapter_name_or_path of [join(folder, "out"), `${folder}/out/.`])
    await assert.rejects(collect(pairRecipe(folder, { adapter_name_or_path, overwrite_output_dir: true })), {
      code: "CONFIG",
      message: /adapter in output_dir, and is compared with it as it was: choose another output_dir/,
    });
});

const keptFile = (folder: string) => join(folder, "out/reference_log_probs.safetensors");
const asked = (events: readonly RunEvent[]) =>
  events.flatMap((event) => (event.type === "progress" && "doneRows" in event ? [`${event.doneRows}/${event.totalRows}`] : []));

for (const { what, begin } of beginnings.filter(({ what }) => /^(lora|prefix|full|a new adapter over)/.test(what)))
  test(`${what}: asked before training, the reference says the same, once`, async (t) => {
    const folder = temporaryFolder(t);
    const one = { per_device_train_batch_size: 1, max_steps: 8, save_strategy: "steps", save_steps: 3, eval_steps: 4 };
    const recipe = pairRecipe(folder, { ...one, eval_strategy: "steps", ...(await begin(folder)) });
    const expected = await collect(recipe);
    const once = { ...recipe, precompute_ref_log_probs: true, overwrite_output_dir: true };
    const events = await collect(once);
    assert.deepEqual(
      asked(events),
      Array.from({ length: 10 }, (_, i) => `${i + 1}/10`),
    );
    assert.deepEqual(trace(events), trace(expected));
    // Held-out rows are evaluated two at a time above, and asked about one by one here.
    for (const [i, { evalLoss }] of evalsOf(expected).entries())
      assert.ok(Math.abs(evalLoss - evalsOf(events)[i]!.evalLoss) < 1e-6);

    const resume = { ...once, overwrite_output_dir: false, resume_from_checkpoint: join(folder, "out/checkpoint-3") };
    const resumed = await collect(resume);
    assert.deepEqual(asked(resumed), []);
    assert.deepEqual(trace(resumed), trace(events).slice(3));
    rmSync(keptFile(folder));
    const again = await collect(resume);
    assert.equal(asked(again).length, 10);
    assert.deepEqual(trace(again), trace(events).slice(3));
  });

test("what is kept of a reference is refused on resuming where it is another's, or damaged; a new run asks again", async (t) => {
  const folder = temporaryFolder(t);
  const recipe = pairRecipe(folder, { precompute_ref_log_probs: true, max_steps: 4, save_strategy: "steps", save_steps: 2 });
  const elsewhere = { ...recipe, output_dir: join(folder, "elsewhere"), model_name_or_path: await merged(folder) };
  await collect(elsewhere);
  const events = await collect(recipe);
  const { tensors } = await openSafetensors(keptFile(folder));
  assert.deepEqual([...tensors.keys()].sort(), ["eval", "eval.lengths", "train", "train.lengths"]);
  assert.deepEqual(tensors.get("train.lengths")!.shape, [6, 2]);

  const own = readFileSync(keptFile(folder));
  copyFileSync(join(folder, "elsewhere/reference_log_probs.safetensors"), keptFile(folder));
  const resume = { ...recipe, resume_from_checkpoint: join(folder, "out/checkpoint-2") };
  await assert.rejects(collect(resume), { code: "CHECKPOINT", message: /holds what another reference said, or of other rows/ });
  const anew = await collect({ ...recipe, overwrite_output_dir: true });
  assert.deepEqual(trace(anew), trace(events));
  assert.ok(readFileSync(keptFile(folder)).equals(own));
  writeFileSync(keptFile(folder), own.subarray(0, own.length - 8));
  await assert.rejects(collect(resume), { code: "MODEL" });
});

test("stopped while the reference is asked, a run leaves nothing half written", async (t) => {
  const folder = temporaryFolder(t);
  const stop = new AbortController();
  const recipe = pairRecipe(folder, { precompute_ref_log_probs: true });
  const onEvent = (event: RunEvent) => event.type === "progress" && stop.abort();
  await assert.rejects(collect(recipe, onEvent, stop.signal), { code: "INTERRUPTED" });
  assert.ok(!existsSync(keptFile(folder)));
});

test("ref_model is another model, asked before training; that it is another is told, and that it is the same", async (t) => {
  const folder = temporaryFolder(t);
  const sft = await imitator(folder, "sft");
  const base = join(tinyLlama, "tied");
  const run = (settings: Settings) => collect(pairRecipe(folder, { max_steps: 3, overwrite_output_dir: true, ...settings }));
  const own = await run({ adapter_name_or_path: sft });

  const same = await run({ adapter_name_or_path: sft, ref_model: base, ref_model_adapters: sft });
  assert.ok(Math.abs(stepsOf(same)[0]!.loss - Math.LN2) < 1e-6);
  assert.ok(noticesOf(same).some((notice) => /^ref_model: these are the files that training begins from/.test(notice)));
  assert.equal(startOf(same).reference!.sha256, startOf(own).reference!.sha256);
  assert.equal(asked(same).length, 10);

  const other = await run({ adapter_name_or_path: sft, ref_model: base });
  assert.ok(Math.abs(stepsOf(other)[0]!.loss - Math.LN2) > 1e-3, "the adapter changes nothing: this test cannot fail");
  assert.ok(noticesOf(other).some((notice) => /^the reference is not what training begins from, but tied: .* ln 2/.test(notice)));
  assert.equal(startOf(other).reference!.name, "tied");
  const overMerged = await run({ adapter_name_or_path: sft, ref_model: await merged(folder) });
  assert.ok(Math.abs(stepsOf(overMerged)[0]!.loss - Math.LN2) < 1e-5);

  const quantized = await run({ ref_model: base, ref_model_quantization_bit: 4 });
  const inFourBits = await run({ finetuning_type: "qlora" });
  const of = (events: readonly RunEvent[]) => stepsOf(events)[0]!.metrics!["logps/reference"] as number;
  assert.ok(Math.abs(of(quantized) - of(inFourBits)) < 1e-4 * Math.abs(of(quantized)));
  assert.ok(Math.abs(of(quantized) - of(other)) > 1e-3);
  assert.equal(startOf(quantized).reference!.name, "tied in 4 bits");
});

test("a reference of another vocabulary, settings of one that is not named, and merging into 4 bits are refused", async (t) => {
  const folder = temporaryFolder(t);
  const strange = join(folder, "strange");
  cpSync(join(tinyLlama, "tied"), strange, { recursive: true });
  const file = join(strange, "tokenizer.json");
  const json = JSON.parse(readFileSync(file, "utf8")) as { model: { vocab: Record<string, number> } };
  const { vocab } = json.model;
  const [a, b] = Object.keys(vocab).slice(40, 42) as [string, string];
  [vocab[a], vocab[b]] = [vocab[b]!, vocab[a]!];
  writeFileSync(file, JSON.stringify(json));
  const refused = async (settings: Settings, message: RegExp) =>
    await assert.rejects(collect(pairRecipe(folder, { ...settings, overwrite_output_dir: true })), { code: "CONFIG", message });
  await refused({ ref_model: strange }, /ref_model: .*strange has another vocabulary .*: token 4\d is ".*" there, and ".*" here/);
  await refused({ ref_model_adapters: "x" }, /ref_model_adapters: belongs to ref_model, which is not set/);
  await refused({ ref_model_quantization_bit: 4 }, /ref_model_quantization_bit: belongs to ref_model/);
  const sft = await imitator(folder, "sft");
  const two = { ref_model: join(tinyLlama, "tied"), ref_model_adapters: `${sft},${sft}`, ref_model_quantization_bit: 4 };
  await refused(two, /ref_model_adapters: all but the last are merged into ref_model in f32/);
});

async function peakOf(t: TestContext, settings: Settings): Promise<void> {
  const folder = temporaryFolder(t);
  const referenceFrom = await imitator(folder, "sft", settings);
  const { tuner, config } = await settingsOfAdapter(referenceFrom, tuners);
  const tuning = tuner.bind(config);
  await openTuned(referenceFrom, tuning);
  const before = engine.stats().liveBytes;
  const parts = { ...partsOf(await openModelFolder(join(tinyLlama, "tied")), tuning), referenceFrom };
  const start = { rng: new Rng(0), encode: () => Int32Array.of(1, 2, 3) };
  const trainee = await assemble(device, parts, { weightsFrom: referenceFrom, start, hasNewHead: false });
  const ids = (length: number, seed: number) => Int32Array.from({ length }, (_, i) => (seed + 7 * i) % 250);
  const rows = [40, 60].map(
    (length, i): PairRow => ({
      ...{ where: `pair ${i}`, tokens: 2 * length + 10, prompt: ids(10, i), chosen: ids(length, 3), rejected: ids(length, 5) },
    }),
  );
  const task = toyTask(toyDpo.config.parse({}));
  await assertPeakOf(trainee, { parts, task, rows, evalRows: rows, compute: "f32" }, before);
}

for (const finetuning_type of ["lora", "prefix-tuning"])
  test(`${finetuning_type}, continued: with the copy that stays as it was, the symbolic step has the engine's peak, byte by byte`, async (t) => {
    await peakOf(t, { finetuning_type });
  });
