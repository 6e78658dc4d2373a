import type { SurvivingChange } from "./change.js";
import type { ExportTarget, NumberType } from "./choices.js";
import type { Drift } from "./measure.js";
import type { Reader } from "./reader.js";

/** `refuse`: what was learnt is lost. `warn`: some of it, or it may be. */
export type Verdict = "pass" | "warn" | "refuse";

/** What a model says to the rows that an export is checked with. */
export interface Sayings {
  /** Mean over the supervised tokens; null without rows. */
  readonly loss: number | null;
  /** One for each question. */
  readonly said: readonly string[];
  readonly right: readonly boolean[];
}

/** What a program makes of the written file, against the adapter on its base in f32. */
export interface Reading extends Pick<Reader, "program" | "arithmetic"> {
  readonly verdict: Verdict;
  /** Why it is not `pass`, a sentence each. */
  readonly reasons: readonly string[];
  /** Null without rows. */
  readonly answers: {
    readonly loss: number;
    /** How many answers are the rows', word for word; null where rows have no answers. */
    readonly right: number | null;
    /** Right answers that were lost, and that came in. */
    readonly lost: number | null;
    readonly gained: number | null;
    /** Share of greedy answers that are others than before. */
    readonly changed: number;
  } | null;
  /** What rounding leaves of the merged change; null where nothing was merged. */
  readonly change: SurvivingChange | null;
}

/** What an export wrote, and how it was found to keep what was learnt. Written beside the exported files as `export_receipt.json`. */
export interface Receipt {
  readonly receipt: 1;
  readonly model: string;
  readonly adapter: string | null;
  readonly to: ExportTarget;
  readonly type: NumberType;
  /** Of the file or files of weights. */
  readonly sha256: Readonly<Record<string, string>>;
  /** Null where there were no rows to check with. */
  readonly rows: {
    readonly source: "held-out" | "training" | "given";
    readonly from: readonly string[];
    /** Rows of the loss, and those that were answered. */
    readonly loss: number;
    readonly answers: number;
  } | null;
  /** Before the export, in f32: the base alone (null where no adapter was merged), and what is exported. */
  readonly before: {
    readonly baseLoss: number | null;
    readonly loss: number | null;
    readonly right: number | null;
  };
  /** The program that the export is for comes first. */
  readonly readings: readonly Reading[];
  readonly drift: Drift;
  readonly verdict: Verdict;
  /** What to do about it. */
  readonly advice: readonly string[];
}

/** Verdicts say so above these. */
const limits = {
  /** Right answers lost and not made up for, as a share of those before; and how many times the spread √(lost + gained) of mere chance. */
  refusedShare: 0.1,
  refusedSpread: 2,
  warnedShare: 0.05,
  /** Of what the adapter lowered the loss by. */
  refusedLossKept: 0.5,
  warnedLossKept: 0.9,
  warnedChanged: 0.25,
  /** Of the change along its own direction. */
  warnedAlong: 0.7,
} as const;

/**
 * Judges a reading. It is refused where right answers are lost beyond chance, or half of what the adapter lowered the loss by; it is warned of where less
 * is lost, many answers change, or rounding drowned much of the change, which rows may not show.
 */
export function judged(
  reader: Pick<Reader, "program" | "arithmetic">,
  {
    baseLoss,
    before,
    after,
    change,
    hasAnswers,
  }: {
    readonly baseLoss: number | null;
    readonly before: Sayings;
    readonly after: Sayings;
    readonly change: SurvivingChange | null;
    readonly hasAnswers: boolean;
  },
): Reading {
  const refusals: string[] = [];
  const warnings: string[] = [];
  let answers: Reading["answers"] = null;
  if (before.loss !== null && after.loss !== null) {
    const lost = countOf(before.right, (right, i) => right && !after.right[i]);
    const gained = countOf(before.right, (right, i) => !right && after.right[i] === true);
    const right = countOf(after.right, Boolean);
    const rightBefore = countOf(before.right, Boolean);
    const changed = countOf(before.said, (text, i) => text !== after.said[i]) / Math.max(1, before.said.length);
    answers = {
      loss: after.loss,
      changed,
      ...(hasAnswers ? { right, lost, gained } : { right: null, lost: null, gained: null }),
    };

    const net = lost - gained;
    const told = `${right} of ${before.right.length} answers are right, and ${rightBefore} were before (${lost} lost, ${gained} gained)`;
    if (net > limits.refusedShare * rightBefore && net >= limits.refusedSpread * Math.sqrt(lost + gained) && net > 1)
      refusals.push(told);
    else if (net > limits.warnedShare * rightBefore && net > 1) warnings.push(told);

    const learnt = baseLoss === null ? 0 : baseLoss - before.loss;
    const kept = learnt > 0.01 ? (baseLoss! - after.loss) / learnt : 1;
    const losses = `the loss is ${after.loss.toFixed(3)}, and ${before.loss.toFixed(3)} before: ${percent(kept)} of what was learnt`;
    if (!(kept >= limits.refusedLossKept)) refusals.push(losses);
    else if (kept < limits.warnedLossKept) warnings.push(losses);
    if (changed > limits.warnedChanged) warnings.push(`${percent(changed)} of the answers are other words than before`);
  }
  if (change !== null && change.along < limits.warnedAlong)
    warnings.push(
      `${percent(change.along)} of the adapter's change is left: it is smaller than the steps of the stored numbers (${percent(change.unchanged)} of them are as in the base)`,
    );
  const verdict = refusals.length > 0 ? "refuse" : warnings.length > 0 ? "warn" : "pass";
  return {
    program: reader.program,
    arithmetic: reader.arithmetic,
    verdict,
    reasons: [...refusals, ...warnings],
    answers,
    change,
  };
}

/** What was found for the program that the export is for decides; another's reading only warns. */
export function overall([first, ...others]: readonly Reading[]): Verdict {
  if (first === undefined || first.verdict !== "pass") return first?.verdict ?? "pass";
  return others.some(({ verdict }) => verdict === "refuse") ? "warn" : "pass";
}

const countOf = <T>(items: readonly T[], is: (item: T, index: number) => boolean): number => items.filter(is).length;

const percent = (share: number) => `${Math.round(100 * Math.max(0, share))} %`;
