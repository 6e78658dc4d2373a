import { bind, integer } from "./arguments.js";
import { TemplateError, Unsupported, type Work } from "./errors.js";
import {
  Callable,
  Dict,
  isList,
  iterate,
  type Keywords,
  Namespace,
  Range,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from "./values.js";

const maxRange = 100_000; // jinja2/sandbox.py, MAX_RANGE

/** Jinja's functions, with transformers' dict and namespace. Source: jinja2/defaults.py, transformers/utils/chat_template_utils.py. */
export function globals(work: Work): [name: string, value: Value][] {
  return [
    ["range", new Callable("range", (args) => range(args))],
    [
      "dict",
      new Callable("dict", (args, keywords) => new Dict(entriesOf("dict", args, keywords, work)), {
        attribute: (name) => {
          if (name === "fromkeys") throw new Unsupported("dict.fromkeys");
          return undefined;
        },
      }),
    ],
    ["namespace", new Callable("namespace", (args, keywords) => namespace(entriesOf("namespace", args, keywords, work)))],
    ["cycler", new Callable("cycler", (args) => cycler(args))],
    ["joiner", new Callable("joiner", (args, keywords) => joiner(bind("joiner", "sep?", args, keywords)[0] ?? ", "))],
    [
      "lipsum",
      new Callable("lipsum", () => {
        throw new Unsupported("lipsum()");
      }),
    ],
  ];
}

function range(args: readonly Value[]): Range {
  if (args.length === 0 || args.length > 3) throw new TemplateError(`range expected 1 to 3 arguments, got ${args.length}`);
  const [first, second, third] = args.map((each) => integer(each, "range"));
  const made = second === undefined ? new Range(0, first!, 1) : new Range(first!, second, third ?? 1);
  if (made.step === 0) throw new TemplateError("range() arg 3 must not be zero");
  if (made.length > maxRange)
    throw new TemplateError(`Range too big. The sandbox blocks ranges larger than MAX_RANGE (${maxRange}).`);
  return made;
}

function entriesOf(name: string, args: readonly Value[], keywords: Keywords, work: Work): (readonly [Value, Value])[] {
  if (args.length > 1) throw new TemplateError(`${name} expected at most 1 argument, got ${args.length}`);
  const [source] = args;
  const given = source === undefined ? [] : source instanceof Dict ? source.entries() : [...iterate(source, work)].map(pair);
  return [...given, ...keywords];
}

function pair(value: Value): readonly [Value, Value] {
  const items = isList(value) ? value : value instanceof Tuple ? value.items : undefined;
  if (items?.length === 2) return [items[0]!, items[1]!];
  throw new TemplateError(`cannot convert '${typeName(value)}' to a key and a value`);
}

function namespace(entries: readonly (readonly [Value, Value])[]): Namespace {
  const attributes = new Map<string, Value>();
  for (const [key, value] of entries) {
    if (typeof key !== "string") throw new TemplateError("attributes of a namespace have texts for names");
    attributes.set(attributeName(key), value);
  }
  return new Namespace(attributes);
}

/** Throws TemplateError for names that the sandbox does not let a template use. */
export function attributeName(name: string): string {
  if (!name.startsWith("_")) return name;
  throw new TemplateError(`Chat templates cannot store underscore-prefixed attributes on a namespace, but got '${name}'.`);
}

function cycler(items: readonly Value[]): Callable {
  if (items.length === 0) throw new TemplateError("at least one item has to be provided");
  let at = 0;
  const next = new Callable("next", () => {
    const item = items[at]!;
    at = (at + 1) % items.length;
    return item;
  });
  const reset = new Callable("reset", () => {
    at = 0;
    return null;
  });
  const attributes: Readonly<Record<string, () => Value>> = {
    next: () => next,
    reset: () => reset,
    current: () => items[at]!,
    items: () => new Tuple(items),
    pos: () => BigInt(at),
  };
  return new Callable(
    "cycler",
    () => {
      throw new TemplateError("'Cycler' object is not callable");
    },
    { attribute: (name) => (Object.hasOwn(attributes, name) ? attributes[name]!() : undefined) },
  );
}

function joiner(separator: Value): Callable {
  let isUsed = false;
  return new Callable("joiner", () => {
    if (isUsed) return separator;
    isUsed = true;
    return "";
  });
}

const months = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];
const days = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/** Python's strftime in the C locale of Linux. `-` after the percent sign drops padding, `_` makes it blanks. */
export function strftime(date: Date, pattern: Value, work: Work): string {
  if (typeof pattern !== "string")
    throw new TemplateError(
      pattern instanceof Undefined ? pattern.message : `strftime() argument 1 must be str, not ${typeName(pattern)}`,
    );
  const pad = (value: number, width = 2, fill = "0") => ({ text: String(value), width, fill });
  const hour = date.getHours();
  const startOfYear = new Date(date.getFullYear(), 0, 1);
  const dayOfYear = Math.round(
    (Date.UTC(date.getFullYear(), date.getMonth(), date.getDate()) - Date.UTC(startOfYear.getFullYear(), 0, 1)) / 86_400_000,
  );
  const codes: Readonly<Record<string, () => string | { text: string; width: number; fill: string }>> = {
    a: () => days[date.getDay()]!.slice(0, 3),
    A: () => days[date.getDay()]!,
    b: () => months[date.getMonth()]!.slice(0, 3),
    B: () => months[date.getMonth()]!,
    h: () => months[date.getMonth()]!.slice(0, 3),
    c: () => strftime(date, "%a %b %e %H:%M:%S %Y", work),
    d: () => pad(date.getDate()),
    D: () => strftime(date, "%m/%d/%y", work),
    e: () => pad(date.getDate(), 2, " "),
    F: () => strftime(date, "%Y-%m-%d", work),
    f: () => pad(date.getMilliseconds() * 1000, 6),
    H: () => pad(hour),
    I: () => pad(hour % 12 === 0 ? 12 : hour % 12),
    j: () => pad(dayOfYear + 1, 3),
    k: () => pad(hour, 2, " "),
    l: () => pad(hour % 12 === 0 ? 12 : hour % 12, 2, " "),
    m: () => pad(date.getMonth() + 1),
    M: () => pad(date.getMinutes()),
    n: () => "\n",
    p: () => (hour < 12 ? "AM" : "PM"),
    R: () => strftime(date, "%H:%M", work),
    S: () => pad(date.getSeconds()),
    t: () => "\t",
    T: () => strftime(date, "%H:%M:%S", work),
    u: () => String(date.getDay() === 0 ? 7 : date.getDay()),
    w: () => String(date.getDay()),
    x: () => strftime(date, "%m/%d/%y", work),
    X: () => strftime(date, "%H:%M:%S", work),
    y: () => pad(date.getFullYear() % 100),
    Y: () => String(date.getFullYear()),
    z: () => "",
    Z: () => "",
    "%": () => "%",
  };
  return pattern.replace(/%([-_0^#]?)([\s\S])/gu, (whole, flag: string, code: string) => {
    const made = Object.hasOwn(codes, code) ? codes[code]!() : undefined;
    if (made === undefined || "^#".includes(flag || "x")) throw new Unsupported(`the date format ${whole}`);
    if (typeof made === "string") return made;
    const fill = flag === "_" ? " " : flag === "0" ? "0" : made.fill;
    return flag === "-" ? made.text : made.text.padStart(made.width, fill);
  });
}

export function raiseException(message: Value, work: Work): never {
  throw new Refusal(toText(message, work));
}

/** `raise_exception` in a template: its author's words on what the messages lack. */
export class Refusal extends Error {}
