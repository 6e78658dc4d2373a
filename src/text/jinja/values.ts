import { TemplateError, Unsupported, type Work } from "./errors.js";

/**
 * Python's values as templates see them. str: string (positions count code points); int: bigint; float: number; bool; None: null; list: an
 * array; the others are the classes below. Lists and dicts never change: the sandbox forbids it.
 */
export type Value =
  | string
  | bigint
  | number
  | boolean
  | null
  | readonly Value[]
  | Tuple
  | Dict
  | View
  | Range
  | Generator
  | Undefined
  | Markup
  | Namespace
  | Callable;

/** `names` are those of a named tuple: groupby's have some. */
export class Tuple {
  readonly items: readonly Value[];
  readonly names: readonly string[];
  constructor(items: readonly Value[], names: readonly string[] = []) {
    this.items = items;
    this.names = names;
  }
}

/** Keys that Python holds for equal (1, 1.0, True) are one. */
export class Dict {
  readonly #entries = new Map<unknown, readonly [key: Value, value: Value]>();

  constructor(entries: Iterable<readonly [Value, Value]> = []) {
    for (const [key, value] of entries) this.#set(key, value);
  }

  get size(): number {
    return this.#entries.size;
  }

  get(key: Value): Value | undefined {
    return this.#entries.get(hashed(key))?.[1];
  }

  has(key: Value): boolean {
    return this.#entries.has(hashed(key));
  }

  entries(): (readonly [key: Value, value: Value])[] {
    return [...this.#entries.values()];
  }

  keys(): Value[] {
    return this.entries().map(([key]) => key);
  }

  #set(key: Value, value: Value): void {
    const hash = hashed(key);
    this.#entries.set(hash, [this.#entries.get(hash)?.[0] ?? key, value]);
  }
}

/** Equal for keys that Python holds for equal. Throws TemplateError for what cannot be a key. */
export function hashed(key: Value): unknown {
  if (typeof key === "boolean") return key ? 1n : 0n;
  if (typeof key === "number") return Number.isInteger(key) ? BigInt(key) : key;
  if (key instanceof Undefined) return Undefined;
  if (key instanceof Tuple) return `\0${key.items.map((item) => `${typeof item}:${String(hashed(item))}`).join("\0")}`;
  if (Array.isArray(key) || key instanceof Dict) throw new TemplateError(`unhashable type: '${typeName(key)}'`);
  return key;
}

/** dict.keys(), .values() and .items(): not lists, but with a length. */
export class View {
  readonly kind: "keys" | "values" | "items";
  readonly dict: Dict;
  constructor(kind: View["kind"], dict: Dict) {
    this.kind = kind;
    this.dict = dict;
  }

  items(): Value[] {
    const entries = this.dict.entries();
    if (this.kind === "keys") return entries.map(([key]) => key);
    return this.kind === "values" ? entries.map(([, value]) => value) : entries.map((entry) => new Tuple(entry));
  }
}

export class Range {
  readonly start: number;
  readonly stop: number;
  readonly step: number;
  constructor(start: number, stop: number, step: number) {
    this.start = start;
    this.stop = stop;
    this.step = step;
  }

  get length(): number {
    return Math.max(0, Math.ceil((this.stop - this.start) / this.step));
  }

  at(index: number): bigint {
    return BigInt(this.start + index * this.step);
  }
}

/** What gives its items once: the results of map, select, reverse and others. */
export class Generator {
  readonly name: string;
  readonly iterator: Iterator<Value>;
  constructor(items: Iterable<Value>, name = "generator") {
    this.iterator = items[Symbol.iterator]();
    this.name = name;
  }
}

/** A name or attribute that is not there: empty when printed, false, without items; all else fails with `message`. */
export class Undefined {
  readonly message: string;
  constructor(message: string) {
    this.message = message;
  }
}

/** Text that counts as HTML (`| safe`): what is added to it is escaped. */
export class Markup {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/** `namespace()`: attributes that inner scopes can set. */
export class Namespace {
  readonly attributes: Map<string, Value>;
  constructor(attributes: Map<string, Value>) {
    this.attributes = attributes;
  }
}

export type Keywords = ReadonlyMap<string, Value>;

/** A function, method or macro; `attributes` are what a dot behind it finds. */
export class Callable {
  readonly name: string;
  readonly call: (args: readonly Value[], keywords: Keywords) => Value;
  readonly attribute: ((name: string) => Value | undefined) | undefined;
  /** A loop has a length, by which it is true or false. */
  readonly length: (() => number) | undefined;

  constructor(
    name: string,
    call: Callable["call"],
    { attribute, length }: { attribute?: (name: string) => Value | undefined; length?: () => number } = {},
  ) {
    this.name = name;
    this.call = call;
    this.attribute = attribute;
    this.length = length;
  }
}

export const noKeywords: Keywords = new Map();

export function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value);
}

export function isText(value: Value): value is string | Markup {
  return typeof value === "string" || value instanceof Markup;
}

/** What JSON gives, as Python's json.loads would: whole numbers are ints. */
export function fromJson(value: unknown): Value {
  if (value === null || value === undefined) return null;
  if (typeof value === "string" || typeof value === "boolean" || typeof value === "bigint") return value;
  if (typeof value === "number") return Number.isInteger(value) && !Object.is(value, -0) ? BigInt(value) : value;
  if (Array.isArray(value)) return value.map(fromJson);
  return new Dict(Object.entries(value).map(([key, item]) => [key, fromJson(item)] as const));
}

export function typeName(value: Value): string {
  if (value === null) return "NoneType";
  if (typeof value === "string") return "str";
  if (typeof value === "bigint") return "int";
  if (typeof value === "number") return "float";
  if (typeof value === "boolean") return "bool";
  if (isList(value)) return "list";
  if (value instanceof View) return `dict_${value.kind}`;
  if (value instanceof Generator) return value.name;
  if (value instanceof Callable) return "function";
  return value instanceof Namespace ? "Namespace" : value instanceof Markup ? "Markup" : value.constructor.name.toLowerCase();
}

/** An operation that Undefined does not have: throws what its absence means. */
export function demand(value: Value): void {
  if (value instanceof Undefined) throw new TemplateError(value.message);
}

export function isTrue(value: Value): boolean {
  if (value === null || value instanceof Undefined) return false;
  if (typeof value === "object") {
    if (value instanceof Callable) return value.length === undefined || value.length() > 0;
    if (value instanceof Generator || value instanceof Namespace) return true;
    return lengthOf(value)! > 0;
  }
  return typeof value === "bigint" ? value !== 0n : Boolean(value) || Number.isNaN(value);
}

/** Code points; a text without surrogates has as many as it has units. */
export function points(text: string): string[] {
  return Array.from(text);
}

export function hasSurrogates(text: string): boolean {
  return /[\uD800-\uDFFF]/.test(text);
}

/** `len()`; undefined for values without one. */
export function lengthOf(value: Value): number | undefined {
  if (typeof value === "string") return hasSurrogates(value) ? points(value).length : value.length;
  if (typeof value !== "object" || value === null) return undefined;
  if (isList(value) || value instanceof Range) return value.length;
  if (value instanceof Tuple) return value.items.length;
  if (value instanceof Dict) return value.size;
  if (value instanceof View) return value.dict.size;
  if (value instanceof Undefined) return 0;
  if (value instanceof Markup) return lengthOf(value.text);
  return value instanceof Callable ? value.length?.() : undefined;
}

/** The items of what can be iterated; undefined for the others. A generator's are used up. */
export function itemsOf(value: Value, work: Work): Iterable<Value> | undefined {
  if (typeof value === "string") return counted(points(value), work);
  if (value === null || typeof value !== "object") return undefined;
  if (isList(value)) return counted(value, work);
  if (value instanceof Tuple) return counted(value.items, work);
  if (value instanceof Dict) return counted(value.keys(), work);
  if (value instanceof View) return counted(value.items(), work);
  if (value instanceof Generator) return rest(value, work);
  if (value instanceof Range)
    return counted(
      Array.from({ length: value.length }, (_, i) => value.at(i)),
      work,
    );
  if (value instanceof Undefined) return [];
  if (value instanceof Callable && value.length !== undefined) throw new Unsupported("a loop over a loop");
  return value instanceof Markup ? counted(points(value.text), work) : undefined;
}

function* counted(items: readonly Value[], work: Work): Iterable<Value> {
  for (const item of items) {
    work.count();
    yield item;
  }
}

function* rest({ iterator }: Generator, work: Work): Iterable<Value> {
  for (let next = iterator.next(); next.done !== true; next = iterator.next()) {
    work.count();
    yield next.value;
  }
}

export function iterate(value: Value, work: Work): Iterable<Value> {
  const items = itemsOf(value, work);
  if (items === undefined) throw new TemplateError(`'${typeName(value)}' object is not iterable`);
  return items;
}

/** Python's `==`. */
export function equal(a: Value, b: Value, work: Work): boolean {
  work.count();
  if (isNumber(a) && isNumber(b)) return isSame(asNumeric(a), asNumeric(b));
  if (isText(a) && isText(b)) {
    const [left, right] = [plain(a), plain(b)];
    work.text(Math.min(left.length, right.length));
    return left === right;
  }
  if (isList(a) && isList(b)) return equalItems(a, b, work);
  if (a instanceof Tuple && b instanceof Tuple) return equalItems(a.items, b.items, work);
  if (a instanceof Dict && b instanceof Dict)
    return a.size === b.size && a.entries().every(([key, value]) => b.has(key) && equal(value, b.get(key)!, work));
  if (a instanceof Undefined && b instanceof Undefined) return true;
  if (a instanceof Range && b instanceof Range)
    return a.length === b.length && (a.length === 0 || (a.start === b.start && (a.length === 1 || a.step === b.step)));
  if (a instanceof View && b instanceof View) throw new Unsupported("a comparison of a dict's views");
  return a === b;
}

/** An int may equal a float. */
function isSame(a: bigint | number, b: bigint | number): boolean {
  return a <= b && a >= b;
}

function equalItems(a: readonly Value[], b: readonly Value[], work: Work): boolean {
  return a.length === b.length && a.every((item, i) => equal(item, b[i]!, work));
}

export function isNumber(value: Value): value is bigint | number | boolean {
  return typeof value === "bigint" || typeof value === "number" || typeof value === "boolean";
}

/** bool as the int that it is in Python. */
export function asNumeric(value: bigint | number | boolean): bigint | number {
  return typeof value === "boolean" ? (value ? 1n : 0n) : value;
}

/** Below 0, 0, or above, as Python orders them. Throws TemplateError for what has no order. */
export function compare(a: Value, b: Value, operator: string, work: Work): number {
  work.count();
  demand(a);
  demand(b);
  if (isNumber(a) && isNumber(b)) {
    const [left, right] = [asNumeric(a), asNumeric(b)];
    return left < right ? -1 : left > right ? 1 : isSame(left, right) ? 0 : Number.NaN;
  }
  if (isText(a) && isText(b)) return compareTexts(plain(a), plain(b), work);
  if ((isList(a) && isList(b)) || (a instanceof Tuple && b instanceof Tuple)) {
    const [left, right] = isList(a) ? [a, b as readonly Value[]] : [(a as Tuple).items, (b as Tuple).items];
    for (let i = 0; i < Math.min(left.length, right.length); i++)
      if (!equal(left[i]!, right[i]!, work)) return compare(left[i]!, right[i]!, operator, work);
    return left.length - right.length;
  }
  throw new TemplateError(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

/** By code points: not as JavaScript, which compares units of UTF-16. */
export function compareTexts(a: string, b: string, work: Work): number {
  work.text(Math.min(a.length, b.length));
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  const high = (text: string) => (i > 0 && isHigh(text.charCodeAt(i - 1)) ? i - 1 : i);
  return (a.codePointAt(high(a)) ?? -1) - (b.codePointAt(high(b)) ?? -1);
}

function isHigh(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}

export function plain(text: string | Markup): string {
  return typeof text === "string" ? text : text.text;
}

/** str() */
export function toText(value: Value, work: Work): string {
  if (typeof value === "string") return value;
  if (value instanceof Markup) return value.text;
  return value instanceof Undefined ? "" : repr(value, work);
}

/** repr() */
export function repr(value: Value, work: Work): string {
  work.count();
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "bigint") return value.toString();
  if (typeof value === "number") return floatText(value);
  if (typeof value === "string") return quoted(value, work);
  const list = (items: readonly Value[]) => bounded(items.map((item) => repr(item, work)).join(", "), work);
  if (isList(value)) return `[${list(value)}]`;
  if (value instanceof Tuple) return value.items.length === 1 ? `(${list(value.items)},)` : `(${list(value.items)})`;
  if (value instanceof Dict)
    return bounded(
      `{${value
        .entries()
        .map(([key, item]) => `${repr(key, work)}: ${repr(item, work)}`)
        .join(", ")}}`,
      work,
    );
  if (value instanceof View) return `dict_${value.kind}([${list(value.items())}])`;
  if (value instanceof Range) return `range(${value.start}, ${value.stop}${value.step === 1 ? "" : `, ${value.step}`})`;
  if (value instanceof Undefined) return "Undefined";
  throw new Unsupported(`a ${typeName(value)} as text`);
}

function bounded(text: string, work: Work): string {
  work.text(text.length);
  return text;
}

/** repr() of a float: the shortest digits that are read back as it, with an exponent below 1e-4 and from 1e16. */
export function floatText(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (Object.is(value, -0)) return "-0.0";
  const [digits, exponentText] = value.toExponential().split("e") as [string, string];
  const exponent = Number(exponentText);
  if (value !== 0 && (exponent < -4 || exponent >= 16))
    return `${digits}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  const text = value.toString();
  return text.includes(".") ? text : `${text}.0`;
}

function quoted(text: string, work: Work): string {
  work.text(text.length);
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inside = text.replace(/[\\'"]|[^\x20-\x7e]/gu, (character) => {
    if (character === "\\" || character === quote) return `\\${character}`;
    if (character === "'" || character === '"') return character;
    const simple = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    if (simple !== undefined) return simple;
    if (!/[\p{C}\p{Z}]/u.test(character)) return character;
    const point = character.codePointAt(0)!;
    const hex = point.toString(16);
    return point < 0x100
      ? `\\x${hex.padStart(2, "0")}`
      : point < 0x10000
        ? `\\u${hex.padStart(4, "0")}`
        : `\\U${hex.padStart(8, "0")}`;
  });
  return `${quote}${inside}${quote}`;
}
