import assert from "node:assert/strict";
import test from "node:test";
import { StepPlan } from "./step-plan.js";

const epoch = (n: number) => [[10 * n], [10 * n + 1, 10 * n + 2], [10 * n + 3]];

test("micro-batches go in groups, the last of an epoch as it comes", () => {
  const plan = new StepPlan(epoch, { accumulationSteps: 2, epochs: 2, maxSteps: 0 });
  assert.equal(plan.totalSteps, 4);
  const steps = [0, 1, 2, 3].map((step) => plan.at(step));
  assert.deepEqual(
    steps.map(({ microBatches }) => microBatches),
    [[[0], [1, 2]], [[3]], [[10], [11, 12]], [[13]]],
  );
  assert.deepEqual(
    steps.map(({ epochsAfter }) => epochsAfter),
    [[0.5], [1], [1.5], [2]],
  );
  assert.deepEqual(plan.at(1).microBatches, [[3]], "any step may be asked for at any time");
});

test("part of an epoch is rounded up; max_steps overrides epochs; many epochs cost nothing in advance", () => {
  assert.equal(new StepPlan(epoch, { accumulationSteps: 1, epochs: 1.5, maxSteps: 0 }).totalSteps, 5);
  assert.equal(new StepPlan(epoch, { accumulationSteps: 1, epochs: 1, maxSteps: 100 }).totalSteps, 100);
  let planned = 0;
  const counting = (n: number) => {
    planned++;
    return epoch(n);
  };
  assert.equal(
    new StepPlan(counting, { accumulationSteps: 1, epochs: 1e6, maxSteps: 0 }).at(2_000_001).microBatches[0]![0],
    6_666_670,
  );
  assert.equal(planned, 2);
});

test("in rounds, a group of micro-batches is what several steps are made of, and the last round is finished", () => {
  const rounds = { accumulationSteps: 2, stepsPerRound: 3 };
  const plan = new StepPlan(epoch, { ...rounds, epochs: 2, maxSteps: 0 });
  assert.deepEqual([plan.stepsPerEpoch, plan.totalSteps], [6, 12]);
  assert.deepEqual(plan.at(3), { microBatches: [[3]], epochsAfter: [4 / 6, 5 / 6, 1] });
  assert.deepEqual(plan.at(6), { microBatches: [[10], [11, 12]], epochsAfter: [7 / 6, 8 / 6, 9 / 6] });
  assert.equal(new StepPlan(epoch, { ...rounds, epochs: 1, maxSteps: 4 }).totalSteps, 6);
  assert.equal(new StepPlan(epoch, { ...rounds, epochs: 1.1, maxSteps: 0 }).totalSteps, 9);
});

test("an epoch without rows is refused", () => {
  assert.throws(() => new StepPlan(() => [], { accumulationSteps: 1, epochs: 1, maxSteps: 0 }), RangeError);
});
