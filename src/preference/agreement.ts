/** One rating of each item by one rater; null where there is none. */
export type Ratings<Category> = readonly (Category | null)[];

/** A share of cases, and the interval of 95 % around it (Wilson). */
export interface Share {
  readonly hits: number;
  readonly of: number;
  /** NaN where there is no case. */
  readonly share: number;
  readonly low: number;
  readonly high: number;
}

/**
 * A share with the interval that holds the true one in 95 of 100 samples.
 * Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; z = 1.96 as in statsmodels' proportion_confint.
 */
export function shareOf(hits: number, of: number): Share {
  if (of === 0) return { hits, of, share: Number.NaN, low: 0, high: 1 };
  const z = 1.959963984540054;
  const share = hits / of;
  const centre = (share + z ** 2 / (2 * of)) / (1 + z ** 2 / of);
  const half = (z / (1 + z ** 2 / of)) * Math.sqrt((share * (1 - share)) / of + z ** 2 / (4 * of ** 2));
  return { hits, of, share, low: Math.max(0, centre - half), high: Math.min(1, centre + half) };
}

/**
 * How often two raters say the same, over all pairs of raters and all items that both have rated. `ignored` leaves out pairs in which either says so: raw
 * agreement "without ties". Source: FastChat, llm_judge/compute_agreement.py. `raters` (raters, items).
 */
export function rawAgreement<Category>(
  raters: readonly Ratings<Category>[],
  { ignored = () => false }: { ignored?: (category: Category) => boolean } = {},
): Share {
  let [hits, of] = [0, 0];
  for (let first = 0; first < raters.length; first++)
    for (let second = first + 1; second < raters.length; second++)
      for (const [one, other] of pairsOf(raters[first]!, raters[second]!)) {
        if (ignored(one) || ignored(other)) continue;
        of++;
        if (one === other) hits++;
      }
  return shareOf(hits, of);
}

/**
 * Cohen's κ = (p_o − p_e) / (1 − p_e) of two raters, over the items that both have rated: p_o is how often they agree, p_e how often they would by chance,
 * each with his own shares of the categories. 1: always the same, 0: as by chance. NaN where neither ever says but one thing, or nothing.
 * Source: Cohen 1960, "A coefficient of agreement for nominal scales".
 */
export function cohenKappa<Category>(first: Ratings<Category>, second: Ratings<Category>): number {
  const pairs = pairsOf(first, second);
  const ones = countsOf(pairs.map(([one]) => one));
  const others = countsOf(pairs.map(([, other]) => other));
  const observed = pairs.filter(([one, other]) => one === other).length / pairs.length;
  let expected = 0;
  for (const [category, count] of ones) expected += (count / pairs.length) * ((others.get(category) ?? 0) / pairs.length);
  return kappa(observed, expected);
}

/**
 * Fleiss' κ of any number of raters, of whom each item has equally many, the same ones or not: p_o is the share of agreeing pairs of ratings of an item,
 * p_e = Σ p_j², with p_j the share of category j in all ratings. NaN where only one thing is ever said.
 * Source: Fleiss 1971, "Measuring nominal scale agreement among many raters". `raters` (raters, items); items with other than the most common number of
 * ratings are left out, and `items` says how many were not.
 */
export function fleissKappa<Category>(raters: readonly Ratings<Category>[]): {
  readonly kappa: number;
  readonly items: number;
  readonly ratings: number;
} {
  const items = unitsOf(raters).filter((unit) => unit.length >= 2);
  const sizes = [...countsOf(items.map((unit) => unit.length))].sort(([, one], [, other]) => other - one);
  const [ratings] = sizes[0] ?? [0];
  const rated = items.filter((unit) => unit.length === ratings);
  let observed = 0;
  for (const unit of rated) {
    let agreeing = 0;
    for (const count of countsOf(unit).values()) agreeing += count * (count - 1);
    observed += agreeing / (ratings * (ratings - 1)) / rated.length;
  }
  let expected = 0;
  for (const count of countsOf(rated.flat()).values()) expected += (count / (rated.length * ratings)) ** 2;
  return { kappa: rated.length === 0 ? Number.NaN : kappa(observed, expected), items: rated.length, ratings };
}

/**
 * Krippendorff's α = 1 − D_o / D_e for categories without an order (nominal), of any number of raters with any ratings missing: D_o is how often two ratings
 * of one item differ, D_e how often two ratings of any items do. Items with one rating do not count. 0.8 is held for reliable, below 0.667 for too little
 * to conclude from. NaN where only one thing is ever said. `raters` (raters, items).
 * Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C and D.
 */
export function krippendorffAlpha<Category>(raters: readonly Ratings<Category>[]): number {
  const units = unitsOf(raters).filter((unit) => unit.length >= 2);
  const totals = countsOf(units.flat());
  const ratings = units.flat().length;
  let [observed, expected] = [0, 0];
  for (const unit of units)
    for (const count of countsOf(unit).values()) observed += (count * (unit.length - count)) / (unit.length - 1);
  for (const count of totals.values()) expected += (count * (ratings - count)) / (ratings - 1);
  return expected === 0 ? Number.NaN : 1 - observed / expected;
}

/** NaN where chance alone would always agree: nothing can be said of how much better than chance somebody is. */
function kappa(observed: number, expected: number): number {
  return 1 - expected < 1e-12 ? Number.NaN : (observed - expected) / (1 - expected);
}

/** The ratings of the items that both have rated. */
function pairsOf<Category>(first: Ratings<Category>, second: Ratings<Category>): [Category, Category][] {
  return first.flatMap((one, i) => {
    const other = second[i] ?? null;
    return one === null || other === null ? [] : [[one, other] as [Category, Category]];
  });
}

/** The ratings of each item. */
function unitsOf<Category>(raters: readonly Ratings<Category>[]): Category[][] {
  const items = Math.max(0, ...raters.map(({ length }) => length));
  return Array.from({ length: items }, (_, i) => raters.flatMap((ratings) => ratings[i] ?? []) as Category[]);
}

function countsOf<Category>(ratings: readonly Category[]): Map<Category, number> {
  const counts = new Map<Category, number>();
  for (const category of ratings) counts.set(category, (counts.get(category) ?? 0) + 1);
  return counts;
}
