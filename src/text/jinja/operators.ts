import { TemplateError, Unsupported, type Work } from "./errors.js";
import { escaped } from "./filters.js";
import { percent } from "./methods.js";
import { asNumeric, demand, isList, isNumber, isText, lengthOf, Markup, Tuple, typeName, type Value } from "./values.js";

const maxBits = 14_000n; // of an int: Python refuses to print longer ones

/** `left operator right` as Python computes it. Throws TemplateError where Python raises. */
export function binary(operator: string, left: Value, right: Value, work: Work): Value {
  work.count();
  if (isNumber(left) && isNumber(right)) return arithmetic(operator, asNumeric(left), asNumeric(right));
  demand(left);
  if (operator === "%" && typeof left === "string") return percent(left, right, work);
  demand(right);
  if (operator === "+") {
    if (typeof left === "string" && typeof right === "string") {
      work.text(left.length + right.length);
      return left + right;
    }
    if (isText(left) && isText(right)) return new Markup(escaped(left, work).text + escaped(right, work).text);
    const isSame = (isList(left) && isList(right)) || (left instanceof Tuple && right instanceof Tuple);
    if (isSame) {
      const items = isList(left)
        ? [...left, ...(right as readonly Value[])]
        : [...(left as Tuple).items, ...(right as Tuple).items];
      checkLength(items.length);
      work.count(items.length >> 4);
      return isList(left) ? items : new Tuple(items);
    }
  }
  if (operator === "*") {
    if (isCount(left)) return repeated(right, left, operator, left, work);
    if (isCount(right)) return repeated(left, right, operator, right, work);
  }
  throw mismatch(operator, left, right);
}

function isCount(value: Value): value is bigint | boolean {
  return typeof value === "bigint" || typeof value === "boolean";
}

function repeated(value: Value, count: bigint | boolean, operator: string, other: Value, work: Work): Value {
  const items = isList(value) ? value : value instanceof Tuple ? value.items : undefined;
  const length = typeof value === "string" ? value.length : items?.length;
  if (length === undefined) throw mismatch(operator, value, other);
  const times = Number(asNumeric(count));
  if (Math.abs(times) >= 2 ** 63) throw new TemplateError("cannot fit 'int' into an index-sized integer");
  const whole = Math.max(0, times) * length;
  if (typeof value === "string") {
    work.text(whole);
    return value.repeat(Math.max(0, times));
  }
  checkLength(whole);
  work.count(whole);
  const all = Array.from({ length: Math.max(0, times) }, () => items!).flat(1);
  return isList(value) ? all : new Tuple(all);
}

const maxItems = 1_000_000;

function checkLength(length: number): void {
  if (length > maxItems) throw new Unsupported(`a list of over ${maxItems} items`);
}

function arithmetic(operator: string, left: bigint | number, right: bigint | number): bigint | number {
  if (typeof left === "bigint" && typeof right === "bigint") return ofInts(operator, left, right);
  const [a, b] = [Number(left), Number(right)];
  switch (operator) {
    case "+":
      return a + b;
    case "-":
      return a - b;
    case "*":
      return a * b;
    case "**":
      if (a === 0 && b < 0) throw new TemplateError("0.0 cannot be raised to a negative power");
      if (a < 0 && !Number.isInteger(b)) throw new Unsupported("complex numbers");
      return a ** b;
  }
  if (b === 0) throw new TemplateError("float division by zero");
  if (operator === "/") return a / b;
  const rest = a % b;
  const remainder = rest !== 0 && rest < 0 !== b < 0 ? rest + b : rest;
  return operator === "%" ? remainder : Math.floor((a - remainder) / b + 0.5);
}

function ofInts(operator: string, a: bigint, b: bigint): bigint | number {
  switch (operator) {
    case "+":
      return a + b;
    case "-":
      return a - b;
    case "*":
      checkBits(bits(a) + bits(b));
      return a * b;
    case "**":
      if (b < 0n) return arithmetic("**", Number(a), Number(b));
      checkBits(bits(a) * b);
      return a ** b;
  }
  if (b === 0n) throw new TemplateError("integer division or modulo by zero");
  if (operator === "/") return Number(a) / Number(b);
  const rest = a % b;
  const isOff = rest !== 0n && rest < 0n !== b < 0n;
  if (operator === "%") return isOff ? rest + b : rest;
  return a / b - (isOff ? 1n : 0n);
}

function bits(value: bigint): bigint {
  return BigInt(value.toString(16).length * 4);
}

function checkBits(count: bigint): void {
  if (count > maxBits) throw new Unsupported(`an int of over ${maxBits} bits`);
}

export function unary(operator: "+" | "-", value: Value): Value {
  demand(value);
  if (!isNumber(value)) throw new TemplateError(`bad operand type for unary ${operator}: '${typeName(value)}'`);
  const number = asNumeric(value);
  return operator === "-" ? -number : number;
}

function mismatch(operator: string, left: Value, right: Value): TemplateError {
  return new TemplateError(`unsupported operand type(s) for ${operator}: '${typeName(left)}' and '${typeName(right)}'`);
}

/** The index that a negative one means; undefined beyond the ends. */
export function position(object: Value, index: bigint | boolean): number | undefined {
  const length = lengthOf(object)!;
  const at = Number(asNumeric(index));
  const from = at < 0 ? at + length : at;
  return from >= 0 && from < length ? from : undefined;
}
