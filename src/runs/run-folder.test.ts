import assert from "node:assert/strict";
import { appendFile, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { ConfigError, DivergedError } from "../errors.js";
import type { Metrics } from "../objectives/metrics.js";
import { checkRecipe, formatRecipe } from "../recipe/parse.js";
import type { Methods } from "../recipe/schema.js";
import type { RecordedEvent, RunEvent, RunResults, StepEvent } from "./events.js";
import { readEvents } from "./events-file.js";
import { type Executor, queueRun, recordRun } from "./run.js";

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
  machine: { isa: "avx2", threads: 2, dtype: "f32" },
  seconds_to_first_step: 1.5,
};

function start(resumedFromStep = 0): RunEvent {
  return {
    ...{ type: "start", trainRows: 12, evalRows: 4, totalSteps: 6, resumedFromStep, trainableParams: 10, allParams: 100 },
    ...{ machine: { isa: "avx2", threads: 2, dtype: "f32" }, predictedPeakBytes: 1e9, availableBytes: 4e9 },
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
  ...(Number.isFinite(evalLoss) && { best: evalLoss }),
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

async function collect(events: AsyncIterable<RecordedEvent>): Promise<RecordedEvent[]> {
  const all: RecordedEvent[] = [];
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

const methods: Methods = { tuners: [{ name: "lora" }], objectives: [{ name: "sft" }], backends: [{ name: "native" }] };

function recipeIn(outputDir: string, changes: Readonly<Record<string, unknown>> = {}) {
  const settings = {
    ...{ model_name_or_path: "models/SmolLM2-135M-Instruct/", dataset: "rows.jsonl", output_dir: outputDir },
    ...{ val_size: 4, logging_steps: 2, eval_steps: 3, save_steps: 3, num_train_epochs: 2, per_device_train_batch_size: 2 },
    ...{ plot_loss: false, overwrite_output_dir: true },
  };
  return checkRecipe({ ...settings, ...changes }, methods).recipe;
}

function canned(events: readonly RunEvent[]): Executor {
  return {
    async *run() {
      yield* events;
    },
  };
}

const signal = new AbortController().signal;

async function record(outputDir: string, events: readonly RunEvent[], changes?: Readonly<Record<string, unknown>>) {
  return await collect(recordRun(recipeIn(outputDir, changes), canned(events), { signal }));
}

/** Without their times and without what `recordRun` says first, which differ from run to run. */
const told = (events: readonly RecordedEvent[]) =>
  events.filter(({ type }) => type !== "prepare").map(({ time: _, ...event }) => event);

const readJson = async (...path: string[]) => JSON.parse(await readFile(join(...path), "utf8"));
const readLines = async (...path: string[]) =>
  (await readFile(join(...path), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

test("a run leaves the files of LLaMA-Factory", () =>
  withFolder(async (outputDir) => {
    assert.deepEqual(told(await record(outputDir, wholeRun)), wholeRun);
    const names = ["all_results.json", "eval_results.json", "events.jsonl", "recipe.yaml"];
    assert.deepEqual((await readdir(outputDir)).sort(), [
      ...names,
      "train_results.json",
      "trainer_log.jsonl",
      "trainer_state.json",
    ]);

    const { machine, ...numbers } = results;
    assert.deepEqual(await readJson(outputDir, "all_results.json"), { ...numbers, ...machine });
    assert.deepEqual(await readJson(outputDir, "eval_results.json"), { epoch: 2, eval_loss: 1.25 });
    assert.equal("eval_loss" in (await readJson(outputDir, "train_results.json")), false);
    assert.equal(await readFile(join(outputDir, "recipe.yaml"), "utf8"), formatRecipe(recipeIn(outputDir)));

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
      await record(resumed, [start(3), step(4), step(5), step(6), evaluation(6, 1.25), end], {
        overwrite_output_dir: false,
        resume_from_checkpoint: true,
      });

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
    const types = (await readLines(outputDir, "events.jsonl")).map(({ type }) => type);
    assert.deepEqual(types, ["prepare", "start", "step", "step"]);
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

test("a failure is written, told and passed on, and the state is written", () =>
  withFolder(async (outputDir) => {
    const failing: Executor = {
      async *run() {
        yield start();
        yield step(1);
        throw new DivergedError("step 2: the loss is NaN");
      },
    };
    const seen: RecordedEvent[] = [];
    const run = async () => {
      for await (const event of recordRun(recipeIn(outputDir), failing, { signal })) seen.push(event);
    };
    await assert.rejects(run, /^DivergedError: step 2/);
    assert.deepEqual(told(seen).at(-1), { type: "failed", code: "DIVERGED", message: "step 2: the loss is NaN" });
    assert.deepEqual(await readLines(outputDir, "events.jsonl"), seen);
    assert.equal((await readJson(outputDir, "trainer_state.json")).global_step, 1);
  }));

test("each event is later than the one before, whatever the clock says, over runs that follow each other too", () =>
  withFolder(async (outputDir) => {
    await record(outputDir, wholeRun.slice(0, -1));
    const ahead = new Date(Date.now() + 3_600_000).toISOString(); // the clock was set back since
    await appendFile(join(outputDir, "events.jsonl"), `${JSON.stringify({ ...step(4), time: ahead })}\n`);
    const resume = { overwrite_output_dir: false, resume_from_checkpoint: true };
    const events = await record(outputDir, [start(4), step(5), end], resume);
    assert.ok(events[0]!.time > ahead);
    const times = (await readLines(outputDir, "events.jsonl")).map(({ time }) => time);
    assert.deepEqual(times, [...new Set(times)].sort());
  }));

test("what a run was before its start stays before it: queued, prepared, told", () =>
  withFolder(async (outputDir) => {
    await queueRun(recipeIn(outputDir));
    await record(outputDir, [notice, start(), step(1), end]);
    const lines = await readLines(outputDir, "events.jsonl");
    assert.deepEqual(
      lines.map(({ type }) => type),
      ["queued", "prepare", "notice", "start", "step", "end"],
    );
    const { time, lock, ...prepare } = lines[1];
    assert.deepEqual(prepare, {
      ...{ type: "prepare", outputDir, model: "models/SmolLM2-135M-Instruct/", method: "lora", objective: "sft" },
      ...{ backend: "native", pid: process.pid, host: hostname() },
    });
    assert.match(time, /^\d{4}-\d\d-\d\dT.*Z$/);
    assert.ok(lock.length > 10);
  }));

test("a run that ends before its start leaves the folder to the next one, and to an earlier one its events", () =>
  withFolder(async (outputDir) => {
    const plain = { overwrite_output_dir: false };
    const refuse = (changes: Readonly<Record<string, unknown>>) =>
      collect(
        recordRun(
          recipeIn(outputDir, changes),
          {
            // biome-ignore lint/correctness/useYield: it fails before it has anything to say
            async *run() {
              throw new ConfigError("no");
            },
          },
          { signal },
        ),
      );
    await assert.rejects(refuse(plain), /no/);
    await record(outputDir, wholeRun, plain);
    const before = await readLines(outputDir, "events.jsonl");
    await assert.rejects(refuse(plain), /holds another run \(events\.jsonl\)/);
    assert.deepEqual(await readLines(outputDir, "events.jsonl"), before, "what is not to be touched is not");
    await assert.rejects(queueRun(recipeIn(outputDir, plain)), /holds another run/);
    await assert.rejects(refuse({}), /no/);
    const after = await readLines(outputDir, "events.jsonl");
    assert.deepEqual(after.slice(0, before.length), before);
    assert.deepEqual(
      after.slice(before.length).map(({ type }) => type),
      ["prepare", "failed"],
    );
  }));

test("a run that is stopped while it waits is interrupted, not a bug", () =>
  withFolder(async (outputDir) => {
    const stop = new AbortController();
    const waiting: Executor = {
      // biome-ignore lint/correctness/useYield: it only waits
      async *run(_, context) {
        stop.abort();
        context.signal.throwIfAborted();
      },
    };
    await assert.rejects(collect(recordRun(recipeIn(outputDir), waiting, { signal: stop.signal })), {
      code: "INTERRUPTED",
      exitCode: 130,
    });
    assert.equal((await readLines(outputDir, "events.jsonl")).at(-1).code, "INTERRUPTED");
  }));

test("metrics of steps are averaged between two lines of the logs, named as TRL names them, and drawn", () =>
  withFolder(async (outputDir) => {
    const measured = (n: number, metrics: Metrics) => ({ ...step(n), metrics });
    await record(
      outputDir,
      [
        start(),
        measured(1, { rewards: { accuracies: 0.25, chosen: 1 }, kl: 0.5 }),
        measured(2, { rewards: { accuracies: 0.75, chosen: Number.NaN } }),
        step(3),
        measured(4, { kl: 2 }),
        end,
      ],
      { plot_loss: true },
    );
    const log = await readLines(outputDir, "trainer_log.jsonl");
    assert.deepEqual(
      log.map((line) => [line["rewards/accuracies"], line["rewards/chosen"], line.kl]),
      [
        [0.5, undefined, 0.5],
        [undefined, undefined, 2],
      ],
    );
    const { log_history } = await readJson(outputDir, "trainer_state.json");
    assert.deepEqual([log_history[0]["rewards/accuracies"], log_history[1].kl], [0.5, 2]);
    const pictures = (await readdir(outputDir)).filter((name) => name.endsWith(".png")).sort();
    const metrics = ["training_kl.png", "training_rewards_accuracies.png", "training_rewards_chosen.png"];
    assert.deepEqual(pictures, [...metrics.slice(0, 1), "training_loss.png", ...metrics.slice(1)]);
    await record(outputDir, [start(), step(1)]);
    assert.deepEqual(
      (await readdir(outputDir)).filter((name) => name.endsWith(".png")),
      [],
      "pictures of an earlier run go",
    );
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
    await record(outputDir, wholeRun, { plot_loss: true });
    for (const name of ["training_loss.png", "training_eval_loss.png"]) {
      const png = await readFile(join(outputDir, name));
      assert.deepEqual([...png.subarray(0, 8)], [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
      const [width, height] = [png.readUInt32BE(16), png.readUInt32BE(20)];
      assert.ok(width > 1000 && width < 2000 && height > 600 && height < 1500, `${width} × ${height}`);
      assert.ok(png.length > 10_000 && png.length < 1_000_000, `${png.length} bytes`);
    }
  }));
