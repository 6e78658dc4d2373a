/** A JSON value whose integers are exact (`bigint`), whose other numbers are `number`, and whose objects are maps. */
export type StrictJson = null | boolean | number | bigint | string | StrictJson[] | Map<string, StrictJson>;

const maxDepth = 127; // serde_json's limit: what the Rust safetensors library refuses is refused here too
const maxIntegerDigits = 20; // those of 2⁶⁴ − 1; longer literals become floating point, as in serde_json

const whitespace = /[ \t\n\r]*/y;
const numberLiteral = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/y;

/**
 * JSON for untrusted headers, where `JSON.parse` is too kind: it keeps the last of two equal keys, rounds integers above
 * 2⁵³, reads `1.0` as an integer, lets lone surrogates through and gives `__proto__` a meaning.
 * `allowNonFinite` takes `NaN`, `Infinity` and `-Infinity` as well, which Python writes; `allowLoneSurrogates` takes halves of characters, for
 * who looks for them where they matter.
 * Throws SyntaxError with the position. Source: RFC 8259; limits as in serde_json.
 */
export function parseStrictJson(
  text: string,
  { allowNonFinite = false, allowLoneSurrogates = false }: { allowNonFinite?: boolean; allowLoneSurrogates?: boolean } = {},
): StrictJson {
  let at = 0;

  const fail = (what: string): never => {
    throw new SyntaxError(`${what} at character ${at}`);
  };
  const skipWhitespace = () => {
    whitespace.lastIndex = at;
    whitespace.test(text);
    at = whitespace.lastIndex;
  };
  const expectWord = <T extends StrictJson>(word: string, value: T): T => {
    if (!text.startsWith(word, at)) fail("unexpected character");
    at += word.length;
    return value;
  };

  function string(): string {
    const start = at++;
    let escaped = false;
    for (;;) {
      const code = text.charCodeAt(at);
      if (Number.isNaN(code)) fail("unfinished string");
      if (code < 0x20) fail("control character in a string");
      at++;
      if (code === 0x22) break;
      if (code === 0x5c) {
        escaped = true;
        at++;
      }
    }
    if (!escaped) return text.slice(start + 1, at - 1);
    let value = "";
    try {
      value = JSON.parse(text.slice(start, at)) as string;
    } catch {
      fail("bad escape in the string that ends");
    }
    if (!allowLoneSurrogates && /\p{Surrogate}/u.test(value)) fail("lone surrogate in the string that ends");
    return value;
  }

  function number(): number | bigint {
    const nonFinite = allowNonFinite && /^(?:NaN|-?Infinity)/.exec(text.slice(at, at + 9));
    if (nonFinite) return expectWord(nonFinite[0], Number(nonFinite[0]));
    numberLiteral.lastIndex = at;
    const match = numberLiteral.exec(text);
    if (!match) return fail("unexpected character");
    const [literal, fraction, exponent] = match;
    at += literal.length;
    const isInteger = fraction === undefined && exponent === undefined && literal !== "-0";
    if (isInteger && literal.length <= maxIntegerDigits) return BigInt(literal);
    const value = Number(literal);
    if (!Number.isFinite(value)) fail("number out of range that ends");
    return value;
  }

  function array(depth: number): StrictJson[] {
    const items: StrictJson[] = [];
    at++;
    skipWhitespace();
    if (text[at] === "]") at++;
    else
      for (;;) {
        items.push(value(depth));
        const next = text[at++];
        if (next === "]") break;
        if (next !== ",") fail('expected "," or "]"');
      }
    return items;
  }

  function object(depth: number): Map<string, StrictJson> {
    const members = new Map<string, StrictJson>();
    at++;
    skipWhitespace();
    if (text[at] === "}") at++;
    else
      for (;;) {
        skipWhitespace();
        if (text[at] !== '"') fail("expected a key");
        const key = string();
        if (members.has(key)) fail(`duplicate key ${JSON.stringify(key.slice(0, 200))} that ends`);
        skipWhitespace();
        if (text[at++] !== ":") fail('expected ":"');
        members.set(key, value(depth));
        const next = text[at++];
        if (next === "}") break;
        if (next !== ",") fail('expected "," or "}"');
      }
    return members;
  }

  /** One value and the whitespace around it. */
  function value(depth: number): StrictJson {
    skipWhitespace();
    if (depth > maxDepth) fail("nested too deeply");
    let result: StrictJson;
    switch (text[at]) {
      case "{":
        result = object(depth + 1);
        break;
      case "[":
        result = array(depth + 1);
        break;
      case '"':
        result = string();
        break;
      case "t":
        result = expectWord("true", true);
        break;
      case "f":
        result = expectWord("false", false);
        break;
      case "n":
        result = expectWord("null", null);
        break;
      default:
        result = number();
    }
    skipWhitespace();
    return result;
  }

  const result = value(0);
  if (at < text.length) fail("unexpected text after the value");
  return result;
}

/**
 * `JSON.parse` for files from outside: it refuses what is nested deeper than any such file is, as what walks through the value later would
 * overflow the stack, and what holds more than `maxValues` values, as short ones take many times the memory of their text. Throws SyntaxError.
 */
export function parseJson(text: string, { maxValues = Number.POSITIVE_INFINITY }: { maxValues?: number } = {}): unknown {
  let depth = 0;
  let values = 0;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === 0x22) at = endOfString(text, at);
    else if (code === 0x5b || code === 0x7b) {
      if (++depth > maxDepth) throw new SyntaxError(`nested too deeply at character ${at}`);
      values++;
    } else if (code === 0x5d || code === 0x7d) depth--;
    else if (code === 0x2c) values++;
    if (values > maxValues) throw new SyntaxError(`more than ${maxValues} values`);
  }
  return JSON.parse(text);
}

/** Where the string that begins at `start` ends: at its second quotation mark, or with the text. */
function endOfString(text: string, start: number): number {
  let at = start + 1;
  while (at < text.length && text.charCodeAt(at) !== 0x22) at += text.charCodeAt(at) === 0x5c ? 2 : 1;
  return at;
}

/** The same value as plain objects and numbers. Integers beyond 2⁵³ lose digits here, and only here. */
export function toPlainJson(value: StrictJson): unknown {
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(toPlainJson);
  if (!(value instanceof Map)) return value;
  const plain: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const [key, member] of value) plain[key] = toPlainJson(member);
  return plain;
}
