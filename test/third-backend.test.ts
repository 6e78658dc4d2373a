/** Backends written here, put into the list by one line: recipe, docs, recording, states, resume and failure work, and nothing else is touched. */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { z } from "zod";
import { defineBackend } from "../src/backends/backend.js";
import { backends, everyMethod, runRecipe } from "../src/backends/index.js";
import { CheckpointError, DivergedError } from "../src/errors.js";
import { type RecordedEvent, type RunResults, readRun } from "../src/index.js";
import { publishFolder } from "../src/io/checkpoint.js";
import { recipeDocs } from "../src/recipe/docs.js";
import { checkRecipe, parseRecipe } from "../src/recipe/parse.js";
import { recipeJsonSchema } from "../src/recipe/schema.js";
import { makeFolder } from "./support/run.js";

const results: RunResults = {
  ...{ epoch: 1, train_loss: 2, train_runtime: 1, train_samples_per_second: 1, train_steps_per_second: 3, total_flos: 1 },
  ...{ tokens_per_second: 10, num_input_tokens_seen: 30, peak_memory_bytes: 1, trainable_params: 1, all_params: 2 },
  ...{ machine: { gpu: "imaginary" }, seconds_to_first_step: 0.1 },
};

/** Trains nothing, and says that it did. */
const canned = defineBackend({
  name: "canned",
  summary: "tells a story",
  config: z.strictObject({}),
  needless: {},
  async *run(recipe, { resumeFrom, signal, trainerState }) {
    const first = resumeFrom === null ? 0 : Number(readFileSync(join(resumeFrom, "step"), "utf8"));
    const { machine } = results;
    yield {
      ...{ type: "start", trainRows: 1, evalRows: 0, totalSteps: 3, resumedFromStep: first },
      ...{ trainableParams: 1, allParams: 2, machine },
    };
    for (let step = first + 1; step <= 3 && !signal.aborted; step++) {
      yield {
        ...{ type: "step", step, totalSteps: 3, epoch: step / 3, loss: 4 - step, gradNorm: 1, learningRate: 1e-4, tokens: 10 },
        ...{ tokensPerSecond: 10, elapsedMs: 1, remainingMs: 1, peakMemoryBytes: 1 },
      };
      const path = join(recipe.output_dir, `checkpoint-${step}`);
      await publishFolder(path, async (folder) => {
        writeFileSync(join(folder, "step"), String(step));
        writeFileSync(join(folder, "trainer_state.json"), trainerState(path));
      });
      yield { type: "checkpoint", step, path };
    }
    yield { type: "end", interrupted: signal.aborted, results };
  },
});

/** Has settings and foreign keys of its own; fails as it is told. */
const cluster = defineBackend({
  name: "cluster",
  summary: "many machines",
  config: z.strictObject({
    hosts: z.array(z.string()).min(1).describe("the machines"),
    fails: z.enum(["before", "after", "as a bug"]).describe("when"),
  }),
  needless: { dataloader_num_workers: "each machine reads its own rows" },
  async *run(recipe, { config, ...context }) {
    if (config.fails === "before") throw new DivergedError(`${config.hosts[0]} does not answer`);
    for await (const event of canned.run(recipe, { config: {}, ...context })) {
      yield event;
      if (event.type === "step" && config.fails === "after") throw new DivergedError("step 2: the loss is NaN");
      if (event.type === "step") throw new TypeError("undefined is not a function");
    }
  },
});

const list = [...backends, canned, cluster];
const methods = { ...everyMethod, backends: list };

const settingsIn = (folder: string, settings: Readonly<Record<string, unknown>>) => ({
  ...{ model_name_or_path: "somewhere/model", dataset: "rows.jsonl", output_dir: join(folder, "out"), plot_loss: false },
  ...settings,
});

async function run(settings: Readonly<Record<string, unknown>>, onEvent: (event: RecordedEvent) => void = () => {}) {
  const stop = new AbortController();
  const { recipe, notices } = checkRecipe(settings, methods);
  const events: RecordedEvent[] = [];
  try {
    for await (const event of runRecipe(recipe, { signal: stop.signal, notices }, list)) {
      events.push(event);
      onEvent(event);
    }
    return { events, error: undefined };
  } catch (error) {
    return { events, error };
  }
}

const eventsIn = (out: string) =>
  readFileSync(join(out, "events.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as RecordedEvent);

test("a recipe chooses it, and has its settings; those of others are told or refused", () => {
  const parse = (...overrides: string[]) =>
    parseRecipe(undefined, ["model_name_or_path=m", "dataset=d", "output_dir=o", "learning_rate=1e-3", ...overrides], methods);
  const { recipe, notices } = parse("backend=cluster", "hosts=a,b", "fails=after", "threads=2", "dataloader_num_workers=4");
  assert.deepEqual([recipe.backend, recipe.backendConfig], ["cluster", { hosts: ["a", "b"], fails: "after" }]);
  assert.deepEqual(notices, [
    'override "dataloader_num_workers=4": dataloader_num_workers is not needed: each machine reads its own rows',
    'override "threads=2": threads is not used: only native reads it',
  ]);
  assert.throws(() => parse("backend=cluster", "fails=after"), /hosts is missing: the machines/);
  assert.throws(
    () => parse("backend=cluster", "hosts=a", "fails=after", "ddp_timeout=9"),
    /ddp_timeout: 9 is not supported: it is not for backend: cluster/,
  );
  assert.throws(() => parse("backend=gpu"), /backend: unknown: "gpu"; expected one of native, canned, cluster/);
  assert.deepEqual(recipeJsonSchema(methods).properties.backend?.enum, ["native", "canned", "cluster"]);
  assert.match(
    recipeDocs(methods),
    /### `backend: cluster`\n\n.*\n.*\n\| `hosts` \| a list of texts \| needed \| the machines \|/,
  );
});

test("its run is recorded, seen from outside, kept from being overwritten, and resumed where it says", async () => {
  const folder = makeFolder();
  const out = join(folder, "out");
  const { events } = await run(settingsIn(folder, { backend: "canned" }));
  assert.deepEqual(eventsIn(out), events);
  assert.deepEqual([events[0]!.type, events.at(-1)!.type], ["prepare", "end"]);
  const { machine, ...numbers } = results;
  assert.deepEqual(JSON.parse(readFileSync(join(out, "all_results.json"), "utf8")), { ...numbers, ...machine });
  const done = (await readRun(out))!;
  assert.deepEqual([done.state, done.backend, done.step, done.totalSteps, done.loss], ["done", "canned", 3, 3, 1]);
  assert.equal(JSON.parse(readFileSync(join(out, "checkpoint-2/trainer_state.json"), "utf8")).global_step, 2);

  assert.match(String((await run(settingsIn(folder, { backend: "canned" }))).error), /holds another run/);
  writeFileSync(join(out, "checkpoint-3/step"), "damaged");
  const resumed = await run(settingsIn(folder, { backend: "canned", resume_from_checkpoint: true }));
  assert.equal(resumed.error, undefined);
  const steps = (all: readonly RecordedEvent[]) => all.flatMap((event) => (event.type === "step" ? event.step : []));
  assert.deepEqual(steps(resumed.events), [3], "checkpoint 3 is passed over, and 2 is good");
  assert.deepEqual(steps(eventsIn(out)), [1, 2, 3]);
});

test("which checkpoint is good is also its own word", async () => {
  const folder = makeFolder();
  const out = join(folder, "out");
  await run(settingsIn(folder, { backend: "canned" }));
  const picky = defineBackend({
    ...canned,
    name: "picky",
    async checkCheckpoint(path) {
      if (!path.endsWith("-1")) throw new CheckpointError(`${path}: too new`);
    },
  });
  const resume = async (from: unknown) => {
    const settings = settingsIn(folder, { backend: "picky", resume_from_checkpoint: from });
    const { recipe } = checkRecipe(settings, { ...methods, backends: [...list, picky] });
    const events: RecordedEvent[] = [];
    for await (const event of runRecipe(recipe, { signal: new AbortController().signal }, [...list, picky])) events.push(event);
    return events;
  };
  await assert.rejects(resume(join(out, "checkpoint-2")), /checkpoint-2: too new/);
  assert.equal((await readRun(out))!.state, "failed");
  const events = await resume(true);
  const start = events.find((event) => event.type === "start");
  assert.equal(start?.resumedFromStep, 1);
  assert.equal(events.filter((event) => event.type === "notice" && event.message.includes("too new")).length, 2);
});

test("a run that nobody listens to any longer is interrupted; one whose files cannot be finished has failed", async () => {
  const left = makeFolder();
  const { recipe } = checkRecipe(settingsIn(left, { backend: "canned" }), methods);
  for await (const event of runRecipe(recipe, { signal: new AbortController().signal }, list)) if (event.type === "step") break;
  const status = (await readRun(join(left, "out")))!;
  assert.deepEqual([status.state, status.step, status.process?.isAlive], ["interrupted", 1, false]);

  const folder = makeFolder();
  const state = join(folder, "out/trainer_state.json");
  const { events, error } = await run(settingsIn(folder, { backend: "canned" }), (event) => {
    if (event.type !== "end") return;
    rmSync(state);
    mkdirSync(state);
  });
  assert.ok(error instanceof CheckpointError, String(error));
  assert.deepEqual(eventsIn(join(folder, "out")), events);
  assert.equal((await readRun(join(folder, "out")))!.state, "failed");
});

for (const [fails, code, message, step] of [
  ["before", "DIVERGED", /^a does not answer$/, 0],
  ["after", "DIVERGED", /^step 2: the loss is NaN$/, 1],
  ["as a bug", "bug", /^undefined is not a function$/, 1],
] as const)
  test(`its failure, ${fails}, is an event, a state, and thrown`, async () => {
    const folder = makeFolder();
    const { events, error } = await run(settingsIn(folder, { backend: "cluster", hosts: ["a"], fails }));
    assert.match((error as Error).message, message);
    const last = events.at(-1)!;
    assert.ok(last.type === "failed" && last.code === code && message.test(last.message), JSON.stringify(last));
    assert.deepEqual(eventsIn(join(folder, "out")), events);
    const status = (await readRun(join(folder, "out")))!;
    assert.deepEqual([status.state, status.step, status.error], ["failed", step, { code: last.code, message: last.message }]);
  });

test("a folder in which another run is at work, or lies, is told of no failure: that is only yielded and thrown", async () => {
  const folder = makeFolder();
  const out = join(folder, "out");
  let second: Awaited<ReturnType<typeof run>> | undefined;
  const { recipe } = checkRecipe(settingsIn(folder, { backend: "canned" }), methods);
  for await (const event of runRecipe(recipe, { signal: new AbortController().signal }, list))
    if (event.type === "step" && event.step === 2) second = await run(settingsIn(folder, { backend: "canned" }));
  const third = await run(settingsIn(folder, { backend: "canned" }));
  for (const { events, error } of [second!, third]) {
    assert.ok(error instanceof CheckpointError);
    assert.deepEqual(
      events.map(({ time: _, ...event }) => event),
      [{ type: "failed", code: "CHECKPOINT", message: error.message }],
    );
  }
  assert.ok(eventsIn(out).every(({ type }) => type !== "failed"));
  assert.equal((await readRun(out))!.state, "done");
});
