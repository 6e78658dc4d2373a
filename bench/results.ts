import type { Command, Measure, Target, Work } from "./works.js";

/** What a command printed. */
export type Result = Readonly<Record<string, unknown>>;

/** One command of a work: a result a round, undefined where it failed. */
export interface Runs {
  readonly command: Command;
  readonly results: readonly (Result | undefined)[];
}

export interface WorkRuns {
  readonly work: Work;
  readonly attune: readonly Runs[];
  readonly peers: readonly Runs[];
}

export const columns = ["work", "attune", "peer", "ratio", "target", "of the limit"] as const;

/** Rows of the table, one a measure and variant of attune: medians over the rounds. Only attune's best variant is held to the targets. */
export function rowsOf({ work, attune, peers }: WorkRuns): string[][] {
  const [first] = work.measures;
  const bestPeer = best(peers, first);
  const bestOwn = best(attune, first);
  return work.measures.flatMap((measure) =>
    attune.map((own) => {
      const value = medianOf(own, measure.key);
      const ratio = bestPeer && pairedRatio(own, bestPeer, measure.key);
      const share = measure.share === undefined ? undefined : medianOf(own, measure.share);
      const figures = { value, ratio, share };
      const targets = own === bestOwn ? (measure.targets ?? []) : [];
      return [
        `${work.name}, ${measure.what}`,
        value === undefined ? `failed ${own.command.label}`.trim() : figureOf(own, measure.key),
        peers.length === 0 ? "" : bestPeer === undefined ? "failed" : figureOf(bestPeer, measure.key),
        ratio === undefined ? "" : `${ratio.toFixed(2)} ×`,
        targets.map((target) => judge(target, measure, figures)).join(", "),
        share === undefined ? "" : `${(100 * share).toPrecision(3)} %`,
      ];
    }),
  );
}

interface Figures {
  readonly value: number | undefined;
  readonly ratio: number | undefined;
  readonly share: number | undefined;
}

/** The target in words, with a mark if there is a figure to hold to it: `≥ 2 × ✓`. */
function judge(target: Target, { better }: Measure, figures: Figures): string {
  const [name, bound] = Object.entries(target)[0] as [keyof Figures, number];
  const words = { value: `${bound}`, ratio: `${bound} ×`, share: `${100 * bound} %` }[name];
  const figure = figures[name];
  const isMet = figure !== undefined && (better === "more" ? figure >= bound : figure <= bound);
  const mark = figure === undefined ? "" : isMet ? " ✓" : " ✗";
  return `${better === "more" ? "≥" : "≤"} ${words}${mark}`;
}

function best(list: readonly Runs[], { key, better }: Measure): Runs | undefined {
  const direction = better === "more" ? -1 : 1;
  const scored = list.flatMap((runs) => {
    const value = medianOf(runs, key);
    return value === undefined ? [] : [{ runs, score: direction * value }];
  });
  return scored.sort((a, b) => a.score - b.score)[0]?.runs;
}

/** Median of attune's figure over the peer's of the same round: what else the machine does moves both. */
export function pairedRatio(own: Runs, peer: Runs, key: string): number | undefined {
  const ratios = own.results.flatMap((result, round) => {
    const [a, b] = [numberIn(result, key), numberIn(peer.results[round], key)];
    return a === undefined || b === undefined ? [] : [a / b];
  });
  return ratios.length === 0 ? undefined : median(ratios);
}

function medianOf({ results }: Runs, key: string): number | undefined {
  const values = results.flatMap((result) => numberIn(result, key) ?? []);
  return values.length === 0 ? undefined : median(values);
}

function numberIn(result: Result | undefined, key: string): number | undefined {
  const value = result?.[key];
  return typeof value === "number" ? value : undefined;
}

/** The middle value, or the mean of the two in the middle; NaN of none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** In three digits that count, and whose it is; empty where a command does not print it. */
function figureOf(runs: Runs, key: string): string {
  const value = medianOf(runs, key);
  if (value === undefined) return "";
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(3)} ${runs.command.label}`.trim();
}
