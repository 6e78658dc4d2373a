import { ModelError } from "../../errors.js";
import { translateRegex } from "../regex.js";

const maxDepth = 20;
const maxStages = 100;

/**
 * One stage of a tokenizer.json (a normalizer, a pre-tokenizer, a decoder …) and its options. Every option has to be asked for: `done`
 * refuses those that were not, so that none is passed over in silence. Errors are ModelErrors that name the file, the stage and the option.
 */
export class Stage {
  /** Such as `pre_tokenizer.pretokenizers[1]`. */
  readonly path: string;
  readonly type: string;
  readonly #options: Readonly<Record<string, unknown>>;
  readonly #asked = new Set(["type"]);
  readonly #where: string;

  constructor(value: unknown, path: string, where: string) {
    this.path = path;
    this.#where = where;
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    this.#options = isObject ? (value as Record<string, unknown>) : {};
    this.type = typeof this.#options.type === "string" ? this.#options.type : "";
    if (this.type === "") this.fail(`expected a stage with a "type", not ${quote(value)}.`);
    if (path.split("[").length > maxDepth) this.fail(`stages more than ${maxDepth} deep.`);
  }

  fail(message: string): never {
    throw new ModelError(`${this.#where}: ${this.path}${this.type === "" ? "" : ` (${this.type})`}: ${message}`);
  }

  unsupported(known: readonly string[]): never {
    return this.fail(`this kind is not supported: expected one of ${known.join(", ")}.`);
  }

  /** What the stage's kind makes of it. Throws ModelError for a kind that is not among these, and for options that the kind does not ask for. */
  build<T>(kinds: Readonly<Record<string, (stage: Stage) => T>>): T {
    const kind = Object.hasOwn(kinds, this.type) ? kinds[this.type] : undefined;
    if (kind === undefined) return this.unsupported(Object.keys(kinds));
    const built = kind(this);
    this.done();
    return built;
  }

  /** `standard` is taken where the option is absent or null; without it the option has to be there. */
  option<T>(name: string, isValid: (value: unknown) => value is T, expected: string, standard?: T): T {
    this.#asked.add(name);
    const value = this.#options[name] ?? standard;
    return isValid(value) ? value : this.fail(`"${name}" is ${quote(value)}: expected ${expected}.`);
  }

  boolean(name: string, standard?: boolean): boolean {
    return this.option(name, (value) => typeof value === "boolean", "true or false", standard);
  }

  text(name: string, standard?: string): string {
    return this.option(name, (value) => typeof value === "string", "a text", standard);
  }

  character(name: string): string {
    return this.option(name, isCharacter, "a single character");
  }

  count(name: string, standard?: number): number {
    return this.option(name, isCount, "a whole number from 0", standard);
  }

  oneOf<T extends string>(name: string, choices: readonly T[], standard?: T): T {
    const isChoice = (value: unknown): value is T => choices.includes(value as T);
    return this.option(name, isChoice, `one of ${choices.join(", ")}`, standard);
  }

  /** An option that does not change tokens: where they lie in the text, and the like. */
  ignore(...names: readonly string[]): void {
    for (const name of names) this.#asked.add(name);
  }

  has(name: string): boolean {
    return (this.#options[name] ?? null) !== null;
  }

  stages(name: string): Stage[] {
    const list = this.option(name, (value) => Array.isArray(value), "a list");
    if (list.length > maxStages) return this.fail(`"${name}" has ${list.length} stages: at most ${maxStages} are allowed.`);
    return list.map((each: unknown, index) => new Stage(each, `${this.path}.${name}[${index}]`, this.#where));
  }

  /** `pattern`: { String: … } or { Regex: … }, the second in Oniguruma's syntax. With the flag "g". */
  pattern(): RegExp {
    const { String: text, Regex: source } = this.option("pattern", isPattern, 'a pattern: {"String": …} or {"Regex": …}');
    try {
      return text === undefined
        ? translateRegex(source!, "oniguruma", "g")
        : new RegExp(text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gu");
    } catch (error) {
      return this.fail(`${error instanceof Error ? error.message : String(error)}.`);
    }
  }

  /** The text that `pattern` stands for, if it is no regular expression. */
  literal(): string | undefined {
    return this.option("pattern", isPattern, 'a pattern: {"String": …} or {"Regex": …}').String;
  }

  /** Refuses options that nobody asked for. */
  done(): void {
    const unknown = Object.keys(this.#options).filter((name) => !this.#asked.has(name));
    if (unknown.length > 0) this.fail(`unknown option ${unknown.map(quote).join(", ")}.`);
  }
}

/** The stretches of a text that match and those between, in order and without a gap, as (start, end, matches). */
export function forEachMatch(text: string, pattern: RegExp, visit: (start: number, end: number, isMatch: boolean) => void): void {
  let previous = 0;
  let lastEnd = -1;
  pattern.lastIndex = 0;
  for (let match = pattern.exec(text); match !== null; match = pattern.exec(text)) {
    const start = match.index;
    const end = start + match[0].length;
    if (start === end) pattern.lastIndex = end + ((text.codePointAt(end) ?? 0) > 0xffff ? 2 : 1);
    if (start === end && start === lastEnd) continue; // nothing, right behind a match
    if (start > previous) visit(previous, start, false);
    visit(start, end, true);
    previous = end;
    lastEnd = end;
  }
  if (previous < text.length) visit(previous, text.length, false);
}

/** A part of damaged input for an error message: JSON, short. */
export function quote(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

function isCharacter(value: unknown): value is string {
  return typeof value === "string" && [...value].length === 1;
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function isPattern(value: unknown): value is { readonly String?: string; readonly Regex?: string } {
  if (typeof value !== "object" || value === null) return false;
  const entries = Object.entries(value);
  return (
    entries.length === 1 && (entries[0]![0] === "String" || entries[0]![0] === "Regex") && typeof entries[0]![1] === "string"
  );
}
