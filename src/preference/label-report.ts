import type { Message } from "../text/chat-template.js";
import { cohenKappa, fleissKappa, krippendorffAlpha, type Ratings, rawAgreement, type Share, shareOf } from "./agreement.js";
import { bradleyTerry, type Comparison, type Ranking } from "./bradley-terry.js";
import { itemOf, type Label, type LabelRow, labels } from "./label-store.js";

/** One rater's labels. */
export interface RaterReport {
  readonly rater: string;
  /** Labels, those of items seen before not counted. */
  readonly labels: number;
  /** How often the left answer was the better one, where one was: about half, for who looks at what the answers say. */
  readonly left: Share;
  /** How often the rater says of an item the same as the first time. */
  readonly consistency: Share;
  /** Half of the labels took less time than this. */
  readonly medianMs: number;
}

/** How far raters agree on the items that more than one of them has labelled; ties and two bad answers count as one answer, "neither". */
export interface AgreementReport {
  readonly items: number;
  /** Over all pairs of raters. */
  readonly raw: Share;
  /** Where both found one answer better. */
  readonly rawWithoutTies: Share;
  /** Of two raters; undefined for more. */
  readonly cohen: number | undefined;
  readonly fleiss: { readonly kappa: number; readonly items: number; readonly ratings: number };
  readonly krippendorff: number;
}

/** What labels say. */
export interface LabelReport {
  /** Labels, those of items seen before not counted. */
  readonly labels: number;
  readonly items: number;
  readonly counts: Readonly<Record<Label, number>>;
  readonly raters: readonly RaterReport[];
  /** Undefined where no item has two raters. */
  readonly agreement: AgreementReport | undefined;
  /** Of the models whose answers were compared, one for each group of them that a chain of comparisons joins; none where nobody knows whose they are. */
  readonly rankings: readonly {
    readonly plain: Ranking;
    /** With the length of answers held equal; undefined where all are equally long. */
    readonly atEqualLength: Ranking | undefined;
  }[];
  /** How often the longer answer was the better one. */
  readonly longerWins: Share;
  readonly trains: {
    /** For stages rm and dpo. */
    readonly pairs: number;
    /** Single answers for stages kto and bco: two of each pair and of each two bad answers. */
    readonly good: number;
    readonly bad: number;
    /** Kept, and used by no stage. */
    readonly ties: number;
    readonly repeats: number;
    /** Items of which some found one answer better, and some the other: they train in both directions. */
    readonly conflicts: number;
  };
}

/**
 * What the rows of one or more label stores say: who labelled how, how far they agree, which model is better, and what the rows will train.
 * A row that is there twice counts once.
 */
export function labelReport(given: readonly LabelRow[], { rounds = 1000 }: { rounds?: number } = {}): LabelReport {
  const all = [...new Map(given.map((row) => [JSON.stringify([row.id, row.rater, row.ts, row.label]), row])).values()];
  const rows = all.filter(({ repeat }) => !repeat);
  const of = (label: Label) => rows.filter((row) => row.label === label).length;
  const decided = rows.filter(isDecided);
  const raters = [...new Set(all.map(({ rater }) => rater))];
  const ids = [...new Set(rows.map(({ id }) => id))];
  const longer = decided.map(lengthsOf).filter(([chosen, rejected]) => chosen !== rejected);
  const [ties, bothBad] = [of("tie"), of("both_bad")];
  return {
    labels: rows.length,
    items: ids.length,
    counts: Object.fromEntries(labels.map((label) => [label, of(label)])) as Record<Label, number>,
    raters: raters.map((rater) => raterReport(rater, all)),
    agreement: agreementOf(rows, raters, ids),
    rankings: groupsOf(comparisonsOf(rows)).map((group) => ({
      plain: bradleyTerry(withoutLength(group), { rounds }),
      atEqualLength: group.some(({ covariates }) => covariates![0] !== 0) ? bradleyTerry(group, { rounds }) : undefined,
    })),
    longerWins: shareOf(longer.filter(([chosen, rejected]) => chosen > rejected).length, longer.length),
    trains: {
      pairs: decided.length,
      good: decided.length,
      bad: decided.length + 2 * bothBad,
      ties,
      repeats: all.length - rows.length,
      conflicts: conflictsIn(decided),
    },
  };
}

const isDecided = ({ label }: LabelRow) => label === "a" || label === "b";

/** Ties and two bad answers say the same of which answer is better. */
const preferenceOf = ({ label }: LabelRow) => (label === "a" || label === "b" ? label : "neither");

function conflictsIn(decided: readonly LabelRow[]): number {
  const said = new Map<string, Set<Label>>();
  for (const { id, label } of decided) said.set(id, (said.get(id) ?? new Set()).add(label));
  return [...said.values()].filter(({ size }) => size > 1).length;
}

function raterReport(rater: string, all: readonly LabelRow[]): RaterReport {
  const own = all.filter((row) => row.rater === rater);
  const first = new Map(own.filter(({ repeat }) => !repeat).map((row) => [row.id, row]));
  const again = own.flatMap((row) => {
    const before = row.repeat ? first.get(row.id) : undefined;
    return before === undefined ? [] : [preferenceOf(row) === preferenceOf(before)];
  });
  const decided = own.filter(isDecided);
  const times = own.map(({ ms }) => ms).sort((one, other) => one - other);
  return {
    rater,
    labels: own.filter(({ repeat }) => !repeat).length,
    left: shareOf(decided.filter(({ label, shown }) => shown.left === label).length, decided.length),
    consistency: shareOf(again.filter(Boolean).length, again.length),
    medianMs: times[Math.floor(times.length / 2)] ?? 0,
  };
}

function agreementOf(rows: readonly LabelRow[], raters: readonly string[], ids: readonly string[]): AgreementReport | undefined {
  const ratings: Ratings<string>[] = raters.map((rater) => {
    const said = new Map(rows.filter((row) => row.rater === rater).map((row) => [row.id, preferenceOf(row)]));
    return ids.map((id) => said.get(id) ?? null);
  });
  const items = ids.filter((_, i) => ratings.filter((each) => each[i] !== null).length > 1).length;
  if (items === 0) return undefined;
  return {
    items,
    raw: rawAgreement(ratings),
    rawWithoutTies: rawAgreement(ratings, { ignored: (category) => category === "neither" }),
    cohen: ratings.length === 2 ? cohenKappa(ratings[0]!, ratings[1]!) : undefined,
    fleiss: fleissKappa(ratings),
    krippendorff: krippendorffAlpha(ratings),
  };
}

/** Comparisons of different models; the covariate is how much longer a's answer is, (a − b) / (a + b), as FastChat's style control has it. */
function comparisonsOf(rows: readonly LabelRow[]): Comparison[] {
  return rows.flatMap((row) => {
    const { models, answers } = itemOf(row);
    if (models === undefined || models.a === models.b) return [];
    const [a, b] = [lengthOf(answers.a), lengthOf(answers.b)];
    const preference = preferenceOf(row);
    return [
      {
        a: models.a ?? baseName,
        b: models.b ?? baseName,
        winner: preference === "neither" ? ("tie" as const) : preference,
        item: row.id,
        covariates: [a + b === 0 ? 0 : (a - b) / (a + b)],
      },
    ];
  });
}

/** Comparisons apart by models that no chain of comparisons joins: they cannot stand in one ranking. */
function groupsOf(comparisons: readonly Comparison[]): Comparison[][] {
  const groups: { models: Set<string>; comparisons: Comparison[] }[] = [];
  for (const comparison of comparisons) {
    const { a, b } = comparison;
    const joined = groups.filter(({ models }) => models.has(a) || models.has(b));
    for (const each of joined) groups.splice(groups.indexOf(each), 1);
    groups.push({
      models: new Set([a, b, ...joined.flatMap(({ models }) => [...models])]),
      comparisons: [...joined.flatMap((each) => each.comparisons), comparison],
    });
  }
  return groups.map((group) => group.comparisons);
}

/** As rankings call the base without an adapter. */
export const baseName = "base";

function withoutLength(comparisons: readonly Comparison[]): Comparison[] {
  return comparisons.map(({ covariates: _, ...comparison }) => comparison);
}

function lengthsOf({ chosen, rejected }: LabelRow): [number, number] {
  return [lengthOf(chosen ?? []), lengthOf(rejected ?? [])];
}

/** Characters of an answer. */
function lengthOf(messages: readonly Message[]): number {
  return messages.reduce((sum, { content }) => sum + [...content].length, 0);
}
