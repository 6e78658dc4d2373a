/** The gate against controls with a known answer, and its statistics against hand values and SciPy's. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Rng } from "../../core/rng.js";
import { writeFileAtomic } from "../../io/disk.js";
import { temporaryFolder } from "../../io/testing/folders.js";
import { formattingOf, gateFile, gateProblem, judgeRewards, readGate, type ScoredPair, type Sides } from "./gate.js";
import { calibrationError, lengthJudge, mcnemar, spearman, wilson } from "./pair-statistics.js";

const isClose = (actual: number, expected: number, what: string, allowed = 1e-9) =>
  assert.ok(Math.abs(actual - expected) <= allowed, `${what}: ${actual}, expected ${expected}`);

test("Wilson, McNemar, Spearman and the calibration error have the values of SciPy 1.17 and of hand calculations", () => {
  const [low, high] = wilson(43, 60); // scipy.stats.binomtest(43, 60).proportion_ci(method="wilson")
  isClose(low, 0.59232714836, "low", 1e-8);
  isClose(high, 0.81493171567, "high", 1e-8);
  assert.deepEqual(wilson(0, 0), [0, 1]);
  isClose(mcnemar(12, 3), 0.03515625, "binomtest(12, 15).pvalue");
  isClose(mcnemar(3, 12), 0.03515625, "either way round");
  assert.deepEqual([mcnemar(5, 5), mcnemar(0, 0)], [1, 1]);
  isClose(mcnemar(1500, 1400), 0.06598734967, "binomtest(1500, 2900).pvalue", 1e-8);
  isClose(spearman([1, 2, 2, 3, 5], [2, 1, 4, 4, 9]), 0.76315789474, "spearmanr");
  assert.equal(spearman([1, 1, 1], [1, 2, 3]), 0);
  isClose(calibrationError([0.9, 0.9, 0.1, 0.6]), 0.25 * 0.4 + 0.75 * Math.abs(2 / 3 - 0.9), "two bins");
});

test("formatting is headings, list items and bold", () => {
  assert.equal(formattingOf("# Title\n\n- one\n* two\n1. three\n\nSome **bold** and __more__ text."), 6);
  assert.equal(formattingOf("plain # text - with * signs, 2 * 3 and snake__case"), 0);
});

test("the judge of lengths finds longer, shorter and a length in between", () => {
  const rng = new Rng(3);
  const lengths = Array.from({ length: 400 }, () => [1 + rng.below(200), 1 + rng.below(200)] as const);
  const rules = {
    longer: (a: number, b: number) => a - b,
    shorter: (a: number, b: number) => b - a,
    middling: (a: number, b: number) => Math.abs(Math.log(b / 50)) - Math.abs(Math.log(a / 50)),
  };
  for (const [name, rule] of Object.entries(rules)) {
    const judge = lengthJudge(lengths.map(([a, b]) => (rule(a, b) >= 0 ? [a, b] : [b, a])));
    const agreed = lengths.filter(([a, b]) => a === b || rule(a, b) > 0 === judge(a, b) > 0).length;
    assert.ok(agreed / lengths.length > 0.88, `${name}: ${agreed} of ${lengths.length}`);
  }
  isClose(lengthJudge([])(3, 9), 0, "who learned from nothing");
});

/** An answer of a made-up world, as a reward model sees it. */
interface Answer {
  readonly length: number;
  readonly formatting: number;
  /** What a good rater looks at. */
  readonly quality: number;
  readonly features: readonly number[];
}

type Rater = (a: Answer, b: Answer, rng: Rng) => boolean;

/** Trains a linear reward model by Bradley and Terry's loss on pairs that a rater judged, and gates it on others. */
function gateOf(seed: number, rater: Rater, { trained = 200, heldOut = 200 } = {}) {
  const rng = new Rng(seed);
  const answer = (): Answer => {
    const [length, formatting, quality] = [10 + rng.below(300), rng.below(6), rng.normal()];
    const noise = Array.from({ length: 12 }, () => rng.normal());
    return { length, formatting, quality, features: [Math.log(length) - 5, formatting / 3, quality, ...noise] };
  };
  const pair = () => {
    const [a, b] = [answer(), answer()];
    return rater(a, b, rng) ? ([a, b] as const) : ([b, a] as const);
  };
  const train = Array.from({ length: trained }, pair);
  const weights = new Array<number>(15).fill(0);
  const score = ({ features }: Answer) => features.reduce((sum, x, i) => sum + weights[i]! * x, 0);
  for (let step = 0; step < 40; step++) {
    const gradient = weights.map(() => 0);
    for (const [chosen, rejected] of train) {
      const wrong = 1 / (1 + Math.exp(score(chosen) - score(rejected)));
      for (const i of gradient.keys()) gradient[i]! += wrong * (chosen.features[i]! - rejected.features[i]!);
    }
    for (const [i, g] of gradient.entries()) weights[i]! += (4 / trained) * g;
  }
  const looks = ([chosen, rejected]: readonly [Answer, Answer]) => ({
    lengths: [chosen.length, rejected.length] as Sides,
    formatting: [chosen.formatting, rejected.formatting] as Sides,
  });
  const held = Array.from({ length: heldOut }, pair);
  const scored = held.map((two): ScoredPair => ({ ...looks(two), scores: [score(two[0]), score(two[1])] }));
  return judgeRewards(scored, train.map(looks));
}

const seeds = Array.from({ length: 100 }, (_, i) => i);
const mostly =
  (rule: (a: Answer, b: Answer) => number): Rater =>
  (a, b, rng) =>
    rng.below(10) === 0 ? rng.below(2) === 0 : rule(a, b) > 0;

test("labels drawn by chance are refused for at least 95 of 100 seeds", () => {
  const gates = seeds.map((seed) => gateOf(seed, (_a, _b, rng) => rng.below(2) === 0));
  const refused = gates.filter(({ verdict }) => verdict === "refused");
  assert.ok(refused.length >= 95, `${refused.length} of 100`);
  const chance = refused.filter(({ cause, reason }) => cause === "chance" && /^no better than chance/.test(reason));
  assert.ok(chance.length >= 90, `${chance.length} named`);
});

test("labels that follow length are refused, and named, for at least 95 of 100 seeds", () => {
  for (const rule of [(a: Answer, b: Answer) => a.length - b.length, (a: Answer, b: Answer) => b.length - a.length]) {
    const gates = seeds.map((seed) => gateOf(seed, mostly(rule)));
    const named = gates.filter(({ verdict, cause }) => verdict === "refused" && cause === "length");
    assert.ok(named.length >= 95, `${named.length} of 100`);
    assert.match(named[0]!.reason, /^length explains it: .* is right on \d/);
    assert.ok(Math.abs(named[0]!.spearman_length!) > 0.5);
  }
});

test("labels that follow formatting are refused, and named", () => {
  const gates = seeds.map((seed) =>
    gateOf(
      seed,
      mostly((a, b) => a.formatting - b.formatting || a.quality - b.quality),
    ),
  );
  const named = gates.filter(({ verdict, cause }) => verdict === "refused" && cause === "formatting");
  const passed = gates.filter(({ verdict }) => verdict === "passed"); // its ties it decides better than a coin, and one may see that
  assert.ok(named.length + passed.length === 100 && named.length > 0, `${named.length} named, ${passed.length} passed`);
});

test("a real signal passes for at least 95 of 100 seeds, also where raters like length as well", () => {
  for (const rule of [(a: Answer, b: Answer) => a.quality - b.quality, liking]) {
    const gates = seeds.map((seed) => gateOf(seed, mostly(rule)));
    const passed = gates.filter(({ verdict }) => verdict === "passed");
    assert.ok(passed.length >= 95, `${passed.length} of 100`);
    const { accuracy, best_baseline, baselines, length_matched, ece } = passed[0]!;
    assert.ok(accuracy! > baselines[best_baseline!] && length_matched.accuracy! > 0.7 && ece! < 0.2);
  }
});

/** Quality counts twice as much as length. */
function liking(a: Answer, b: Answer): number {
  const worth = ({ quality, length }: Answer) => 2 * quality + Math.log(length) / 0.8;
  return worth(a) - worth(b);
}

test("few pairs prove nothing, and none at all are said to be none", () => {
  const few = judgeRewards(
    Array.from(
      { length: 12 },
      (_, i): ScoredPair => ({ lengths: [5 + (i % 2), 6 - (i % 2)], formatting: [0, 0], scores: i < 10 ? [1, 0] : [0, 1] }),
    ),
    [],
  );
  assert.deepEqual([few.verdict, few.cause], ["refused", "unproven"]);
  assert.match(few.reason, /not enough pairs to tell/);
  const none = judgeRewards([], []);
  assert.deepEqual([none.verdict, none.cause, none.accuracy], ["unmeasured", "no_pairs", null]);
  assert.match(none.reason, /val_size or eval_dataset/);
  assert.match(judgeRewards([], [], 4).reason, /every held-out pair trains as well/);
});

test("equal scores are wrong, as in TRL; ties of a trivial judge count half", () => {
  const pairs = Array.from({ length: 10 }, (): ScoredPair => ({ lengths: [7, 7], formatting: [1, 1], scores: [0.5, 0.5] }));
  const { accuracy, baselines, length_matched } = judgeRewards(pairs, []);
  assert.equal(accuracy, 0);
  assert.deepEqual(Object.values(baselines), [0.5, 0.5, 0.5, 0.5, 0.5]);
  assert.equal(length_matched.pairs, 10);
});

test("the verdict is written, read, and said; a damaged file is named", async (t) => {
  const folder = temporaryFolder(t);
  assert.equal(await readGate(folder), null);
  assert.match(gateProblem(null, folder)!, /nobody has measured/);
  const refused = gateOf(1, (_a, _b, rng) => rng.below(2) === 0);
  for (const gate of [
    refused,
    judgeRewards([], []),
    gateOf(
      1,
      mostly((a, b) => a.quality - b.quality),
    ),
  ]) {
    const { name, contents } = gateFile(gate);
    await writeFileAtomic(join(folder, name), contents);
    assert.deepEqual(await readGate(folder), gate);
    assert.equal(gateProblem(gate, folder), gate.verdict === "passed" ? null : `${folder}: ${gate.reason}`);
  }
  for (const damaged of ["{", '{"verdict": "passed"}', "[]"]) {
    writeFileSync(join(folder, "reward_gate.json"), damaged);
    await assert.rejects(readGate(folder), { code: "MODEL", message: /reward_gate\.json: is not what a run of stage rm writes/ });
  }
});
