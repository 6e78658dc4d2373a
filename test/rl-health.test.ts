/** What is watched while a policy learns, on traces whose end is known. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../src/core/rng.js";
import { temporaryFolder } from "../src/io/testing/folders.js";
import type { Total } from "../src/objectives/objective.js";
import { gainWithin, Health, repeated } from "../src/objectives/rl/health.js";
import type { Answer } from "../src/objectives/rl/rollout.js";
import { collect, tinyRecipe, trace } from "./support/run.js";

const answer = (reward: number | null, length = 8, isFinished = true, rng = new Rng(length)): Answer => ({
  ...{ ids: Int32Array.from({ length }, () => rng.below(200)), text: "", isFinished },
  ...{ reward, scores: [reward] },
});

const held = (rewards: readonly number[]) => rewards.map((reward) => answer(reward));

/** Prompts of different difficulty, and a level of the policy that goes up and down as `level` says; noise as of one answer to each. */
function evaluations(rng: Rng, prompts: number, count: number, level: (t: number) => number): number[][] {
  const difficulty = Array.from({ length: prompts }, () => 0.5 * rng.normal());
  return Array.from({ length: count }, (_, t) => difficulty.map((d) => level(t) + d + 0.4 * rng.normal()));
}

const stopsAt = (trace: readonly (readonly number[])[], isGold = false) => {
  const health = new Health({ on_unhealthy: "stop" }, () => {});
  for (const [t, scores] of trace.entries()) {
    health.evaluated(held(scores), isGold ? scores : null);
    if (health.whyStop() !== null) return t;
  }
  return null;
};

test("healthy runs are not stopped: at most one of twenty that rise and level off, whatever the seed", () => {
  for (const isGold of [true, false]) {
    let alarms = 0;
    for (let seed = 0; seed < 200; seed++) {
      const rising = evaluations(new Rng(seed), 32, 20, (t) => 1 - Math.exp(-t / 4));
      if (stopsAt(rising, isGold) !== null) alarms++;
    }
    assert.ok(alarms <= 10, `${alarms} false alarms in 200 healthy runs`);
  }
});

test("a gold reward that falls ends the run after three evaluations or few more, and no sooner", () => {
  let found = 0;
  for (let seed = 0; seed < 100; seed++) {
    const at = stopsAt(
      evaluations(new Rng(seed), 64, 20, (t) => (t < 8 ? t / 8 : 1 - (t - 8) / 4)),
      true,
    );
    if (at !== null) assert.ok(at >= 10, `stopped at ${at}`);
    if (at !== null && at <= 15) found++;
  }
  assert.ok(found >= 95, `${found} of 100`);
});

test("a held-out reward that only length holds up counts as falling", () => {
  const health = new Health({ on_unhealthy: "stop" }, () => {});
  const rng = new Rng(3);
  // The reward is length; within a length it sinks.
  for (let t = 0; t < 8; t++)
    health.evaluated(
      Array.from({ length: 60 }, (_, i) => answer((4 + (i % 8) + t) / 10 - 0.08 * t + 0.01 * rng.normal(), 4 + (i % 8) + t)),
      null,
    );
  assert.match(
    health.whyStop()!,
    /the reward of held-out answers, held against others of their length, has fallen in \d evaluations in a row/,
  );
});

const metrics = (values: Readonly<Record<string, number>>): Record<string, Total> =>
  Object.fromEntries(Object.entries(values).map(([name, sum]) => [name, { sum, count: 1 }]));

/** Rounds with these metrics and step metrics. */
function rounds(
  health: Health,
  count: number,
  ofRound: Readonly<Record<string, number>>,
  ofStep: Readonly<Record<string, number>> = {},
) {
  for (let i = 0; i < count; i++) {
    const { taken } = health.round({ answered: [{ row: null as never, answers: held([1, 0.5]) }], metrics: metrics(ofRound) });
    taken();
    health.step(metrics(ofStep));
  }
}

test("each sign is told once, after three rounds in a row, and again only if it has been gone", () => {
  for (const [ofRound, ofStep, message] of [
    [{ kl: 2.5 }, {}, /KL divergence from the reference is 2.5 nats per token, for 3 rounds in a row/],
    [{ kl_per_answer: -1.5 }, {}, /log π − log π_ref is -1.5 nats per answer/],
    [{ "completions/clipped_ratio": 0.9 }, {}, /0.9 of the answers are cut/],
    [{ frac_reward_zero_std: 1 }, {}, /in 1 of the groups all rewards are the same/],
    [{}, { "clip_ratio/region_mean": 0.4 }, /0.4 of the tokens of a step are clipped/],
  ] as const) {
    const told: string[] = [];
    const health = new Health({ on_unhealthy: "warn" }, (message) => told.push(message));
    rounds(health, 2, ofRound, ofStep);
    rounds(health, 1, {});
    rounds(health, 2, ofRound, ofStep);
    assert.deepEqual(told, [], "two in a row may be chance");
    rounds(health, 6, ofRound, ofStep);
    assert.equal(told.length, 1);
    assert.match(told[0]!, message);
    rounds(health, 2, {});
    rounds(health, 4, ofRound, ofStep);
    assert.equal(told.length, 2);
    assert.equal(health.whyStop(), null);
  }
});

test("entropy is held against its start, whatever that was", () => {
  for (const start of [0.02, 5]) {
    const told: string[] = [];
    const health = new Health({ on_unhealthy: "stop" }, (message) => told.push(message));
    rounds(health, 4, {}, { entropy: start });
    rounds(health, 6, {}, { entropy: 0.3 * start });
    assert.equal(health.whyStop(), null);
    rounds(health, 4, {}, { entropy: 0.05 * start });
    assert.match(health.whyStop()!, /entropy of answers is 0.05 of what it was at the start/);
  }
});

test("backing off makes the divergence dearer round by round, and cheap again once the signs are gone", () => {
  const health = new Health({ on_unhealthy: "back_off" }, () => {});
  rounds(health, 5, { kl: 3 });
  assert.equal(health.factor, 1.5 ** 3);
  rounds(health, 1, { kl: 1 });
  assert.equal(health.factor, 1);
});

test("what was seen survives a stop, to the number", () => {
  const [whole, first, second] = [0, 1, 2].map(() => new Health({ on_unhealthy: "back_off" }, () => {}));
  const some = (health: Health, from: number, to: number) => {
    for (let t = from; t < to; t++) {
      rounds(health, 1, { kl: t > 3 ? 3 : 1 }, { entropy: 2 - t / 10, "clip_ratio/region_mean": t / 20 });
      health.evaluated(held([t, -t, 0.5 * t]), null);
    }
  };
  some(whole!, 0, 9);
  some(first!, 0, 5);
  second!.state.load(JSON.parse(JSON.stringify(first!.state.save())));
  some(second!, 5, 9);
  assert.deepEqual(second!.state.save(), whole!.state.save());
  assert.throws(() => second!.state.load({ factor: 0 }), { code: "CHECKPOINT" });
});

test("repetition is the share of fours that were there before", () => {
  assert.equal(repeated([{ ids: Int32Array.of(1, 2, 3, 4, 5) }]), 0);
  assert.equal(repeated([{ ids: new Int32Array(9) }]), 5 / 6);
  assert.equal(repeated([{ ids: Int32Array.of(1, 2) }]), 0);
});

test("the gain within lengths: all of it where answers got better, none where they only got longer", () => {
  const bucket = (mean: number, count: number) => ({ sum: mean * count, squares: (mean ** 2 + 0.01) * count, count });
  const start = { 6: bucket(0.3, 40), 8: bucket(0.6, 40) };
  assert.equal(gainWithin(start, start), null);
  assert.ok(Math.abs(gainWithin(start, { 6: bucket(0.5, 40), 8: bucket(0.8, 40) })! - 1) < 1e-9);
  assert.ok(Math.abs(gainWithin(start, { 6: bucket(0.3, 4), 8: bucket(0.6, 76) })!) < 1e-9);
});

test("a run writes samples that a person can read, stops where its recipe says so, and a resumed one stops at the same step", async (t) => {
  const folder = temporaryFolder(t);
  const prompts = join(folder, "prompts.jsonl");
  writeFileSync(
    prompts,
    Array.from({ length: 12 }, (_, i) => JSON.stringify({ prompt: `What is ${i}?`, answer: `${i}` })).join("\n"),
  );
  const recipe = tinyRecipe(folder, {
    ...{ stage: "grpo", dataset: [prompts], packing: false, val_size: 6, max_new_tokens: 5, num_generations: 3, max_steps: 12 },
    ...{ beta: 0.01, rewards: [{ type: "length", max: 4 }], gold_rewards: [{ type: "regex", pattern: "[a-z]" }] },
    ...{ eval_steps: 3, save_strategy: "steps", save_steps: 2, sample_steps: 2, on_unhealthy: "stop" },
  });
  const events = await collect(recipe);
  const steps = events.filter(({ type }) => type === "step").length;
  assert.ok(steps >= 3 && steps < 12, `all answers of this model are cut: ${steps} steps`);
  const notices = events.flatMap((event) => (event.type === "notice" ? [event.message] : [])).join("\n");
  assert.match(notices, /stopped early, after step \d+: .* of the answers are cut at max_new_tokens/);
  const last = events.at(-1);
  assert.ok(last?.type === "end" && last.stoppedEarly === true && !last.interrupted);
  const [evaluation] = events.filter((event) => event.type === "eval");
  assert.ok(typeof evaluation!.metrics!.gold === "number" && "gold/regex/mean" in evaluation!.metrics!);

  const lines = readFileSync(join(folder, "out/samples.jsonl"), "utf8").trimEnd().split("\n");
  const samples = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.deepEqual(Object.keys(samples[0]!), ["step", "row", "prompt", "answer", "reward", "rewards", "tokens", "is_finished"]);
  assert.deepEqual([...new Set(samples.map(({ step }) => step))].slice(0, 3), [0, 2, 3]);
  assert.match(String(samples[0]!.prompt), /What is \d+\?/);

  const resumed = await collect({ ...recipe, resume_from_checkpoint: join(folder, "out/checkpoint-2") });
  assert.deepEqual(trace(resumed), trace(events).slice(2));
  assert.deepEqual(readFileSync(join(folder, "out/samples.jsonl"), "utf8").trimEnd().split("\n"), lines);
});

test("backing off needs a divergence that costs something", async (t) => {
  const folder = temporaryFolder(t);
  const recipe = tinyRecipe(folder, {
    ...{ stage: "grpo", dataset: [join(folder, "rows.jsonl")], packing: false, rewards: [{ type: "length", max: 4 }] },
    on_unhealthy: "back_off",
  });
  await assert.rejects(collect(recipe), { code: "CONFIG", message: /on_unhealthy: back_off makes the KL divergence cost more/ });
});
