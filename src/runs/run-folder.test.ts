import assert from "node:assert/strict";
import { appendFile, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import type { RunEvent, RunResults, StepEvent } from "./events.js";
import { type RunDescription, RunFolder, readEvents, recordRun } from "./run-folder.js";

const results: RunResults = {
  epoch: 2,
  train_loss: 1.5,
  eval_loss: 1.25,
  train_runtime: 12,
  train_samples_per_second: 3,
  train_steps_per_second: 1,
  total_flos: 1e12,
  tokens_per_second: 500,
  num_input_tokens_seen: 600,
  num_supervised_tokens: 60,
  peak_memory_bytes: 1e9,
  trainable_params: 10,
  all_params: 100,
  isa: "avx2",
  threads: 2,
  dtype: "f32",
  seconds_to_first_step: 1.5,
};

function start(resumedFromStep = 0): RunEvent {
  return {
    ...{ type: "start", outputDir: "out", model: "models/SmolLM2-135M-Instruct/", method: "lora", objective: "sft" },
    ...{ trainRows: 12, evalRows: 4, totalSteps: 6, resumedFromStep, trainableParams: 10, allParams: 100 },
    ...{ isa: "avx2", threads: 2, dtype: "f32", predictedPeakBytes: 1e9, availableBytes: 4e9 },
  };
}

function step(n: number, loss = 4 - n / 2): StepEvent {
  return {
    ...{
      type: "step",
      step: n,
      totalSteps: 6,
      epoch: n / 3,
      loss,
      gradNorm: 0.5,
      learningRate: 1e-4,
      tokens: 100,
      supervisedTokens: 10,
    },
    ...{ tokensPerSecond: 50, elapsedMs: 2000 * n, remainingMs: 2000 * (6 - n), peakMemoryBytes: 1e9 },
  };
}

const evaluation = (n: number, evalLoss: number): RunEvent => ({
  type: "eval",
  step: n,
  epoch: n / 3,
  evalLoss,
  elapsedMs: 2000 * n,
});
const checkpoint = (n: number): RunEvent => ({ type: "checkpoint", step: n, path: `checkpoint-${n}` });
const notice: RunEvent = { type: "notice", level: "info", message: "the model came from elsewhere" };
const progress: RunEvent = { type: "progress", what: "downloading", doneBytes: 1, totalBytes: 2 };
const end: RunEvent = { type: "end", interrupted: false, results };

const wholeRun = [
  ...[notice, start(), step(1), step(2), step(3), evaluation(3, 1.5), checkpoint(3)],
  ...[step(4), step(5), step(6), evaluation(6, 1.25), end],
];

async function collect(events: AsyncIterable<RunEvent>): Promise<RunEvent[]> {
  const all: RunEvent[] = [];
  for await (const event of events) all.push(event);
  return all;
}

async function withFolder(use: (outputDir: string) => Promise<void>): Promise<void> {
  const outputDir = await mkdtemp(join(tmpdir(), "attune-run-"));
  try {
    await use(outputDir);
  } finally {
    await rm(outputDir, { recursive: true });
  }
}

function describeRun(outputDir: string, changes: Partial<RunDescription> = {}): RunDescription {
  const defaults = {
    recipe: "seed: 1\n",
    loggingSteps: 2,
    evalSteps: 3,
    saveSteps: 3,
    numTrainEpochs: 2,
    trainBatchSize: 2,
    plotLoss: false,
  };
  return { outputDir, ...defaults, ...changes };
}

async function record(outputDir: string, events: readonly RunEvent[], changes?: Partial<RunDescription>): Promise<RunEvent[]> {
  async function* source() {
    yield* events;
  }
  return await collect(recordRun(source(), new RunFolder(describeRun(outputDir, changes))));
}

const readJson = async (...path: string[]) => JSON.parse(await readFile(join(...path), "utf8"));
const readLines = async (...path: string[]) =>
  (await readFile(join(...path), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

test("a run leaves the files of LLaMA-Factory", () =>
  withFolder(async (outputDir) => {
    assert.deepEqual(await record(outputDir, wholeRun), wholeRun);
    const names = ["all_results.json", "eval_results.json", "events.jsonl", "recipe.yaml"];
    assert.deepEqual((await readdir(outputDir)).sort(), [
      ...names,
      "train_results.json",
      "trainer_log.jsonl",
      "trainer_state.json",
    ]);

    assert.deepEqual(await readJson(outputDir, "all_results.json"), results);
    assert.deepEqual(await readJson(outputDir, "eval_results.json"), { epoch: 2, eval_loss: 1.25 });
    assert.equal("eval_loss" in (await readJson(outputDir, "train_results.json")), false);
    assert.equal(await readFile(join(outputDir, "recipe.yaml"), "utf8"), "seed: 1\n");

    const log = await readLines(outputDir, "trainer_log.jsonl");
    assert.deepEqual(
      log.map(({ current_steps, loss, eval_loss }) => [current_steps, loss ?? null, eval_loss ?? null]),
      [
        [2, 3.25, null], // the mean of steps 1 and 2
        [3, null, 1.5],
        [4, 2.25, null],
        [6, 1.25, null],
        [6, null, 1.25],
      ],
    );
    assert.deepEqual(log[0], {
      ...{ current_steps: 2, total_steps: 6, loss: 3.25, lr: 1e-4, epoch: 2 / 3, percentage: 33.33 },
      ...{ elapsed_time: "0:00:04", remaining_time: "0:00:08", throughput: 50, total_tokens: 200 },
    });

    const state = await readJson(outputDir, "trainer_state.json");
    assert.deepEqual(
      [state.global_step, state.max_steps, state.epoch, state.num_input_tokens_seen, state.best_metric, state.best_global_step],
      [6, 6, 2, 600, 1.25, 6],
    );
    assert.deepEqual(state.log_history[0], { epoch: 2 / 3, grad_norm: 0.5, learning_rate: 1e-4, loss: 3.25, step: 2 });
    assert.deepEqual(state.log_history[1], { epoch: 1, eval_loss: 1.5, step: 3 });
    assert.equal(state.log_history.at(-1).train_loss, 1.5);
  }));

test("a resumed run continues the logs as if it had never stopped", () =>
  withFolder(async (whole) =>
    withFolder(async (resumed) => {
      await record(whole, wholeRun);
      await record(resumed, [
        notice,
        start(),
        step(1),
        step(2),
        step(3),
        evaluation(3, 1.5),
        checkpoint(3),
        step(4, 99),
        step(5, 99),
      ]);
      await appendFile(join(resumed, "events.jsonl"), '{"type":"step","step":6,"lo'); // killed while writing
      await appendFile(join(resumed, "trainer_log.jsonl"), '{"current');
      await record(resumed, [start(3), step(4), step(5), step(6), evaluation(6, 1.25), end]);

      for (const name of ["trainer_log.jsonl", "trainer_state.json", "all_results.json"]) {
        assert.equal(await readFile(join(resumed, name), "utf8"), await readFile(join(whole, name), "utf8"), name);
      }
      const steps = (await readLines(resumed, "events.jsonl"))
        .filter(({ type }) => type === "step")
        .map(({ step, loss }) => [step, loss]);
      assert.deepEqual(
        steps,
        [1, 2, 3, 4, 5, 6].map((n) => [n, 4 - n / 2]),
      );
    }),
  ));

test("a new run in the folder of an old one starts its files anew", () =>
  withFolder(async (outputDir) => {
    await record(outputDir, wholeRun);
    await record(outputDir, [progress, start(), step(1), step(2)]); // progress is shown, not kept
    assert.equal((await readLines(outputDir, "events.jsonl")).length, 3);
    assert.equal((await readLines(outputDir, "trainer_log.jsonl")).length, 1);
    assert.equal((await readJson(outputDir, "trainer_state.json")).global_step, 2);
    assert.ok(!(await readdir(outputDir)).includes("all_results.json"));
  }));

test("what is not finite never reaches a file as NaN", () =>
  withFolder(async (outputDir) => {
    const broken = { ...step(2, Number.NaN), gradNorm: Number.POSITIVE_INFINITY };
    const brokenResults = { ...results, train_loss: Number.NaN };
    await record(outputDir, [
      start(),
      step(1),
      broken,
      evaluation(2, Number.NaN),
      { type: "end", interrupted: true, results: brokenResults },
    ]);
    for (const name of await readdir(outputDir))
      assert.doesNotMatch(await readFile(join(outputDir, name), "utf8"), /NaN|Infinity/, name);
    const [first] = await readLines(outputDir, "trainer_log.jsonl");
    assert.deepEqual([first.current_steps, "loss" in first], [2, false]);
    assert.equal("train_loss" in (await readJson(outputDir, "all_results.json")), false);
    assert.equal((await readJson(outputDir, "trainer_state.json")).best_metric, null);
  }));

test("the state is written also when the run fails, and the failure is passed on", () =>
  withFolder(async (outputDir) => {
    async function* failing() {
      yield start();
      yield step(1);
      throw new Error("boom");
    }
    const run = recordRun(failing(), new RunFolder(describeRun(outputDir)));
    await assert.rejects(collect(run), /boom/);
    assert.equal((await readJson(outputDir, "trainer_state.json")).global_step, 1);
  }));

test("lines that are no events are passed over, a missing file has none", () =>
  withFolder(async (outputDir) => {
    const path = join(outputDir, "events.jsonl");
    assert.deepEqual(await collect(readEvents(path)), []);
    await appendFile(path, `${JSON.stringify(notice)}\nnull\n[1]\n{"a":1}\n\n{"type":"sto`);
    assert.deepEqual(await collect(readEvents(path)), [notice]);
  }));

test("the loss is drawn beside the run", () =>
  withFolder(async (outputDir) => {
    await record(outputDir, wholeRun, { plotLoss: true });
    for (const name of ["training_loss.png", "training_eval_loss.png"]) {
      const png = await readFile(join(outputDir, name));
      assert.deepEqual([...png.subarray(0, 8)], [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
      const [width, height] = [png.readUInt32BE(16), png.readUInt32BE(20)];
      assert.ok(width > 1000 && width < 2000 && height > 600 && height < 1500, `${width} × ${height}`);
      assert.ok(png.length > 10_000 && png.length < 1_000_000, `${png.length} bytes`);
    }
  }));
