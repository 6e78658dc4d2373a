import { TemplateError, Unsupported } from "./errors.js";

/**
 * A template's source as tokens, with Jinja's settings as transformers has them: `trim_blocks`, `lstrip_blocks`, one line break at the end of
 * the source dropped, all line breaks read as "\n".
 * Source: Jinja 3.1.6, jinja2/lexer.py (Lexer.tokeniter and Lexer.wrap).
 */
export interface Token {
  readonly type: "data" | "begin" | "end" | "name" | "string" | "integer" | "float" | "operator" | "eof";
  /** For begin and end: which bracket, `{{` or `{%`. */
  readonly value: string;
  readonly line: number;
}

/** Python's `\s` and str.isspace(). */
export const blank = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const onlyBlanks = new RegExp(`^[${blank}]+$`);
const trailingBlank = new RegExp(`[${blank}]`);

const sticky = (pattern: string, flags = "") => new RegExp(pattern, `y${flags}`);
const rawBegin = sticky(`\\{%[-+]?[${blank}]*raw[${blank}]*(?:-%\\}[${blank}]*|%\\})`);
const rawEnd = new RegExp(`\\{%([-+]?)[${blank}]*endraw[${blank}]*(?:\\+%\\}|-%\\}[${blank}]*|%\\}\\n?)`, "g");
const commentEnd = new RegExp(`(?:\\+#\\}|-#\\}[${blank}]*|#\\}\\n?)`, "g");
const blockEnd = sticky(`(?:\\+%\\}|-%\\}[${blank}]*|%\\}\\n?)`);
const variableEnd = sticky(`(?:-\\}\\}[${blank}]*|\\}\\})`);
const blanks = sticky(`[${blank}]+`);
const float = sticky("(?<!\\.)(?:\\d+_)*\\d+(?:(?:\\.(?:\\d+_)*\\d+)?e[+-]?(?:\\d+_)*\\d+|\\.(?:\\d+_)*\\d+)", "i");
const integer = sticky("0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\\da-f])+|[1-9](?:_?\\d)*|0(?:_?0)*", "i");
const name = sticky("[\\p{L}\\p{Nl}\\p{Nd}\\p{Mn}\\p{Mc}\\p{Pc}]+", "u");
const string = sticky("'[^'\\\\]*(?:\\\\.[^'\\\\]*)*'|\"[^\"\\\\]*(?:\\\\.[^\"\\\\]*)*\"", "s");
const operator = sticky("//|\\*\\*|==|!=|>=|<=|[-+/*%~[\\](){}><=.:|,;]");
const closing: Readonly<Record<string, string>> = { "(": ")", "[": "]", "{": "}" };

/** Throws TemplateError. */
export function tokenize(template: string): Token[] {
  const source = template.replace(/\r\n|\r/g, "\n").replace(/\n$/, "");
  const tokens: Token[] = [];
  let at = 0;
  let line = 1;
  let isLineStart = true;

  const push = (type: Token["type"], value: string) => tokens.push({ type, value, line });
  const match = (pattern: RegExp, from = at): RegExpExecArray | null => {
    pattern.lastIndex = from;
    return pattern.exec(source);
  };
  const advance = (to: number) => {
    for (let i = at; i < to; i++) if (source[i] === "\n") line++;
    isLineStart = to > at ? source[to - 1] === "\n" : isLineStart;
    at = to;
  };
  /** The text before a tag, without the blanks that the tag's sign or `lstrip_blocks` takes away. */
  const before = (text: string, sign: string, isVariable: boolean): string => {
    if (sign === "-") {
      let end = text.length;
      while (end > 0 && trailingBlank.test(text[end - 1]!)) end--;
      return text.slice(0, end);
    }
    if (sign === "+" || isVariable) return text;
    const lineStart = text.lastIndexOf("\n") + 1;
    return (lineStart > 0 || isLineStart) && onlyBlanks.test(text.slice(lineStart)) ? text.slice(0, lineStart) : text;
  };
  const data = (text: string) => {
    if (text !== "") push("data", text);
  };

  while (at < source.length) {
    let open = source.indexOf("{", at);
    while (open >= 0 && !"{%#".includes(source[open + 1] ?? "x")) open = source.indexOf("{", open + 1);
    if (open < 0) {
      data(source.slice(at));
      break;
    }
    const text = source.slice(at, open);
    const kind = source[open + 1]!;
    const sign = "-+".includes(source[open + 2] ?? "x") ? source[open + 2]! : "";
    data(before(text, sign, kind === "{"));

    const raw = kind === "%" ? match(rawBegin, open) : null;
    if (raw !== null) {
      advance(open + raw[0].length);
      const end = match(rawEnd);
      if (end === null) throw syntaxError("Missing end of raw directive", line);
      data(before(source.slice(at, end.index), end[1]!, false));
      advance(end.index + end[0].length);
      continue;
    }
    advance(open + 2 + sign.length);
    if (kind === "#") {
      const end = match(commentEnd);
      if (end === null) throw syntaxError("Missing end of comment tag", line);
      advance(end.index + end[0].length);
      continue;
    }
    push("begin", kind === "{" ? "{{" : "{%");
    inTag(kind === "{" ? variableEnd : blockEnd, kind === "{" ? "{{" : "{%");
  }
  push("eof", "");
  return tokens;

  function inTag(endOfTag: RegExp, bracket: string): void {
    const brackets: string[] = [];
    while (at < source.length) {
      const end = brackets.length === 0 ? match(endOfTag) : null;
      if (end !== null) {
        push("end", bracket);
        advance(at + end[0].length);
        return;
      }
      const space = match(blanks);
      if (space !== null) {
        advance(at + space[0].length);
        continue;
      }
      const [type, found] = nextToken();
      if (type === "operator") {
        if (closing[found] !== undefined) brackets.push(closing[found]);
        else if (")]}".includes(found)) {
          const expected = brackets.pop();
          if (expected !== found)
            throw syntaxError(`unexpected '${found}'${expected === undefined ? "" : `, expected '${expected}'`}`, line);
        }
      }
      push(type, type === "string" ? unescaped(found.slice(1, -1), line) : found);
      advance(at + found.length);
    }
  }

  function nextToken(): [type: Token["type"], text: string] {
    for (const [type, pattern] of tokenPatterns) {
      const found = match(pattern);
      if (found !== null) return [type, found[0]];
    }
    throw syntaxError(`unexpected char '${source[at]}'`, line);
  }
}

const tokenPatterns: readonly (readonly [Token["type"], RegExp])[] = [
  ["float", float],
  ["integer", integer],
  ["name", name],
  ["string", string],
  ["operator", operator],
];

const escapes: Readonly<Record<string, string>> = {
  "\n": "",
  "\\": "\\",
  "'": "'",
  '"': '"',
  a: "\x07",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
};
const hexDigits: Readonly<Record<string, number>> = { x: 2, u: 4, U: 8 };

/** Python's "unicode-escape", with what Jinja makes of other characters before it (a backslash escapes their escape). */
function unescaped(text: string, line: number): string {
  if (!text.includes("\\")) return text;
  return text.replace(/\\([0-7]{1,3}|[xuU][0-9a-fA-F]*|[\s\S])/gu, (whole, code: string) => {
    const kind = code[0]!;
    const simple = escapes[code];
    if (simple !== undefined) return simple;
    if (/^[0-7]/.test(code)) return String.fromCharCode(Number.parseInt(code, 8));
    const length = hexDigits[kind];
    if (length !== undefined) {
      const value = Number.parseInt(code.slice(1, 1 + length), 16);
      if (code.length < 1 + length || value > 0x10ffff)
        throw syntaxError(`can't decode bytes: truncated \\${kind}${"X".repeat(length)} escape`, line);
      return String.fromCodePoint(value) + code.slice(1 + length);
    }
    if (kind === "N") throw new Unsupported("\\N{…} in a text");
    const point = code.codePointAt(0)!;
    if (point < 0x80) return whole;
    const hex = point.toString(16);
    return `\\${point < 0x100 ? `x${hex}` : point < 0x10000 ? `u${hex.padStart(4, "0")}` : `U${hex.padStart(8, "0")}`}`;
  });
}

export function syntaxError(message: string, line: number): TemplateError {
  return new TemplateError(`${message} (line ${line})`);
}
