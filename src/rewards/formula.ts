/** A formula of numbers with names. */
export interface Formula {
  /** The names that it reads, each once. */
  readonly names: readonly string[];
  /** May be infinite or no number, as where it divides by 0. */
  value(numbers: Readonly<Record<string, number>>): number;
}

type Node = (numbers: Readonly<Record<string, number>>) => number;

const functions: Readonly<Record<string, (...numbers: number[]) => number>> = {
  min: Math.min,
  max: Math.max,
  abs: Math.abs,
  floor: Math.floor,
  ceil: Math.ceil,
  exp: Math.exp,
  sqrt: Math.sqrt,
  log: Math.log,
};
const maxDepth = 64;
const maxChars = 10_000;
const token = /\s*(?:(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)|([\p{L}_][\p{L}\p{N}_]*)|(.))/suy;

/**
 * Arithmetic, and nothing else: numbers, names, + − * / ^, parentheses, and min, max, abs, floor, ceil, exp, sqrt, log. ^ binds tightest and from the
 * right, as in mathematics.
 * Source: OpenAI, "Graders", multigraders (calculate_output). Throws SyntaxError with the position.
 */
export function parseFormula(source: string): Formula {
  const names = new Set<string>();
  let depth = 0;
  const fail = (what: string, at: number): never => {
    throw new SyntaxError(`${what} at character ${at + 1}`);
  };
  if (source.length > maxChars) fail(`a formula has at most ${maxChars} characters; another`, maxChars);

  let at = 0;
  let start = 0;
  let [number, name, sign]: (string | undefined)[] = [];
  const advance = () => {
    token.lastIndex = at;
    const match = token.exec(source);
    [, number, name, sign] = match ?? [];
    start = match === null ? source.length : token.lastIndex - (number ?? name ?? sign)!.length;
    at = match === null ? source.length : token.lastIndex;
    if (sign !== undefined && sign.trim() === "") sign = undefined; // blanks at the end
  };
  const take = (wanted: string): boolean => {
    if (sign !== wanted) return false;
    advance();
    return true;
  };
  const expect = (wanted: string) => {
    if (!take(wanted)) fail(`expected "${wanted}"`, start);
  };

  function sum(): Node {
    if (++depth > maxDepth) fail("parentheses too deep", start);
    let left = product();
    for (;;) {
      const [a, isPlus] = [left, take("+")];
      if (!isPlus && !take("-")) break;
      const b = product();
      left = isPlus ? (numbers) => a(numbers) + b(numbers) : (numbers) => a(numbers) - b(numbers);
    }
    depth--;
    return left;
  }

  function product(): Node {
    let left = signed();
    for (;;) {
      const [a, isTimes] = [left, take("*")];
      if (!isTimes && !take("/")) return left;
      const b = signed();
      left = isTimes ? (numbers) => a(numbers) * b(numbers) : (numbers) => a(numbers) / b(numbers);
    }
  }

  function signed(): Node {
    if (++depth > maxDepth) fail("signs or powers too deep", start);
    const isMinus = take("-");
    const of = isMinus || take("+") ? signed() : power();
    depth--;
    return isMinus ? (numbers) => -of(numbers) : of;
  }

  function power(): Node {
    const base = atom();
    if (!take("^")) return base;
    const exponent = signed();
    return (numbers) => base(numbers) ** exponent(numbers);
  }

  function atom(): Node {
    const [value, word, from] = [number, name, start];
    if (value !== undefined) {
      advance();
      return () => Number(value);
    }
    if (word === undefined) {
      if (!take("(")) fail("expected a number, a name or a parenthesis", from);
      const inside = sum();
      expect(")");
      return inside;
    }
    advance();
    if (!take("(")) {
      names.add(word);
      return (numbers) => numbers[word]!;
    }
    const called = Object.hasOwn(functions, word)
      ? functions[word]!
      : fail(`there is no function ${word}; there are ${Object.keys(functions).join(", ")}`, from);
    const given = [sum()];
    while (take(",")) given.push(sum());
    expect(")");
    if (given.length > 1 && word !== "min" && word !== "max") fail(`${word} takes one number`, from);
    return (numbers) => called(...given.map((one) => one(numbers)));
  }

  advance();
  const whole = sum();
  if (number !== undefined || name !== undefined || sign !== undefined) fail("expected an operator", start);
  return { names: [...names], value: whole };
}
