import { ConfigError } from "../errors.js";
import { parseStrictJson, toPlainJson } from "../io/strict-json.js";
import { closest } from "../text/closest.js";

/**
 * How the rows of a file become what is learned from: conversations, plain texts, texts with labels. `Layout` says how its columns are
 * called.
 */
export interface RowFormat<T, Layout> {
  /**
   * The layout that an entry of dataset_info.json describes; undefined when it leaves it to the rows. Throws ConfigError that names the entry
   * and the key.
   */
  layoutOfEntry(entry: Readonly<Record<string, unknown>>, where: string): Layout | undefined;
  /**
   * What a row says, in the layout given or else in the one that its own columns show. Throws RowFault when it cannot be used; what is worth
   * telling of a row that can goes to `tally`.
   */
  read(row: Fields, layout: Layout | undefined, tally: Tally): Omit<T, "where">;
}

/**
 * How many characters one row may have, all of them counted: far more than any `cutoff_len` lets through, and few enough for
 * templates and tokenizers to take seconds. A document for stage pt may be as long as a book.
 */
export const mostChars = { conversation: 2 ** 20, text: 2 ** 20, document: 2 ** 23 };

/** Throws RowFault for a row that is too long. */
export function checkLength(chars: number, limit: number): void {
  if (chars > limit) throw new RowFault(`the row has ${chars} characters, more than the ${limit} allowed; split it.`);
}

/** What is wrong with one row; turned into a BadRow. */
export class RowFault extends Error {}

/** Collects what the user should know of the rows of a file: each fact once, with how many rows it holds for. */
export class Tally {
  readonly #facts = new Map<string, number>();
  readonly #layouts = new Map<string, number>();
  /** Kind of object → key → in how many. */
  readonly #unread = new Map<string, Map<string, number>>();

  /** Counts a row for `fact`, a text that goes on from "3 rows". */
  fact(fact: string): void {
    add(this.#facts, fact);
  }

  /** Counts a row that was read by these columns. */
  layout(columns: readonly string[]): void {
    add(this.#layouts, columns.map((name) => JSON.stringify(name)).join(" and "));
  }

  /** Counts, for a row that can be used, the filled keys that nothing read. */
  done(row: Fields): void {
    for (const { kind, key } of row.unread()) {
      const keys = this.#unread.get(kind) ?? new Map<string, number>();
      this.#unread.set(kind, keys);
      if (keys.size < mostKeys || keys.has(key)) add(keys, key);
      else add(keys, "");
    }
  }

  notices(): string[] {
    const notices = [...this.#facts].map(([fact, count]) => `${count} rows ${fact}`);
    if (this.#layouts.size > 1)
      notices.push(
        `the file mixes layouts: ${[...this.#layouts].map(([columns, count]) => `${count} rows with ${columns}`).join(", ")}.`,
      );
    const unread = [...this.#unread].map(([kind, keys]) => {
      const list = [...keys].map(([key, count]) => `${key === "" ? "others" : JSON.stringify(key.slice(0, 80))} (${count})`);
      return `${kind} ${list.join(", ")}`;
    });
    if (unread.length > 0) notices.push(`not used, and how often each is filled: ${unread.join("; ")}.`);
    return notices;
  }
}

const mostKeys = 50; // names of one kind in a notice: a file may have as many as it has rows

function add(counts: Map<string, number>, key: string): void {
  counts.set(key, (counts.get(key) ?? 0) + 1);
}

/** An object of a row that is read key by key and remembers which keys nothing has read. */
export class Fields {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #kind: string;
  readonly #taken = new Set<string>();
  readonly #inside: Fields[] = [];
  #lowerCase: Map<string, string> | undefined;

  /** `kind` says in a notice what the keys are of, such as "columns". */
  constructor(values: Readonly<Record<string, unknown>>, kind: string) {
    this.#values = values;
    this.#kind = kind;
  }

  /** An object inside this one, whose unread keys count with this one's. */
  within(values: Readonly<Record<string, unknown>>, kind: string): Fields {
    const fields = new Fields(values, kind);
    this.#inside.push(fields);
    return fields;
  }

  get keys(): string[] {
    return Object.keys(this.#values);
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#values, name);
  }

  /** Whether there is something under this name: not null, not an empty text or list. */
  isFilled(name: string): boolean {
    return this.has(name) && !isEmpty(this.#values[name]);
  }

  /** The value under this name; the key still counts as unread. */
  peek(name: string): unknown {
    return this.has(name) ? this.#values[name] : undefined;
  }

  /** The value under this name, which then counts as read; undefined if it is null or absent. */
  take(name: string): unknown {
    this.#taken.add(name);
    return this.peek(name) ?? undefined;
  }

  /** The keys that nothing has read, with their values; they then count as read. */
  takeRest(): Record<string, unknown> {
    const rest = Object.entries(this.#values).filter(([key]) => !this.#taken.has(key));
    for (const [key] of rest) this.#taken.add(key);
    return Object.fromEntries(rest);
  }

  /** The first of these names that is filled, or else that is there; a name in other letters (Question) counts where nothing better is. */
  find(names: readonly string[]): string | undefined {
    const own = this.findAll(names);
    return own.find((name) => this.isFilled(name)) ?? own[0];
  }

  /** Those of these names that are there, as the row writes them. */
  findAll(names: readonly string[]): string[] {
    this.#lowerCase ??= new Map(this.keys.map((key) => [key.toLowerCase(), key]));
    const found = names.map((name) => (this.has(name) ? name : this.#lowerCase!.get(name)));
    return found.filter((name) => name !== undefined);
  }

  /** The text under a name; throws RowFault when it is none, or not there. */
  text(name: string): string {
    if (!this.has(name)) throw new RowFault(`the column "${name}" is missing. ${columnHelp(this.keys)}`);
    return text(this.take(name) ?? null, `"${name}"`);
  }

  /** The text under a name that a row may lack. */
  optionalText(name: string | undefined): string {
    const value = name === undefined ? undefined : this.take(name);
    return value === undefined ? "" : text(value, `"${name}"`);
  }

  /** The keys that are filled and were not read, here and in the objects inside. */
  *unread(): Generator<{ kind: string; key: string }> {
    for (const key of this.keys) if (!this.#taken.has(key) && this.isFilled(key)) yield { kind: this.#kind, key };
    for (const fields of this.#inside) yield* fields.unread();
  }
}

function isEmpty(value: unknown): boolean {
  if (value === undefined || value === null || value === "") return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}

const longestWord = 2 ** 17; // characters; tokenizers take seconds for it, and what is longer is no language
const word = /[\p{L}\p{M}\p{N}]+|\s+|[^\s\p{L}\p{M}\p{N}]+/gu;

/** Throws RowFault unless `value` is text that a tokenizer takes. */
export function text(value: unknown, place: string): string {
  if (typeof value !== "string") throw new RowFault(`${place} has to be text, got ${kindOf(value)}.`);
  if (value.length > longestWord)
    for (const [{ length }] of value.matchAll(word))
      if (length > longestWord)
        throw new RowFault(`${place} holds a word of ${length} characters, more than the ${longestWord} allowed.`);
  if (/\p{Surrogate}/u.test(value)) throw new RowFault(`${place} holds half a character (a lone surrogate, \\uD800–\\uDFFF).`);
  return value;
}

/** JSON that stands in a text. Throws RowFault. */
export function jsonIn(source: string, place: string): unknown {
  try {
    return toPlainJson(parseStrictJson(text(source, place)));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new RowFault(`${place} is not valid JSON: ${error.message}.`);
  }
}

export function kindOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list";
  if (value instanceof Uint8Array) return "bytes";
  return typeof value === "object" ? "an object" : `the ${typeof value} ${String(value).slice(0, 60)}`;
}

/** What a user has to write into dataset_info.json when the columns have other names. */
export function columnHelp(columns: readonly string[], wanted: readonly string[] = ["prompt", "response"]): string {
  const found = columns
    .slice(0, 12)
    .map((name) => `"${name.slice(0, 60)}"`)
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
