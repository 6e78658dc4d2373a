import { bind, integer } from "./arguments.js";
import { TemplateError, Unsupported, type Work } from "./errors.js";
import { fixedRound, formatPercent, truncated } from "./format.js";
import { toJson } from "./json.js";
import { capitalized, centered, joined, replace, splitLines, strip } from "./methods.js";
import {
  asNumeric,
  compare,
  Dict,
  demand,
  equal,
  Generator,
  hashed,
  isList,
  isNumber,
  isText,
  isTrue,
  iterate,
  type Keywords,
  lengthOf,
  Markup,
  plain,
  points,
  Range,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
  View,
} from "./values.js";

/** What filters need of the interpreter: Jinja's `environment` and `context`. */
export interface FilterContext {
  readonly work: Work;
  /** `object[key]`, with attributes where there is no item. */
  item(object: Value, key: Value): Value;
  attribute(object: Value, name: string): Value;
  filter(name: string, input: Value, args: readonly Value[], keywords: Keywords): Value;
  test(name: string, input: Value, args: readonly Value[], keywords: Keywords): boolean;
  binary(operator: string, left: Value, right: Value): Value;
}

type Filter = (input: Value, args: readonly Value[], keywords: Keywords, context: FilterContext) => Value;

/** A filter whose arguments are bound to parameters. */
function filter(
  name: string,
  parameters: string,
  run: (input: Value, args: readonly (Value | undefined)[], context: FilterContext) => Value,
): Filter {
  return (input, args, keywords, context) => run(input, bind(name, parameters, args, keywords), context);
}

/** A filter of a text; what is no text becomes one first. */
function ofText(
  name: string,
  parameters: string,
  run: (input: string, args: readonly (Value | undefined)[], work: Work) => Value,
): Filter {
  return filter(name, parameters, (input, args, { work }) => {
    const text = toText(input, work);
    work.text(text.length);
    const result = run(text, args, work);
    return input instanceof Markup && typeof result === "string" ? new Markup(result) : result;
  });
}

function refused(name: string): Filter {
  return () => {
    throw new Unsupported(`the filter ${name}`);
  };
}

/** `a.b.0`: the path that filters follow from an item to one of its attributes. */
function getter(attribute: Value | undefined, context: FilterContext, fallback?: Value): (item: Value) => Value {
  if (attribute === undefined || attribute === null) return (item) => item;
  const path: Value[] =
    typeof attribute === "string" ? attribute.split(".").map((part) => (/^\d+$/.test(part) ? BigInt(part) : part)) : [attribute];
  return (start) => {
    let item = start;
    for (const part of path) {
      item = context.item(item, part);
      if (item instanceof Undefined && fallback !== undefined && fallback !== null) item = fallback;
    }
    return item;
  };
}

function lowered(value: Value): Value {
  return isText(value) ? plain(value).toLowerCase() : value;
}

function sorted(items: readonly Value[], key: (item: Value) => Value, isReversed: boolean, work: Work): Value[] {
  const keyed = items.map((item) => ({ item, key: key(item) }));
  const order = (a: Value, b: Value) => {
    const result = compare(a, b, "<", work);
    if (Number.isNaN(result)) throw new Unsupported("sorting with nan");
    return result;
  };
  // Stable in both directions, as Python's.
  keyed.sort((a, b) => (isReversed ? order(b.key, a.key) : order(a.key, b.key)));
  return keyed.map(({ item }) => item);
}

function extreme(name: string, sign: number): Filter {
  return filter(name, "case_sensitive? attribute?", (input, [isCaseSensitive = false, attribute], context) => {
    const get = getter(attribute, context);
    const key = (item: Value) => (isTrue(isCaseSensitive) ? get(item) : lowered(get(item)));
    let best: { item: Value; key: Value } | undefined;
    for (const item of iterate(input, context.work)) {
      const own = key(item);
      if (best === undefined || sign * compare(own, best.key, sign > 0 ? ">" : "<", context.work) > 0) best = { item, key: own };
    }
    return best?.item ?? new Undefined("No aggregated item, sequence was empty.");
  });
}

/** select, reject and their forms for attributes. */
function chooser(name: string, wanted: boolean, ofAttribute: boolean): Filter {
  return (input, args, keywords, context) => {
    const choose = function* (): Iterable<Value> {
      if (!isTrue(input)) return;
      if (ofAttribute && args.length === 0) throw new TemplateError("Missing parameter for attribute name");
      const get = ofAttribute ? getter(args[0], context) : (item: Value) => item;
      const [test, ...rest] = args.slice(ofAttribute ? 1 : 0);
      for (const item of iterate(input, context.work)) {
        const value = get(item);
        const isChosen = test === undefined ? isTrue(value) : context.test(nameOf(test, name), value, rest, keywords);
        if (isChosen === wanted) yield item;
      }
    };
    return new Generator(choose());
  };
}

function nameOf(value: Value, what: string): string {
  if (typeof value === "string") return value;
  demand(value);
  throw new TemplateError(`${what}: the name of a filter or test has to be a text, got ${typeName(value)}`);
}

const map: Filter = (input, args, keywords, context) => {
  const apply = function* (): Iterable<Value> {
    if (!isTrue(input)) return;
    let one: (item: Value) => Value;
    if (args.length === 0 && keywords.has("attribute")) {
      const [attribute, fallback] = bind("map", "* attribute default?", args, keywords);
      one = getter(attribute, context, fallback);
    } else {
      const [name, ...rest] = args;
      if (name === undefined) throw new TemplateError("map requires a filter argument");
      one = (item) => context.filter(nameOf(name, "map"), item, rest, keywords);
    }
    for (const item of iterate(input, context.work)) yield one(item);
  };
  return new Generator(apply());
};

const first = filter("first", "", (input, _, { work }) => {
  for (const item of firstOf(input, work)) return item;
  return new Undefined("No first item, sequence was empty.");
});

/** A generator keeps what comes after its first item. */
function firstOf(input: Value, work: Work): Iterable<Value> {
  if (!(input instanceof Generator)) return iterate(input, work);
  const next = input.iterator.next();
  return next.done === true ? [] : [next.value];
}

const last = filter("last", "", (input, _, { work }) => {
  if (input instanceof Generator || lengthOf(input) === undefined)
    throw new TemplateError(`'${typeName(input)}' object is not reversible`);
  const items = [...iterate(input, work)];
  return items.at(-1) ?? (items.length > 0 ? null : new Undefined("No last item, sequence was empty."));
});

const length = filter("length", "", (input) => {
  const count = lengthOf(input);
  if (count === undefined) throw new TemplateError(`object of type '${typeName(input)}' has no len()`);
  return BigInt(count);
});

const fallback = filter("default", "default_value? boolean?", (input, [value = "", isBoolean = false]) =>
  input instanceof Undefined || (isTrue(isBoolean) && !isTrue(input)) ? value : input,
);

const escapeFilter = filter("escape", "", (input, _, { work }) => escaped(input, work));

/** markupsafe.escape */
export function escaped(value: Value, work: Work): Markup {
  if (value instanceof Markup) return value;
  const replacements: Readonly<Record<string, string>> = { "&": "&amp;", ">": "&gt;", "<": "&lt;", "'": "&#39;", '"': "&#34;" };
  const text = toText(value, work).replace(/[&<>'"]/g, (character) => replacements[character]!);
  work.text(text.length);
  return new Markup(text);
}

const indent = filter("indent", "width? first? blank?", (input, [width = 4n, isFirst = false, isBlank = false], { work }) => {
  if (input instanceof Markup) throw new Unsupported("indent of a text that is marked as safe");
  if (typeof input !== "string") {
    demand(input);
    throw new TemplateError(`indent: expected a text, got ${typeName(input)}`);
  }
  const indention = typeof width === "string" ? width : " ".repeat(Math.max(0, Math.min(10_000, integer(width, "indent"))));
  const lines = splitLines(`${input}\n`);
  work.text(input.length + lines.length * indention.length);
  const inner = lines.map((line, i) => (i > 0 && (isTrue(isBlank) || line !== "") ? indention + line : line));
  return (isTrue(isFirst) ? indention : "") + inner.join("\n");
});

const int = filter("int", "default? base?", (input, [otherwise = 0n, base = 10n]) => {
  if (isNumber(input)) {
    const number = asNumeric(input);
    return typeof number === "bigint" ? number : Number.isFinite(number) ? truncated(number) : otherwise;
  }
  demand(input);
  if (!isText(input)) return otherwise;
  if (integer(base, "int") !== 10) throw new Unsupported("the filter int with a base");
  const text = strip(plain(input), null, "both");
  if (/^[-+]?\d+(_\d+)*$/.test(text)) return BigInt(text.replace("+", "").replaceAll("_", ""));
  const number = floatOf(text);
  return number === undefined || !Number.isFinite(number) ? otherwise : truncated(number);
});

/** float(text), or undefined where Python raises. */
function floatOf(value: string): number | undefined {
  const text = strip(value, null, "both");
  if (/^[-+]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)(e[-+]?\d+(_\d+)*)?$/i.test(text)) return Number(text.replaceAll("_", ""));
  const special = /^([-+]?)(inf|infinity|nan)$/i.exec(text);
  if (special === null) return undefined;
  return special[2]!.toLowerCase() === "nan" ? Number.NaN : special[1] === "-" ? -Infinity : Infinity;
}

const float = filter("float", "default?", (input, [otherwise = 0]) => {
  if (isNumber(input)) return Number(asNumeric(input));
  demand(input);
  return isText(input) ? (floatOf(plain(input)) ?? otherwise) : otherwise;
});

const join = filter("join", "d? attribute?", (input, [separator = "", attribute], context) => {
  const { work } = context;
  const get = getter(attribute, context);
  const items = [...iterate(input, work)].map((item) => toText(get(item), work));
  return joined(toText(separator, work), items, work);
});

const dictsort = filter(
  "dictsort",
  "case_sensitive? by? reverse?",
  (input, [isCaseSensitive = false, by = "key", isReversed = false], { work }) => {
    if (by !== "key" && by !== "value") throw new TemplateError('You can only sort by either "key" or "value"');
    if (!(input instanceof Dict)) {
      demand(input);
      throw new TemplateError(`'${typeName(input)}' object has no attribute 'items'`);
    }
    const pairs = input.entries().map((entry) => new Tuple(entry));
    const key = (pair: Value) => (pair as Tuple).items[by === "key" ? 0 : 1]!;
    return sorted(pairs, (pair) => (isTrue(isCaseSensitive) ? key(pair) : lowered(key(pair))), isTrue(isReversed), work);
  },
);

const sort = filter(
  "sort",
  "reverse? case_sensitive? attribute?",
  (input, [isReversed = false, isCaseSensitive = false, attribute], context) => {
    const paths = typeof attribute === "string" ? attribute.split(",") : [attribute];
    const getters = paths.map((path) => getter(path, context));
    const key = (item: Value) => getters.map((get) => (isTrue(isCaseSensitive) ? get(item) : lowered(get(item))));
    return sorted([...iterate(input, context.work)], key, isTrue(isReversed), context.work);
  },
);

const unique = filter("unique", "case_sensitive? attribute?", (input, [isCaseSensitive = false, attribute], context) => {
  const get = getter(attribute, context);
  const choose = function* (): Iterable<Value> {
    const seen = new Set<unknown>();
    for (const item of iterate(input, context.work)) {
      const key = isTrue(isCaseSensitive) ? get(item) : lowered(get(item));
      if (seen.has(hashed(key))) continue;
      seen.add(hashed(key));
      yield item;
    }
  };
  return new Generator(choose());
});

const groupby = filter(
  "groupby",
  "attribute default? case_sensitive?",
  (input, [attribute, otherwise, isCaseSensitive = false], context) => {
    const { work } = context;
    const get = getter(attribute, context, otherwise);
    const key = (item: Value) => (isTrue(isCaseSensitive) ? get(item) : lowered(get(item)));
    const groups: { key: Value; items: Value[] }[] = [];
    for (const item of sorted([...iterate(input, work)], key, false, work)) {
      const own = key(item);
      if (groups.length > 0 && equal(groups.at(-1)!.key, own, work)) groups.at(-1)!.items.push(item);
      else groups.push({ key: own, items: [item] });
    }
    return groups.map(({ items }) => new Tuple([get(items[0]!), items], ["grouper", "list"]));
  },
);

const batch = filter("batch", "linecount fill_with?", (input, [count, fill = null], { work }) => {
  const size = integer(count!, "batch");
  const make = function* (): Iterable<Value> {
    let line: Value[] = [];
    for (const item of iterate(input, work)) {
      if (line.length === size) {
        yield line;
        line = [];
      }
      line.push(item);
    }
    while (line.length > 0 && fill !== null && line.length < size) {
      work.count();
      line.push(fill);
    }
    if (line.length > 0) yield line;
  };
  return new Generator(make());
});

const slice = filter("slice", "slices fill_with?", (input, [count, fill = null], { work }) => {
  const slices = integer(count!, "slice");
  const make = function* (): Iterable<Value> {
    const items = [...iterate(input, work)];
    if (slices === 0) throw new TemplateError("integer division or modulo by zero");
    const size = Math.floor(items.length / slices);
    const longer = items.length % slices;
    let from = 0;
    for (let i = 0; i < slices; i++) {
      work.count();
      const to = from + size + (i < longer ? 1 : 0);
      const part = items.slice(from, to);
      if (fill !== null && i >= longer) part.push(fill);
      from = to;
      yield part;
    }
  };
  return new Generator(make());
});

const round = filter("round", "precision? method?", (input, [precision = 0n, method = "common"]) => {
  demand(input);
  if (!isNumber(input)) throw new TemplateError(`type ${typeName(input)} doesn't define __round__ method`);
  const digits = integer(precision, "round");
  const number = asNumeric(input);
  if (method === "common") {
    if (typeof number === "number") return fixedRound(number, digits);
    if (digits >= 0) return number;
    throw new Unsupported("round of an int to tens");
  }
  if (method !== "ceil" && method !== "floor") throw new TemplateError("method must be common, ceil or floor");
  const scaled = Number(number) * 10 ** digits;
  return (method === "ceil" ? Math.ceil(scaled) : Math.floor(scaled)) / 10 ** digits;
});

const sum = filter("sum", "attribute? start?", (input, [attribute, start = 0n], context) => {
  const get = getter(attribute, context);
  let total = start;
  if (isText(total)) throw new TemplateError("sum() can't sum strings [use ''.join(seq) instead]");
  for (const item of iterate(input, context.work)) total = context.binary("+", total, get(item));
  return total;
});

const reverse = filter("reverse", "", (input, _, { work }) => {
  if (isText(input)) return points(plain(input)).reverse().join("");
  if (input instanceof Generator) {
    const items = [...iterate(input, work)];
    return items.reverse();
  }
  if (lengthOf(input) === undefined) throw new TemplateError("argument must be iterable");
  return new Generator(
    [...iterate(input, work)].reverse(),
    isList(input) ? "list_reverseiterator" : input instanceof Range ? "range_iterator" : "reversed",
  );
});

const items = filter("items", "", (input) => {
  const make = function* (): Iterable<Value> {
    if (input instanceof Undefined) return;
    if (!(input instanceof Dict)) throw new TemplateError("Can only get item pairs from a mapping.");
    yield* new View("items", input).items();
  };
  return new Generator(make());
});

const tojson = filter(
  "tojson",
  "ensure_ascii? indent? separators? sort_keys?",
  (input, [ensureAscii = false, width = null, separators = null, sortKeys = false], { work }) => {
    const step =
      width === null
        ? undefined
        : typeof width === "string"
          ? width
          : " ".repeat(Math.max(0, Math.min(1000, integer(width, "tojson"))));
    let pair: readonly [string, string] = step === undefined ? [", ", ": "] : [",", ": "];
    if (separators !== null) {
      const given = isList(separators) ? separators : separators instanceof Tuple ? separators.items : [];
      if (given.length !== 2 || !given.every((each) => typeof each === "string"))
        throw new TemplateError("separators has to be a pair of texts");
      pair = given as [string, string];
    }
    return toJson(input, { ensureAscii: isTrue(ensureAscii), indent: step, separators: pair, sortKeys: isTrue(sortKeys) }, work);
  },
);

const title = ofText("title", "", (input) =>
  input
    .split(/([-\s({[<]+)/)
    .filter((part) => part !== "")
    .map((part) => {
      const [head = "", ...others] = points(part);
      return head.toUpperCase() + others.join("").toLowerCase();
    })
    .join(""),
);

const truncate = filter(
  "truncate",
  "length? killwords? end? leeway?",
  (input, [size = 255n, isKilling = false, ending = "...", leeway = null], { work }) => {
    if (!isText(input)) {
      if (lengthOf(input) === undefined) throw new TemplateError(`object of type '${typeName(input)}' has no len()`);
      throw new Unsupported(`truncate of a ${typeName(input)}`);
    }
    const text = toText(input, work);
    const [limit, end] = [integer(size, "truncate"), toText(ending, work)];
    const slack = leeway === null ? 5 : integer(leeway, "truncate");
    const characters = points(text);
    if (limit < points(end).length || slack < 0)
      throw new TemplateError(`expected length >= ${points(end).length}, got ${limit}`);
    if (characters.length <= limit + slack) return text;
    const kept = characters.slice(0, limit - points(end).length).join("");
    if (isTrue(isKilling)) return kept + end;
    const space = kept.lastIndexOf(" ");
    return (space < 0 ? kept : kept.slice(0, space)) + end;
  },
);

const urlencode = filter("urlencode", "", (input, _, { work }) => {
  const quote = (value: Value, isQuery: boolean) => {
    const text = encodeURIComponent(toText(value, work)).replace(
      /[!'()*]/g,
      (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
    );
    return isQuery ? text.replaceAll("%20", "+") : text.replaceAll("%2F", "/");
  };
  if (isText(input) || isNumber(input) || input === null) return quote(input, false);
  const pairs = input instanceof Dict ? new View("items", input).items() : [...iterate(input, work)];
  return pairs
    .map((pair) => (pair instanceof Tuple ? pair.items : isList(pair) ? pair : []))
    .map((pair) => {
      if (pair.length !== 2) throw new TemplateError("urlencode: expected pairs");
      return `${quote(pair[0]!, true)}=${quote(pair[1]!, true)}`;
    })
    .join("&");
});

/** Jinja's filters, with transformers' own tojson. Source: Jinja 3.1.6, jinja2/filters.py. */
export const filters: Readonly<Record<string, Filter>> = {
  abs: filter("abs", "", (input) => {
    demand(input);
    if (!isNumber(input)) throw new TemplateError(`bad operand type for abs(): '${typeName(input)}'`);
    const number = asNumeric(input);
    return typeof number === "number" ? Math.abs(number) : number < 0n ? -number : number;
  }),
  attr: filter("attr", "name", (input, [name], context) => {
    const wanted = nameOf(name!, "attr");
    if (input instanceof Dict && !["get", "keys", "values", "items", "copy"].includes(wanted))
      return new Undefined(`'dict object' has no attribute '${wanted}'`);
    return context.attribute(input, wanted);
  }),
  batch,
  capitalize: ofText("capitalize", "", capitalized),
  center: ofText("center", "width?", (input, [width = 80n], work) => centered(input, integer(width, "center"), work)),
  count: length,
  d: fallback,
  default: fallback,
  dictsort,
  e: escapeFilter,
  escape: escapeFilter,
  filesizeformat: refused("filesizeformat"),
  first,
  float,
  forceescape: filter("forceescape", "", (input, _, { work }) => escaped(toText(input, work), work)),
  format: (input, args, keywords, { work }) => {
    if (args.length > 0 && keywords.size > 0)
      throw new TemplateError("can't handle positional and keyword arguments at the same time");
    return formatPercent(toText(input, work), keywords.size > 0 ? new Dict(keywords) : new Tuple(args), work);
  },
  groupby,
  indent,
  int,
  items,
  join,
  last,
  length,
  list: filter("list", "", (input, _, { work }) => [...iterate(input, work)]),
  lower: ofText("lower", "", (input) => input.toLowerCase()),
  map,
  max: extreme("max", 1),
  min: extreme("min", -1),
  pprint: refused("pprint"),
  random: refused("random"),
  reject: chooser("reject", false, false),
  rejectattr: chooser("rejectattr", false, true),
  replace: filter("replace", "old new count?", (input, [old, by, count = null], { work }) =>
    replace(toText(input, work), toText(old!, work), toText(by!, work), count === null ? -1 : integer(count, "replace"), work),
  ),
  reverse,
  round,
  safe: filter("safe", "", (input, _, { work }) => (input instanceof Markup ? input : new Markup(toText(input, work)))),
  select: chooser("select", true, false),
  selectattr: chooser("selectattr", true, true),
  slice,
  sort,
  string: filter("string", "", (input, _, { work }) => (input instanceof Markup ? input : toText(input, work))),
  striptags: refused("striptags"),
  sum,
  title,
  tojson,
  trim: ofText("trim", "chars?", (input, [chars = null]) => {
    if (chars !== null && !isText(chars)) throw new TemplateError(`strip arg must be None or str, not ${typeName(chars)}`);
    return strip(input, chars === null ? null : plain(chars), "both");
  }),
  truncate,
  unique,
  upper: ofText("upper", "", (input) => input.toUpperCase()),
  urlencode,
  urlize: refused("urlize"),
  wordcount: ofText("wordcount", "", (input) => BigInt(input.match(/[\p{L}\p{N}\p{Mn}\p{Mc}_]+/gu)?.length ?? 0)),
  wordwrap: refused("wordwrap"),
  xmlattr: refused("xmlattr"),
};
