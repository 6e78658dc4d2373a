import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { ModelError } from "../../errors.js";
import { namesIn } from "../../io/disk.js";
import { parseJson } from "../../io/strict-json.js";
import type { TextFile } from "../../text/tokenizer/tokenizer.js";
import { calibrationError, lengthJudge, mcnemar, spearman, wilson } from "./pair-statistics.js";

/** A number for each side of a pair. */
export type Sides = readonly [chosen: number, rejected: number];

/** What trivial judges see of a pair. */
export interface PairLooks {
  /** Tokens of each answer. */
  readonly lengths: Sides;
  /** `formattingOf` each answer. */
  readonly formatting: Sides;
}

export interface ScoredPair extends PairLooks {
  readonly scores: Sides;
}

/** Markdown in a text: how many headings, list items and stretches in bold. Source: the style control of LMSYS' Chatbot Arena (2024). */
export function formattingOf(text: string): number {
  const patterns = [/^ {0,3}#{1,6}\s/gm, /^\s*(?:[-*+]|\d{1,3}[.)])\s/gm, /\*\*[^*\n]+\*\*|__[^_\n]+__/g];
  return patterns.reduce((sum, pattern) => sum + (text.match(pattern)?.length ?? 0), 0);
}

const baselineNames = ["longer", "shorter", "more_formatting", "less_formatting", "length_logistic"] as const;
type Baseline = (typeof baselineNames)[number];

const share = z.number().min(0).max(1);
const interval = z.tuple([share, share]);

const Gate = z.object({
  verdict: z.enum(["passed", "refused", "unmeasured"]),
  /** Why it did not pass; null if it did. */
  cause: z.enum(["no_pairs", "chance", "length", "formatting", "unproven"]).nullable(),
  /** The verdict in a sentence. */
  reason: z.string(),
  /** Held-out pairs that were judged, and those left out because they train as well. */
  pairs: z.int().min(0),
  repeated_pairs: z.int().min(0),
  /** Shares of pairs in which the chosen answer scores higher (strictly), with Wilson's interval at 95 %. */
  accuracy: share.nullable(),
  accuracy_interval: interval,
  /** What judges that read nothing get right; a tie counts half. */
  baselines: z.record(z.enum(baselineNames), share),
  best_baseline: z.enum(baselineNames).nullable(),
  /** McNemar's exact test against the best of them, two-sided. */
  mcnemar: z.object({ only_model: z.int().min(0), only_baseline: z.int().min(0), p: share }),
  /** Expected calibration error of σ(chosen − rejected). */
  ece: share.nullable(),
  /** Pairs whose lengths differ by less than a tenth of the longer one. */
  length_matched: z.object({ pairs: z.int().min(0), accuracy: share.nullable(), accuracy_interval: interval }),
  /** Spearman's correlation of score and length, over all answers. */
  spearman_length: z.number().min(-1).max(1).nullable(),
});
export type RewardGate = z.output<typeof Gate>;

const gateName = "reward_gate.json";

/** Above this chance (two-sided), a difference proves nothing. */
const level = 0.05;

/**
 * Whether a reward model is better, with confidence, than the best judge that reads nothing, by McNemar's exact test on the same held-out pairs, and than
 * chance, by the lower end of Wilson's interval. `trained` are the pairs that it learned from: the logistic of lengths learns from the same.
 */
export function judgeRewards(pairs: readonly ScoredPair[], trained: readonly PairLooks[], repeatedPairs = 0): RewardGate {
  const differences = pairs.map(({ scores: [chosen, rejected] }) => chosen - rejected);
  const isRight = differences.map((difference) => difference > 0);
  const hits = isRight.filter(Boolean).length;
  const preferred = preferencesOf(pairs, trained);
  const baselines = Object.fromEntries(
    baselineNames.map((name) => [name, pairs.length === 0 ? 0.5 : creditOf(preferred[name]) / pairs.length]),
  ) as Record<Baseline, number>;
  const matched = pairs.flatMap(({ lengths: [a, b] }, i) => (Math.abs(a - b) < 0.1 * Math.max(a, b) ? [isRight[i]!] : []));
  const matchedHits = matched.filter(Boolean).length;
  const measured = {
    pairs: pairs.length,
    repeated_pairs: repeatedPairs,
    accuracy: ratio(hits, pairs.length),
    accuracy_interval: wilson(hits, pairs.length),
    baselines,
    ece: pairs.length === 0 ? null : calibrationError(differences.map((difference) => 1 / (1 + Math.exp(-difference)))),
    length_matched: {
      pairs: matched.length,
      accuracy: ratio(matchedHits, matched.length),
      accuracy_interval: wilson(matchedHits, matched.length),
    },
    spearman_length:
      pairs.length === 0
        ? null
        : spearman(
            pairs.flatMap(({ scores }) => scores),
            pairs.flatMap(({ lengths }) => lengths),
          ),
  };
  if (pairs.length === 0) {
    const reason =
      repeatedPairs === 0
        ? "no held-out pairs: nobody knows what this reward model is worth. Give val_size or eval_dataset"
        : "every held-out pair trains as well: nobody knows what this reward model is worth. Hold out other pairs";
    const none = { best_baseline: null, mcnemar: { only_model: 0, only_baseline: 0, p: 1 } };
    return { verdict: "unmeasured", cause: "no_pairs", reason, ...measured, ...none };
  }
  const best = baselineNames.reduce((most, name) => (baselines[name] > baselines[most] ? name : most));
  const isBaselineRight = rightOf(preferred[best]);
  const onlyModel = isRight.filter((right, i) => right && !isBaselineRight[i]).length;
  const onlyBaseline = isRight.filter((right, i) => !right && isBaselineRight[i]).length;
  const test = { only_model: onlyModel, only_baseline: onlyBaseline, p: mcnemar(onlyModel, onlyBaseline) };
  return { ...verdictOn({ ...measured, hits, best, p: test.p }), ...measured, best_baseline: best, mcnemar: test };
}

interface Findings extends Pick<RewardGate, "pairs" | "accuracy_interval" | "baselines"> {
  readonly hits: number;
  readonly best: Baseline;
  readonly p: number;
}

function verdictOn({ pairs, hits, accuracy_interval: [low, high], baselines, best, p }: Findings) {
  const [accuracy, trivial] = [hits / pairs, baselines[best]];
  const percent = (value: number) => `${(100 * value).toFixed(1)} %`;
  const model = `the reward model is right on ${percent(accuracy)} of ${pairs} held-out pairs (95 %: ${percent(low)} to ${percent(high)})`;
  const judge = `${judges[best]} on ${percent(trivial)}`;
  const chance = `p = ${p.toPrecision(2)}`;
  if (accuracy > trivial && p < level && low > 0.5)
    return { verdict: "passed", cause: null, reason: `${model}, and the best that reads nothing, ${judge}: ${chance}` } as const;
  const refused = (cause: NonNullable<RewardGate["cause"]>, reason: string) => ({ verdict: "refused", cause, reason }) as const;
  const [baselineLow] = wilson(trivial * pairs, pairs);
  const explains = causes[best];
  if (low > 0.5 && baselineLow > 0.5)
    return refused(explains, `${explains} explains it: ${judges[best]} is right on ${percent(trivial)}, and ${model}: ${chance}`);
  if (low <= 0.5) return refused("chance", `no better than chance: ${model}; ${judge}`);
  return refused("unproven", `not enough pairs to tell: ${model}, and ${judge}: ${chance}. Hold out more pairs`);
}

const judges: Readonly<Record<Baseline, string>> = {
  longer: "choosing the longer answer",
  shorter: "choosing the shorter answer",
  more_formatting: "choosing the answer with more formatting",
  less_formatting: "choosing the answer with less formatting",
  length_logistic: "a logistic regression on lengths",
};

const causes = {
  longer: "length",
  shorter: "length",
  more_formatting: "formatting",
  less_formatting: "formatting",
  length_logistic: "length",
} as const satisfies Record<Baseline, NonNullable<RewardGate["cause"]>>;

/** By how much each baseline prefers the chosen answer; 0: a tie. */
function preferencesOf(pairs: readonly PairLooks[], trained: readonly PairLooks[]): Record<Baseline, readonly number[]> {
  const longer = pairs.map(({ lengths: [a, b] }) => a - b);
  const formatted = pairs.map(({ formatting: [a, b] }) => a - b);
  const judge = lengthJudge(trained.map(({ lengths }) => lengths));
  return {
    longer,
    shorter: longer.map((difference) => -difference),
    more_formatting: formatted,
    less_formatting: formatted.map((difference) => -difference),
    length_logistic: pairs.map(({ lengths: [a, b] }) => judge(a, b)),
  };
}

/** Pairs that are right, a tie as half. */
function creditOf(differences: readonly number[]): number {
  return differences.reduce((sum, difference) => sum + (difference > 0 ? 1 : difference === 0 ? 0.5 : 0), 0);
}

/** Which pairs are right, of ties every second one. */
function rightOf(differences: readonly number[]): boolean[] {
  let isTurn = false;
  return differences.map((difference) => {
    if (difference === 0) isTurn = !isTurn;
    return difference === 0 ? isTurn : difference > 0;
  });
}

const ratio = (hits: number, count: number) => (count === 0 ? null : hits / count);

export function gateFile(gate: RewardGate): TextFile {
  return { name: gateName, contents: `${JSON.stringify(gate, null, 2)}\n` };
}

/** What the run that made a reward model found of it, by the reward model's folder; null if it left nothing. Throws ModelError for a damaged file. */
export async function readGate(folder: string): Promise<RewardGate | null> {
  if (!(await namesIn(folder)).includes(gateName)) return null;
  const path = join(folder, gateName);
  try {
    return Gate.parse(parseJson(await readFile(path, "utf8")));
  } catch (error) {
    const why = error instanceof z.ZodError ? z.prettifyError(error) : String(error);
    throw new ModelError(`${path}: is not what a run of stage rm writes: ${why}`);
  }
}

/** Why reinforcement learning should not start on a reward model; null if nothing speaks against it. */
export function gateProblem(gate: RewardGate | null, folder: string): string | null {
  if (gate?.verdict === "passed") return null;
  if (gate === null) return `${folder}: has no ${gateName}: nobody has measured this reward model on held-out pairs`;
  return `${folder}: ${gate.reason}`;
}
