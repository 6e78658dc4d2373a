/** What a process sees of a run in another process, from the run's folder alone: every state, whatever ends it, and no event twice. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { stringify } from "yaml";
import { everyMethod } from "../src/backends/index.js";
import { followRun, type RecordedEvent, type RunState, type RunStatus, readRun } from "../src/index.js";
import { checkRecipe } from "../src/recipe/parse.js";
import { queueRun } from "../src/runs/run.js";
import { makeFolder, tinyRecipe } from "./support/run.js";

const bin = join(import.meta.dirname, "../../bin/attune.js");

interface Started {
  readonly out: string;
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
}

/** Begins a run of the command line in its own process. */
function start(t: TestContext, folder: string, changes: Readonly<Record<string, unknown>> = {}, env = {}): Started {
  const path = join(folder, "recipe.yaml");
  writeFileSync(path, stringify(tinyRecipe(folder, changes)));
  const child = spawn(process.execPath, [bin, "train", path], { stdio: "ignore", env: { ...process.env, ...env } });
  t.after(() => child.kill("SIGKILL"));
  const ended = new Promise<number | null>((resolve) => child.on("exit", resolve));
  return { out: join(folder, "out"), child, ended };
}

const long = { num_train_epochs: 100_000, save_strategy: "steps", save_steps: 5 };

/** Reads until a run is as expected. Collects the states on the way. */
async function waitFor(out: string, isReached: (status: RunStatus) => boolean, seen: RunState[] = []): Promise<RunStatus> {
  for (let waited = 0; waited < 60_000; waited += 20) {
    const status = await readRun(out);
    if (status !== null && seen.at(-1) !== status.state) seen.push(status.state);
    if (status !== null && isReached(status)) return status;
    await sleep(20);
  }
  return assert.fail(`not reached: ${JSON.stringify(await readRun(out))}`);
}

/** A hub that takes calls and never answers: whoever asks it for a model prepares for ever. */
async function silentHub(t: TestContext): Promise<Record<string, string>> {
  const server = createServer(() => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { HF_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, HF_HOME: makeFolder() };
}

/** Follows a folder until the test ends; what was seen grows. */
function follow(t: TestContext, out: string): RecordedEvent[] {
  const stop = new AbortController();
  const seen: RecordedEvent[] = [];
  const done = (async () => {
    for await (const event of followRun(out, stop.signal)) seen.push(event);
  })();
  t.after(async () => {
    stop.abort();
    await done;
  });
  return seen;
}

const linesOf = (out: string) =>
  readFileSync(join(out, "events.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as RecordedEvent);

/** What a follower has to think of what it saw: a start makes what came after its step void. */
function standing(events: readonly RecordedEvent[]): string[] {
  let kept: RecordedEvent[] = [];
  for (const event of events) {
    if (event.type === "start") kept = kept.filter((one) => one.type === "step" && one.step <= event.resumedFromStep);
    kept.push(event);
  }
  return kept.filter(({ type }) => type === "step" || type === "end").map((event) => JSON.stringify(event));
}

test("a run is queued, prepares, runs, and is done", async (t) => {
  const folder = makeFolder();
  const out = join(folder, "out");
  assert.equal(await readRun(out), null);
  const seen = follow(t, out);
  const { recipe } = checkRecipe(tinyRecipe(folder), everyMethod);
  await queueRun(recipe);
  const queued = (await readRun(out))!;
  const subject = { outputDir: out, model: recipe.model_name_or_path, method: "lora", objective: "sft", backend: "native" };
  const nothing = { step: 0, totalSteps: null, loss: null, evalLoss: null, remainingMs: null, stoppedEarly: false, error: null };
  assert.deepEqual(queued, { ...subject, ...nothing, state: "queued", process: null, updatedAt: queued.updatedAt });

  const states: RunState[] = [];
  const { child, ended } = start(t, folder, { num_train_epochs: 60 });
  const running = await waitFor(out, ({ step }) => step > 0, states);
  assert.deepEqual(running.process, { pid: child.pid, host: running.process!.host, isAlive: true });
  assert.ok(running.loss! > 0 && running.remainingMs! > 0 && running.totalSteps! > running.step);
  const done = await waitFor(out, ({ state }) => state === "done", states);
  assert.equal(await ended, 0);
  assert.deepEqual(states, ["queued", "preparing", "running", "done"]);
  assert.deepEqual([done.step, done.remainingMs, done.error], [done.totalSteps, null, null]);
  assert.equal((await readRun(out))!.process!.isAlive, false);
  await sleep(300);
  assert.deepEqual(seen, linesOf(out), "a follower has seen every event once, in order");
});

test("a run that fails before its first step, or on the way, says why", async (t) => {
  const before = start(t, makeFolder(), { lora_target: "nothing" });
  assert.equal(await before.ended, 2);
  const early = (await readRun(before.out))!;
  assert.deepEqual([early.state, early.step, early.error?.code], ["failed", 0, "CONFIG"]);
  assert.match(early.error!.message, /no Linear layer is named "nothing"/);

  const diverging = start(t, makeFolder(), { learning_rate: 1e30, max_grad_norm: 0, warmup_steps: 0 });
  assert.equal(await diverging.ended, 3);
  const diverged = (await readRun(diverging.out))!;
  assert.deepEqual([diverged.state, diverged.error?.code], ["failed", "DIVERGED"]);

  const { out, ended } = start(t, makeFolder(), long);
  await waitFor(out, ({ step }) => step > 2);
  rmSync(join(out, "trainer_log.jsonl"));
  assert.equal(await ended, 2);
  const status = (await readRun(out))!;
  assert.deepEqual([status.state, status.error?.code], ["failed", "CHECKPOINT"]);
  assert.ok(status.step > 2 && status.loss! > 0, "how far it came stays known");
});

test("a run that is stopped, or killed, is interrupted; followed, and resumed, it is done", async (t) => {
  const folder = makeFolder();
  const first = start(t, folder, long);
  const { out } = first;
  const seen = follow(t, out);
  await waitFor(out, ({ step }) => step > 7);
  first.child.kill("SIGKILL");
  await first.ended;
  const killed = (await readRun(out))!;
  assert.deepEqual([killed.state, killed.process!.isAlive, killed.error], ["interrupted", false, null]);
  assert.ok(killed.step > 7);

  const states: RunState[] = [];
  const second = start(t, folder, { ...long, resume_from_checkpoint: true });
  const resumed = await waitFor(out, ({ process, step }) => process!.pid === second.child.pid && step > 14, states);
  assert.equal(resumed.state, "running");
  assert.ok(
    states.every((state) => ["interrupted", "preparing", "running"].includes(state)),
    states.join(),
  );
  second.child.kill("SIGINT");
  assert.equal(await second.ended, 130);
  const stopped = (await readRun(out))!;
  assert.equal(stopped.state, "interrupted");

  const last = start(t, folder, { ...long, resume_from_checkpoint: true, max_steps: stopped.step + 3 });
  assert.equal(await last.ended, 0);
  const done = (await readRun(out))!;
  assert.deepEqual([done.state, done.step, done.totalSteps], ["done", stopped.step + 3, stopped.step + 3]);
  await sleep(300);
  assert.deepEqual(standing(seen), standing(linesOf(out)));
  assert.deepEqual(
    linesOf(out).flatMap((event) => (event.type === "step" ? event.step : [])),
    Array.from({ length: done.step }, (_, i) => i + 1),
  );
  const times = seen.map(({ time }) => time);
  assert.deepEqual(times, [...new Set(times)].sort(), "no event comes twice");
});

for (const signal of ["SIGINT", "SIGKILL"] as const)
  test(`a run that gets ${signal} while it prepares is interrupted`, async (t) => {
    const env = await silentHub(t);
    const { out, child, ended } = start(t, makeFolder(), { model_name_or_path: "somebody/model" }, env);
    const preparing = await waitFor(out, ({ state }) => state === "preparing");
    assert.deepEqual([preparing.step, preparing.totalSteps, preparing.process!.isAlive], [0, null, true]);
    await sleep(500); // until it asks the hub
    child.kill(signal);
    assert.equal(await ended, signal === "SIGINT" ? 130 : null);
    const status = (await readRun(out))!;
    assert.equal(status.state, "interrupted");
    assert.equal(status.error?.code, signal === "SIGINT" ? "INTERRUPTED" : undefined);
  });

test("a folder that is deleted meanwhile has no run; its follower waits, and sees the next one", async (t) => {
  const folder = makeFolder();
  const first = start(t, folder, long);
  const { out } = first;
  const seen = follow(t, out);
  await waitFor(out, ({ step }) => step > 2);
  renameSync(out, `${out}-gone`);
  assert.equal(await first.ended, 2);
  assert.equal(await readRun(out), null);
  assert.equal((await readRun(`${out}-gone`))!.state, "failed", "its last word went where its file went");
  const second = start(t, folder, { overwrite_output_dir: true }); // a checkpoint under way may have made the folder again
  assert.equal(await second.ended, 0);
  assert.equal((await readRun(out))!.state, "done");
  await sleep(300);
  assert.deepEqual(seen.slice(-linesOf(out).length), linesOf(out));
});

test("what is half written confuses no reader: a whole run cut after any byte", async (t) => {
  const folder = makeFolder();
  const { out, ended } = start(t, folder, { max_steps: 3 });
  assert.equal(await ended, 0);
  const whole = readFileSync(join(out, "events.jsonl"));
  const ends = [...whole.entries()].flatMap(([at, byte]) => (byte === 0x0a ? at + 1 : []));
  const copy = join(folder, "copy");
  mkdirSync(copy);
  const path = join(copy, "events.jsonl");
  for (let bytes = 0; bytes <= whole.length; bytes += bytes % 7 === 0 ? 1 : 3) {
    writeFileSync(path, whole.subarray(0, bytes));
    const status = await readRun(copy);
    const lines = ends.filter((end) => end <= bytes).length + (ends.includes(bytes + 1) ? 1 : 0); // a line that lacks only its end is whole
    const expected = lines === 0 ? null : lines >= ends.length ? "done" : "interrupted";
    assert.equal(status?.state ?? null, expected, `${bytes} bytes`);
  }

  writeFileSync(path, "");
  const seen = follow(t, copy);
  const random = [1, 5, 40, 300, 2, 700];
  for (let at = 0, i = 0; at < whole.length; i++) {
    const piece = whole.subarray(at, at + random[i % random.length]!);
    appendFileSync(path, piece);
    at += piece.length;
    if (i % 3 === 0) await sleep(15);
  }
  await sleep(400);
  assert.deepEqual(seen, linesOf(out));
});

test("a lock says whose run it is: of another run, of a pid that another process has got, of another host", async (t) => {
  const folder = makeFolder();
  const { out, child, ended } = start(t, folder, long);
  await waitFor(out, ({ step }) => step > 2);
  child.kill("SIGKILL");
  await ended;
  const path = join(out, ".attune.lock");
  const lock = JSON.parse(readFileSync(path, "utf8"));
  const stateWith = async (changes: object) => {
    writeFileSync(path, JSON.stringify({ ...lock, ...changes }));
    const status = (await readRun(out))!;
    return [status.state, status.process!.isAlive];
  };
  assert.deepEqual(await stateWith({}), ["interrupted", false]);
  assert.deepEqual(await stateWith({ host: "elsewhere" }), ["running", null], "nobody here can tell");
  assert.deepEqual(await stateWith({ pid: process.pid, processMark: "" }), ["running", true]);
  assert.deepEqual(await stateWith({ pid: process.pid, processMark: "", nonce: "another" }), ["interrupted", false]);
  if (process.platform === "linux")
    assert.deepEqual(await stateWith({ pid: process.pid, processMark: "another boot/1" }), ["interrupted", false]);
  rmSync(path);
  assert.equal((await readRun(out))!.state, "interrupted");
  assert.ok(!existsSync(path), "reading leaves nothing");
});
