import { Rng } from "../core/rng.js";
import { DataError } from "../errors.js";

/** Two models answered one prompt, and somebody said whose answer is better. */
export interface Comparison {
  readonly a: string;
  readonly b: string;
  /** A tie is half a win for each. */
  readonly winner: "a" | "b" | "tie";
  /** What the comparison is about, such as a prompt: comparisons of one thing are drawn together in the bootstrap, as they are not independent. */
  readonly item?: string;
  /**
   * What else may have decided, as differences between a's answer and b's, such as how much longer it is: as many numbers in every comparison. The ratings
   * are then those that remain when both answers are alike in these (style control).
   */
  readonly covariates?: readonly number[];
}

/** A model's strength, on Elo's scale: 400 points more are odds of ten to one. The mean of all models is 1000. */
export interface ModelRating {
  readonly model: string;
  readonly rating: number;
  /** The interval that holds 95 of 100 bootstrapped ratings. */
  readonly low: number;
  readonly high: number;
  /** 1 and the number of models that are better for certain: whose interval lies above this one's. */
  readonly rank: number;
  /** With a tie as half a win. */
  readonly wins: number;
  readonly comparisons: number;
}

/** What `bradleyTerry` finds. */
export interface Ranking {
  /** The best first. */
  readonly ratings: readonly ModelRating[];
  /** Of each covariate, the change of log-odds for a standard deviation of it, and its interval. */
  readonly covariates: readonly { readonly coefficient: number; readonly low: number; readonly high: number }[];
  /**
   * Some models win, or lose, every comparison with the others, so that no finite rating is the likeliest. The ratings are then those with one tie more for
   * each model, against an imaginary one of 1000.
   */
  readonly isShrunk: boolean;
}

/** Points for a unit of log-odds. */
const scale = 400 / Math.LN10;

/**
 * Ratings of models by the Bradley–Terry model: P(a beats b) = σ(θ_a − θ_b + β·z), by maximum likelihood, with a tie as half a win for each.
 * Elo's scale: 400 / ln 10 · θ + 1000, with mean θ = 0. Intervals are the 2.5 and 97.5 % quantiles of `rounds` bootstrapped ratings.
 *
 * Source: Bradley & Terry 1952, "Rank analysis of incomplete block designs"; FastChat, monitor/elo_analysis.py (compute_elo_mle_with_tie, scale and rank;
 * style control: covariates beside the models, divided by their standard deviation). We differ where the likeliest ratings are infinite (Ford 1957: a group
 * of models wins every comparison with the rest): FastChat stops at some large number, we add a tie a model and say so (`isShrunk`).
 * Throws DataError where there is nothing to compare, or groups of models were never compared with each other.
 */
export function bradleyTerry(
  comparisons: readonly Comparison[],
  { rounds = 1000, seed = 0 }: { rounds?: number; seed?: number } = {},
): Ranking {
  if (comparisons.length === 0) throw new DataError("Bradley–Terry: there is no comparison between two models");
  const models = [...new Set(comparisons.flatMap(({ a, b }) => [a, b]))].sort();
  const games = gamesOf(comparisons, models);
  const groups = groupsOf(games, models.length);
  if (Math.max(...groups) > 0) {
    const group = (of: number) => models.filter((_, i) => groups[i] === of).join(", ");
    throw new DataError(`Bradley–Terry: nobody compared ${group(0)} with ${group(1)}, so they cannot stand in one ranking`);
  }

  const { theta, beta, isShrunk } = fit(games, models.length);
  const drawn = Array.from(bootstrap(comparisons, rounds, seed), (sample) =>
    fit(gamesOf(sample, models, games.deviations), models.length),
  );
  const interval = (values: readonly number[]) => {
    const sorted = [...values].sort((one, other) => one - other);
    return sorted.length === 0 ? [Number.NaN, Number.NaN] : [quantile(sorted, 0.025), quantile(sorted, 0.975)];
  };
  const points = (value: number) => scale * value + 1000;
  const rated = models.map((model, i) => {
    const [low, high] = interval(drawn.map((each) => points(each.theta[i]!)));
    let [wins, count] = [0, 0];
    for (const { a, b, forA, forB } of games.list) {
      if (a === i) wins += forA;
      if (b === i) wins += forB;
      if (a === i || b === i) count += forA + forB;
    }
    return { model, rating: points(theta[i]!), low: low!, high: high!, wins, comparisons: count };
  });
  const ranked = rated.map((each) => ({ ...each, rank: 1 + rated.filter(({ low }) => low > each.high).length }));
  return {
    ratings: ranked.sort((one, other) => other.rating - one.rating || (one.model < other.model ? -1 : 1)),
    covariates: beta.map((coefficient, i) => {
      const [low, high] = interval(drawn.map((each) => each.beta[i]!));
      return { coefficient, low: low!, high: high! };
    }),
    isShrunk,
  };
}

/** Comparisons of the same models with the same covariates, added up. */
interface Game {
  readonly a: number;
  readonly b: number;
  readonly z: readonly number[];
  forA: number;
  forB: number;
}

interface Games {
  readonly list: readonly Game[];
  readonly covariates: number;
  /** By what each covariate was divided. */
  readonly deviations: readonly number[];
}

function gamesOf(comparisons: readonly Comparison[], models: readonly string[], given?: readonly number[]): Games {
  const covariates = comparisons[0]?.covariates?.length ?? 0;
  for (const { covariates: z = [] } of comparisons)
    if (z.length !== covariates || !z.every(Number.isFinite))
      throw new DataError(
        `Bradley–Terry: expected ${covariates} covariates, finite numbers, in every comparison, got [${z.join(", ")}]`,
      );
  const deviations =
    given ??
    Array.from({ length: covariates }, (_, i) => {
      const values = comparisons.map((each) => each.covariates![i]!);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length) || 1;
    });
  const indexOf = new Map(models.map((model, i) => [model, i]));
  const list = new Map<string, Game>();
  for (const { a, b, winner, covariates: z = [] } of comparisons) {
    if (a === b) throw new DataError(`Bradley–Terry: ${JSON.stringify(a)} is compared with itself`);
    const key = JSON.stringify([a, b, ...z]);
    const scaled = z.map((value, i) => value / deviations[i]!);
    const game = list.get(key) ?? { a: indexOf.get(a)!, b: indexOf.get(b)!, z: scaled, forA: 0, forB: 0 };
    list.set(key, game);
    game.forA += winner === "a" ? 1 : winner === "tie" ? 0.5 : 0;
    game.forB += winner === "b" ? 1 : winner === "tie" ? 0.5 : 0;
  }
  return { list: [...list.values()], covariates, deviations };
}

/** A number for each model: the same where a chain of comparisons joins them. */
function groupsOf({ list }: Games, models: number): number[] {
  const group = Array.from({ length: models }, () => -1);
  let count = 0;
  for (let first = 0; first < models; first++) {
    if (group[first]! >= 0) continue;
    for (const model of reachedFrom(
      first,
      list.flatMap(({ a, b }) => [[a, b] as const, [b, a] as const]),
    ))
      group[model] = count;
    count++;
  }
  return group;
}

function reachedFrom(start: number, edges: readonly (readonly [from: number, to: number])[]): Set<number> {
  const reached = new Set([start]);
  for (const each of reached) for (const [from, to] of edges) if (from === each) reached.add(to);
  return reached;
}

interface Fit {
  readonly theta: readonly number[];
  readonly beta: readonly number[];
  readonly isShrunk: boolean;
}

/** The likeliest θ and β, or, where none is finite, those with a tie more for each model. */
function fit(games: Games, models: number): Fit {
  const size = models + games.covariates;
  const likeliest = isSeparable(games, models) ? undefined : maximum(games, models, 0);
  const found = likeliest ?? maximum(games, models, 1) ?? new Array<number>(size).fill(0);
  return { theta: found.slice(0, models), beta: found.slice(models), isShrunk: likeliest === undefined };
}

/** Ford's condition: from every model a chain of wins, or ties, leads to every other; else some differences are infinite. */
function isSeparable({ list }: Games, models: number): boolean {
  const wins = list.flatMap(({ a, b, forA, forB }) => [
    ...(forA > 0 ? [[a, b] as const] : []),
    ...(forB > 0 ? [[b, a] as const] : []),
  ]);
  const losses = wins.map(([from, to]) => [to, from] as const);
  return reachedFrom(0, wins).size < models || reachedFrom(0, losses).size < models;
}

/**
 * Newton's method on the log-likelihood, which is concave, with halved steps where a whole one would not climb. Undefined where it does not end at a maximum:
 * covariates, too, can decide everything. `ties`: so many more for each model, against an imaginary one of θ = 0; the covariates then get a prior N(0, 1 / ties).
 */
function maximum({ list, covariates }: Games, models: number, ties: number): number[] | undefined {
  const size = models + covariates;
  const likelihood = (x: readonly number[]): number => {
    let sum = 0;
    for (const { a, b, z, forA, forB } of list) {
      const margin = x[a]! - x[b]! + z.reduce((total, value, i) => total + value * x[models + i]!, 0);
      sum += forA * logSigmoid(margin) + forB * logSigmoid(-margin);
    }
    for (let i = 0; i < models; i++) sum += (ties / 2) * (logSigmoid(x[i]!) + logSigmoid(-x[i]!));
    for (let i = models; i < size; i++) sum -= (ties / 2) * x[i]! ** 2;
    return sum;
  };
  let x = new Array<number>(size).fill(0);
  let value = likelihood(x);
  for (let iteration = 0; iteration < 100; iteration++) {
    const gradient = new Float64Array(size);
    const curvature = Array.from({ length: size }, () => new Float64Array(size));
    // Only differences count: this holds the mean of θ at 0 and leaves all else alone.
    for (let i = 0; i < models; i++) curvature[i]!.fill(ties === 0 ? 1 / models : 0, 0, models);
    for (const { a, b, z, forA, forB } of list) {
      const entries: [at: number, by: number][] = [[a, 1], [b, -1], ...z.map((by, i): [number, number] => [models + i, by])];
      const margin = entries.reduce((sum, [at, by]) => sum + by * x[at]!, 0);
      const p = 1 / (1 + Math.exp(-margin));
      const slope = forA * (1 - p) - forB * p;
      const bend = (forA + forB) * p * (1 - p);
      for (const [i, byI] of entries) {
        gradient[i]! += slope * byI;
        for (const [j, byJ] of entries) curvature[i]![j]! += bend * byI * byJ;
      }
    }
    for (let i = 0; i < models; i++) {
      const p = 1 / (1 + Math.exp(-x[i]!));
      gradient[i]! += ties * (0.5 - p);
      curvature[i]![i]! += ties * p * (1 - p);
    }
    for (let i = models; i < size; i++) {
      gradient[i]! -= ties * x[i]!;
      curvature[i]![i]! += ties;
    }
    const step = solve(curvature, gradient);
    if (step === undefined) return undefined;
    let length = 1;
    const moved = () => x.map((each, i) => each + length * step[i]!);
    while (length > 1e-6 && !(likelihood(moved()) >= value)) length /= 2;
    if (length <= 1e-6) return x; // as high as numbers tell
    x = moved();
    value = likelihood(x);
    if (Math.max(...x.map(Math.abs)) > 30) return undefined; // odds of e³⁰: it runs to infinity
    if (Math.max(...step.map(Math.abs)) < 1e-10) return x;
  }
  return undefined;
}

/** log σ(x), exact where σ(x) is almost 0 or 1. */
function logSigmoid(x: number): number {
  return Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
}

/** x of A x = b by elimination with pivots; undefined where A is singular. */
function solve(matrix: readonly Float64Array[], right: Float64Array): number[] | undefined {
  const a = matrix.map((row, i) => Float64Array.of(...row, right[i]!));
  const size = a.length;
  for (let column = 0; column < size; column++) {
    let pivot = column;
    for (let row = column + 1; row < size; row++) if (Math.abs(a[row]![column]!) > Math.abs(a[pivot]![column]!)) pivot = row;
    if (Math.abs(a[pivot]![column]!) < 1e-12) return undefined;
    [a[column], a[pivot]] = [a[pivot]!, a[column]!];
    for (let row = 0; row < size; row++) {
      if (row === column) continue;
      const factor = a[row]![column]! / a[column]![column]!;
      if (factor !== 0) for (let k = column; k <= size; k++) a[row]![k]! -= factor * a[column]![k]!;
    }
  }
  return a.map((row, i) => row[size]! / row[i]!);
}

/** Samples with replacement, as large as the original, in which comparisons of one item come together. */
function* bootstrap(comparisons: readonly Comparison[], rounds: number, seed: number): Generator<Comparison[]> {
  const items = new Map<string, Comparison[]>();
  for (const [i, comparison] of comparisons.entries()) {
    const key = comparison.item === undefined ? `#${i}` : `=${comparison.item}`;
    const together = items.get(key) ?? [];
    together.push(comparison);
    items.set(key, together);
  }
  const list = [...items.values()];
  const rng = Rng.for(seed, "bradley-terry");
  for (let round = 0; round < rounds; round++) yield list.flatMap(() => list[rng.below(list.length)]!);
}

/** Linear between the two nearest, as NumPy's default. */
function quantile(sorted: readonly number[], q: number): number {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low]! + (at - low) * ((sorted[low + 1] ?? sorted[low]!) - sorted[low]!);
}
