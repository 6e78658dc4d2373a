import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { cohenKappa, fleissKappa, krippendorffAlpha, type Ratings, rawAgreement, shareOf } from "./agreement.js";

const close = (actual: number, expected: number, within = 1e-12) =>
  assert(Math.abs(actual - expected) <= within, `${actual} is not ${expected}`);

/** A rater's row as it is printed in tables: a character for each item, `.` where there is none. */
const rater = (text: string): Ratings<string> => [...text.replaceAll(" ", "")].map((each) => (each === "." ? null : each));

/** Two raters from a table of counts: rows are what the first said, columns the second. */
function tabled(counts: readonly (readonly number[])[]): [Ratings<number>, Ratings<number>] {
  const pairs = counts.flatMap((row, i) => row.flatMap((count, j) => Array.from({ length: count }, () => [i, j] as const)));
  return [pairs.map(([one]) => one), pairs.map(([, other]) => other)];
}

test("Cohen's kappa against tables that one can check by hand", () => {
  // 20 + 15 of 50 agree: p_o = 0.7; p_e = 0.5 · 0.6 + 0.5 · 0.4 = 0.5
  close(
    cohenKappa(
      ...tabled([
        [20, 5],
        [10, 15],
      ]),
    ),
    0.4,
  );
  // The same p_o = 0.6 with other shares (Wikipedia, "Cohen's kappa"): 0.1304 and 0.2593
  close(
    cohenKappa(
      ...tabled([
        [45, 15],
        [25, 15],
      ]),
    ),
    6 / 46,
  );
  close(
    cohenKappa(
      ...tabled([
        [25, 35],
        [5, 35],
      ]),
    ),
    14 / 54,
  );
  close(
    cohenKappa(
      ...tabled([
        [30, 0],
        [0, 20],
      ]),
    ),
    1,
  );
  close(
    cohenKappa(
      ...tabled([
        [0, 25],
        [25, 0],
      ]),
    ),
    -1,
  );
  assert(
    Number.isNaN(
      cohenKappa(
        ...tabled([
          [9, 0],
          [0, 0],
        ]),
      ),
    ),
    "both always say the same: chance would, too",
  );
  assert(Number.isNaN(cohenKappa([null, 1], [1, null])), "no item in common");
  close(cohenKappa(rater("aabb."), rater("aabb b")), 1);
});

test("Fleiss' kappa of the worked example, 10 subjects and 14 raters: 0.210", () => {
  const counts = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
  ];
  const items = counts.map((row) => row.flatMap((count, category) => Array.from({ length: count }, () => category)));
  const raters = Array.from({ length: 14 }, (_, i) => items.map((item) => item[i]!));
  const found = fleissKappa(raters);
  assert.deepEqual([found.items, found.ratings], [10, 14]);
  close(found.kappa, 0.21, 5e-4);
  // p_o = 0.378, p_e = 0.213 by hand
  close(found.kappa, (0.37802197802 - 0.21275510204) / (1 - 0.21275510204), 1e-9);

  raters[3]![4] = null!;
  assert.equal(fleissKappa(raters).items, 9, "an item with a rating less is left out");
  assert(Number.isNaN(fleissKappa([rater("aaa"), rater("aaa")]).kappa));
  assert(Number.isNaN(fleissKappa([]).kappa));
});

test("Krippendorff's alpha of his published examples", () => {
  // Krippendorff 2011, A: binary data, two observers
  close(krippendorffAlpha([rater("0100000010"), rater("1110010000")]), 0.095, 5e-4);
  // B: nominal data, two observers
  close(krippendorffAlpha([rater("aabbdcccedda"), rater("babbbcccedd d")]), 0.692, 5e-4);
  // C: nominal data, four observers, missing values
  const c = [rater("123321412..."), rater("12332241 25.3"), rater(".33323422 51."), rater("12332441 251.")];
  close(krippendorffAlpha(c), 0.743, 5e-4);
  // Hayes & Krippendorff's three coders of fifteen units (Wikipedia, "Krippendorff's alpha")
  close(krippendorffAlpha([rater(".....34121133.3"), rater("1.213343......."), rater("..21344.21133.4")]), 0.691, 5e-4);

  close(krippendorffAlpha([rater("abab"), rater("abab")]), 1);
  assert(Number.isNaN(krippendorffAlpha([rater("aaaa"), rater("aaaa")])), "nobody ever says anything else");
  assert(Number.isNaN(krippendorffAlpha([rater("a..."), rater(".b..")])), "no item has two ratings");
});

test("raw agreement with and without ties", () => {
  const raters = [rater("aabbtt."), rater("aabatb a"), rater("a......")];
  const all = rawAgreement(raters);
  assert.deepEqual([all.hits, all.of], [6, 8]); // 4 of 6 of the first two, and 1 of 1 twice with the third
  const decided = rawAgreement(raters, { ignored: (category) => category === "t" });
  assert.deepEqual([decided.hits, decided.of], [5, 6]);
  assert(Number.isNaN(rawAgreement([raters[0]!]).share));
});

/** Made by test/fixtures/make_labels.py with scikit-learn, statsmodels and krippendorff. */
const fixture = JSON.parse(readFileSync(new URL("../../../test/fixtures/labels.json", import.meta.url), "utf8")); // from dist/src/preference

test("agreement and Wilson's interval as scikit-learn, statsmodels and krippendorff compute them", () => {
  for (const { raters, cohen, fleiss, fleissItems, krippendorff } of fixture.agreement) {
    close(cohenKappa(raters[0], raters[1]), cohen);
    const found = fleissKappa(raters.map((row: (string | null)[]) => row.map((each, i) => (isWhole(raters, i) ? each : null))));
    assert.equal(found.items, fleissItems);
    close(found.kappa, fleiss);
    close(krippendorffAlpha(raters), krippendorff);
  }
  for (const [hits, of, low, high] of fixture.wilson) {
    const share = shareOf(hits, of);
    close(share.low, low);
    close(share.high, high);
  }
});

function isWhole(raters: readonly (readonly (string | null)[])[], item: number): boolean {
  return raters.every((row) => row[item] !== null);
}
