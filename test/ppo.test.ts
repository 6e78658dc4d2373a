/** PPO's numbers against NumPy, its steps against finite differences, and what its value head is and is not part of. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { nextCoefficient, noMoments, normalizedScore, withScores } from "../src/objectives/rl/ppo/kl-control.js";
import { experienceOf, PpoConfig } from "../src/objectives/rl/ppo/ppo.js";
import { type PpoTrajectory, policyLoss, valueLoss } from "../src/objectives/rl/ppo/ppo-loss.js";

type Ragged = readonly (readonly number[])[];

/** Made by test/fixtures/make_ppo.py. */
const fixture = JSON.parse(readFileSync(join(import.meta.dirname, "../../test/fixtures/ppo.json"), "utf8")) as {
  readonly lengths: readonly number[];
  readonly finished: readonly boolean[];
  readonly old: Ragged;
  readonly reference: Ragged;
  readonly values: Ragged;
  readonly scores: readonly number[];
  readonly new: Ragged;
  readonly new_values: Ragged;
  readonly cases: readonly {
    readonly settings: Readonly<Record<string, unknown>>;
    readonly kl: number;
    readonly kl_per_answer: number;
    readonly explained: number;
    readonly advantages: Ragged;
    readonly returns: Ragged;
    readonly policy: number;
    readonly policy_gradient: Ragged;
    readonly value: number;
    readonly value_gradient: Ragged;
  }[];
  readonly trace: readonly { readonly kl: number; readonly answers: number; readonly beta: number }[];
  readonly moments: readonly { readonly scores: readonly number[]; readonly mean: number; readonly std: number }[];
};

function close(actual: number, expected: number, what: string, tolerance = 1e-5): void {
  assert.ok(
    Math.abs(actual - expected) <= tolerance * Math.max(1, Math.abs(expected)),
    `${what}: ${actual}, expected ${expected}`,
  );
}

const answers = fixture.lengths.map((length, i): PpoTrajectory & { score: number } => ({
  ...{ ids: new Int32Array(length), counts: true, score: fixture.scores[i]! },
  ...{ old: Float32Array.from(fixture.old[i]!), reference: Float32Array.from(fixture.reference[i]!) },
  values: Float32Array.from(fixture.values[i]!),
  ...{ advantages: new Float64Array(length), returns: new Float64Array(length) },
}));

for (const one of fixture.cases)
  test(`rewards, advantages, returns and both losses of ragged answers: ${JSON.stringify(one.settings)}`, () => {
    const { estimator = "k1", coef = 0.2, gamma = 1, lam = 0.95, whiten_rewards = false, bessel = true, penalty } = one.settings;
    const config = PpoConfig.parse({
      ...{ kl_estimator: estimator, gamma, lam, ppo_whiten_rewards: whiten_rewards },
      whiten_variance: bessel ? "sample" : "population",
    });
    const scored = answers.map((answer, i) => ({
      ...answer,
      score: answer.score - (fixture.finished[i] ? 0 : ((penalty as number | undefined) ?? 0)),
    }));
    const { trajectories, metrics } = experienceOf(scored, coef as number, config);
    for (const name of ["kl", "kl_per_answer"] as const) close(metrics[name]!.sum / metrics[name]!.count, one[name], name);
    close(metrics["value/explained_variance"]!.sum, one.explained, "explained variance");
    for (const [i, { advantages, returns }] of trajectories.entries())
      for (const t of advantages.keys()) {
        close(advantages[t]!, one.advantages[i]![t]!, `advantage ${i}, ${t}`);
        close(returns[t]!, one.returns[i]![t]!, `return ${i}, ${t}`);
      }
    const tokens = fixture.lengths.reduce((sum, length) => sum + length, 0);
    const policy = policyLoss(Float32Array.from(fixture.new.flat()), trajectories, config);
    close(policy.sum / tokens, one.policy, "policy loss");
    assert.deepEqual(policy.metrics.ratio_skipped, { sum: 1, count: 5 }, "one answer ran away");
    for (const [i, expected] of one.policy_gradient.flat().entries())
      close(policy.gradient[i]! / tokens, expected, `policy ${i}`);
    const value = valueLoss(Float32Array.from(fixture.new_values.flat()), trajectories, config);
    close(value.sum / tokens, one.value, "value loss");
    for (const [i, expected] of one.value_gradient.flat().entries()) close(value.gradient[i]! / tokens, expected, `value ${i}`);
  });

test("the weight of the KL divergence follows its target, and stays where there is none", () => {
  let coefficient = 0.2;
  for (const { kl, answers, beta } of fixture.trace) {
    coefficient = nextCoefficient(coefficient, kl, { target: 6, horizon: 10_000, answers });
    close(coefficient, beta, `after ${kl}`, 1e-12);
  }
  assert.equal(nextCoefficient(0.2, 60, { target: null, horizon: 10_000, answers: 64 }), 0.2);
});

test("scores are normalized by the moments of all that came before", () => {
  let moments = noMoments;
  for (const { scores, mean, std } of fixture.moments) {
    moments = withScores(moments, scores);
    close(moments.mean, mean, "mean", 1e-12);
    if (moments.count > 1) close(normalizedScore(mean + std, moments), 1, "one deviation above", 1e-6);
  }
  assert.equal(moments.count, 12);
  assert.equal(withScores(moments, []).count, 12);
});

test("the reward falls as the policy leaves the reference, whatever the sign of the difference with k3", () => {
  for (const kl_estimator of ["k1", "k3"] as const) {
    const config = PpoConfig.parse({ kl_estimator });
    const farther = answers.map((answer) => ({ ...answer, reference: answer.old!.map((logProb) => logProb - 1) }));
    const near = answers.map((answer) => ({ ...answer, reference: answer.old!.map((logProb) => logProb - 0.1) }));
    const totals = [farther, near].map((some) =>
      experienceOf(some, 0.2, config).trajectories.reduce((sum, { returns }) => sum + returns[0]!, 0),
    );
    assert.ok(totals[0]! < totals[1]!, `${kl_estimator}: ${totals}`);
  }
});
