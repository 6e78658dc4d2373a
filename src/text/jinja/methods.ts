import { bind, integer } from "./arguments.js";
import { TemplateError, Unsupported, type Work } from "./errors.js";
import { format, formatPercent } from "./format.js";
import { blank } from "./lexer.js";
import {
  Callable,
  Dict,
  demand,
  equal,
  hasSurrogates,
  isList,
  isText,
  iterate,
  type Keywords,
  lengthOf,
  Markup,
  points,
  Range,
  Tuple,
  typeName,
  Undefined,
  type Value,
  View,
} from "./values.js";

/**
 * The methods of str, list, tuple and dict. Undefined for what Python has not either; for what it has and this has not, a function that
 * refuses to be called: templates ask whether there is a method (`x.pop is defined`).
 */
export function methodOf(object: Value, name: string, work: Work): Value | undefined {
  if (typeof object === "string") return bound(object, name, textMethods, textRefused, work);
  if (isList(object)) return mutator(object, name, listMutators) ?? bound(object, name, listMethods, [], work);
  if (object instanceof Tuple && object.names.includes(name)) return object.items[object.names.indexOf(name)];
  if (object instanceof Tuple) return bound(object.items, name, listMethods, [], work, ["copy"]);
  if (object instanceof Dict) return mutator(object, name, dictMutators) ?? bound(object, name, dictMethods, ["fromkeys"], work);
  if (object instanceof Markup) throw new Unsupported(`.${name} of a text that is marked as safe`);
  if (object instanceof Range) return bound([], name, {}, ["start", "stop", "step", "count", "index"], work);
  if (object instanceof View) return bound([], name, {}, ["mapping", "isdisjoint"], work);
  if (typeof object === "bigint" || typeof object === "boolean") return bound([], name, {}, intRefused, work);
  if (typeof object === "number") return bound([], name, {}, floatRefused, work);
  return undefined;
}

const listMutators = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const dictMutators = ["clear", "pop", "popitem", "setdefault", "update"];
const textRefused = [
  "casefold",
  "encode",
  "isidentifier",
  "isnumeric",
  "isdecimal",
  "isprintable",
  "translate",
  "maketrans",
  "format_map",
];
const intRefused = [
  "as_integer_ratio",
  "bit_count",
  "bit_length",
  "conjugate",
  "denominator",
  "from_bytes",
  "imag",
  "numerator",
  "real",
  "to_bytes",
  "is_integer",
];
const floatRefused = ["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"];

/** The sandbox hides methods that change a list or a dict. */
function mutator(object: Value, name: string, mutators: readonly string[]): Undefined | undefined {
  if (!mutators.includes(name)) return undefined;
  return new Undefined(`access to attribute '${name}' of '${typeName(object)}' object is unsafe.`);
}

type Method<T> = (self: T, args: readonly Value[], keywords: Keywords, work: Work) => Value;

function bound<T>(
  self: T,
  name: string,
  methods: Readonly<Record<string, Method<T>>>,
  refused: readonly string[],
  work: Work,
  missing: readonly string[] = [],
): Callable | undefined {
  if (missing.includes(name)) return undefined;
  const method = Object.hasOwn(methods, name) ? methods[name] : undefined;
  if (method !== undefined) return new Callable(name, (args, keywords) => method(self, args, keywords, work));
  if (!refused.includes(name)) return undefined;
  return new Callable(name, () => {
    throw new Unsupported(`the method .${name}()`);
  });
}

/** Methods without keyword arguments; parameters that end in "?" may be left out. */
function method<T>(
  name: string,
  parameters: string,
  run: (self: T, args: readonly (Value | undefined)[], work: Work) => Value,
): Method<T> {
  return (self, args, keywords, work) => {
    if (keywords.size > 0) throw new TemplateError(`${name}() takes no keyword arguments`);
    return run(self, bind(name, parameters, args, keywords), work);
  };
}

function text(value: Value | undefined, what: string): string {
  if (typeof value === "string") return value;
  if (value instanceof Markup) return value.text;
  throw new TemplateError(`${what}: expected str, got ${value === undefined ? "nothing" : typeName(value)}`);
}

/** An optional int; `fallback` where it is left out or None. */
function whole(value: Value | undefined, fallback: number, what: string): number {
  return value === undefined || value === null ? fallback : integer(value, what);
}

const blanksOnly = new RegExp(`^[${blank}]+$`);
const leadingBlanks = new RegExp(`^[${blank}]+`);
const isBlank = new RegExp(`^[${blank}]$`);

/** str.strip and its halves. */
export function strip(value: string, chars: string | null | undefined, side: "both" | "left" | "right"): string {
  const set = chars === null || chars === undefined ? undefined : new Set(points(chars));
  const units = hasSurrogates(value) && set !== undefined ? points(value) : value;
  const isCut = (unit: string) => (set === undefined ? isBlank.test(unit) : set.has(unit));
  let from = 0;
  let to = units.length;
  if (side !== "right") while (from < to && isCut(units[from]!)) from++;
  if (side !== "left") while (to > from && isCut(units[to - 1]!)) to--;
  return typeof units === "string" ? units.slice(from, to) : units.slice(from, to).join("");
}

function stripped(name: string, side: "both" | "left" | "right"): Method<string> {
  return method(name, "chars?", (self, [chars], work) => {
    work.text(self.length);
    return strip(self, chars === undefined || chars === null ? null : text(chars, name), side);
  });
}

/** At most `most` splits, from the left or from the right. */
function split(self: string, separator: string | null, most: number, isFromRight: boolean, work: Work): string[] {
  work.text(self.length);
  if (separator === "") throw new TemplateError("empty separator");
  if (separator === null) return isFromRight ? splitBlanksRight(self, most) : splitBlanks(self, most);
  const pieces = self.split(separator);
  work.count(pieces.length);
  if (most < 0 || pieces.length <= most + 1) return pieces;
  if (isFromRight) return [pieces.slice(0, pieces.length - most).join(separator), ...pieces.slice(pieces.length - most)];
  return [...pieces.slice(0, most), pieces.slice(most).join(separator)];
}

function splitBlanks(self: string, most: number): string[] {
  const pieces: string[] = [];
  let left = strip(self, null, "left");
  while (left !== "") {
    if (most >= 0 && pieces.length === most) return [...pieces, left];
    let end = 0;
    while (end < left.length && !isBlank.test(left[end]!)) end++;
    pieces.push(left.slice(0, end));
    left = left.slice(end).replace(leadingBlanks, "");
  }
  return pieces;
}

function splitBlanksRight(self: string, most: number): string[] {
  const pieces: string[] = [];
  let left = strip(self, null, "right");
  while (left !== "") {
    if (most >= 0 && pieces.length === most) return [left, ...pieces];
    let start = left.length;
    while (start > 0 && !isBlank.test(left[start - 1]!)) start--;
    pieces.unshift(left.slice(start));
    left = strip(left.slice(0, start), null, "right");
  }
  return pieces;
}

function splitMethod(name: string, isFromRight: boolean): Method<string> {
  return (self, args, keywords, work) => {
    const [separator = null, most] = bind(name, "sep? maxsplit?", args, keywords);
    return split(self, separator === null ? null : text(separator, name), whole(most, -1, name), isFromRight, work);
  };
}

/** str.splitlines; with `keepEnds` the line breaks stay. */
export function splitLines(self: string, keepEnds = false): string[] {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these end lines in Python
  const lines = self.match(/[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*(?:\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]|$)/g) ?? [];
  if (lines.at(-1) === "") lines.pop();
  // biome-ignore lint/suspicious/noControlCharactersInRegex: as above
  return keepEnds ? lines : lines.map((line) => line.replace(/(?:\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])$/, ""));
}

/** str.replace with at most `most` replacements; below 0: all. */
export function replace(self: string, old: string, by: string, most: number, work: Work): string {
  work.text(self.length);
  const pieces = old === "" ? ["", ...points(self), ""] : self.split(old);
  const count = most < 0 ? pieces.length - 1 : Math.min(most, pieces.length - 1);
  work.text(self.length + count * by.length);
  const replaced = pieces.slice(0, count + 1).join(by);
  return count === pieces.length - 1 ? replaced : [replaced, ...pieces.slice(count + 1)].join(old);
}

/** The part of a text between two positions, which may be negative or beyond its ends; and where it begins. */
function part(
  self: string,
  start: Value | undefined,
  end: Value | undefined,
  what: string,
): { units: string[] | string; from: number; to: number } {
  const units = hasSurrogates(self) ? points(self) : self;
  const at = (value: number) => (value < 0 ? Math.max(0, value + units.length) : value);
  return { units, from: at(whole(start, 0, what)), to: Math.min(units.length, at(whole(end, units.length, what))) };
}

function sliceOf(units: string[] | string, from: number, to: number): string {
  return typeof units === "string" ? units.slice(from, Math.max(from, to)) : units.slice(from, Math.max(from, to)).join("");
}

function find(name: string, isFromRight: boolean, mustBeThere: boolean): Method<string> {
  return method(name, "sub start? end?", (self, [sub, start, end], work) => {
    work.text(self.length);
    const { units, from, to } = part(self, start, end, name);
    const wanted = text(sub, name);
    const inside = sliceOf(units, from, to);
    const at = from > to ? -1 : isFromRight ? inside.lastIndexOf(wanted) : inside.indexOf(wanted);
    if (at < 0 && mustBeThere) throw new TemplateError("substring not found");
    return BigInt(at < 0 ? -1 : from + lengthOf(inside.slice(0, at))!);
  });
}

function affix(name: string, isIn: (self: string, sought: string) => boolean): Method<string> {
  return method(name, "prefix start? end?", (self, [sought, start, end], work) => {
    work.text(self.length);
    const { units, from, to } = part(self, start, end, name);
    const all = sought instanceof Tuple ? sought.items : [sought!];
    if (from > to) return false;
    const inside = start === undefined && end === undefined ? self : sliceOf(units, from, to);
    return all.map((each) => text(each, name)).some((each) => isIn(inside, each));
  });
}

const isCased = (character: string) => /\p{Lowercase}|\p{Uppercase}|\p{Lt}/u.test(character);

function titled(self: string): string {
  let result = "";
  let isInside = false;
  for (const character of points(self)) {
    result += isInside ? character.toLowerCase() : titleCase(character);
    isInside = isCased(character);
  }
  return result;
}

/** The digraphs of Croatian, and ligatures, have a title case of their own. */
function titleCase(character: string): string {
  const upper = character.toUpperCase();
  const digraph = { Ǆ: "ǅ", Ǉ: "ǈ", Ǌ: "ǋ", Ǳ: "ǲ" }[upper];
  if (digraph !== undefined) return digraph;
  const [first, ...others] = points(upper);
  return first === undefined ? "" : first + others.join("").toLowerCase();
}

export function capitalized(self: string): string {
  const [first = "", ...others] = points(self);
  return titleCase(first) + others.join("").toLowerCase();
}

export function isLower(self: string): boolean {
  return /\p{Lowercase}/u.test(self) && !/\p{Uppercase}|\p{Lt}/u.test(self);
}

export function isUpper(self: string): boolean {
  return /\p{Uppercase}/u.test(self) && !/\p{Lowercase}|\p{Lt}/u.test(self);
}

function every(pattern: RegExp): Method<string> {
  return method("test", "", (self, _, work) => {
    work.text(self.length);
    return self !== "" && points(self).every((character) => pattern.test(character));
  });
}

function padded(name: string, place: (self: string, missing: number, fill: string) => string): Method<string> {
  return method(name, "width fillchar?", (self, [width, fill = " "], work) => {
    const character = text(fill, name);
    if (lengthOf(character) !== 1) throw new TemplateError("The fill character must be exactly one character long");
    const missing = integer(width!, name) - lengthOf(self)!;
    if (missing <= 0) return self;
    work.text(self.length + missing);
    return place(self, missing, character);
  });
}

export function centered(self: string, width: number, work: Work): string {
  const missing = width - lengthOf(self)!;
  if (missing <= 0) return self;
  work.text(self.length + missing);
  const left = Math.floor(missing / 2) + (missing & width & 1);
  return " ".repeat(left) + self + " ".repeat(missing - left);
}

function partition(name: string, isFromRight: boolean): Method<string> {
  return method(name, "sep", (self, [separator], work) => {
    work.text(self.length);
    const sought = text(separator, name);
    if (sought === "") throw new TemplateError("empty separator");
    const at = isFromRight ? self.lastIndexOf(sought) : self.indexOf(sought);
    if (at < 0) return new Tuple(isFromRight ? ["", "", self] : [self, "", ""]);
    return new Tuple([self.slice(0, at), sought, self.slice(at + sought.length)]);
  });
}

function changed(change: (self: string) => string): Method<string> {
  return method("change", "", (self, _, work) => {
    work.text(self.length);
    return change(self);
  });
}

/** A joined text, of items that are all text. */
export function joined(separator: string, items: readonly string[], work: Work): string {
  work.text(items.reduce((total, item) => total + item.length + separator.length, 0));
  return items.join(separator);
}

const textMethods: Readonly<Record<string, Method<string>>> = {
  strip: stripped("strip", "both"),
  lstrip: stripped("lstrip", "left"),
  rstrip: stripped("rstrip", "right"),
  split: splitMethod("split", false),
  rsplit: splitMethod("rsplit", true),
  splitlines: (self, args, keywords, work) => {
    work.text(self.length);
    const [keepEnds] = bind("splitlines", "keepends?", args, keywords);
    return splitLines(self, keepEnds === true);
  },
  replace: method("replace", "old new count?", (self, [old, by, count], work) =>
    replace(self, text(old, "replace"), text(by, "replace"), whole(count, -1, "replace"), work),
  ),
  startswith: affix("startswith", (self, sought) => self.startsWith(sought)),
  endswith: affix("endswith", (self, sought) => self.endsWith(sought)),
  find: find("find", false, false),
  rfind: find("rfind", true, false),
  index: find("index", false, true),
  rindex: find("rindex", true, true),
  count: method("count", "sub start? end?", (self, [sub, start, end], work) => {
    work.text(self.length);
    const { units, from, to } = part(self, start, end, "count");
    const sought = text(sub, "count");
    const inside = sliceOf(units, from, to);
    if (from > to) return 0n;
    return BigInt(sought === "" ? lengthOf(inside)! + 1 : inside.split(sought).length - 1);
  }),
  join: method("join", "iterable", (self, [items], work) =>
    joined(
      self,
      [...iterate(items!, work)].map((item) => text(item, "join")),
      work,
    ),
  ),
  partition: partition("partition", false),
  rpartition: partition("rpartition", true),
  removeprefix: method("removeprefix", "prefix", (self, [prefix]) =>
    self.startsWith(text(prefix, "removeprefix")) ? self.slice(text(prefix, "removeprefix").length) : self,
  ),
  removesuffix: method("removesuffix", "suffix", (self, [suffix]) => {
    const end = text(suffix, "removesuffix");
    return end !== "" && self.endsWith(end) ? self.slice(0, -end.length) : self;
  }),
  upper: changed((self) => self.toUpperCase()),
  lower: changed((self) => self.toLowerCase()),
  title: changed(titled),
  capitalize: changed(capitalized),
  swapcase: changed((self) =>
    points(self)
      .map((character) => (/\p{Lu}|\p{Lt}/u.test(character) ? character.toLowerCase() : character.toUpperCase()))
      .join(""),
  ),
  ljust: padded("ljust", (self, missing, fill) => self + fill.repeat(missing)),
  rjust: padded("rjust", (self, missing, fill) => fill.repeat(missing) + self),
  center: padded("center", (self, missing, fill) => {
    const width = lengthOf(self)! + missing;
    const left = Math.floor(missing / 2) + (missing & width & 1);
    return fill.repeat(left) + self + fill.repeat(missing - left);
  }),
  zfill: method("zfill", "width", (self, [width], work) => {
    const missing = integer(width!, "zfill") - lengthOf(self)!;
    if (missing <= 0) return self;
    work.text(self.length + missing);
    const sign = /^[-+]/.exec(self)?.[0] ?? "";
    return sign + "0".repeat(missing) + self.slice(sign.length);
  }),
  expandtabs: (self, args, keywords, work) => {
    const [size] = bind("expandtabs", "tabsize?", args, keywords);
    const width = whole(size, 8, "expandtabs");
    let column = 0;
    let result = "";
    for (const character of points(self)) {
      if (character === "\t") {
        const blanks = width > 0 ? width - (column % width) : 0;
        result += " ".repeat(blanks);
        column += blanks;
      } else {
        result += character;
        column = character === "\n" || character === "\r" ? 0 : column + 1;
      }
      work.text(result.length >> 8);
      work.bound(result.length);
    }
    return result;
  },
  format: (self, args, keywords, work) => format(self, args, keywords, work),
  isspace: method("isspace", "", (self) => blanksOnly.test(self)),
  isalpha: every(/\p{L}/u),
  isalnum: every(/\p{L}|\p{N}/u),
  isdigit: every(/\p{Nd}|[²³¹⁰⁴-⁹₀-₉]/u),
  isascii: method("isascii", "", (self) => points(self).every((character) => character.codePointAt(0)! < 0x80)),
  islower: method("islower", "", (self) => isLower(self)),
  isupper: method("isupper", "", (self) => isUpper(self)),
  istitle: method("istitle", "", (self) => points(self).some(isCased) && titled(self) === self),
};

const listMethods: Readonly<Record<string, Method<readonly Value[]>>> = {
  copy: method("copy", "", (self) => [...self]),
  count: method("count", "value", (self, [value], work) => BigInt(self.filter((item) => equal(item, value!, work)).length)),
  index: method("index", "value start? stop?", (self, [value, start, stop], work) => {
    const at = (position: number) => (position < 0 ? Math.max(0, position + self.length) : position);
    const to = at(whole(stop, self.length, "index"));
    for (let i = at(whole(start, 0, "index")); i < Math.min(to, self.length); i++)
      if (equal(self[i]!, value!, work)) return BigInt(i);
    throw new TemplateError("value is not in list");
  }),
};

const dictMethods: Readonly<Record<string, Method<Dict>>> = {
  get: method("get", "key default?", (self, [key, fallback = null]) => (self.has(key!) ? self.get(key!)! : fallback)),
  keys: method("keys", "", (self) => new View("keys", self)),
  values: method("values", "", (self) => new View("values", self)),
  items: method("items", "", (self) => new View("items", self)),
  copy: method("copy", "", (self) => new Dict(self.entries())),
};

/** `text % values`. */
export function percent(self: string, values: Value, work: Work): string {
  return formatPercent(self, values, work);
}

/** Whether `item` is in a list, a text, the keys of a dict: Python's `in`. */
export function contains(container: Value, item: Value, work: Work): boolean {
  if (isText(container)) {
    if (!isText(item)) throw new TemplateError(`'in <string>' requires string as left operand, not ${typeName(item)}`);
    const [whole, sought] = [container, item].map((each) => (typeof each === "string" ? each : each.text)) as [string, string];
    work.text(whole.length);
    return whole.includes(sought);
  }
  if (container instanceof Dict) return container.has(item);
  if (container instanceof View && container.kind === "keys") return container.dict.has(item);
  for (const each of iterate(container, work)) if (equal(each, item, work)) return true;
  return false;
}

/** `object[start:stop:step]`, by code points for texts. */
export function slice(object: Value, parts: readonly (Value | undefined)[], work: Work): Value {
  const bounds = parts.map((each) => (each === undefined || each === null ? undefined : integer(each, "slice")));
  if (typeof object === "string") {
    work.text(object.length);
    const units = hasSurrogates(object) ? points(object) : object;
    if (typeof units === "string" && (bounds[2] ?? 1) === 1) {
      return units.slice(bounds[0] ?? 0, bounds[1] ?? units.length);
    }
    return indices(units.length, bounds)
      .map((i) => units[i])
      .join("");
  }
  if (object instanceof Markup) return new Markup(slice(object.text, parts, work) as string);
  demand(object);
  const items = isList(object) ? object : object instanceof Tuple ? object.items : undefined;
  if (items === undefined) {
    if (object instanceof Range) throw new Unsupported("a slice of a range");
    throw new TemplateError(`'${typeName(object)}' object is not subscriptable`);
  }
  work.count(items.length >> 4);
  const chosen = indices(items.length, bounds).map((i) => items[i]!);
  return isList(object) ? chosen : new Tuple(chosen);
}

/** Python's slice.indices(length), as a list. */
function indices(length: number, [start, stop, step = 1]: readonly (number | undefined)[]): number[] {
  if (step === 0) throw new TemplateError("slice step cannot be zero");
  const clamp = (value: number, low: number, high: number) => Math.min(Math.max(value < 0 ? value + length : value, low), high);
  const from = step > 0 ? clamp(start ?? 0, 0, length) : start === undefined ? length - 1 : clamp(start, -1, length - 1);
  const to =
    step > 0 ? (stop === undefined ? length : clamp(stop, 0, length)) : stop === undefined ? -1 : clamp(stop, -1, length - 1);
  const chosen: number[] = [];
  for (let i = from; step > 0 ? i < to : i > to; i += step) chosen.push(i);
  return chosen;
}
