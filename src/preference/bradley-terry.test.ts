import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { DataError } from "../errors.js";
import { bradleyTerry, type Comparison } from "./bradley-terry.js";

const close = (actual: number, expected: number, within = 1e-6) =>
  assert(Math.abs(actual - expected) <= within, `${actual} is not ${expected}`);

const games = (a: string, b: string, wins: number, losses: number, ties = 0): Comparison[] => [
  ...Array.from({ length: wins }, () => ({ a, b, winner: "a" as const })),
  ...Array.from({ length: losses }, () => ({ a, b, winner: "b" as const })),
  ...Array.from({ length: ties }, () => ({ a, b, winner: "tie" as const })),
];

const ratingOf = (comparisons: readonly Comparison[], model: string) =>
  bradleyTerry(comparisons, { rounds: 0 }).ratings.find((each) => each.model === model)!.rating;

test("two models: their odds, by hand", () => {
  // 30 wins of 40: odds 3, log₁₀ 3 · 400 = 190.85 points between them
  const comparisons = games("x", "y", 30, 10);
  close(ratingOf(comparisons, "x"), 1000 + 200 * Math.log10(3));
  close(ratingOf(comparisons, "y"), 1000 - 200 * Math.log10(3));
  // Ten to one: 400 points
  close(ratingOf(games("x", "y", 10, 1), "x") - ratingOf(games("x", "y", 10, 1), "y"), 400);
  // Ties are half wins: 20 + 5 of 40
  close(ratingOf(games("x", "y", 20, 10, 10), "x"), 1000 + 200 * Math.log10(25 / 15));
  close(ratingOf(games("x", "y", 0, 0, 7), "x"), 1000);
  const [first] = bradleyTerry(games("x", "y", 20, 10, 10), { rounds: 0 }).ratings;
  assert.deepEqual([first!.wins, first!.comparisons], [25, 40]);
});

test("three models whose odds multiply are rated by them exactly, and who was never compared gets his odds by others", () => {
  // x : y = 2, y : z = 3, so x : z = 6
  const comparisons = [...games("x", "y", 20, 10), ...games("y", "z", 30, 10), ...games("z", "x", 10, 60)];
  const middle = 1000 - (400 / 3) * (Math.log10(6) + Math.log10(3)); // the mean is 1000
  close(ratingOf(comparisons, "z"), middle);
  close(ratingOf(comparisons, "y"), middle + 400 * Math.log10(3));
  close(ratingOf(comparisons, "x"), middle + 400 * Math.log10(6));
  const chain = [...games("x", "y", 20, 10), ...games("y", "z", 30, 10)];
  close(ratingOf(chain, "x") - ratingOf(chain, "z"), 400 * Math.log10(6));
});

test("who wins everything has no likeliest rating: a tie more each keeps it finite, and it is said", () => {
  const { ratings, isShrunk } = bradleyTerry(games("x", "y", 12, 0), { rounds: 200 });
  assert(isShrunk);
  assert(ratings.every(({ rating, low, high }) => [rating, low, high].every(Number.isFinite)));
  // 24 σ(−2t) = 2σ(t) − 1 at the maximum
  const t = ((ratings[0]!.rating - 1000) / 400) * Math.LN10;
  close(24 / (1 + Math.exp(2 * t)), 2 / (1 + Math.exp(-t)) - 1, 1e-9);
  // A group that beats the rest, with games within both groups
  const groups = [...games("a", "b", 3, 2), ...games("c", "d", 4, 1), ...games("a", "c", 5, 0), ...games("b", "d", 5, 0)];
  const grouped = bradleyTerry(groups, { rounds: 20 });
  assert(grouped.isShrunk);
  assert.deepEqual(
    grouped.ratings.map(({ model }) => model),
    ["a", "b", "c", "d"],
  );
  assert(!bradleyTerry([...groups, ...games("d", "a", 1, 0)], { rounds: 0 }).isShrunk);
});

test("intervals hold the truth in about 95 of 100 experiments, and ranks are only as sure as they", () => {
  let [held, experiments] = [0, 100];
  for (let seed = 0; seed < experiments; seed++) {
    const wins = binomial(60, 0.64, seed);
    const { ratings } = bradleyTerry(games("x", "y", wins, 60 - wins), { rounds: 200, seed });
    const x = ratings.find(({ model }) => model === "x")!;
    const truth = 1000 + 200 * Math.log10(0.64 / 0.36);
    if (x.low <= truth && truth <= x.high) held++;
  }
  assert(held >= 88 && held <= 100, `${held}`);
  const sure = bradleyTerry([...games("x", "y", 90, 10), ...games("y", "z", 50, 50)], { rounds: 300 }).ratings;
  assert.deepEqual(
    sure.map(({ rank }) => rank),
    [1, 2, 2],
  );
  const unsure = bradleyTerry(games("x", "y", 6, 4), { rounds: 300 }).ratings;
  assert.deepEqual(
    unsure.map(({ rank }) => rank),
    [1, 1],
  );
  assert.deepEqual(bradleyTerry(games("x", "y", 6, 4)), bradleyTerry(games("x", "y", 6, 4)), "the same seed, the same intervals");
});

/** Mulberry32. */
function binomial(n: number, p: number, seed: number): number {
  let state = seed * 7919 + 1;
  let hits = 0;
  for (let i = 0; i < n; i++) {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    if (((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32 < p) hits++;
  }
  return hits;
}

test("comparisons of one prompt are drawn together: ten raters of one prompt are no ten prompts", () => {
  const alone = Array.from(
    { length: 100 },
    (_, i): Comparison => ({ a: "x", b: "y", winner: i % 10 < 6 ? "a" : "b", item: `${i}` }),
  );
  const tenfold = alone.map((each, i): Comparison => ({ ...each, winner: i < 60 ? "a" : "b", item: `${Math.floor(i / 10)}` }));
  const width = (comparisons: readonly Comparison[]) => {
    const [first] = bradleyTerry(comparisons, { rounds: 400 }).ratings;
    return first!.high - first!.low;
  };
  assert(width(tenfold) > 2 * width(alone));
});

test("a difference that decides is told as such, not as strength", () => {
  // Equally strong; the longer answer wins 3 of 4 times, and x's are longer 3 of 4 times.
  const longer = Array.from({ length: 400 }, (_, i): Comparison => {
    const isLonger = i % 4 !== 0;
    const longerWins = Math.floor(i / 4) % 4 !== 0;
    return { a: "x", b: "y", winner: isLonger === longerWins ? "a" : "b", covariates: [isLonger ? 1 : -1] };
  });
  const plain = bradleyTerry(
    longer.map(({ covariates: _, ...each }) => each),
    { rounds: 0 },
  );
  const controlled = bradleyTerry(longer, { rounds: 100 });
  assert(plain.ratings[0]!.rating - plain.ratings[1]!.rating > 80);
  assert(Math.abs(controlled.ratings[0]!.rating - 1000) < 1);
  assert(controlled.covariates[0]!.low > 0);
});

test("what cannot be rated is named", () => {
  const bad: [comparisons: Comparison[], message: RegExp][] = [
    [[], /there is no comparison/],
    [[...games("x", "y", 1, 1), ...games("p", "q", 1, 1)], /nobody compared p, q with x, y/],
    [games("x", "x", 1, 1), /"x" is compared with itself/],
    [
      [
        { a: "x", b: "y", winner: "a", covariates: [1] },
        { a: "x", b: "y", winner: "b" },
      ],
      /expected 1 covariates/,
    ],
    [[{ a: "x", b: "y", winner: "a", covariates: [Number.NaN] }], /finite/],
  ];
  for (const [comparisons, message] of bad)
    assert.throws(
      () => bradleyTerry(comparisons),
      (error) => error instanceof DataError && message.test(error.message),
    );
});

/** Made by test/fixtures/make_labels.py with FastChat's formula on scikit-learn, and with choix. */
const fixture = JSON.parse(readFileSync(new URL("../../../test/fixtures/labels.json", import.meta.url), "utf8")); // from dist/src/preference

test("ratings as FastChat's formula and choix give them, with style control, too", () => {
  for (const { comparisons, models, elo, covariates, choix } of fixture.bradleyTerry) {
    const found = bradleyTerry(comparisons, { rounds: 0 });
    for (const [i, model] of (models as string[]).entries()) {
      const { rating } = found.ratings.find((each) => each.model === model)!;
      close(rating, elo[i], 1e-3);
      if (choix !== undefined) close(rating, 1000 + (400 / Math.LN10) * choix[i], 1e-6);
    }
    for (const [i, coefficient] of (covariates as number[]).entries()) close(found.covariates[i]!.coefficient, coefficient, 1e-5);
  }
});
