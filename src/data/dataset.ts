import { existsSync } from "node:fs";
import { isAbsolute, join, normalize, resolve, sep } from "node:path";
import { Rng } from "../core/rng.js";
import { AttuneError, ConfigError, DataError } from "../errors.js";
import { parseStrictJson, toPlainJson } from "../io/strict-json.js";
import { chatTimeLimitMs, type Dialogue } from "../text/chat-template.js";
import { closest } from "../text/closest.js";
import { type ChatFormat, renderConversation, type SupervisionOptions } from "../text/supervised.js";
import { withTimeLimit } from "../text/work-limit.js";
import { shuffled } from "./batches.js";
import { openDataFile } from "./data-file.js";
import type { Example } from "./example.js";
import { type Conversation, conversations } from "./formats.js";
import type { BadRow, Row } from "./pieces.js";
import { readRows } from "./read-rows.js";
import { Fields, isRecord, RowFault, type RowFormat, Tally } from "./row-format.js";

export interface DatasetOptions {
  /** Paths of files, or names in dataset_info.json: a list, or one text with commas. */
  readonly dataset: string | readonly string[];
  /** The folder of dataset_info.json; files are looked for in it too. */
  readonly datasetDir?: string;
  /** At most this many rows of each data set, the first ones. */
  readonly maxSamples?: number;
  /** What to do with a row that cannot be used: stop with an error that names it, or leave it out and report it. */
  readonly onBadRow?: "error" | "skip";
}

export interface LoadedRows<T> {
  readonly rows: readonly T[];
  /** Rows left out because they cannot be used; with them, every row that was read is accounted for. */
  readonly bad: readonly BadRow[];
  readonly rowsRead: number;
  readonly notices: readonly string[];
}

export interface LoadedDataset extends Omit<LoadedRows<Conversation>, "rows"> {
  readonly conversations: readonly Conversation[];
}

/** Reads data sets into conversations. Throws as `loadRows`. */
export async function loadDataset(options: DatasetOptions): Promise<LoadedDataset> {
  const { rows, ...loaded } = await loadRows(options, conversations);
  return { conversations: rows, ...loaded };
}

/**
 * Reads data sets into what `format` makes of their rows, one after the other in the order given.
 * Throws DataError for a file or row that cannot be used, ConfigError for a name or an entry of dataset_info.json that is wrong.
 */
export async function loadRows<T extends { readonly where: string }, Layout>(
  { dataset, datasetDir = "data", maxSamples = Number.POSITIVE_INFINITY, onBadRow = "error" }: DatasetOptions,
  format: RowFormat<T, Layout>,
): Promise<LoadedRows<T>> {
  const rows: T[] = [];
  const bad: BadRow[] = [];
  const notices: string[] = [];
  for (const name of datasetNames(dataset)) {
    const source = await locate(name, datasetDir, format);
    const tally = new Tally();
    const usable: T[] = [];
    const faults: BadRow[] = [];
    for await (const row of readRows(source.path, Math.min(maxSamples, source.maxRows))) {
      const read = "reason" in row ? row : readRow(row, format, source.layout, tally);
      if ("reason" in read) faults.push(read);
      else usable.push(read.value);
    }
    const [first, ...others] = faults;
    if (first !== undefined && (onBadRow === "error" || usable.length === 0)) {
      const none = usable.length === 0 && others.length > 0 ? `${name}: no row can be used. ` : "";
      const more =
        others.length === 0 ? "" : ` (${others.length} more rows of ${usable.length + faults.length} cannot be used either)`;
      throw new DataError(`${none}${first.where}: ${first.reason}${more}`);
    }
    for (const row of usable) rows.push(row);
    for (const row of faults) bad.push(row);
    for (const notice of [...source.notices, ...tally.notices()]) notices.push(`${name}: ${notice}`);
  }
  if (bad.length > 0) notices.push(leftOutNotice(bad, rows.length + bad.length));
  return { rows, bad, rowsRead: rows.length + bad.length, notices };
}

function readRow<T, Layout>(
  { value, where }: Row,
  format: RowFormat<T, Layout>,
  layout: Layout | undefined,
  tally: Tally,
): { value: T } | BadRow {
  const fields = new Fields(value, "columns");
  try {
    const said = format.read(fields, layout, tally);
    tally.done(fields);
    return { value: { ...said, where } as T };
  } catch (error) {
    if (error instanceof RowFault) return { where, reason: error.message };
    throw error;
  }
}

/** The one sentence that tells of rows left out, whatever is wrong with them. */
export function leftOutNotice(bad: readonly BadRow[], rows: number): string {
  return `${bad.length} of ${rows} rows are left out, the first ${bad[0]!.where}: ${bad[0]!.reason}`;
}

interface Source<Layout> {
  readonly path: string;
  readonly layout?: Layout;
  readonly maxRows: number;
  readonly notices: readonly string[];
}

function datasetNames(dataset: string | readonly string[]): string[] {
  const list = typeof dataset === "string" ? (existsSync(dataset) ? [dataset] : dataset.split(",")) : dataset;
  const names = list.map((name) => name.trim()).filter((name) => name !== "");
  if (names.length === 0) throw new ConfigError("dataset: name a file, or an entry of dataset_info.json.");
  return names;
}

type LayoutReader<Layout> = Pick<RowFormat<unknown, Layout>, "layoutOfEntry">;

/** A name in dataset_info.json, or else a path from here, or else a path in the folder of data sets. */
async function locate<Layout>(name: string, datasetDir: string, format: LayoutReader<Layout>): Promise<Source<Layout>> {
  const infoPath = join(datasetDir, "dataset_info.json");
  const info = await readDatasetInfo(infoPath);
  if (info !== undefined && Object.hasOwn(info, name)) return entrySource(info[name], name, { datasetDir, infoPath, format });
  for (const path of [name, join(datasetDir, name)])
    if (existsSync(path)) return { path, maxRows: Number.POSITIVE_INFINITY, notices: [] };

  const known = Object.keys(info ?? {});
  const guess = closest(name, known);
  const hint = guess === undefined ? "" : ` Did you mean "${guess}"?`;
  const registry = info === undefined ? `there is no ${infoPath}` : `${infoPath} has no such entry`;
  throw new DataError(
    `dataset "${name}": there is no such file (looked in ${resolve(".")} and ${resolve(datasetDir)}), and ${registry}.${hint}`,
  );
}

const maxInfoBytes = 64 * 2 ** 20;

async function readDatasetInfo(path: string): Promise<Record<string, unknown> | undefined> {
  if (!existsSync(path)) return undefined;
  const chunks: Buffer[] = [];
  let bytes = 0;
  const file = await openDataFile(path);
  try {
    for (let chunk = await file.next(); chunk !== null; chunk = await file.next()) {
      chunks.push(chunk);
      bytes += chunk.length;
      if (bytes > maxInfoBytes) throw new ConfigError(`${path}: larger than ${maxInfoBytes} bytes.`);
    }
  } finally {
    await file.close();
  }
  try {
    const info = toPlainJson(parseStrictJson(Buffer.concat(chunks).toString("utf8")));
    if (isRecord(info)) return info;
  } catch (error) {
    throw new ConfigError(`${path}: not valid JSON: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
  throw new ConfigError(`${path}: expected an object that maps names to data sets.`);
}

function entrySource<Layout>(
  entry: unknown,
  name: string,
  { datasetDir, infoPath, format }: { datasetDir: string; infoPath: string; format: LayoutReader<Layout> },
): Source<Layout> {
  const where = `${infoPath}, "${name}"`;
  if (!isRecord(entry)) throw new ConfigError(`${where}: expected an object with a file_name.`);
  const { file_name, script_url, num_samples, ...rest } = entry;
  if (script_url !== undefined && script_url !== null)
    throw new ConfigError(
      `${where}: script_url runs a downloaded program, which attune never does. Save the data as JSON, CSV or Parquet and give its file_name.`,
    );
  if (typeof file_name !== "string") {
    const hub = rest.hf_hub_url ?? rest.ms_hub_url ?? rest.cloud_file_name;
    if (typeof hub !== "string") throw new ConfigError(`${where}: there is no file_name.`);
    throw new ConfigError(
      `${where}: the data is on a hub, which attune does not download from. Fetch it (hf download --repo-type dataset ${hub}), and name its Parquet, JSON or CSV file.`,
    );
  }
  // The file may come from a stranger, with the folder that it stands in. A link in the folder is somebody's own and is followed.
  if (isAbsolute(file_name) || normalize(file_name).split(sep)[0] === "..")
    throw new ConfigError(
      `${where}: file_name ${JSON.stringify(file_name)} leads out of ${datasetDir}; move the file there, or name it by its path in \`dataset:\`.`,
    );
  const layout = format.layoutOfEntry(rest, where);
  if (num_samples !== undefined && num_samples !== null && !(Number.isInteger(num_samples) && Number(num_samples) > 0))
    throw new ConfigError(`${where}: num_samples has to be a whole number from 1.`);
  const unused = Object.keys(rest).filter((key) => !entryKeys.includes(key));
  return {
    path: join(datasetDir, file_name),
    ...(layout === undefined ? {} : { layout }),
    maxRows: typeof num_samples === "number" ? num_samples : Number.POSITIVE_INFINITY,
    notices:
      unused.length === 0 ? [] : [`its entry in ${infoPath} has keys that are not used: ${unused.slice(0, 20).join(", ")}.`],
  };
}

/** Keys of an entry that are read, or that say where else the data lies. */
const entryKeys = ["formatting", "columns", "tags", "ranking", "hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name"];

export interface TokenizeOptions extends SupervisionOptions {
  /** Longest row, in tokens. */
  readonly cutoffLen: number;
  /** Whether thoughts are left out of the answers. */
  readonly withoutThoughts?: boolean;
  /** What to do with longer rows: cut their end off, leave them out, or stop. */
  readonly onOverlong?: "truncate" | "drop" | "error";
  /** What to do with a row that cannot be rendered: stop with an error that names it, or leave it out and report it. */
  readonly onBadRow?: "error" | "skip";
}

export interface TokenizeReport {
  readonly rows: number;
  /** Rows that became examples; with those left out, every row is accounted for. */
  readonly examples: number;
  readonly tokens: number;
  readonly supervisedTokens: number;
  /** Rows whose end was cut off, and how many of them lost part of an answer, and with it the token that ends it. */
  readonly truncated: number;
  readonly answersCut: number;
  /** Rows left out: bad (`skip`), too long (`drop`), or with nothing to learn from in their first `cutoffLen` tokens. */
  readonly leftOut: readonly BadRow[];
  /** Rows whose last answer does not end with a token at which generation stops. */
  readonly withoutEnd: number;
  /** Rows by length before cutting: [up to this many tokens, rows], in powers of two. */
  readonly lengthHistogram: readonly (readonly [upTo: number, rows: number])[];
  readonly longest: number;
  readonly notices: readonly string[];
}

const rowsAtOnce = 64;

/**
 * Conversations as training examples. Rows longer than `cutoffLen` lose their end (LLaMA-Factory cuts prompt and answer in
 * proportion; a row cut at its end still reads as text that a model has seen).
 * Throws DataError that names the row when one cannot be rendered or has nothing to learn from, or when all are left out.
 */
export async function tokenizeDataset(
  conversations: readonly Conversation[],
  chat: ChatFormat,
  options: TokenizeOptions,
): Promise<{ examples: Example[]; report: TokenizeReport }> {
  const { cutoffLen, onOverlong = "truncate", onBadRow = "error", withoutThoughts = false } = options;
  const renderer = new RowRenderer(chat, options);
  const examples: Example[] = [];
  const leftOut: BadRow[] = [];
  const lengths: number[] = [];
  const remarkCounts = new Map<string, number>();
  let [truncated, answersCut, withoutEnd] = [0, 0, 0];

  for (let from = 0; from < conversations.length; from += rowsAtOnce) {
    const read = conversations.slice(from, from + rowsAtOnce);
    const rows = withoutThoughts ? read.map(silenced) : read;
    const thoughtful = rows.filter((row, i) => row !== read[i]).length;
    if (thoughtful > 0) remarkCounts.set(leftOutThoughts, (remarkCounts.get(leftOutThoughts) ?? 0) + thoughtful);
    for (const row of renderer.render(rows)) {
      if ("reason" in row) {
        if (onBadRow === "error") throw new DataError(`${row.where}: ${row.reason}`, { cause: row.cause });
        leftOut.push(row);
        continue;
      }
      const { ids, supervised, endsTurn, remarks, where } = row;
      lengths.push(ids.length);
      for (const remark of remarks) remarkCounts.set(remark, (remarkCounts.get(remark) ?? 0) + 1);
      if (!endsTurn) withoutEnd++;
      if (ids.length <= cutoffLen) {
        examples.push({ ids, supervised, where, tokens: ids.length });
        continue;
      }
      const reason = `the row has ${ids.length} tokens, more than cutoff_len = ${cutoffLen}`;
      if (onOverlong === "error") throw new DataError(`${where}: ${reason}.`);
      const kept = supervised.slice(0, cutoffLen);
      if (onOverlong === "drop" || !kept.includes(1)) {
        leftOut.push({ where, reason: onOverlong === "drop" ? `${reason}.` : `${reason}; no answer begins before the cut.` });
        continue;
      }
      truncated++;
      if (supervised.includes(1, cutoffLen)) answersCut++;
      examples.push({ ids: ids.slice(0, cutoffLen), supervised: kept, where, tokens: cutoffLen });
    }
    await new Promise(setImmediate); // signals and timers get their turn
  }

  if (examples.length === 0)
    throw new DataError(
      leftOut.length === 0
        ? "The data set has no rows."
        : `No row is left to train on. ${leftOut[0]!.where}: ${leftOut[0]!.reason}${lengths.length > 0 ? " Raise cutoff_len." : ""}`,
    );
  const report: Omit<TokenizeReport, "notices"> = {
    rows: conversations.length,
    examples: examples.length,
    tokens: examples.reduce((total, row) => total + row.tokens, 0),
    supervisedTokens: examples.reduce((total, { supervised }) => total + count(supervised), 0),
    truncated,
    answersCut,
    leftOut,
    withoutEnd,
    lengthHistogram: histogram(lengths),
    longest: lengths.reduce((most, length) => Math.max(most, length), 0),
  };
  const remarks = [...remarkCounts].map(([remark, rows]) => `In ${rows} of ${report.rows} rows ${remark}`);
  return { examples, report: { ...report, notices: [...remarks, ...noticesOf(report, cutoffLen)] } };
}

export const leftOutThoughts = "thoughts are left out of the answers, as enable_thinking is false.";

/**
 * A conversation without the assistant's thoughts, beside its words or in them; the same one if it has none. Source: LLaMA-Factory, data/template.py
 * (remove_thought).
 */
export function silenced<T extends Dialogue>(conversation: T): T {
  let hasThoughts = false;
  const messages = conversation.messages.map((message) => {
    if (message.role !== "assistant") return message;
    const { reasoning_content, ...rest } = message;
    const content = rest.content.replace(/<think>.*?<\/think>\s*/gs, "");
    if (reasoning_content === undefined && content === rest.content) return message;
    hasThoughts = true;
    return { ...rest, content };
  });
  return hasThoughts ? { ...conversation, messages } : conversation;
}

interface RenderedRow extends Omit<Example, "tokens"> {
  readonly endsTurn: boolean;
  readonly remarks: readonly string[];
}

interface Unrendered extends BadRow {
  readonly cause: unknown;
}

const mostTimeouts = 3;

/** Renders rows, each to tokens or to what is wrong with it. */
class RowRenderer {
  readonly #chat: ChatFormat;
  readonly #options: SupervisionOptions;
  #timeouts = 0;

  constructor(chat: ChatFormat, options: SupervisionOptions) {
    this.#chat = chat;
    this.#options = options;
  }

  /**
   * One time limit for many rows, as setting one for each costs more than the rows themselves. When it is reached, each row is
   * tried with its own.
   */
  render(rows: readonly Conversation[]): (RenderedRow | Unrendered)[] {
    try {
      return limited(rows, () => rows.map((row) => this.#renderOne(row)));
    } catch (error) {
      if (!(error instanceof TooLong)) throw error;
      return rows.map((row) => this.#renderAlone(row));
    }
  }

  #renderOne(conversation: Conversation): RenderedRow | Unrendered {
    const { where } = conversation;
    try {
      return { ...renderConversation(this.#chat, conversation, this.#options), where };
    } catch (error) {
      if (isRowsFault(error)) return { where, reason: error.message, cause: error };
      throw error;
    }
  }

  /** Throws DataError when row after row takes too long, as that is no fault of theirs. */
  #renderAlone(row: Conversation): RenderedRow | Unrendered {
    try {
      return limited([row], () => this.#renderOne(row));
    } catch (error) {
      if (!(error instanceof TooLong)) throw error;
      if (++this.#timeouts === mostTimeouts)
        throw new DataError(`${row.where}: ${error.message} The same happened with ${mostTimeouts} rows.`, { cause: error });
      return { where: row.where, reason: error.message, cause: error };
    }
  }
}

class TooLong extends Error {}

function limited<T>(rows: readonly Conversation[], job: () => T): T {
  const limitMs = rows.reduce((total, { messages }) => total + chatTimeLimitMs(messages), 0);
  const seconds = Math.max(1, Math.round(limitMs / 1000));
  return withTimeLimit(
    limitMs,
    job,
    () => new TooLong(`rendering took over ${seconds} s; the chat template or the tokenizer never ends.`),
  );
}

function noticesOf(report: Omit<TokenizeReport, "notices">, cutoffLen: number): string[] {
  const { rows, truncated, answersCut, leftOut, withoutEnd, longest } = report;
  const notices: string[] = [];
  if (truncated > 0)
    notices.push(
      `${truncated} of ${rows} rows are longer than cutoff_len = ${cutoffLen} and are cut (the longest has ${longest} tokens); ${answersCut} of them lose the end of an answer.`,
    );
  if (leftOut.length > 0) notices.push(leftOutNotice(leftOut, rows));
  if (withoutEnd > 0)
    notices.push(
      `In ${withoutEnd} of ${rows} rows the last answer has no end-of-turn token: a model trained on them does not learn to stop. Check \`template:\`.`,
    );
  return notices;
}

function histogram(lengths: readonly number[]): [number, number][] {
  const rows = new Map<number, number>();
  for (const length of lengths) {
    const upTo = 2 ** Math.ceil(Math.log2(Math.max(1, length)));
    rows.set(upTo, (rows.get(upTo) ?? 0) + 1);
  }
  return [...rows].sort(([a], [b]) => a - b);
}

function count(supervised: Uint8Array): number {
  let total = 0;
  for (const label of supervised) total += label;
  return total;
}

/**
 * What `tokenize` makes of each row. A row of which it throws an error of attune's is bad: it ends in a DataError that names it, or it is left
 * out and told. Throws DataError when all are.
 */
export async function tokenizeRows<T extends { readonly where: string }, Tokens>(
  rows: readonly T[],
  onBadRow: "error" | "skip",
  tokenize: (row: T) => readonly Tokens[],
): Promise<{ examples: Tokens[]; notices: string[] }> {
  const examples: Tokens[] = [];
  const leftOut: BadRow[] = [];
  for (const [index, row] of rows.entries()) {
    try {
      for (const tokens of tokenize(row)) examples.push(tokens);
    } catch (error) {
      if (!isRowsFault(error)) throw error;
      if (onBadRow === "error") throw new DataError(`${row.where}: ${error.message}`, { cause: error });
      leftOut.push({ where: row.where, reason: error.message });
    }
    if (index % rowsAtOnce === 0) await new Promise(setImmediate); // signals and timers get their turn
  }
  const [first] = leftOut;
  if (first !== undefined && examples.length === 0)
    throw new DataError(`No row is left to train on. ${first.where}: ${first.reason}`);
  return { examples, notices: first === undefined ? [] : [leftOutNotice(leftOut, rows.length)] };
}

/** Whether an error is the row's fault: one of attune's own, or V8's for a stack too deep or a text too long. */
function isRowsFault(error: unknown): error is Error {
  return error instanceof AttuneError || error instanceof RangeError;
}

export interface Split<T> {
  readonly train: readonly T[];
  readonly heldOut: readonly T[];
}

/**
 * Holds rows out for evaluation: a share of them when `valSize` is below 1, else that many. Which ones, the seed alone decides;
 * both parts keep the order of the rows. Throws ConfigError when nothing would be left on a side.
 */
export function splitHoldout<T>(rows: readonly T[], valSize: number, seed: number): Split<T> {
  if (valSize === 0) return { train: rows, heldOut: [] };
  const isShare = valSize > 0 && valSize < 1;
  if (!isShare && !(Number.isInteger(valSize) && valSize >= 1))
    throw new ConfigError(`val_size: ${valSize} is neither a share between 0 and 1 nor a number of rows.`);
  const wanted = isShare ? Math.max(1, Math.round(rows.length * valSize)) : valSize;
  if (wanted >= rows.length)
    throw new ConfigError(`val_size: ${valSize} would hold out ${wanted} of ${rows.length} rows and leave none to train on.`);
  const chosen = new Set(shuffled(Array.from(rows.keys()), Rng.for(seed, "hold-out")).slice(0, wanted));
  return { train: rows.filter((_, i) => !chosen.has(i)), heldOut: rows.filter((_, i) => chosen.has(i)) };
}
