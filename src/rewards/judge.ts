import { RewardError } from "../errors.js";
import type { Reward, RewardContext, RewardSample } from "./reward.js";

/** What rewards say of some answers. */
export interface Judgement {
  /** By reward, then by answer; null where it has nothing to say. */
  readonly scores: readonly (readonly (number | null)[])[];
  /** Σ weight · score of each answer, over the rewards that say something of it; null where none does. */
  readonly sums: readonly (number | null)[];
}

/** What the scores of one reward have shown so far, each told once. */
type Oddity = "missing" | "noNumber" | "constant";

/**
 * Asks rewards about answers, and adds them up. A score that is no finite number counts as missing; that one is missing, is no number, or is the same for
 * all answers is told once for each reward.
 * Source: TRL 1.16, GRPOTrainer (_calculate_rewards; None becomes NaN, and sums skip it).
 */
export class Judge {
  readonly rewards: readonly Reward[];
  readonly #warn: (message: string) => void;
  readonly #told = new Set<string>();

  constructor(rewards: readonly Reward[], warn: (message: string) => void) {
    this.rewards = rewards;
    this.#warn = warn;
  }

  /**
   * Throws what a reward throws; RewardError for a reward that gives too many scores or too few, and where no reward says anything of any answer; the
   * signal's reason.
   */
  async judge(samples: readonly RewardSample[], at: RewardContext): Promise<Judgement> {
    const scores: (number | null)[][] = [];
    for (const reward of this.rewards) {
      const said = await reward.score(samples, at);
      at.signal.throwIfAborted();
      if (said.length !== samples.length)
        throw new RewardError(`the reward ${reward.name} gave ${said.length} scores for ${samples.length} answers`);
      scores.push(this.#sorted(reward, said, samples));
    }
    const weights = this.rewards.map(({ weight }) => weight);
    const sums = samples.map((_, i) =>
      weightedSum(
        scores.map((of) => of[i]!),
        weights,
      ),
    );
    if (samples.length > 0 && sums.every((sum) => sum === null))
      throw new RewardError(
        `no reward says anything of any of ${samples.length} answers, the first ${samples[0]!.where}: there is nothing to learn from. Do the rows have the columns that the rewards read?`,
      );
    return { scores, sums };
  }

  /** The scores with null for those that are none, and what is odd told. */
  #sorted({ name }: Reward, said: readonly (number | null)[], samples: readonly RewardSample[]): (number | null)[] {
    const scores = said.map((score) => (score !== null && Number.isFinite(score) ? score : null));
    const all = samples.length;
    const bad = said.flatMap((score, i) => (score !== null && scores[i] === null ? [i] : []));
    const missing = said.flatMap((score, i) => (score === null ? [i] : []));
    if (bad.length > 0)
      this.#tell(
        name,
        "noNumber",
        `gave ${said[bad[0]!]} for ${bad.length} of ${all} answers, the first ${samples[bad[0]!]!.where}: these count as missing`,
      );
    if (missing.length > 0)
      this.#tell(
        name,
        "missing",
        `has nothing to say of ${missing.length} of ${all} answers, the first ${samples[missing[0]!]!.where}: their sums are of the other rewards`,
      );
    const known = scores.filter((score) => score !== null);
    if (known.length > 1 && known.every((score) => score === known[0]))
      this.#tell(
        name,
        "constant",
        `gave ${known[0]} to all of ${known.length} answers: nothing is learned from it until they differ`,
      );
    return scores;
  }

  #tell(name: string, oddity: Oddity, message: string): void {
    const key = `${oddity} ${name}`;
    if (this.#told.has(key)) return;
    this.#told.add(key);
    this.#warn(`the reward ${name} ${message} (told once; rewards/${name}/missing and rewards/${name}/std count on)`);
  }
}

function weightedSum(scores: readonly (number | null)[], weights: readonly number[]): number | null {
  if (scores.every((score) => score === null)) return null;
  return scores.reduce<number>((sum, score, i) => sum + (score === null ? 0 : weights[i]! * score), 0);
}

/** Metrics under TRL's names: of each reward the mean and the deviation of what it says, and the share of answers of which it says nothing. */
export function rewardMetrics(
  rewards: readonly Reward[],
  { scores, sums }: Judgement,
): Record<string, { readonly sum: number; readonly count: number }> {
  const entries = rewards.flatMap(({ name }, i) => {
    const known = scores[i]!.filter((score) => score !== null);
    return [
      [`rewards/${name}/mean`, { sum: sumOf(known), count: known.length }],
      [`rewards/${name}/std`, { sum: deviation(known), count: 1 }],
      [`rewards/${name}/missing`, { sum: scores[i]!.length - known.length, count: scores[i]!.length }],
    ] as const;
  });
  const known = sums.filter((sum) => sum !== null);
  return {
    reward: { sum: sumOf(known), count: known.length },
    reward_std: { sum: deviation(known), count: 1 },
    ...Object.fromEntries(entries),
  };
}

/**
 * Advantages where each reward is normalized before they are summed, so that one of a wide range does not drown the others (GDPO): within the answers to
 * one prompt to (score − mean) / (std + 1e-4), then weighted and summed, then so normalized over all answers. Answers of which no reward says anything
 * get 0. Standard deviations with Bessel's correction.
 * Source: TRL 1.16, GRPOTrainer, `multi_objective_aggregation: normalize_then_sum`; Liu et al. 2026 (GDPO).
 */
export function normalizeThenSum({ scores }: Pick<Judgement, "scores">, weights: readonly number[], groupSize: number): number[] {
  const normalized = scores.map((of) => {
    const groups = Array.from({ length: Math.ceil(of.length / groupSize) }, (_, g) =>
      of.slice(g * groupSize, (g + 1) * groupSize),
    );
    return groups.flatMap(standardized);
  });
  const answers = scores[0]?.length ?? 0;
  const sums = Array.from({ length: answers }, (_, i) =>
    weightedSum(
      normalized.map((of) => of[i]!),
      weights,
    ),
  );
  return standardized(sums).map((advantage) => advantage ?? 0);
}

/** (value − mean) / (std + 1e-4), over those that are there; 0 where they are all the same, but for what rounding left. */
function standardized(values: readonly (number | null)[]): (number | null)[] {
  const known = values.filter((value) => value !== null);
  const mean = sumOf(known) / known.length;
  const std = deviation(known);
  const isFlat = std <= 1e-8 * Math.max(1, ...known.map(Math.abs));
  return values.map((value) => (value === null ? null : isFlat ? 0 : (value - mean) / (std + 1e-4)));
}

export const sumOf = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);

/** The standard deviation with Bessel's correction; 0 of less than two. */
export function deviation(values: readonly number[]): number {
  if (values.length < 2) return 0;
  const mean = sumOf(values) / values.length;
  return Math.sqrt(sumOf(values.map((value) => (value - mean) ** 2)) / (values.length - 1));
}
