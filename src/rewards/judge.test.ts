import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Judge, normalizeThenSum, rewardMetrics } from "./judge.js";
import type { Reward } from "./reward.js";
import { checkRewards } from "./rewards.js";
import { contextOf, rewardFrom, sampleOf } from "./testing/samples.js";

const reward = (name: string, scores: readonly (number | null)[], weight = 1): Reward => ({
  name,
  weight,
  score: async () => scores,
});
const answers = (count: number) => Array.from({ length: count }, (_, i) => sampleOf("x", {}, `rows.jsonl:${i + 1}`));

test("scores are weighted and summed; what is missing is left out of the sum", async () => {
  const rewards = [reward("a", [1, 2, null, null], 2), reward("b", [10, null, 30, null], -0.5)];
  const judgement = await new Judge(rewards, () => {}).judge(answers(4), contextOf());
  assert.deepEqual(judgement.sums, [2 - 5, 4, -15, null]);
  const metrics = rewardMetrics(rewards, judgement);
  assert.deepEqual(metrics["rewards/a/mean"], { sum: 3, count: 2 });
  assert.equal(metrics["rewards/a/std"]!.sum, Math.SQRT1_2);
  assert.deepEqual(metrics["rewards/b/missing"], { sum: 2, count: 4 });
  assert.deepEqual(metrics.reward, { sum: -3 + 4 - 15, count: 3 });
});

test("missing scores, those that are no numbers and those that are all the same are told once each", async () => {
  const told: string[] = [];
  const scores: (number | null)[][] = [
    [1, Number.NaN, null],
    [5, 5, 5],
  ];
  const rewards = [reward("a", scores[0]!), reward("b", scores[1]!)];
  const judge = new Judge(rewards, (message) => told.push(message));
  const { scores: kept } = await judge.judge(answers(3), contextOf());
  await judge.judge(answers(3), contextOf());
  assert.deepEqual(kept, [
    [1, null, null],
    [5, 5, 5],
  ]);
  assert.equal(told.length, 3, told.join("\n"));
  assert.match(told[0]!, /^the reward a gave NaN for 1 of 3 answers, the first rows\.jsonl:2: these count as missing/);
  assert.match(told[1]!, /^the reward a has nothing to say of 1 of 3 answers, the first rows\.jsonl:3/);
  assert.match(told[2]!, /^the reward b gave 5 to all of 3 answers: nothing is learned from it until they differ/);
});

test("an infinite score is no number", async () => {
  const { sums } = await new Judge([reward("a", [Infinity, 1])], () => {}).judge(answers(2), contextOf());
  assert.deepEqual(sums, [null, 1]);
});

test("nothing to learn from and too few scores end the run by name", async () => {
  await assert.rejects(new Judge([reward("a", [null, Number.NaN])], () => {}).judge(answers(2), contextOf()), {
    code: "REWARD",
    message: /no reward says anything of any of 2 answers, the first rows\.jsonl:1/,
  });
  await assert.rejects(new Judge([reward("a", [1])], () => {}).judge(answers(2), contextOf()), {
    code: "REWARD",
    message: "the reward a gave 1 scores for 2 answers",
  });
});

test("rewards that are normalized before they are summed", () => {
  // By hand, in groups of 2: a's are (1, 3) and (5, 5), b's (100, 0) and (none, 7). Deviations: √2, 0, 50√2, 0.
  const scores = [
    [1, 3, 5, 5],
    [100, 0, null, 7],
  ];
  const a = 1 / (Math.SQRT2 + 1e-4);
  const b = 50 / (50 * Math.SQRT2 + 1e-4);
  const sums = [-a + 2 * b, a - 2 * b, 0, 0];
  const std = Math.sqrt(sums.reduce((total, sum) => total + sum ** 2, 0) / 3);
  const expected = sums.map((sum) => sum / (std + 1e-4));
  const found = normalizeThenSum({ scores }, [1, 2], 2);
  for (const [i, value] of expected.entries()) assert.ok(Math.abs(found[i]! - value) < 1e-12, `${found} ${expected}`);
  assert.deepEqual(normalizeThenSum({ scores: [[null, 1, 2, 3]] }, [1], 2)[0], 0);
});

test("rewards that are normalized before they are summed are those of TRL 1.16, but for its rounding", () => {
  const file = join(import.meta.dirname, "../../../test/fixtures/reward-sums.json");
  const { scores, weights, groupSize, advantages } = JSON.parse(readFileSync(file, "utf8")) as {
    readonly scores: (number | null)[][];
    readonly weights: number[];
    readonly groupSize: number;
    readonly advantages: number[];
  };
  const found = normalizeThenSum({ scores }, weights, groupSize);
  assert.equal(found.length, 16);
  for (const [i, value] of advantages.entries()) assert.ok(Math.abs(found[i]! - value) < 1e-7, `${i}: ${found[i]} ${value}`);
});

test("columns that rewards read are looked for before anything trains", async () => {
  const rewards = [
    rewardFrom({ type: "exact_match" }),
    rewardFrom({ type: "numeric", name: "sum", reference: "{{ item.gold }}" }),
  ];
  const rows = [
    { answer: "a", gold: "1" },
    { answer: "b", gold: null },
  ].map((columns, i) => ({ columns, where: `rows.jsonl:${i + 1}` }));
  const told: string[] = [];
  await checkRewards(rewards, rows, (message) => told.push(message));
  assert.deepEqual(told, [
    '1 of 2 rows have no "gold", the first rows.jsonl:2: the reward sum has nothing to say of their answers',
  ]);
  await assert.rejects(
    checkRewards([rewardFrom({ type: "exact_match", reference: "{{ item.anwser }}" })], rows, () => {}),
    {
      code: "CONFIG",
      message: /exact_match reads the column "anwser", which no row has\. Did you mean "answer"\? \(there are answer, gold\)/,
    },
  );
  await assert.rejects(
    checkRewards([rewardFrom({ type: "exact_match" })], [{ columns: {}, where: "x" }], () => {}),
    { message: /the rows have nothing but prompts/ },
  );
});
