import { z } from "zod";
import { CheckpointError } from "../../errors.js";
import type { TaskState, Total } from "../objective.js";
import type { Answer, Answered } from "./rollout.js";

/** What a run of a policy watches, and what follows where something is not as it should be. */
export const healthKeys = {
  on_unhealthy: z
    .enum(["warn", "back_off", "stop"])
    .default("warn")
    .describe(
      "what follows where the policy shows signs of going wrong (the notes below name them): warn tells; back_off also makes the KL divergence cost half as much again each round until they are gone; stop ends the run",
    ),
  sample_steps: z
    .int()
    .min(1)
    .nullable()
    .default(null)
    .describe(
      "write answers to a few held-out prompts to `samples.jsonl` every so many steps; not set: with each evaluation only",
    ),
};

export interface HealthSettings {
  readonly on_unhealthy: "warn" | "back_off" | "stop";
}

/**
 * The bounds. Sources: Axolotl, docs/training_stability.qmd (KL divergence, clip share, cut answers, flat groups); TRL 0.9.6 (mean KL below −1); Cui et al. 2025
 * (entropy falls in healthy runs, too: only relative to the start it says something); Singhal et al. 2023 (reward gain within length buckets).
 */
const bounds = {
  klPerToken: 2,
  negativeKlPerAnswer: -1,
  entropyShare: 0.1,
  clipShare: 0.3,
  cutShare: 0.8,
  flatShare: 0.8,
  repetition: 0.5,
  gainShare: 0.2,
} as const;

/** Rounds in a row that something has to hold before it is a sign: one alone may be chance. */
const patience = 3;
/** Answers that the start is measured on, and that the present is. */
const windowed = 64;

const Bucket = z.strictObject({ sum: z.number(), squares: z.number(), count: z.number() });
const Buckets = z.record(z.string(), Bucket);
type Buckets = z.output<typeof Buckets>;

const State = z.strictObject({
  factor: z.number().min(1),
  /** Rounds in a row that each sign has been seen. */
  seen: z.record(z.string(), z.number()),
  startEntropy: z.number().nullable(),
  startRepetition: z.number().nullable(),
  /** Rewards by length: of the first answers, and of the latest. */
  start: Buckets,
  latest: Buckets,
  fall: z.strictObject({
    first: Buckets.nullable(),
    /** Scores of each held-out prompt where the present fall began, and in the last evaluation. */
    from: z.array(z.number().nullable()).nullable(),
    last: z.array(z.number().nullable()).nullable(),
    count: z.int(),
  }),
  why: z.string().nullable(),
});
type State = z.output<typeof State>;

const beginning: State = {
  ...{ factor: 1, seen: {}, startEntropy: null, startRepetition: null, start: {}, latest: {} },
  fall: { first: null, from: null, last: null, count: 0 },
  why: null,
};

/** What a round tells of itself: answers, metrics of the roll-out, and of the steps before it. */
export interface RoundFindings {
  readonly answered: readonly Answered[];
  readonly metrics: Readonly<Record<string, Total>>;
}

/** Watches a policy while it learns. What it remembers goes into checkpoints, so that a resumed run stops where an uninterrupted one does. */
export class Health {
  readonly #settings: HealthSettings;
  readonly #warn: (message: string) => void;
  #state = beginning;
  /** Shares of clipped tokens in the steps since the last roll-out. */
  #clipped = { sum: 0, count: 0 };
  #entropy = { sum: 0, count: 0 };
  #kl = { sum: 0, count: 0 };

  constructor(settings: HealthSettings, warn: (message: string) => void) {
    this.#settings = settings;
    this.#warn = warn;
  }

  /** What the weight of the KL divergence is multiplied by. */
  get factor(): number {
    return this.#state.factor;
  }

  /** Why the run should end; null if it should not. */
  whyStop(): string | null {
    return this.#state.why;
  }

  /** Forgets what was seen before the first round: the step on shapes by which memory is estimated. */
  begin(): void {
    this.#clipped = this.#entropy = this.#kl = { sum: 0, count: 0 };
  }

  /** Takes in what a step told of its tokens. */
  step(metrics: Readonly<Record<string, Total>>): void {
    this.#clipped = plus(this.#clipped, metrics["clip_ratio/region_mean"]);
    this.#entropy = plus(this.#entropy, metrics.entropy);
    this.#kl = plus(this.#kl, metrics.kl);
  }

  /** Looks at a round; what it returns is to be called once the round is taken. Metrics of its own are added to the round's. */
  round({ answered, metrics }: RoundFindings): { metrics: Record<string, Total>; taken(): void } {
    const answers = answered.flatMap((one) => one.answers);
    const mean = (name: string) => (metrics[name] === undefined ? null : metrics[name].sum / metrics[name].count);
    const repetition = repeated(answers);
    const entropy = meanOf(this.#entropy);
    const before = this.#state;
    const isStart = countOf(before.start) < windowed;
    const ofRound = bucketsOf(answers);
    const start = isStart ? merged(before.start, ofRound) : before.start;
    const latest = isStart ? {} : newest(before.latest, ofRound);
    const startEntropy = before.startEntropy ?? entropy;
    const startRepetition = before.startRepetition ?? repetition;
    const gain = gainWithin(start, latest);

    const [kl, perAnswer, clipped] = [mean("kl") ?? meanOf(this.#kl), mean("kl_per_answer"), meanOf(this.#clipped)];
    const [cut, flat] = [mean("completions/clipped_ratio"), mean("frac_reward_zero_std")];
    const signs: Record<string, string | null> = {
      kl: over(kl, bounds.klPerToken, (x) => `the KL divergence from the reference is ${x} nats per token`),
      negative_kl: under(
        perAnswer,
        bounds.negativeKlPerAnswer,
        (x) => `the mean of log π − log π_ref is ${x} nats per answer: the policy exploits how it is estimated`,
      ),
      entropy: under(
        entropy !== null && startEntropy !== null ? entropy / startEntropy : null,
        bounds.entropyShare,
        (x) => `the entropy of answers is ${x} of what it was at the start: they are nearly always the same`,
      ),
      clip: over(clipped, bounds.clipShare, (x) => `${x} of the tokens of a step are clipped: steps are too large`),
      cut: over(cut, bounds.cutShare, (x) => `${x} of the answers are cut at max_new_tokens`),
      flat: over(flat, bounds.flatShare, (x) => `in ${x} of the groups all rewards are the same: nothing is learned from them`),
      repetition: over(
        repetition > 2 * startRepetition ? repetition : null,
        bounds.repetition,
        (x) => `${x} of what answers say they have said before, in fours of tokens`,
      ),
      length: under(
        gain,
        bounds.gainShare,
        (x) => `only ${x} of the reward's gain is there among answers of like length: the rest is length`,
      ),
    };
    const seen = Object.fromEntries(
      Object.entries(signs).map(([name, sign]) => [name, sign === null ? 0 : (before.seen[name] ?? 0) + 1]),
    );
    const present = Object.entries(signs).filter(([name]) => seen[name]! >= patience);
    return {
      metrics: {
        "health/repetition": { sum: repetition, count: 1 },
        ...(gain !== null && { "health/gain_within_lengths": { sum: gain, count: 1 } }),
        ...(before.factor !== 1 && { "health/kl_factor": { sum: before.factor, count: 1 } }),
      },
      taken: () => {
        this.#clipped = this.#entropy = this.#kl = { sum: 0, count: 0 };
        const { on_unhealthy: what } = this.#settings;
        const fresh = present.filter(([name]) => seen[name] === patience).map(([, sign]) => sign);
        for (const sign of fresh) this.#warn(`${sign}, for ${patience} rounds in a row. ${consequences[what]}`);
        const isUnhealthy = present.length > 0;
        const factor = what === "back_off" ? (isUnhealthy ? Math.min(before.factor * 1.5, 100) : 1) : 1;
        const why = what === "stop" && isUnhealthy ? present.map(([, sign]) => sign).join("; ") : this.#state.why;
        this.#state = { ...this.#state, seen, startEntropy, startRepetition, start, latest, factor, why };
      },
    };
  }

  /**
   * Looks at an evaluation: the scores of held-out prompts by rewards that the policy does not learn from, if there are such; else the reward of each answer
   * less what answers of its length had in the first evaluation.
   */
  evaluated(answers: readonly Answer[], gold: readonly (number | null)[] | null): void {
    const { first, from, last, count } = this.#state.fall;
    const base = first ?? bucketsOf(answers);
    const scores = gold ?? answers.map((answer) => (answer.reward === null ? null : answer.reward - usual(base, answer)));
    const isFall = last !== null && last.length === scores.length && compare(scores, last).mean < 0;
    const began = isFall ? (count === 0 ? last : from) : null;
    const falls = isFall ? count + 1 : 0;
    const { mean, error } = began === null ? { mean: 0, error: 0 } : compare(scores, began);
    const isSure = falls >= 3 && mean < -2 * error && mean < 0;
    const what =
      gold === null
        ? "the reward of held-out answers, held against others of their length,"
        : "the gold reward of held-out answers";
    const why = `${what} has fallen in ${falls} evaluations in a row, by ${shown(-mean)} (standard error ${shown(error)}): what is learned is the proxy, no longer what it stands for`;
    if (isSure && this.#settings.on_unhealthy !== "stop") this.#warn(`${why}. ${consequences[this.#settings.on_unhealthy]}`);
    this.#state = {
      ...this.#state,
      ...(isSure && this.#settings.on_unhealthy === "stop" && { why }),
      ...(isSure && this.#settings.on_unhealthy === "back_off" && { factor: Math.min(this.#state.factor * 1.5, 100) }),
      fall: { first: base, from: began, last: [...scores], count: falls },
    };
  }

  readonly state: TaskState = {
    save: () => ({ ...this.#state, clipped: this.#clipped, entropy: this.#entropy, kl: this.#kl }),
    load: (saved) => {
      const total = z.strictObject({ sum: z.number(), count: z.number() });
      const { data, error } = State.extend({ clipped: total, entropy: total, kl: total }).safeParse(saved);
      if (error) throw new CheckpointError(`what a checkpoint says of the policy's health is damaged: ${z.prettifyError(error)}`);
      const { clipped, entropy, kl, ...state } = data;
      this.#state = state;
      this.#clipped = clipped;
      this.#entropy = entropy;
      this.#kl = kl;
    },
  };
}

/** For docs/recipe.md. */
export const healthNotes =
  "Each round is watched; a sign counts once it has been there for three rounds in a row: a KL divergence above 2 nats per token, or a mean of log π − log π_ref below " +
  "−1 nat per answer; entropy below a tenth of what it was at the start; more than 0.3 of the tokens clipped; more than 0.8 of the answers cut at " +
  "`max_new_tokens`, or of the groups without any difference in reward; more than half of what answers say repeated; less than a fifth of the reward's gain " +
  "among answers of like length. And evaluations: `gold_rewards`, or else the reward held against that of answers of like length, falling three times in a row " +
  "by more than two standard errors. `kl` is in nats per token, `kl_per_answer` in nats per answer; `entropy` is estimated from what was drawn.";

const consequences = {
  warn: "The run goes on (on_unhealthy: warn).",
  back_off: "The KL divergence now costs half as much again (on_unhealthy: back_off).",
  stop: "The run ends (on_unhealthy: stop).",
} as const;

const plus = (total: Total, more: Total | undefined): Total =>
  more === undefined ? total : { sum: total.sum + more.sum, count: total.count + more.count };
const meanOf = ({ sum, count }: Total) => (count === 0 ? null : sum / count);
const shown = (value: number) => String(Number(value.toPrecision(3)));
const over = (value: number | null, bound: number, say: (value: string) => string) =>
  value !== null && value > bound ? say(shown(value)) : null;
const under = (value: number | null, bound: number, say: (value: string) => string) =>
  value !== null && value < bound ? say(shown(value)) : null;

/** The share of fours of tokens that stand in an answer before, of all fours. */
export function repeated(answers: readonly Pick<Answer, "ids">[]): number {
  let [again, all] = [0, 0];
  for (const { ids } of answers) {
    const fours = new Set<string>();
    for (let t = 0; t + 4 <= ids.length; t++, all++) {
      const four = ids.subarray(t, t + 4).join();
      if (fours.has(four)) again++;
      fours.add(four);
    }
  }
  return all === 0 ? 0 : again / all;
}

/** Rewards of answers, by the power of √2 that their length comes to. */
function bucketsOf(answers: readonly Answer[]): Buckets {
  const buckets: Buckets = {};
  for (const answer of answers) {
    if (answer.reward === null) continue;
    const { sum = 0, squares = 0, count = 0 } = buckets[bucketOf(answer)] ?? {};
    buckets[bucketOf(answer)] = { sum: sum + answer.reward, squares: squares + answer.reward ** 2, count: count + 1 };
  }
  return buckets;
}

const bucketOf = ({ ids }: Pick<Answer, "ids">) => String(Math.round(2 * Math.log2(ids.length)));
const countOf = (buckets: Buckets) => Object.values(buckets).reduce((sum, { count }) => sum + count, 0);

function merged(a: Buckets, b: Buckets): Buckets {
  const all = { ...a };
  for (const [name, { sum, squares, count }] of Object.entries(b)) {
    const before = all[name] ?? { sum: 0, squares: 0, count: 0 };
    all[name] = { sum: before.sum + sum, squares: before.squares + squares, count: before.count + count };
  }
  return all;
}

/** With newcomers; what was there before counts less, so that about `windowed` answers count. */
function newest(before: Buckets, newcomers: Buckets): Buckets {
  const keep = Math.min(1, Math.max(0, windowed - countOf(newcomers)) / Math.max(1, countOf(before)));
  const kept = Object.entries(before).map(([name, { sum, squares, count }]) => {
    return [name, { sum: keep * sum, squares: keep * squares, count: keep * count }] as const;
  });
  return merged(Object.fromEntries(kept), newcomers);
}

/**
 * Of what the reward has gained since the start, the share that is there among answers of like length, weighed by how many there are now; null while the gain is
 * less than half a deviation of the start's rewards, or hardly any length is common to both. Source: Singhal et al. 2023, "non-length reward gain".
 */
export function gainWithin(start: Buckets, latest: Buckets): number | null {
  const total = (buckets: Buckets) =>
    Object.values(buckets).reduce(
      (all, { sum, squares, count }) => ({ sum: all.sum + sum, squares: all.squares + squares, count: all.count + count }),
      { sum: 0, squares: 0, count: 0 },
    );
  const [then, now] = [total(start), total(latest)];
  if (then.count < windowed || now.count < windowed / 2) return null;
  const mean = then.sum / then.count;
  const deviation = Math.sqrt(Math.max(0, then.squares / then.count - mean ** 2));
  const gain = now.sum / now.count - mean;
  if (gain <= 0.5 * deviation || gain <= 0) return null;
  const common = Object.entries(latest).filter(([name]) => (start[name]?.count ?? 0) >= 4);
  const count = common.reduce((sum, [, bucket]) => sum + bucket.count, 0);
  if (count < windowed / 4) return null;
  const within = common.reduce((sum, [name, bucket]) => {
    return sum + bucket.sum - bucket.count * (start[name]!.sum / start[name]!.count);
  }, 0);
  return within / count / gain;
}

/** What answers of that length had, in the first evaluation; the mean of all where there were none. */
function usual(first: Buckets, answer: Answer): number {
  const own = first[bucketOf(answer)];
  if (own !== undefined) return own.sum / own.count;
  const all = Object.values(first);
  const count = all.reduce((sum, bucket) => sum + bucket.count, 0);
  return count === 0 ? 0 : all.reduce((sum, bucket) => sum + bucket.sum, 0) / count;
}

/** The mean difference of pairs, and its standard error. */
function compare(now: readonly (number | null)[], then: readonly (number | null)[]): { mean: number; error: number } {
  const differences = now.flatMap((score, i) => (score === null || (then[i] ?? null) === null ? [] : [score - then[i]!]));
  const n = differences.length;
  if (n < 2) return { mean: 0, error: Number.POSITIVE_INFINITY };
  const mean = differences.reduce((sum, x) => sum + x, 0) / n;
  const squares = differences.reduce((sum, x) => sum + (x - mean) ** 2, 0);
  return { mean, error: Math.sqrt(squares / (n - 1) / n) };
}
