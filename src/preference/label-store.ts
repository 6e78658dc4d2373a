import { z } from "zod";
import { type ReadRowFile, RowFile, type RowKind, readRowFile } from "../io/row-file.js";
import type { Message } from "../text/chat-template.js";

/** What a rater can say of two answers. */
export const labels = ["a", "b", "tie", "both_bad"] as const;

/** The better of two answers, or that neither is: both are equally good, or both are bad. */
export type Label = (typeof labels)[number];

/** A prompt with two answers to it, `a` and `b`. */
export interface LabelItem {
  /** The same for the same prompt and answers, wherever they are labelled. */
  readonly id: string;
  readonly prompt: readonly Message[];
  readonly answers: { readonly a: readonly Message[]; readonly b: readonly Message[] };
  /** Whose answers they are, such as the hash of an adapter; null for the base alone. Absent where nobody knows. */
  readonly models?: { readonly a: string | null; readonly b: string | null };
  /** How both were drawn: temperature, top_p … */
  readonly sampling?: Readonly<Record<string, number>>;
  /** What each was drawn with. */
  readonly seed?: { readonly a: number; readonly b: number };
}

/**
 * A row of a label store: one label by one rater. Its keys are those of TRL's conversational preference rows and some more, so that stages rm, dpo and
 * kto, and other trainers, read the file as it is.
 *
 * `chosen` and `rejected` are null in rows that no pair may be trained from: ties, two bad answers, and what a rater was shown a second time (`repeat`). These
 * have both under `answers` instead, so that a trainer that knows nothing of labels finds no pair in them.
 */
export interface LabelRow extends Omit<LabelItem, "answers"> {
  readonly chosen: readonly Message[] | null;
  readonly rejected: readonly Message[] | null;
  readonly answers?: LabelItem["answers"];
  readonly label: Label;
  /** The rater had labelled the same item before: for self-consistency, never for training. */
  readonly repeat?: true;
  /** Which answer stood where. */
  readonly shown: { readonly left: "a" | "b"; readonly right: "a" | "b" };
  readonly rater: string;
  /** How long the rater looked, in milliseconds. */
  readonly ms: number;
  readonly note?: string;
  /** When, as ISO 8601. */
  readonly ts: string;
}

/** A row's item, with the answers in their places. */
export function itemOf(row: LabelRow): LabelItem {
  const { id, prompt, models, sampling, seed } = row;
  const answers = row.answers ?? (row.label === "a" ? pairOf(row.chosen, row.rejected) : pairOf(row.rejected, row.chosen));
  return { id, prompt, answers, ...defined({ models, sampling, seed }) };
}

/** What a label says of an item, as a row. */
export function rowOf(item: LabelItem, said: Omit<LabelRow, keyof LabelItem | "chosen" | "rejected">): LabelRow {
  const { id, prompt, answers, models, sampling, seed } = item;
  const { label, repeat, shown, rater, ms, note, ts } = said;
  const better = label === "a" || label === "b" ? label : undefined;
  const pair =
    better === undefined || repeat
      ? { chosen: null, rejected: null, answers }
      : { chosen: answers[better], rejected: answers[better === "a" ? "b" : "a"] };
  return { id, prompt, ...pair, label, ...defined({ repeat, shown, models, sampling, seed, rater, ms, note, ts }) } as LabelRow;
}

const pairOf = (a: LabelRow["chosen"], b: LabelRow["chosen"]) => ({ a: a ?? [], b: b ?? [] });

function defined<Values extends object>(values: Values): { [Key in keyof Values]: Exclude<Values[Key], undefined> } {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [Key in keyof Values]: Exclude<Values[Key], undefined> };
}

const messages = z.array(z.looseObject({ role: z.string(), content: z.string() }));
const side = z.enum(["a", "b"]);
/** The keys of an item, as a file has them. */
export const labelItem = {
  id: z.string().min(1),
  prompt: messages,
  answers: z.object({ a: messages, b: messages }),
  models: z.object({ a: z.string().nullable(), b: z.string().nullable() }).optional(),
  sampling: z.record(z.string(), z.number()).optional(),
  seed: z.object({ a: z.number(), b: z.number() }).optional(),
};
const labelRow = z
  .looseObject({
    ...labelItem,
    answers: labelItem.answers.optional(),
    chosen: messages.nullable(),
    rejected: messages.nullable(),
    label: z.enum(labels),
    repeat: z.literal(true).optional(),
    shown: z.object({ left: side, right: side }),
    rater: z.string(),
    ms: z.number(),
    note: z.string().optional(),
    ts: z.string(),
  })
  .refine(({ shown }) => shown.left !== shown.right, "shown: the same answer stands left and right")
  .refine(
    ({ label, repeat, chosen, rejected, answers }) =>
      (label === "a" || label === "b") && repeat === undefined
        ? chosen !== null && rejected !== null
        : answers !== undefined && chosen === null && rejected === null,
    "expected chosen and rejected where one answer is better, and answers otherwise",
  );

const labelRows: RowKind<LabelRow> = {
  name: "a label store",
  start: '{"id":',
  read(value) {
    const { success, data, error } = labelRow.safeParse(value);
    return success ? { row: data as unknown as LabelRow } : { fault: faultOf(error) };
  },
};

/** What is wrong with a value, in words. */
export function faultOf({ issues }: z.ZodError): string {
  return issues.map(({ path, message }) => [...path, message].join(": ")).join("; ");
}

/**
 * A file of labels, one JSON row a line, that a kill cannot tear: a row whose `append` has resolved is whole and on the disk. What a killed process left of
 * the row it was writing is cut off when the store is opened again, and told. Rows are only ever added at the end; `undo` takes the last one away.
 * One process at a time writes, any number may read.
 */
export type LabelStore = RowFile<LabelRow>;

/**
 * Opens a label store, or begins one. `onNotice` is told of a torn last line, which is cut off. Throws CheckpointError where another process has the store or
 * it cannot be written, DataError for a file that is no store; such a file stays as it is.
 */
export function openLabelStore(
  path: string,
  options: { onNotice?: ((message: string) => void) | undefined } = {},
): Promise<LabelStore> {
  return RowFile.open(path, labelRows, options);
}

/**
 * The labels in a store, which somebody else may be writing; one that is not there has none. `tornBytes`: what a killed process left of a row.
 * Throws DataError that names the line for a file that is no store.
 */
export function readLabels(path: string): Promise<ReadRowFile<LabelRow>> {
  return readRowFile(path, labelRows);
}

/** The row of a label store that a value is; undefined if it is none. */
export function asLabelRow(value: unknown): LabelRow | undefined {
  const read = labelRows.read(value);
  return "row" in read ? read.row : undefined;
}
