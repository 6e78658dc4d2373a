import { TemplateError, Work } from "./errors.js";
import { compareTexts, Dict, floatText, fromJson, isList, Markup, Tuple, typeName, type Value } from "./values.js";

export interface JsonOptions {
  readonly ensureAscii: boolean;
  /** What a level is indented by; undefined: all on one line. */
  readonly indent: string | undefined;
  readonly separators: readonly [item: string, key: string];
  readonly sortKeys: boolean;
}

/** Python's json.dumps. Throws TemplateError for values that JSON has no form for. */
export function toJson(value: Value, options: JsonOptions, work: Work): string {
  const parts: string[] = [];
  let chars = 0;
  const put = (text: string) => {
    parts.push(text);
    chars += text.length;
    work.text(text.length);
    work.bound(chars);
  };
  const write = (item: Value, depth: number): void => {
    work.count();
    if (item === null) put("null");
    else if (typeof item === "boolean" || typeof item === "bigint") put(String(item));
    else if (typeof item === "number") put(numberText(item));
    else if (typeof item === "string" || item instanceof Markup)
      put(jsonText(typeof item === "string" ? item : item.text, options.ensureAscii));
    else if (isList(item) || item instanceof Tuple)
      writeAll("[", "]", isList(item) ? item : item.items, depth, (each) => write(each, depth + 1));
    else if (item instanceof Dict)
      writeAll("{", "}", sorted(item.entries()), depth, ([key, each]) => {
        put(`${jsonText(keyText(key), options.ensureAscii)}${options.separators[1]}`);
        write(each, depth + 1);
      });
    else throw new TemplateError(`Object of type ${typeName(item)} is not JSON serializable`);
  };
  const writeAll = <T>(open: string, close: string, items: readonly T[], depth: number, one: (item: T) => void): void => {
    if (items.length === 0) {
      put(open + close);
      return;
    }
    const { indent, separators } = options;
    const line = (levels: number) => (indent === undefined ? "" : `\n${indent.repeat(levels)}`);
    put(open);
    for (const [i, item] of items.entries()) {
      put(`${i === 0 ? "" : separators[0]}${line(depth + 1)}`);
      one(item);
    }
    put(`${line(depth)}${close}`);
  };
  const sorted = (entries: readonly (readonly [Value, Value])[]) => {
    if (!options.sortKeys) return entries;
    if (!entries.every(([key]) => typeof key === "string")) throw new TemplateError("keys of different types cannot be sorted");
    return [...entries].sort(([a], [b]) => compareTexts(a as string, b as string, work));
  };
  write(value, 0);
  return parts.join("");
}

/** json.dumps(value, ensure_ascii=False) of what JSON gave. */
export function jsonOf(value: unknown): string {
  const unlimited = { steps: Number.POSITIVE_INFINITY, chars: Number.POSITIVE_INFINITY };
  const options = { ensureAscii: false, indent: undefined, separators: [", ", ": "], sortKeys: false } as const;
  return toJson(fromJson(value), options, new Work(unlimited));
}

function numberText(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  return Number.isFinite(value) ? floatText(value) : value > 0 ? "Infinity" : "-Infinity";
}

function keyText(key: Value): string {
  if (typeof key === "string") return key;
  if (key === null) return "null";
  if (typeof key === "boolean" || typeof key === "bigint") return String(key);
  if (typeof key === "number") return numberText(key);
  throw new TemplateError(`keys must be str, int, float, bool or None, not ${typeName(key)}`);
}

const shortEscapes: Readonly<Record<string, string>> = {
  '"': '\\"',
  "\\": "\\\\",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\f": "\\f",
  "\b": "\\b",
};

function jsonText(text: string, ensureAscii: boolean): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: JSON escapes exactly these
  const special = ensureAscii ? /["\\]|[^ -~]/g : /["\\\x00-\x1f]/g;
  return `"${text.replace(special, (unit) => shortEscapes[unit] ?? `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`)}"`;
}
