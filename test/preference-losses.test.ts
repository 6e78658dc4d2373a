/** Losses of pairs and of single answers: hand values, finite differences, TRL 1.16 on the same numbers, and that every option changes something. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { Tensor } from "../src/core/tensor.js";
import type { PairRow, UnpairedRow } from "../src/data/preference-rows.js";
import { CausalLM } from "../src/models/causal-lm.js";
import type { Batch, Task, TermValue } from "../src/objectives/objective.js";
import { BcoConfig, bcoTask } from "../src/objectives/preference/bco.js";
import { dpoTask } from "../src/objectives/preference/dpo.js";
import { DpoConfig } from "../src/objectives/preference/dpo-config.js";
import { KtoConfig, ktoTask, withPartners } from "../src/objectives/preference/kto.js";
import { logOdds, logSigmoid } from "../src/objectives/preference/math.js";
import { pairLosses } from "../src/objectives/preference/pair-losses.js";
import { compute, Sums } from "../src/objectives/sums.js";
import type { SharedBase } from "../src/tuners/shared-base.js";
import { device } from "./support/gradient-check.js";

/** A model whose answers have these log-probabilities, in order. */
function modelSaying(logProbs: readonly number[]): CausalLM {
  return Object.assign(Object.create(CausalLM.prototype) as CausalLM, {
    score: null,
    hidden: ({ ids }: { ids: Int32Array }) => Tensor.from(device, new Float32Array(ids.length), [ids.length, 1]),
    lm_head: {
      logProbs: (_: Tensor, targets: Int32Array) => Tensor.from(device, logProbs.slice(0, targets.length), [targets.length]),
    },
  });
}

const referenceSaying = (logProbs: readonly number[]) =>
  ({ withReference: <T>(body: (model: CausalLM) => T) => body(modelSaying(logProbs)) }) as unknown as SharedBase;

/** The loss of one batch, its gradient by each log-probability, and its metrics. */
async function evaluated<R extends PairRow | UnpairedRow, B extends Batch>(
  task: Task<R, B>,
  rows: readonly R[],
  policy: readonly number[],
  reference: readonly number[],
) {
  const batch = task.collate(rows);
  const terms = task.terms(modelSaying(policy), batch, referenceSaying(reference));
  const sums = new Sums();
  const values: Record<string, TermValue> = {};
  const gradient = new Float64Array(policy.length);
  for (const [name, term] of Object.entries(terms)) {
    assert.ok("of" in term);
    const { gradient: own, ...value } = await compute(term);
    values[name] = { ...value, weight: term.weight };
    const count = batch.counts[name]!;
    if (count > 0) for (const [i, g] of own.entries()) gradient[i]! += ((term.weight ?? 1) * g) / count;
  }
  sums.add(batch, values);
  return { loss: sums.loss, gradient, metrics: { ...sums.metrics } as Record<string, number> };
}

interface Case {
  readonly stage: "dpo" | "kto";
  readonly config: Record<string, unknown>;
  readonly labels?: readonly boolean[];
  readonly loss: number;
  readonly gradients: readonly (readonly number[])[];
  readonly metrics: Readonly<Record<string, number>>;
}
interface Golden {
  readonly trl: string;
  readonly pairs: readonly { readonly policy: readonly number[][]; readonly reference: readonly number[][] }[];
  readonly cases: readonly Case[];
}
const golden = JSON.parse(
  readFileSync(new URL("../../test/fixtures/preference-trl-1.16.json", import.meta.url), "utf8"),
) as Golden;

const idsOf = (length: number) => Int32Array.from({ length }, (_, i) => i + 1);
const prompt = idsOf(2);
const pairRows = golden.pairs.map(({ policy: [c, r] }, i): PairRow => {
  const [chosen, rejected] = [idsOf(c!.length), idsOf(r!.length)];
  return { where: `pair ${i}`, tokens: 2 + c!.length + r!.length, prompt, chosen, rejected };
});
const inOrder = (kind: "policy" | "reference") => golden.pairs.flatMap((pair) => pair[kind].flat());
const [policy, reference] = [inOrder("policy"), inOrder("reference")];

function close(actual: number, expected: number, what: string, tolerance = 2e-5): void {
  assert.ok(Math.abs(actual - expected) <= tolerance * Math.max(1, Math.abs(expected)), `${what}: ${actual} against ${expected}`);
}

for (const { stage, config, labels, loss, gradients, metrics } of golden.cases)
  test(`${stage} ${JSON.stringify(config)}${labels ? ` on ${labels.map(Number).join("")}` : ""}: loss, gradients and metrics are TRL's`, async () => {
    let value: Awaited<ReturnType<typeof evaluated>>;
    let expected: readonly number[];
    if (stage === "dpo") {
      const task = dpoTask(DpoConfig.parse(config));
      // TRL's ORPO is compared without a likelihood: attune's is subtracted.
      value = await evaluated(task, pairRows, policy, reference);
      const half = pairRows.length;
      expected = pairRows.flatMap((_, i) => [...gradients[i]!, ...gradients[half + i]!]);
      if (config.pref_loss === "orpo") {
        value.loss -= value.metrics.sft_loss!;
        let at = 0;
        for (const { chosen, rejected } of pairRows) {
          for (let t = 0; t < chosen.length; t++) value.gradient[at + t]! += 1 / chosen.length / half;
          at += chosen.length + rejected.length;
        }
      }
    } else {
      const task = ktoTask(KtoConfig.parse(config));
      const kl = Math.max(
        0,
        sum(golden.pairs.map((pair) => sum(pair.policy[1]!) - sum(pair.reference[1]!))) / golden.pairs.length,
      );
      if ("kl" in metrics && config.kto_loss === undefined) close(kl, metrics.kl!, "kl");
      const rows = golden.pairs.map((pair, i) => ({
        ...{ where: `row ${i}`, tokens: 2 + pair.policy[0]!.length, prompt, answer: idsOf(pair.policy[0]!.length) },
        ...{ isGood: labels![i]!, kl },
      }));
      const chosen = (kind: "policy" | "reference") => golden.pairs.flatMap((pair) => pair[kind][0]!);
      value = await evaluated(task, rows, chosen("policy"), chosen("reference"));
      expected = gradients.flat();
    }
    close(value.loss, loss, "loss");
    assert.equal(value.gradient.length, expected.length);
    for (const [i, g] of expected.entries()) close(value.gradient[i]!, g, `gradient ${i}`);
    for (const [name, number] of Object.entries(metrics)) if (name !== "kl") close(value.metrics[name]!, number, name);
  });

/** Every loss, and every option that changes it. */
const variants: readonly Record<string, unknown>[] = [
  ...Object.entries(pairLosses).map(([pref_loss, { smoothing }]) => ({
    pref_loss,
    ...(smoothing === "must" && { dpo_label_smoothing: 0.2 }),
  })),
  ...["sigmoid", "hinge", "ipo", "orpo", "simpo", "cpo", "kto_pair"].map((pref_loss) => ({ pref_loss, pref_beta: 0.3 })),
  ...["aot", "aot_unpaired", "simpo", "cpo", "robust", "exo_pair"].map((pref_loss) => ({ pref_loss, dpo_label_smoothing: 0.1 })),
  ...["forward_kl", "js_divergence", "alpha_divergence"].map((f_divergence_type) => ({ f_divergence_type })),
  { f_divergence_type: "alpha_divergence", f_alpha_divergence_coef: 1.7 },
  { pref_ftx: 0.5 },
  { pref_bco_weight: 0.5 },
  { ld_alpha: 0.3 },
  { ld_alpha: 0.3, ld_alpha_reference: false },
  { ld_alpha: 0 },
  { pref_loss: "discopop", discopop_tau: 0.5 },
  { pref_loss: "simpo", simpo_gamma: 1 },
  { pref_loss: "simpo", cpo_alpha: 1 },
  { pref_loss: "cpo", cpo_alpha: 0 },
  { pref_loss: "orpo", orpo_nll: "all_tokens" },
  { pref_loss: ["sigmoid", "sft"] },
  { pref_loss: ["sigmoid", "sft"], loss_weights: [1, 0.5] },
  { pref_loss: ["sigmoid", "hinge"] },
];

test("each loss and each option comes to another value on the same numbers; sigmoid with smoothing is cdpo", async () => {
  const seen = new Map<string, string>();
  const extended = [...policy, ...prompts];
  for (const config of variants) {
    const { loss } = await evaluated(dpoTask(DpoConfig.parse(config)), pairRows, extended, reference);
    const key = loss.toFixed(7);
    assert.ok(Number.isFinite(loss));
    assert.equal(seen.get(key), undefined, `${JSON.stringify(config)} and ${seen.get(key)} both are ${key}`);
    seen.set(key, JSON.stringify(config));
  }
  const smoothed = await evaluated(dpoTask(DpoConfig.parse({ dpo_label_smoothing: 0.2 })), pairRows, policy, reference);
  assert.equal(seen.get(smoothed.loss.toFixed(7)), JSON.stringify({ pref_loss: "cdpo", dpo_label_smoothing: 0.2 }));
});

type At = (logProbs: readonly number[]) => Promise<{ loss: number; gradient: Float64Array }>;

/** Holds each derivative against a central difference. */
async function checkDifferences(at: At, values: readonly number[]): Promise<void> {
  const { gradient } = await at(values);
  const step = 2 ** -8;
  for (const [i, value] of values.entries()) {
    const moved = async (by: number) => (await at(values.with(i, Math.fround(value) + by))).loss;
    close(gradient[i]!, ((await moved(step)) - (await moved(-step))) / (2 * step), `gradient ${i}`, 1e-4);
  }
}

const prompts = pairRows.map((_, i) => -0.3 - 0.1 * i);

for (const config of [...variants, { dpo_label_smoothing: 0.2 }].filter(({ pref_loss }) => pref_loss !== "kto_pair"))
  test(`dpo ${JSON.stringify(config)}: gradients are finite differences`, async () => {
    const at = (moved: readonly number[]) => evaluated(dpoTask(DpoConfig.parse(config)), pairRows, moved, reference);
    await checkDifferences(at, config.orpo_nll === "all_tokens" ? [...policy, ...prompts] : policy);
  });

const unpairedRows = pairRows.map(({ where, chosen }, i): UnpairedRow => {
  return { where, tokens: 2 + chosen.length, prompt, answer: chosen, isGood: i % 2 === 0 };
});
const ofChosen = (kind: "policy" | "reference") => golden.pairs.flatMap((pair) => pair[kind][0]!);

for (const config of [
  {},
  { pref_ftx: 0.4 },
  { kto_loss: "apo_zero_unpaired" },
  { kto_chosen_weight: 2, kto_rejected_weight: 0.5 },
])
  test(`kto ${JSON.stringify(config)}: gradients are finite differences`, async () => {
    const rows = unpairedRows.map((row) => ({ ...row, kl: 0.4 }));
    const at = (moved: readonly number[]) => evaluated(ktoTask(KtoConfig.parse(config)), rows, moved, ofChosen("reference"));
    await checkDifferences(at, ofChosen("policy"));
  });

test("bco: gradients are finite differences, and the value is -log σ of the rewards' distance from δ", async () => {
  const rows = unpairedRows.map((row) => ({ ...row, delta: 0.3 }));
  const at = (moved: readonly number[]) => evaluated(bcoTask(BcoConfig.parse({})), rows, moved, ofChosen("reference"));
  await checkDifferences(at, ofChosen("policy"));
  const { loss } = await at(ofChosen("policy"));
  const rewards = golden.pairs.map((pair) => 0.1 * (sum(pair.policy[0]!) - sum(pair.reference[0]!)));
  const expected = rewards.map((reward, i) => Math.log1p(Math.exp(-(i % 2 === 0 ? 1 : -1) * (reward - 0.3))));
  close(loss, sum(expected) / expected.length, "loss", 1e-6);
});

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

/** Log-ratios of two pairs, with which sums are easy: 2 and −1, 0 and 3, over 2 and 1 tokens. */
const byHand = {
  rows: [0, 1].map((i): PairRow => ({ where: `${i}`, tokens: 5, prompt, chosen: idsOf(2), rejected: idsOf(1) })),
  policy: [-1, -1, -3, -2, -1, -1],
  reference: [-2, -2, -2, -2, -1, -4],
};
const s = (x: number) => 1 / (1 + Math.exp(-x));
const mean = (of: (c: number, r: number) => number) => (of(2, -1) + of(0, 3)) / 2;
const hand: readonly (readonly [config: Record<string, unknown>, expected: number])[] = [
  [{ pref_beta: 0.5 }, mean((c, r) => -Math.log(s(0.5 * (c - r))))],
  [{ pref_beta: 0.5, pref_loss: "hinge" }, (0 + 2.5) / 2],
  [{ pref_beta: 0.5, pref_loss: "ipo" }, ((1 + 1 - 1) ** 2 + (0 - 3 - 1) ** 2) / 2],
  [{ pref_beta: 0.5, pref_loss: "sppo_hard" }, (1 + 0 + 1 + 16) / 2],
  [{ pref_beta: 0.5, pref_loss: "apo_zero" }, mean((c, r) => 1 - s(0.5 * c) + s(0.5 * r))],
  [
    { pref_beta: 0.5, pref_loss: "cdpo", dpo_label_smoothing: 0.1 },
    mean((c, r) => -0.9 * Math.log(s(0.5 * (c - r))) - 0.1 * Math.log(s(0.5 * (r - c)))),
  ],
  // KL of chosen: mean(2, 0) = 1; of rejected: mean(−1, 3) = 1.
  [{ pref_beta: 0.5, pref_loss: "kto_pair" }, mean((c, r) => 0.5 * (1 - s(0.5 * (c - 1))) + 0.5 * (1 - s(0.5 * (1 - r))))],
  [{ pref_beta: 0.5, pref_ftx: 2 }, mean((c, r) => -Math.log(s(0.5 * (c - r)))) + 2 * ((1 + 1.5) / 2)],
  [
    { pref_beta: 0.5, pref_bco_weight: 3 },
    mean((c, r) => (-Math.log(s(0.5 * (c - r))) - 3 * Math.log(s(0.5 * c)) - 3 * Math.log(s(-0.5 * r))) / 4),
  ],
  [
    { pref_beta: 0.5, pref_loss: "simpo", simpo_gamma: 1 },
    (-Math.log(s(0.5 * (-1 + 3) - 1)) - Math.log(s(0.5 * (-1.5 + 1) - 1))) / 2,
  ],
  // The second token of the chosen answers lies behind the one of the rejected ones.
  [{ pref_beta: 0.5, ld_alpha: 0.5 }, (-Math.log(s(0.5 * (1.5 + 1))) - Math.log(s(0.5 * (0 - 3)))) / 2],
  [
    { pref_beta: 0.5, ld_alpha: 0.5, ld_alpha_reference: false },
    (-Math.log(s(0.5 * (2.5 + 1))) - Math.log(s(0.5 * (0.5 - 3)))) / 2,
  ],
];
for (const [config, expected] of hand)
  test(`dpo ${JSON.stringify(config)} by hand`, async () => {
    const { loss } = await evaluated(dpoTask(DpoConfig.parse(config)), byHand.rows, byHand.policy, byHand.reference);
    close(loss, expected, "loss", 1e-6);
  });

test("kto_pair does not differentiate its KL", async () => {
  const { gradient } = await evaluated(
    dpoTask(DpoConfig.parse({ pref_beta: 0.5, pref_loss: "kto_pair" })),
    byHand.rows,
    byHand.policy,
    byHand.reference,
  );
  const slope = (x: number) => s(x) * (1 - s(x));
  const expected = [-slope(0.5 * 1), -slope(0.5 * 1), slope(0.5 * 2), -slope(-0.5), -slope(-0.5), slope(0.5 * -2)].map(
    (x) => (0.5 * 0.5 * x) / 2,
  );
  for (const [i, g] of expected.entries()) close(gradient[i]!, g, `gradient ${i}`, 1e-6);
});

test("before anything is learned, the loss is ln 2 and no margin is one", async () => {
  for (const pref_loss of ["sigmoid", "sigmoid_norm"]) {
    const { loss, metrics } = await evaluated(dpoTask(DpoConfig.parse({ pref_loss })), pairRows, reference, reference);
    close(loss, Math.LN2, "loss", 1e-9);
    assert.deepEqual([metrics["rewards/margins"], metrics["rewards/accuracies"]], [0, 0]);
  }
});

test("odds of what is nearly certain stay finite", () => {
  for (const x of [0, -1e-12, -1e-6, -0.1, -50, -1000]) {
    const { value, slope } = logOdds(x);
    assert.ok(Number.isFinite(value) && Number.isFinite(slope), `${x}`);
    if (x <= -1e-6) close(value, x - Math.log(-Math.expm1(x)), `odds of ${x}`, 1e-12);
  }
  assert.ok(Number.isFinite(logSigmoid(-1e4)) && logSigmoid(1e4) === 0);
});

test("settings that do not go together are refused", () => {
  const refused: readonly (readonly [Record<string, unknown>, RegExp])[] = [
    [{ pref_loss: ["sigmoid", "sft"], loss_weights: [1] }, /loss_weights: expected 2 weights.*got 1/],
    [{ pref_loss: "sft" }, /sft alone prefers nothing/],
    [{ pref_loss: "robust" }, /dpo_label_smoothing: pref_loss robust needs it above 0/],
    [{ pref_loss: "hinge", dpo_label_smoothing: 0.1 }, /pref_loss hinge does not read it/],
    [{ pref_loss: "apo_zero", f_divergence_type: "forward_kl" }, /apo_zero has no form for forward_kl/],
    [{ pref_loss: "simpo", pref_bco_weight: 1 }, /pref_bco_weight: pref_loss simpo compares with no reference/],
    [{ pref_loss: ["simpo", "orpo"], ref_model: "m" }, /ref_model: pref_loss simpo, orpo compares with no reference/],
    [{ ref_model_adapters: "a" }, /ref_model_adapters: belongs to ref_model/],
  ];
  for (const [config, message] of refused) assert.throws(() => dpoTask(DpoConfig.parse(config)), { code: "CONFIG", message });
  assert.throws(() => DpoConfig.parse({ pref_loss: "sigmoyd" }));
});

test("partners: as many answers as rows, each of another row", () => {
  const rowsOf = (n: number) =>
    Array.from({ length: n }, (_, i) => ({ ...unpairedRows[0]!, prompt: idsOf(i + 1), answer: Int32Array.of(100 + i) }));
  assert.deepEqual(withPartners(rowsOf(1)), []);
  for (const n of [2, 3, 5, 8]) {
    const partners = withPartners(rowsOf(n));
    const answers = partners.map(({ answer }) => answer[0]! - 100);
    assert.deepEqual(
      [...answers].sort((a, b) => a - b),
      [...Array(n).keys()],
    );
    for (const [i, { prompt }] of partners.entries()) assert.ok(prompt.length === i + 1 && answers[i] !== i);
  }
});
