import { ConfigError } from "../errors.js";
import { closest } from "../text/closest.js";
import type { BadRow, FileRows, Row } from "./read-rows.js";

/**
 * How the rows of a file become what is learned from: conversations, plain texts, texts with labels. `Layout` says how its columns are
 * called.
 */
export interface RowFormat<T, Layout> {
  /**
   * The layout that an entry of dataset_info.json describes; undefined when it leaves it to the file. Throws ConfigError that names the entry
   * and the key.
   */
  layoutOfEntry(entry: Readonly<Record<string, unknown>>, where: string): Layout | undefined;
  /** The layout that a row shows by its columns. Throws DataError when it is none of these. */
  detectLayout(row: Row): Layout;
  /** Applies a layout to every row. Rows that do not fit come back as bad. */
  formatRows(file: FileRows, layout: Layout): FormattedRows<T>;
}

export interface FormattedRows<T> {
  readonly rows: readonly T[];
  readonly bad: readonly BadRow[];
  readonly notices: readonly string[];
}

/** What is wrong with one row; turned into a BadRow. */
export class RowFault extends Error {}

/** Formats row after row; a RowFault makes a bad one, so that rows in = rows out + bad. */
export function formatEach<T>(file: FileRows, format: (row: Row) => T): Omit<FormattedRows<T>, "notices"> {
  const rows: T[] = [];
  const bad: BadRow[] = [...file.bad];
  for (const row of file.rows) {
    try {
      rows.push(format(row));
    } catch (error) {
      if (!(error instanceof RowFault)) throw error;
      bad.push({ where: row.where, reason: error.message });
    }
  }
  return { rows, bad };
}

/** Throws RowFault unless `value` is text. */
export function text(value: unknown, place: string): string {
  if (typeof value !== "string") throw new RowFault(`${place} has to be text, got ${kindOf(value)}.`);
  if (/\p{Surrogate}/u.test(value)) throw new RowFault(`${place} holds half a character (a lone surrogate, \\uD800–\\uDFFF).`);
  return value;
}

/** The text in a column that a row may lack. */
export function optionalText(row: Readonly<Record<string, unknown>>, name: string | undefined): string {
  const value = name === undefined ? undefined : row[name];
  return value === undefined || value === null ? "" : text(value, `"${name}"`);
}

export function kindOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list";
  return typeof value === "object" ? "an object" : `the ${typeof value} ${String(value)}`;
}

/** What a user has to write when the columns have other names. */
export function columnHelp(columns: readonly string[], wanted: readonly string[] = ["prompt", "response"]): string {
  const found = columns
    .slice(0, 12)
    .map((name) => `"${name}"`)
    .join(", ");
  const mapping = Object.fromEntries(wanted.map((name) => [name, "…"]));
  return `The row has ${found || "no columns"}. Say which is which in dataset_info.json: {"my_data": {"file_name": "…", "columns": ${JSON.stringify(mapping)}}}, and set \`dataset: my_data\`.`;
}

/** A key of an entry of dataset_info.json that maps names to columns or tags. Throws ConfigError for an unknown name. */
export function names(value: unknown, key: string, known: readonly string[], where: string): Partial<Record<string, string>> {
  if (value === undefined || value === null) return {};
  if (!isRecord(value)) throw new ConfigError(`${where}: "${key}" has to be an object, got ${kindOf(value)}.`);
  const result: Partial<Record<string, string>> = {};
  for (const [name, target] of Object.entries(value)) {
    if (!known.includes(name)) {
      const guess = closest(name, known);
      const hint = guess === undefined ? "" : ` Did you mean "${guess}"?`;
      throw new ConfigError(`${where}: "${key}" has the unknown key "${name}".${hint} Known: ${known.join(", ")}.`);
    }
    if (target === null) continue;
    if (typeof target !== "string")
      throw new ConfigError(`${where}: "${key}.${name}" has to be a column name, got ${kindOf(target)}.`);
    result[name] = target;
  }
  return result;
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
