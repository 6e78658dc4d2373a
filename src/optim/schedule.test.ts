import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { type Schedule, type ScheduleName, scheduleNames, scheduleOf, schedules } from "./schedule.js";

interface Case {
  readonly name: ScheduleName;
  readonly kwargs: Readonly<Record<string, unknown>>;
  readonly warmup: number;
  readonly total: number;
  readonly rate: number;
  readonly factors: readonly number[];
}

/** Made by test/fixtures/make_schedules.py with transformers. */
const path = new URL("../../../test/fixtures/schedules.json", import.meta.url); // from dist/src/optim
const { cases } = JSON.parse(readFileSync(path, "utf8")) as { cases: Case[] };

test("each step of each schedule is transformers', up to the rounding of doubles", () => {
  assert.deepEqual([...new Set(cases.map(({ name }) => name))].sort(), [...scheduleNames].sort());
  for (const { name, kwargs, warmup, total, rate, factors } of cases) {
    const factor = scheduleOf(name, kwargs, { warmupSteps: warmup, totalSteps: total, learningRate: rate });
    for (const [step, expected] of factors.entries()) {
      const label = `${name} ${JSON.stringify(kwargs)}, step ${step} of ${total} after ${warmup}: ${factor(step)}, ${expected}`;
      assert.ok(Math.abs(factor(step) - expected) <= 4e-16, label);
    }
  }
});

test("warmup_stable_decay fills in what is not set: LLaMA-Factory's third at the peak, or the rest", () => {
  const horizon = { warmupSteps: 2, totalSteps: 14, learningRate: 1 };
  const stable = (kwargs: object) => {
    const factor = scheduleOf("warmup_stable_decay", { decay_type: "linear", ...kwargs }, horizon);
    return [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13].filter((step) => factor(step) === 1).length;
  };
  assert.equal(stable({}), 5, "4 steps, and the first of the decay");
  assert.equal(stable({ num_decay_steps: 3 }), 10);
  assert.equal(stable({ num_stable_steps: 6 }), 7);
  const { warning, settings }: Schedule = schedules.warmup_stable_decay;
  assert.equal(warning!(settings.parse({}), horizon), undefined);
  assert.match(
    warning!(settings.parse({ num_stable_steps: 1, num_decay_steps: 1 }), horizon)!,
    /2 steps of warm-up, 1 at the peak/,
  );
});
