/** Preference stages in the ordinary loop: they learn under different methods, resume to the bit, and do not depend on how a step is cut. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import type { Row } from "../src/data/example.js";
import type { PairRow, UnpairedRow } from "../src/data/preference-rows.js";
import { evaluate } from "../src/evaluate/evaluate.js";
import { openModelFolder } from "../src/io/hf-folder.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import type { Batch, Task } from "../src/objectives/objective.js";
import { BcoConfig, bcoTask } from "../src/objectives/preference/bco.js";
import { dpoTask } from "../src/objectives/preference/dpo.js";
import { DpoConfig } from "../src/objectives/preference/dpo-config.js";
import { KtoConfig, ktoTask } from "../src/objectives/preference/kto.js";
import type { Optimizer } from "../src/optim/optimizer.js";
import type { EvalEvent, StepEvent } from "../src/runs/events.js";
import { assemble, type Trainee, trainedName } from "../src/train/assemble.js";
import { runStep } from "../src/train/step.js";
import { tuners } from "../src/tuners/index.js";
import { device, engine, randomValues } from "./support/gradient-check.js";
import { partsOf } from "./support/parts.js";
import { collect, tinyRecipe, trace } from "./support/run.js";
import { assertPeakOf } from "./support/step-peak.js";
import { tinyLlama } from "./support/tiny-llama.js";

/** 12 pairs, of which the same answer is always the chosen one. */
function writePairs(folder: string): string {
  const path = join(folder, "pairs.jsonl");
  const rows = Array.from({ length: 12 }, (_, i) => ({
    prompt: `${i}?`,
    chosen: `the cat sat${"!".repeat(i % 3)}`,
    rejected: "dogs bark",
  }));
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

const methods: Readonly<Record<string, Record<string, unknown>>> = {
  lora: { learning_rate: 1e-2 },
  "prefix-tuning": { learning_rate: 0.1, lora_dropout: undefined },
  full: { learning_rate: 1e-3, lora_dropout: undefined },
};
const stages: Readonly<Record<string, { readonly settings: Record<string, unknown>; readonly start: number | null }>> = {
  dpo: { settings: { pref_beta: 0.5 }, start: Math.LN2 },
  "dpo, precomputed": { settings: { pref_beta: 0.5, precompute_ref_log_probs: true }, start: Math.LN2 },
  "dpo with bco and ftx": { settings: { pref_beta: 0.5, pref_bco_weight: 1, pref_ftx: 0.1 }, start: null },
  "dpo orpo": { settings: { pref_loss: "orpo", pref_beta: 0.5 }, start: null },
  kto: { settings: { pref_beta: 0.5 }, start: 0.5 },
  bco: { settings: { pref_beta: 0.5 }, start: Math.LN2 },
};

for (const [name, { settings, start }] of Object.entries(stages))
  for (const [method, rates] of Object.entries(methods).filter(([method]) => method === "lora" || name === "dpo"))
    test(`${name} learns under ${method}, and a resumed run is the uninterrupted one`, async (t) => {
      const folder = temporaryFolder(t);
      const [stage] = name.split(/[ ,]/);
      const recipe = tinyRecipe(folder, {
        ...{
          stage,
          dataset: [writePairs(folder)],
          finetuning_type: method,
          packing: false,
          val_size: stage === "dpo" ? 4 : 8,
          ...settings,
        },
        ...{ per_device_train_batch_size: 2, num_train_epochs: 8, save_strategy: "steps", save_steps: 7, ...rates },
      });
      const events = await collect(recipe);
      const steps = events.filter((event): event is StepEvent => event.type === "step");
      const [first, last] = [steps[0]!, steps.at(-1)!];
      if (start !== null && method !== "prefix-tuning")
        assert.ok(Math.abs(first.loss - start) < 1e-5, `the start is the reference: ${first.loss}`);
      assert.ok(last.loss < 0.7 * first.loss, `from ${first.loss} to ${last.loss}`);
      const [evaluation] = events.filter((event): event is EvalEvent => event.type === "eval").slice(-1);
      const metrics = evaluation!.metrics as Record<string, number>;
      assert.ok(metrics["rewards/chosen"]! > metrics["rewards/rejected"]! + 0.5, JSON.stringify(metrics));
      if (stage === "dpo") assert.equal(metrics["rewards/accuracies"], 1);

      const resumed = await collect({ ...recipe, resume_from_checkpoint: join(folder, "out/checkpoint-7") });
      assert.deepEqual(trace(resumed), trace(events).slice(7));
    });

for (const { name: method } of tuners)
  for (const stage of ["dpo", "kto", "bco"])
    test(`${stage} trains under ${method}, from the reference where the method begins as the base`, async (t) => {
      const folder = temporaryFolder(t);
      const recipe = tinyRecipe(folder, {
        ...{
          stage,
          dataset: [writePairs(folder)],
          finetuning_type: method,
          packing: false,
          lora_dropout: undefined,
          val_size: 4,
        },
        ...{ per_device_train_batch_size: 2, max_steps: 2, ...(method === "qlora" && { quantization_bit: 4 }) },
      });
      const steps = (await collect(recipe)).filter((event): event is StepEvent => event.type === "step");
      assert.ok(steps.length === 2 && steps.every(({ loss, gradNorm }) => Number.isFinite(loss) && gradNorm > 0));
      const beginsElsewhere = ["p-tuning", "prefix-tuning", "adapter"].includes(method);
      const expected = stage === "kto" ? 0.5 : Math.LN2;
      assert.ok(beginsElsewhere || Math.abs(steps[0]!.loss - expected) < 1e-5, `${steps[0]!.loss}`);
    });

test("packing is told to change nothing, and rows of any length go into a batch", async (t) => {
  const folder = temporaryFolder(t);
  const recipe = tinyRecipe(folder, { stage: "dpo", dataset: [writePairs(folder)], packing: true, cutoff_len: 60, max_steps: 1 });
  const notices = (await collect(recipe)).flatMap((event) => (event.type === "notice" ? [event.message] : []));
  assert.match(notices.join("\n"), /packing changes nothing: a batch of stage dpo is so many rows/);
});

const rng = new Rng(5);
const randomIds = (length: number) => Int32Array.from({ length }, () => rng.below(259));
const pairRows = Array.from({ length: 8 }, (_, i): PairRow => {
  const [prompt, chosen, rejected] = [randomIds(2 + (i % 3)), randomIds(3 + i), randomIds(9 - i)];
  return { where: `pair ${i}`, tokens: prompt.length + chosen.length + rejected.length, prompt, chosen, rejected };
});
const unpairedRows = pairRows.map(({ where, prompt, chosen }, i): UnpairedRow => {
  return { where, tokens: prompt.length + chosen.length, prompt, answer: chosen, isGood: i % 3 !== 0 };
});

/** A model that trains, away from its start. */
async function movedTrainee(method: string, usesBase: boolean): Promise<Trainee> {
  const tuner = tuners.find(({ name }) => name === method)!;
  const files = await openModelFolder(join(tinyLlama, "tied"));
  const parts = { ...partsOf(files, tuner.bind(tuner.config.parse({}))), keepsBase: usesBase };
  const start = { rng: new Rng(0), encode: () => Int32Array.of(1, 2, 3) };
  const trainee = await assemble(device, parts, { weightsFrom: null, start, hasNewHead: false });
  const moves = new Rng(11);
  for (const { value } of trainee.parameters.values()) {
    const [values, by] = [await value.read(), randomValues(moves, value.shape, 0.02)];
    device.kernels.write(
      value.id,
      0,
      values.map((x, i) => x + by[i]!),
    );
  }
  return trainee;
}

const anyStep = { step: 0, seed: 0, learningRate: 0, peakLearningRate: 0, maxGradNorm: 0 };

/** Loss and gradients of the step that a round of these micro-batches makes. */
async function stepOf<R extends Row, B extends Batch>(trainee: Trainee, task: Task<R, B>, cut: readonly (readonly R[])[]) {
  const batchSizes = cut.map(({ length }) => length);
  const at = { round: 0, step: 0, batchSizes, policy: trainedName, rng: new Rng(1), signal: new AbortController().signal };
  const experience = await task.rollOut?.(cut.flat(), at, trainee.base);
  assert.ok(experience === undefined || experience.steps.length === 1);
  const gradients: Float32Array[] = [];
  let scaledBy = 0;
  const optimizer = { update: (_: number, scale: number) => (scaledBy = scale), flaws: async () => 0 } as unknown as Optimizer;
  const { loss, metrics } = await runStep({ ...trainee, optimizer }, task, experience?.steps[0] ?? cut, anyStep);
  for (const { value } of trainee.parameters.values()) gradients.push((await value.grad!.read()).map((g) => g * scaledBy));
  for (const parameter of trainee.parameters.values()) parameter.zeroGrad();
  return { loss, metrics: metrics as Record<string, number>, gradients, experience };
}

function assertSame(a: readonly Float32Array[], b: readonly Float32Array[], what: string): void {
  for (const [i, gradient] of a.entries()) {
    const difference = Math.hypot(...gradient.map((g, j) => g - b[i]![j]!));
    assert.ok(difference <= 1e-5 * Math.hypot(...gradient) + 1e-8, `${what}: parameter ${i} differs by ${difference}`);
  }
}

const ofPairs = (config: object) => ({ task: () => dpoTask(DpoConfig.parse(config)) as Task, rows: pairRows as readonly Row[] });
const tasks: Readonly<Record<string, { task: () => Task; rows: readonly Row[] }>> = {
  dpo: ofPairs({ pref_beta: 0.5 }),
  "dpo ipo with ld_alpha": ofPairs({ pref_loss: "ipo", ld_alpha: 0.3 }),
  "dpo with ftx and bco": ofPairs({ pref_ftx: 0.5, pref_bco_weight: 0.5 }),
  rpo: ofPairs({ pref_loss: ["sigmoid", "sft"] }),
  orpo: ofPairs({ pref_loss: "orpo", pref_beta: 0.5 }),
  "orpo of all tokens": ofPairs({ pref_loss: "orpo", pref_beta: 0.5, orpo_nll: "all_tokens" }),
  simpo: ofPairs({ pref_loss: "simpo", pref_beta: 2 }),
  cpo: ofPairs({ pref_loss: "cpo" }),
  kto: { task: () => ktoTask(KtoConfig.parse({ pref_ftx: 0.3, kto_rejected_weight: 2 })) as Task, rows: unpairedRows },
  bco: { task: () => bcoTask(BcoConfig.parse({})) as Task, rows: unpairedRows },
};

for (const [name, { task, rows }] of Object.entries(tasks))
  test(`${name}: the gradient of a step does not depend on its micro-batches`, async () => {
    const trainee = await movedTrainee("lora", true);
    const whole = await stepOf(trainee, task(), [rows]);
    assert.ok(whole.gradients.some((gradient) => gradient.some((g) => Math.abs(g) > 1e-6)));
    for (const sizes of [
      [1, 1, 1, 1, 1, 1, 1, 1],
      [3, 5],
      [2, 2, 2, 2],
    ]) {
      const cut = sizes.map((size, i) => {
        const from = sizes.slice(0, i).reduce((sum, before) => sum + before, 0);
        return rows.slice(from, from + size);
      });
      const parts = await stepOf(trainee, task(), cut);
      assert.ok(Math.abs(parts.loss - whole.loss) < 1e-5 * Math.max(1, whole.loss), `${parts.loss} against ${whole.loss}`);
      assertSame(whole.gradients, parts.gradients, sizes.join("+"));
      for (const [key, value] of Object.entries(whole.metrics)) assert.ok(Math.abs(value - parts.metrics[key]!) < 1e-4, key);
    }
    trainee.dispose();
  });

for (const name of ["dpo", "bco"] as const)
  test(`${name}: what the reference said once is what it says`, async () => {
    const trainee = await movedTrainee("lora", true);
    const { task, rows } = tasks[name]!;
    const seen: number[] = [];
    const at = { signal: new AbortController().signal, onRows: (done: number) => seen.push(done) };
    const kept = await task().keepReference!(rows, (body) => trainee.base.withReference(body), at);
    assert.equal(seen.at(-1), rows.length);
    const [asked, known] = [await stepOf(trainee, task(), [rows]), await stepOf(trainee, task(), [kept])];
    assert.ok(Math.abs(asked.loss - known.loss) < 1e-6);
    assertSame(asked.gradients, known.gradients, name);
    const stop = AbortSignal.abort(new Error("stopped"));
    await assert.rejects(
      task().keepReference!(rows, (body) => trainee.base.withReference(body), { ...at, signal: stop }),
      /stopped/,
    );
    trainee.dispose();
  });

test("kto: held-out rows have a KL of their batch; batches of one label, and of one row, work", async () => {
  const trainee = await movedTrainee("lora", true);
  const { task } = tasks.kto!;
  for (const [part, batchSize] of [
    [unpairedRows, 8],
    [unpairedRows, 3], // 3, 3 and 2
    [unpairedRows, 7], // 7 and 1
    [unpairedRows.filter(({ isGood }) => isGood), 5],
    [unpairedRows.filter(({ isGood }) => !isGood), 5],
    [unpairedRows.slice(0, 1), 1],
  ] as const) {
    const evaluated = await evaluate(trainee.base, trainedName, task(), part, { batchSize });
    assert.ok(Number.isFinite(evaluated!.loss) && Number.isFinite(evaluated!.metrics!.kl as number));
    const step = await stepOf(trainee, task(), [part]);
    assert.ok(step.gradients.every((gradient) => gradient.every(Number.isFinite)));
    if (batchSize === 8 || part.length === 1) {
      assert.ok(Math.abs(evaluated!.loss - step.loss) < 1e-5);
      assert.ok(Math.abs((evaluated!.metrics!.kl as number) - step.experience!.metrics!.kl!.sum) < 1e-5);
    }
  }
  trainee.dispose();
});

test("bco: δ is the mean of the rewards of earlier steps, and what a checkpoint keeps of it goes on", async () => {
  const trainee = await movedTrainee("lora", true);
  const task = bcoTask(BcoConfig.parse({}));
  const first = await stepOf(trainee, task as Task, [unpairedRows]);
  assert.equal(first.experience!.metrics!.delta!.sum, 0);
  const { "rewards/chosen": good, "rewards/rejected": bad } = first.metrics;
  await evaluate(trainee.base, trainedName, task, unpairedRows, { batchSize: 4 }); // held-out rewards are none of it
  const later = bcoTask(BcoConfig.parse({}));
  later.state!.load(JSON.parse(JSON.stringify(task.state!.save())));
  assert.throws(() => bcoTask(BcoConfig.parse({})).state!.load({ sum: "1" }), { code: "CHECKPOINT" });
  const [again, resumed] = [
    await stepOf(trainee, task as Task, [unpairedRows]),
    await stepOf(trainee, later as Task, [unpairedRows]),
  ];
  assert.ok(Math.abs(again.experience!.metrics!.delta!.sum - (5 * good! + 3 * bad!) / 8) < 1e-6);
  assert.ok(again.loss !== first.loss);
  assert.deepEqual([resumed.loss, resumed.metrics], [again.loss, again.metrics]);
  trainee.dispose();
});

for (const name of ["dpo", "orpo of all tokens", "kto", "bco"] as const)
  for (const method of ["lora", "full"])
    test(`${name}, ${method}: the symbolic step has the engine's peak, byte by byte`, async () => {
      const before = engine.stats().liveBytes;
      const { task: make, rows } = tasks[name]!;
      const task = make();
      const keepsBase = task.usesBase === true;
      const tuner = tuners.find((each) => each.name === method)!;
      const parts = { ...partsOf(await openModelFolder(join(tinyLlama, "tied")), tuner.bind(tuner.config.parse({}))), keepsBase };
      const trainee = await movedTrainee(method, keepsBase);
      await assertPeakOf(trainee, { parts, task, rows, evalRows: rows, compute: "f32" }, before);
    });
