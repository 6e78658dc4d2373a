import { type FileHandle, open, readFile, stat } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { z } from "zod";
import { CheckpointError, DataError } from "../errors.js";
import { folderError, makeFolder, syncFolder, systemErrorCode } from "../io/disk.js";
import { type Lock, takeLock } from "../io/lock.js";
import { parseJson } from "../io/strict-json.js";
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
 * `chosen` and `rejected` stand only in rows that a pair may be trained from. Ties, two bad answers, and what a rater was shown a second time (`repeat`)
 * have both under `answers` instead: a trainer that knows nothing of labels finds no pair in them.
 */
export interface LabelRow extends Omit<LabelItem, "answers"> {
  readonly chosen?: readonly Message[];
  readonly rejected?: readonly Message[];
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
    better === undefined || repeat ? { answers } : { chosen: answers[better], rejected: answers[better === "a" ? "b" : "a"] };
  return { id, prompt, ...pair, label, ...defined({ repeat, shown, models, sampling, seed, rater, ms, note, ts }) } as LabelRow;
}

const pairOf = (a: LabelRow["chosen"], b: LabelRow["chosen"]) => ({ a: a ?? [], b: b ?? [] });

function defined<Values extends object>(values: Values): { [Key in keyof Values]: Exclude<Values[Key], undefined> } {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [Key in keyof Values]: Exclude<Values[Key], undefined> };
}

const messages = z.array(z.looseObject({ role: z.string(), content: z.string() }));
const side = z.enum(["a", "b"]);
const labelRow = z
  .looseObject({
    id: z.string().min(1),
    prompt: messages,
    chosen: messages.optional(),
    rejected: messages.optional(),
    answers: z.object({ a: messages, b: messages }).optional(),
    label: z.enum(labels),
    repeat: z.literal(true).optional(),
    shown: z.object({ left: side, right: side }),
    models: z.object({ a: z.string().nullable(), b: z.string().nullable() }).optional(),
    sampling: z.record(z.string(), z.number()).optional(),
    seed: z.object({ a: z.number(), b: z.number() }).optional(),
    rater: z.string(),
    ms: z.number(),
    note: z.string().optional(),
    ts: z.string(),
  })
  .refine(({ shown }) => shown.left !== shown.right, "shown: the same answer stands left and right")
  .refine(
    ({ label, repeat, chosen, rejected, answers }) =>
      (label === "a" || label === "b") && repeat === undefined
        ? chosen !== undefined && rejected !== undefined
        : answers !== undefined && chosen === undefined && rejected === undefined,
    "expected chosen and rejected where one answer is better, and answers otherwise",
  );

/** What a store's file holds. */
export interface ReadLabels {
  readonly rows: readonly LabelRow[];
  /** Bytes of the rows: what comes behind them is the beginning of a row that a killed process left. */
  readonly bytes: number;
  /** Bytes behind the rows. */
  readonly tornBytes: number;
}

/**
 * Reads a store without locking it; one that is not there has no rows. A torn last line is told and left alone.
 * Throws DataError that names the line for a file that is no store.
 */
export async function readLabels(path: string): Promise<ReadLabels> {
  const { rows, bytes, tornBytes } = parse(await contentOf(path), path);
  return { rows, bytes, tornBytes };
}

async function contentOf(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    if (systemErrorCode(error) === "ENOENT") return Buffer.alloc(0);
    throw new DataError(`${path}: cannot be read: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

function parse(content: Buffer, path: string): ReadLabels & { readonly lacksNewline: boolean } {
  const rows: LabelRow[] = [];
  let from = 0;
  for (let line = 1; from < content.length; line++) {
    const end = content.indexOf(0x0a, from);
    const text = content.toString("utf8", from, end < 0 ? content.length : end);
    const read = text.trim() === "" && end >= 0 ? undefined : rowIn(text);
    if (typeof read === "object") rows.push(read);
    else if (end < 0 && isTorn(text)) return { rows, bytes: from, tornBytes: content.length - from, lacksNewline: false };
    else if (read !== undefined) throw new DataError(`${path}:${line}: this is no row of a label store: ${read}`);
    if (end < 0) return { rows, bytes: content.length, tornBytes: 0, lacksNewline: true };
    from = end + 1;
  }
  return { rows, bytes: content.length, tornBytes: 0, lacksNewline: false };
}

/** The row that a line holds, or why it holds none. */
function rowIn(text: string): LabelRow | string {
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (error) {
    return `not valid JSON: ${error instanceof Error ? error.message : String(error)}`;
  }
  const { success, data, error } = labelRow.safeParse(value);
  if (success) return data as unknown as LabelRow;
  return error.issues.map(({ path, message }) => [...path, message].join(": ")).join("; ");
}

const rowStart = '{"id":';

/** Whether a line without an end can be what is left of a row: a file that somebody else wrote is never cut. A power failure may leave zeros. */
function isTorn(text: string): boolean {
  const written = text.replace(/\0+$/, "");
  return written.startsWith(rowStart) || rowStart.startsWith(written);
}

/**
 * A file of labels, one JSON row a line, that a kill cannot tear. A row counts once `append` has resolved: it is then whole and on the disk, and a process
 * that is killed later cannot lose it. What a killed process left of the row it was writing is cut off when the store is opened again, and told.
 * Rows are only ever added at the end; `undo` takes the last one away. One process at a time writes (`PATH.lock`), any number may read.
 */
export class LabelStore {
  readonly path: string;
  readonly #file: FileHandle;
  readonly #lock: Lock;
  readonly #rows: LabelRow[];
  /** Where each row begins. */
  readonly #starts: number[];
  #bytes: number;
  /** Writes wait for one another. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(path: string, file: FileHandle, lock: Lock, rows: LabelRow[], starts: number[], bytes: number) {
    this.path = path;
    this.#file = file;
    this.#lock = lock;
    this.#rows = rows;
    this.#starts = starts;
    this.#bytes = bytes;
  }

  /**
   * Opens a store, or begins one. `onNotice` is told of a torn last line, which is cut off. Throws CheckpointError where another process has the store or it
   * cannot be written, DataError for a file that is no store; such a file stays as it is.
   */
  static async open(path: string, { onNotice = () => {} }: { onNotice?: (message: string) => void } = {}): Promise<LabelStore> {
    const lock = await lockOf(path);
    let file: FileHandle | undefined;
    try {
      const content = await contentOf(path);
      const { rows, bytes, tornBytes, lacksNewline } = parse(content, path);
      file = await open(path, "a");
      if (tornBytes > 0) await file.truncate(bytes);
      if (lacksNewline) await file.write("\n");
      await file.datasync();
      if (content.length === 0) await syncFolder(dirname(resolve(path)));
      if (tornBytes > 0)
        onNotice(`${path}: the last ${tornBytes} bytes were half a row, left by a process that was killed; they are cut off`);
      const starts = startsOf(content.subarray(0, bytes));
      return new LabelStore(path, file, lock, [...rows], starts, bytes + (lacksNewline ? 1 : 0));
    } catch (error) {
      await file?.close();
      await lock.release();
      throw await folderError(dirname(resolve(path)), error);
    }
  }

  /** In the order in which they were given. */
  get rows(): readonly LabelRow[] {
    return this.#rows;
  }

  /**
   * Adds a row; it is on the disk when this resolves. Throws CheckpointError or NoSpaceError where it cannot be written, or another program changed the file;
   * the rows before it stay.
   */
  append(row: LabelRow): Promise<void> {
    return this.#write(async () => {
      const line = Buffer.from(`${JSON.stringify(row)}\n`);
      try {
        for (let done = 0; done < line.length; ) done += (await this.#file.write(line, done)).bytesWritten;
        await this.#file.datasync();
      } catch (error) {
        await this.#file.truncate(this.#bytes).catch(() => {}); // where even that fails, the next opening cuts it
        throw error;
      }
      this.#starts.push(this.#bytes);
      this.#rows.push(row);
      this.#bytes += line.length;
    });
  }

  /** Takes the last row away and returns it; undefined if there is none. Throws as `append`. */
  undo(): Promise<LabelRow | undefined> {
    return this.#write(async () => {
      const start = this.#starts.at(-1);
      if (start === undefined) return undefined;
      await this.#file.truncate(start);
      await this.#file.datasync();
      this.#bytes = start;
      this.#starts.pop();
      return this.#rows.pop();
    });
  }

  /** Waits for what is being written, and lets others write. */
  async close(): Promise<void> {
    await this.#last;
    await this.#file.close();
    await this.#lock.release();
  }

  #write<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#last.then(async () => {
      try {
        await this.#checkUnchanged();
        return await work();
      } catch (error) {
        throw await folderError(dirname(resolve(this.path)), error);
      }
    });
    this.#last = result.catch(() => {});
    return result;
  }

  /** What is written into a file that was deleted or replaced would be lost, and where somebody else wrote, rows could be torn. */
  async #checkUnchanged(): Promise<void> {
    const [mine, there] = await Promise.all([this.#file.stat(), stat(this.path)]);
    if (mine.ino !== there.ino || mine.dev !== there.dev)
      throw new CheckpointError(`${this.path}: was replaced by another file while it was open; open it again`);
    if (mine.size !== this.#bytes)
      throw new CheckpointError(`${this.path}: another program wrote to it while it was open; open it again`);
  }
}

/** Where the lines that are not blank begin. */
function startsOf(content: Buffer): number[] {
  const starts: number[] = [];
  for (let from = 0; from < content.length; ) {
    const found = content.indexOf(0x0a, from);
    const end = found < 0 ? content.length : found;
    if (content.toString("utf8", from, end).trim() !== "") starts.push(from);
    from = end + 1;
  }
  return starts;
}

async function lockOf(path: string): Promise<Lock> {
  const lockPath = `${path}.lock`;
  try {
    await makeFolder(dirname(resolve(path)));
    const lock = await takeLock(lockPath);
    if ("release" in lock) return lock;
    throw new CheckpointError(
      `${path}: process ${lock.pid} on host ${lock.host} has been writing to it since ${lock.startedAt}. Wait for it, or label into ` +
        `another file: \`attune label report\` reads several. If it is gone for certain, delete ${basename(lockPath)} beside it.`,
    );
  } catch (error) {
    throw await folderError(dirname(resolve(path)), error);
  }
}
