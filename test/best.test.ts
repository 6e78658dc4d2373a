/** The best evaluation: which it is, that its weights are the result, and that a run ends where none gets better. */
import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { ConfigError, type EndEvent, type EvalEvent, readRun } from "../src/index.js";
import { type Judged, judge, lowestLoss } from "../src/train/best.js";
import { bases } from "./support/classifiers.js";
import { collect, hashOf, makeFolder, tinyRecipe } from "./support/run.js";

const judgedFrom = (losses: readonly number[], settings: Partial<typeof lowestLoss>, name = "loss") => {
  const judged: Judged = { best: null, badEvaluations: 0, isStoppedEarly: false };
  const told = losses.map((value, i) => {
    const evaluated = name === "loss" ? { loss: value, metrics: null } : { loss: 0, metrics: { [name]: value } };
    return judge(judged, evaluated, i + 1, { ...lowestLoss, ...settings });
  });
  return { told, ...judged, best: judged.best! };
};

test("the best is the lowest loss, or the greatest number of a metric; equal is not better", () => {
  assert.deepEqual(judgedFrom([3, 2, 2, 4, 1], {}).told, [true, true, false, false, true]);
  assert.equal(judgedFrom([3, 2, 2.5], { metric: "eval_loss" }).best.step, 2);
  const accuracy = { metric: "eval_accuracy", isGreaterBetter: true };
  assert.deepEqual(judgedFrom([0.5, 0.4, 0.6], accuracy, "accuracy").told, [true, false, true]);
  assert.throws(() => judgedFrom([1], { metric: "accuracy" }), ConfigError);
  assert.equal(judgedFrom([Number.NaN, 1], {}).best.step, 2);
});

test("patience counts evaluations that are no improvement, and small ones are none", () => {
  assert.equal(judgedFrom([3, 3.1, 2.9, 3, 3], { patience: 3 }).isStoppedEarly, false);
  assert.equal(judgedFrom([3, 3.1, 3.2, 3], { patience: 3 }).isStoppedEarly, true);
  const slow = judgedFrom([3, 2.95, 2.9], { patience: 2, threshold: 0.1 });
  assert.deepEqual([slow.isStoppedEarly, slow.best.step], [true, 3], "the best is the best, however little better");
});

/** Learns so fast that held-out rows soon get worse. */
const wild = {
  packing: false,
  val_size: 4,
  eval_strategy: "steps",
  eval_steps: 2,
  save_strategy: "steps",
  save_steps: 4,
  num_train_epochs: 6,
  learning_rate: 0.05,
  lr_scheduler_type: "constant",
};

const stateIn = (path: string) => JSON.parse(readFileSync(join(path, "trainer_state.json"), "utf8"));

test("the weights of the best evaluation are the result, and the files say which they are", async () => {
  const folder = makeFolder();
  const events = await collect(tinyRecipe(folder, { ...wild, load_best_model_at_end: true, save_total_limit: 1 }));
  const out = join(folder, "out");
  const evaluations = events.filter((event): event is EvalEvent => event.type === "eval");
  const best = evaluations.reduce((a, b) => (b.evalLoss < a.evalLoss ? b : a));
  assert.notEqual(best, evaluations.at(-1), "else the test shows nothing");
  const name = `checkpoint-${best.step}`;
  assert.equal(hashOf(join(out, "adapter_model.safetensors")), hashOf(join(out, name, "adapter_model.safetensors")));
  const checkpoints = readdirSync(out).filter((one) => one.startsWith("checkpoint-"));
  assert.ok(checkpoints.includes(name) && checkpoints.length <= 2, checkpoints.join());
  for (const state of [stateIn(out), stateIn(join(out, name))]) {
    assert.equal(state.best_global_step, best.step);
    assert.equal(state.best_metric, best.evalLoss);
    assert.equal(state.best_model_checkpoint, join(out, name));
  }
  const { results } = events.at(-1) as EndEvent;
  assert.equal(results.eval_loss, best.evalLoss);
  assert.equal(results.best_global_step, best.step);
  const said = events.flatMap((event) => (event.type === "notice" ? [event.message] : [])).join("\n");
  assert.match(said, new RegExp(`the best weights are saved as the result: eval_loss [\\d.]+ after step ${best.step} of`));
  rmSync(folder, { recursive: true });
});

test("a run ends early, says so, and does the same when it is resumed at any checkpoint", async () => {
  const settings = { ...wild, save_steps: 2, load_best_model_at_end: true, early_stopping_steps: 3 };
  const whole = makeFolder();
  const events = await collect(tinyRecipe(whole, settings));
  const out = join(whole, "out");
  const end = events.at(-1) as EndEvent;
  assert.equal(end.stoppedEarly, true);
  assert.equal(end.interrupted, false);
  const evaluations = events.filter((event): event is EvalEvent => event.type === "eval");
  const bestStep = end.results.best_global_step!;
  assert.equal(evaluations.at(-1)!.step, bestStep + 6, "three evaluations, one every two steps");
  const status = (await readRun(out))!;
  assert.deepEqual([status.state, status.stoppedEarly], ["done", true]);
  assert.match(
    events.flatMap((event) => (event.type === "notice" ? [event.message] : [])).join("\n"),
    /stopped early, after step \d+: the last 3 evaluations brought no better eval_loss than [\d.]+, after step \d+/,
  );
  for (const name of readdirSync(out).filter((one) => one.startsWith("checkpoint-"))) {
    const folder = makeFolder();
    mkdirSync(join(folder, "out"));
    for (const one of new Set([name, `checkpoint-${bestStep}`]))
      if (Number(one.slice(11)) <= Number(name.slice(11))) cpSync(join(out, one), join(folder, "out", one), { recursive: true });
    cpSync(join(out, "events.jsonl"), join(folder, "out/events.jsonl"));
    const again = (await collect(tinyRecipe(folder, { ...settings, resume_from_checkpoint: true }))).at(-1) as EndEvent;
    assert.equal(again.stoppedEarly, true, name);
    assert.equal(again.results.best_global_step, bestStep, name);
    assert.equal(hashOf(join(folder, "out/adapter_model.safetensors")), hashOf(join(out, "adapter_model.safetensors")), name);
    assert.equal(stateIn(join(folder, "out")).best_global_step, bestStep, name);
    rmSync(folder, { recursive: true });
  }
  rmSync(whole, { recursive: true });
});

test("a best checkpoint that is gone is told, and the last weights are saved", async () => {
  const folder = makeFolder();
  const out = join(folder, "out");
  const events = await collect(tinyRecipe(folder, { ...wild, load_best_model_at_end: true }), (event) => {
    if (event.type !== "step" || event.step !== event.totalSteps) return;
    for (const name of readdirSync(out)) if (name.startsWith("checkpoint-")) rmSync(join(out, name), { recursive: true });
  });
  const said = events.flatMap((event) => (event.type === "notice" && event.level === "warning" ? [event.message] : []));
  assert.match(said.join("\n"), /the best weights .* cannot be had: .*Those of the last step are saved instead/s);
  assert.ok(existsSync(join(out, "adapter_model.safetensors")));
  const { results } = events.at(-1) as EndEvent;
  assert.equal(results.best_global_step, undefined);
  rmSync(folder, { recursive: true });
});

test("save_strategy: best saves each evaluation that is the best so far, and nothing else", async () => {
  const folder = makeFolder();
  const events = await collect(tinyRecipe(folder, { ...wild, save_strategy: "best", num_train_epochs: 2 }));
  const best = events.flatMap((event) => (event.type === "eval" && event.best !== undefined ? [event.step] : []));
  const saved = events.flatMap((event) => (event.type === "checkpoint" ? [event.step] : []));
  assert.deepEqual(saved, best);
  rmSync(folder, { recursive: true });
});

test("settings that compare nothing, or a metric that nobody measures, are refused before training", async () => {
  const refused = (changes: Readonly<Record<string, unknown>>, reason: RegExp) =>
    assert.rejects(collect(tinyRecipe(makeFolder(), changes)), reason);
  await refused(
    { load_best_model_at_end: true },
    /load_best_model_at_end needs evaluations to compare: set val_size or eval_dataset/,
  );
  await refused(
    { val_size: 4, eval_strategy: "no", early_stopping_steps: 2 },
    /early_stopping_steps needs .*: eval_strategy is no/,
  );
  await refused({ save_strategy: "best" }, /save_strategy: best needs evaluations/);
  const events: string[] = [];
  const folder = makeFolder();
  const unknown = { ...wild, load_best_model_at_end: true, metric_for_best_model: "f1" };
  await assert.rejects(
    collect(tinyRecipe(folder, unknown), ({ type }) => events.push(type)),
    /metric_for_best_model: f1 is not measured; this run measures eval_loss/,
  );
  assert.ok(!events.includes("step"));
});

test("a classifier's best is told by a metric of its own", async () => {
  const folder = makeFolder();
  const rows = ["good", "bad", "good", "bad", "good", "bad", "good", "bad"].map((label, i) => ({
    text: `${i}: ${label}!`,
    label,
  }));
  writeFileSync(join(folder, "r.jsonl"), rows.map((row) => JSON.stringify(row)).join("\n"));
  const events = await collect({
    ...tinyRecipe(folder, { ...wild, packing: false }),
    ...{ stage: "classification", model_name_or_path: bases.bert!, dataset: [join(folder, "r.jsonl")], num_train_epochs: 2 },
    ...{ load_best_model_at_end: true, metric_for_best_model: "eval_accuracy" },
  });
  const evaluations = events.filter((event): event is EvalEvent => event.type === "eval");
  const most = Math.max(...evaluations.map(({ metrics }) => Number(metrics!.accuracy)));
  assert.equal((events.at(-1) as EndEvent).results.best_metric, most);
});

test("more threads than the machine has any use for are refused, with the range", async () => {
  await assert.rejects(
    collect(tinyRecipe(makeFolder(), { threads: 1000 })),
    /threads: 1000 is more than makes sense .* expected 1 to \d+/,
  );
});
