/** Losses of answers of a policy's own, on given log-probabilities: against TRL 1.16 and finite differences. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { groupAdvantages } from "../src/objectives/rl/grpo/group-advantages.js";
import { GrpoConfig } from "../src/objectives/rl/grpo/grpo.js";
import { type GroupTrajectory, type GrpoLossSettings, grpoCount, grpoLoss } from "../src/objectives/rl/grpo/grpo-loss.js";
import { leaveOneOut, RlooConfig, rlooLoss } from "../src/objectives/rl/rloo/rloo.js";

interface Case {
  readonly settings: Readonly<Record<string, unknown>>;
  readonly is_on_policy: boolean;
  readonly is_masked: boolean;
  readonly loss: number;
  readonly gradient: readonly (readonly number[])[];
  readonly metrics: Readonly<Record<string, number>>;
}

/** Made by test/fixtures/make_grpo.py. */
const fixture = JSON.parse(readFileSync(join(import.meta.dirname, "../../test/fixtures/grpo.json"), "utf8")) as {
  readonly trl: string;
  readonly max_completion_length: number;
  readonly masked: readonly number[];
  readonly logps: readonly (readonly number[])[];
  readonly old: readonly (readonly number[])[];
  readonly reference: readonly (readonly number[])[];
  readonly advantages: readonly number[];
  readonly grpo: readonly Case[];
  readonly rloo: readonly Case[];
};

const logProbs = Float32Array.from(fixture.logps.flat());

function answersOf({ is_on_policy, is_masked }: Pick<Case, "is_on_policy" | "is_masked">): GroupTrajectory[] {
  return fixture.logps.map((values, i) => ({
    ids: new Int32Array(values.length),
    advantage: fixture.advantages[i]!,
    counts: !(is_masked && fixture.masked.includes(i)),
    ...(!is_on_policy && { old: Float32Array.from(fixture.old[i]!) }),
    reference: Float32Array.from(fixture.reference[i]!),
  }));
}

function close(actual: number, expected: number, what: string): void {
  assert.ok(Math.abs(actual - expected) <= 1e-6 + 1e-5 * Math.abs(expected), `${what}: ${actual}, expected ${expected}`);
}

function settingsOf({ importance_sampling_level, loss_type = "dapo", ...settings }: Case["settings"]): GrpoLossSettings {
  const name = importance_sampling_level === "sequence" ? "gspo" : loss_type;
  return { ...GrpoConfig.parse({ ...settings, loss_type: name }), max_new_tokens: fixture.max_completion_length };
}

test(`GRPO: losses, gradients and metrics are those of TRL ${fixture.trl}`, () => {
  assert.match(fixture.trl, /^1\.16/);
  for (const one of fixture.grpo) {
    const name = JSON.stringify([one.settings, one.is_on_policy, one.is_masked]);
    const [answers, settings] = [answersOf(one), settingsOf(one.settings)];
    const { sum, gradient, metrics } = grpoLoss(logProbs, answers, settings);
    const count = grpoCount(answers, settings);
    close(sum / count, one.loss, `loss of ${name}`);
    for (const [i, expected] of one.gradient.flat().entries()) close(gradient[i]! / count, expected, `gradient ${i} of ${name}`);
    for (const [key, expected] of Object.entries(one.metrics)) {
      if (settings.loss_type === "gspo" && key.startsWith("clip")) continue; // TRL: shares of answers; here of their tokens
      close(metrics[key]!.sum / metrics[key]!.count, expected, `${key} of ${name}`);
    }
  }
  const different = fixture.grpo.filter(({ settings }) => settings.loss_type !== "bnpo"); // it is dapo where a batch is a step
  assert.equal(new Set(different.map(({ loss }) => loss)).size, different.length);
});

test(`RLOO: losses and gradients are those of TRL ${fixture.trl}`, () => {
  for (const one of fixture.rloo) {
    const answers = answersOf(one).map((answer) => ({ ...answer, reward: null }));
    const { sum, gradient, metrics } = rlooLoss(logProbs, answers, RlooConfig.parse(one.settings));
    close(sum / answers.length, one.loss, "loss");
    for (const [i, expected] of one.gradient.flat().entries()) close(gradient[i]! / answers.length, expected, `gradient ${i}`);
    for (const [key, expected] of Object.entries(one.metrics)) close(metrics[key]!.sum / metrics[key]!.count, expected, key);
  }
});

test("gradients are finite differences of the sums, also where the ratio is that of a whole answer", () => {
  const step = 2 ** -10;
  const answers = answersOf({ is_on_policy: false, is_masked: false });
  const losses: [name: string, loss: (values: Float32Array) => { sum: number; gradient: Float32Array }][] = [
    ...(["dapo", "grpo", "dr_grpo", "gspo", "sapo"] as const).map((loss_type): (typeof losses)[number] => {
      const settings = { ...GrpoConfig.parse({ loss_type, beta: 0.2, epsilon: 0.15 }), max_new_tokens: 8 };
      return [loss_type, (values) => grpoLoss(values, answers, settings)];
    }),
    [
      "rloo",
      (values) =>
        rlooLoss(
          values,
          answers.map((answer) => ({ ...answer, reward: 1 })),
          RlooConfig.parse({}),
        ),
    ],
  ];
  for (const [name, loss] of losses) {
    const { gradient } = loss(logProbs);
    for (const i of logProbs.keys()) {
      const at = (sign: number) => loss(logProbs.map((value, j) => (i === j ? value + sign * step : value))).sum;
      const expected = (at(1) - at(-1)) / (2 * step);
      assert.ok(Math.abs(gradient[i]! - expected) < 5e-3, `${name}, ${i}: ${gradient[i]}, expected ${expected}`);
    }
  }
});

test("advantages of groups: hand values, and nothing of groups that say nothing", () => {
  const deviation = Math.sqrt(1 / 2);
  assert.deepEqual(groupAdvantages([[1, 0]], "group"), {
    advantages: [[0.5 / (deviation + 1e-4), -0.5 / (deviation + 1e-4)]],
    isFlat: [false],
  });
  assert.deepEqual(
    groupAdvantages(
      [
        [1, 0],
        [5, 4],
      ],
      "none",
    ).advantages,
    [
      [0.5, -0.5],
      [0.5, -0.5],
    ],
  );
  const ofBatch = groupAdvantages(
    [
      [1, 0],
      [3, 3],
    ],
    "batch",
  );
  assert.deepEqual(ofBatch.isFlat, [false, true]);
  assert.ok(Math.abs(ofBatch.advantages[0]![0]! - 0.5 / (1.5 + 1e-4)) < 1e-12); // 0, 1, 3, 3: squares 2.25 + .5625 · … = 6.75 / 3
  // Rewards that are equal but for rounding, and one that differs among equals.
  const third = 0.1 + 0.2;
  assert.deepEqual(groupAdvantages([[0.3, third, 0.3]], "group"), { advantages: [[0, 0, 0]], isFlat: [true] });
  const [lone] = groupAdvantages([[1, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35]], "group").advantages;
  assert.ok(Math.abs(lone![0]!) < 3 && Math.max(...lone!.slice(1).map(Math.abs)) < 0.4);
  // An answer without a reward has no part in its group.
  assert.deepEqual(groupAdvantages([[1, null, 0]], "none"), { advantages: [[0.5, 0, -0.5]], isFlat: [false] });
  assert.deepEqual(
    groupAdvantages(
      [
        [null, null],
        [2, null],
      ],
      "group",
    ),
    {
      advantages: [
        [0, 0],
        [0, 0],
      ],
      isFlat: [true, true],
    },
  );
});

test("leave one out: the mean of the others, less what the divergence costs, in nats of the whole answer", () => {
  const answer = (reward: number | null, old = [0, 0], reference = [0, 0]) => ({
    ...{ ids: new Int32Array(2), reward, advantage: 0, counts: true },
    ...{ old: Float32Array.from(old), reference: Float32Array.from(reference) },
  });
  const settings = RlooConfig.parse({ beta: 0.5 });
  const { advantages, metrics } = leaveOneOut([[answer(3), answer(1, [-1, -1], [-2, -3]), answer(2)]], settings);
  assert.deepEqual(advantages, [[3 - (-0.5 + 2) / 2, -0.5 - 2.5, 2 - (3 - 0.5) / 2]]);
  assert.deepEqual(metrics.kl_per_answer, { sum: 3, count: 3 });
  assert.deepEqual(metrics.kl, { sum: 3, count: 6 });
  const alone = leaveOneOut(
    [
      [answer(3), answer(null)],
      [answer(1), answer(1)],
    ],
    RlooConfig.parse({ beta: 0 }),
  );
  assert.deepEqual(alone.advantages, [
    [0, 0],
    [0, 0],
  ]);
  assert.deepEqual(alone.metrics.frac_reward_zero_std, { sum: 2, count: 2 });
  const clipped = leaveOneOut([[answer(9), answer(0)]], RlooConfig.parse({ beta: 0, reward_clip_range: [-1, 1] }));
  assert.deepEqual(clipped.advantages, [[1, -1]]);
  const normal = leaveOneOut([[answer(9), answer(0)]], RlooConfig.parse({ beta: 0, normalize_advantages: true })).advantages[0]!;
  assert.ok(Math.abs(normal[0]! - 1 / Math.SQRT2) < 1e-4 && normal[0] === -normal[1]!);
});
