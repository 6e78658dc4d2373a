import { TemplateError, Unsupported, type Work } from "./errors.js";
import {
  asNumeric,
  Callable,
  Dict,
  demand,
  floatText,
  Generator,
  isNumber,
  type Keywords,
  Namespace,
  points,
  repr,
  Tuple,
  toText,
  typeName,
  type Value,
  View,
} from "./values.js";

/** `text % values`: the conversions s, r, d, i, u, f, F, x, X, o, e, g and %, with flags, width and precision. */
export function formatPercent(template: string, values: Value, work: Work): string {
  const items = values instanceof Tuple ? values.items : [values];
  let used = 0;
  const result = template.replace(
    /%(?:\(([^)]*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?[hlL]?([\s\S])?/g,
    (
      _,
      key: string | undefined,
      flags: string,
      width: string | undefined,
      precision: string | undefined,
      kind: string | undefined,
    ) => {
      if (kind === "%") return "%";
      if (width === "*" || precision === "*") throw new Unsupported("a width of * in a format");
      if (kind === undefined) throw new TemplateError("incomplete format");
      const value = key === undefined ? items[used++] : lookUp(values, key);
      if (value === undefined) throw new TemplateError("not enough arguments for format string");
      const text = converted(kind, value, flags, precision === undefined ? undefined : Number(precision), work);
      return pad(
        text,
        Number(width ?? 0),
        flags.includes("-") ? "<" : ">",
        flags.includes("0") && isNumber(value) ? "0" : " ",
        work,
      );
    },
  );
  const isMapping =
    values !== null &&
    typeof values === "object" &&
    ![Tuple, View, Generator, Callable, Namespace].some((kind) => values instanceof kind);
  if (used < items.length && !isMapping) throw new TemplateError("not all arguments converted during string formatting");
  work.text(result.length);
  return result;
}

function lookUp(values: Value, key: string): Value {
  if (!(values instanceof Dict)) throw new TemplateError("format requires a mapping");
  const value = values.get(key);
  if (value === undefined) throw new TemplateError(`KeyError: '${key}'`);
  return value;
}

function converted(kind: string, value: Value, flags: string, precision: number | undefined, work: Work): string {
  const cut = (text: string) => (precision === undefined ? text : points(text).slice(0, precision).join(""));
  if (kind === "s") return cut(toText(value, work));
  if (kind === "r") return cut(repr(value, work));
  if (kind === "c" || kind === "a") throw new Unsupported(`%${kind} in a format`);
  demand(value);
  if (!isNumber(value)) throw new TemplateError(`%${kind} format: a real number is required, not ${typeName(value)}`);
  const number = asNumeric(value);
  const sign = number < 0 || Object.is(number, -0) ? "-" : flags.includes("+") ? "+" : flags.includes(" ") ? " " : "";
  if ("diu".includes(kind)) return sign + digitsOf(typeof number === "bigint" ? number : truncated(number), 10, precision);
  if ("xXo".includes(kind)) {
    if (typeof number !== "bigint") throw new TemplateError(`%${kind} format: an integer is required, not float`);
    if (flags.includes("#")) throw new Unsupported("# in a format");
    const text = sign + digitsOf(number, kind === "o" ? 8 : 16, precision);
    return kind === "X" ? text.toUpperCase() : text;
  }
  if ("fFeEgG".includes(kind)) return sign + floatBy(kind, Number(number), precision);
  throw new TemplateError(`unsupported format character '${kind}'`);
}

export function truncated(value: number): bigint {
  if (!Number.isFinite(value)) throw new TemplateError(`cannot convert float ${floatText(value)} to integer`);
  return BigInt(Math.trunc(value));
}

function digitsOf(value: bigint, base: number, precision = 1): string {
  return (value < 0n ? -value : value).toString(base).padStart(precision, "0");
}

/** Without a sign. */
function floatBy(kind: string, value: number, precision = 6): string {
  const size = Math.abs(value);
  if (!Number.isFinite(size)) return floatText(size);
  if (kind === "f" || kind === "F") return fixed(size, precision);
  if (kind !== "e" && kind !== "E") throw new Unsupported(`the number format ${kind}`);
  if (precision > 100) throw new Unsupported("a precision above 100");
  const text = size.toExponential(precision).replace(/e([+-])(\d)$/, "e$10$2");
  return kind === "E" ? text.toUpperCase() : text;
}

/** Correctly rounded decimals, half to even on the exact value, as Python's. toFixed rounds the exact value half up: a tie must be even. */
function fixed(size: number, precision: number): string {
  if (precision > 100 || size >= 1e21) throw new Unsupported("a number of so many digits");
  const text = size.toFixed(precision);
  const exact = size.toFixed(Math.min(100, precision + 60));
  const rest = exact.slice(exact.indexOf(".") + 1 + precision);
  const isTie = /^50*$/.test(rest);
  if (!isTie) return text;
  const down = exact.slice(0, exact.indexOf(".") + (precision === 0 ? 0 : 1 + precision));
  return "02468".includes(down.at(-1)!) ? down : text;
}

/** Python's round(value, digits). */
export function fixedRound(value: number, digits: number): number {
  if (!Number.isFinite(value)) return value;
  if (digits < 0) throw new Unsupported("round of a float to tens");
  if (digits > 22 || Math.abs(value) >= 1e21) return value;
  const size = Number(fixed(Math.abs(value), digits));
  return value < 0 || Object.is(value, -0) ? -size : size;
}

function pad(text: string, width: number, align: string, fill: string, work: Work): string {
  const missing = width - points(text).length;
  if (missing <= 0) return text;
  work.text(text.length + missing);
  if (fill === "0" && align === ">") {
    const sign = /^[-+ ]/.exec(text)?.[0] ?? "";
    return sign + "0".repeat(missing) + text.slice(sign.length);
  }
  if (align === "^") return fill.repeat(missing >> 1) + text + fill.repeat(missing - (missing >> 1));
  return align === "<" ? text + fill.repeat(missing) : fill.repeat(missing) + text;
}

/** str.format: fields by position or name, with !s, !r and plain format specs; attributes and items inside fields are refused. */
export function format(template: string, args: readonly Value[], keywords: Keywords, work: Work): string {
  let next = 0;
  let mode: "automatic" | "manual" | undefined;
  const result = template.replace(/\{\{|\}\}|\{([^{}]*)\}|[{}]/g, (whole, field: string | undefined) => {
    if (whole === "{{" || whole === "}}") return whole[0]!;
    if (field === undefined) throw new TemplateError(`Single '${whole}' encountered in format string`);
    const [, name = "", conversion, spec = ""] = /^([^!:]*)(?:!([^:]*))?(?::(.*))?$/s.exec(field) ?? [];
    if (/[.[]/.test(name)) throw new Unsupported("attributes in the fields of .format()");
    let value: Value | undefined;
    if (/^\d*$/.test(name)) {
      const kind = name === "" ? "automatic" : "manual";
      if (mode !== undefined && mode !== kind)
        throw new TemplateError("cannot switch between manual field specification and automatic field numbering");
      mode = kind;
      value = args[name === "" ? next++ : Number(name)];
    } else value = keywords.get(name);
    if (value === undefined) throw new TemplateError(`a value for the field '${name}' of a format is missing`);
    if (conversion !== undefined && conversion !== "s" && conversion !== "r") throw new Unsupported(`!${conversion} in a format`);
    if (conversion !== undefined) value = conversion === "r" ? repr(value, work) : toText(value, work);
    return bySpec(value, spec, work);
  });
  work.text(result.length);
  return result;
}

/** Python's format(value, spec), of the kinds `[[fill]align][sign][0][width][,][.precision][s|d|f|x|%]`. */
function bySpec(value: Value, spec: string, work: Work): string {
  if (spec === "") return toText(value, work);
  const [matched, fill, align, sign = "", zero, width = "0", comma, precision, kind] =
    /^(?:([\s\S])?([<>^]))?([-+ ])?(0)?(\d+)?(,)?(?:\.(\d+))?([sdfx%])?$/u.exec(spec) ?? [];
  if (matched === undefined) throw new Unsupported(`the format ${spec}`);
  const places = precision === undefined ? undefined : Number(precision);
  if (typeof value === "string") {
    if (sign !== "" || comma !== undefined || (kind ?? "s") !== "s" || zero !== undefined)
      throw new Unsupported(`the format ${spec} of a text`);
    const text = places === undefined ? value : points(value).slice(0, places).join("");
    return pad(text, Number(width), align ?? "<", fill ?? " ", work);
  }
  if (!isNumber(value) || typeof value === "boolean") throw new Unsupported(`the format ${spec} of a ${typeName(value)}`);
  const isFloat = typeof value === "number";
  const effective = kind ?? (isFloat ? "r" : "d");
  if (
    effective === "s" ||
    (effective === "d" && isFloat) ||
    (effective === "r" && places !== undefined) ||
    (effective === "x" && isFloat)
  )
    throw new Unsupported(`the format ${spec} of a ${typeName(value)}`);
  const size = value < 0 ? -value : value;
  let text: string;
  if (effective === "d") text = size.toString();
  else if (effective === "x") text = size.toString(16);
  else if (effective === "r") text = floatText(size as number);
  else text = effective === "%" ? `${fixed(Number(size) * 100, places ?? 6)}%` : fixed(Number(size), places ?? 6);
  if (comma !== undefined) text = text.replace(/^\d+/, (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ","));
  if (zero !== undefined && comma !== undefined) throw new Unsupported(`the format ${spec}`);
  const signed = (value < 0 || Object.is(value, -0) ? "-" : sign === "-" ? "" : sign) + text;
  return pad(signed, Number(width), align ?? ">", fill ?? (zero === undefined ? " " : "0"), work);
}
