/**
 * Regular expressions of other languages, written as JavaScript's: Oniguruma's (Ruby syntax), in which tokenizer.json is written, and
 * Python's, in which PEFT and LLaMA-Factory name modules. What has no equal here is refused by name, never approximated.
 *
 * Source: Oniguruma, doc/RE; Python, library/re. Character classes follow the Unicode tables of V8, which may be newer.
 */
export type RegexDialect = "oniguruma" | "python";

/** Throws SyntaxError that names what is wrong or has no equal. `flags` are JavaScript's, beside `v`. */
export function translateRegex(source: string, dialect: RegexDialect, flags = ""): RegExp {
  return new RegExp(new Translation(source, dialect).whole(), `${flags}v`);
}

interface Options {
  readonly ignoreCase: boolean;
  readonly dotAll: boolean;
  readonly multiline: boolean;
}

const maxDepth = 200;
const word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
/** Oniguruma counts some raised digits and fractions as letters of words, except inside a class. */
const raised = "\\xb2\\xb3\\xb9\\xbc-\\xbe";
const notNewline = "[^\\n]";
const anything = "[\\s\\S]";

/** Sets that a letter behind a backslash stands for, as the inside of a class. */
const setEscapes: Readonly<Record<RegexDialect, Readonly<Record<string, string>>>> = {
  oniguruma: { d: "\\p{Nd}", s: "\\p{White_Space}", w: word, h: "0-9a-fA-F" },
  python: { d: "\\p{Nd}", s: "\\p{White_Space}\\x1c-\\x1f", w: "\\p{L}\\p{N}_" },
};
const characterEscapes: Readonly<Record<string, string>> = { t: "\t", n: "\n", r: "\r", f: "\f", v: "\v", a: "\x07", e: "\x1b" };
const posixSets: Readonly<Record<string, string>> = {
  alpha: "\\p{Alphabetic}",
  alnum: "\\p{Alphabetic}\\p{Nd}",
  digit: "\\p{Nd}",
  lower: "\\p{Lowercase}",
  upper: "\\p{Uppercase}",
  space: "\\p{White_Space}",
  blank: "\\t\\p{Zs}",
  cntrl: "\\p{Cc}",
  punct: "\\p{P}\\p{S}",
  word,
  xdigit: "0-9a-fA-F",
};

class Translation {
  readonly #source: string;
  readonly #dialect: RegexDialect;
  #at = 0;
  #captures = 0;
  #depth = 0;
  #isBehind = false;

  constructor(source: string, dialect: RegexDialect) {
    this.#source = source;
    this.#dialect = dialect;
  }

  whole(): string {
    let options: Options = { ignoreCase: false, dotAll: false, multiline: this.#dialect === "oniguruma" };
    if (this.#dialect === "python")
      for (let flags = /^\(\?([aiLmsux]+)\)/.exec(this.#rest()); flags; flags = /^\(\?([aiLmsux]+)\)/.exec(this.#rest())) {
        this.#at += flags[0].length;
        options = this.#withFlags(options, flags[1]!, "");
      }
    const pattern = this.#alternatives(options);
    if (this.#at < this.#source.length) this.#fail("a parenthesis too many");
    return pattern;
  }

  #alternatives(options: Options): string {
    if (++this.#depth > maxDepth) this.#fail(`groups more than ${maxDepth} deep`);
    let out = "";
    while (this.#at < this.#source.length && this.#peek() !== ")") {
      if (this.#peek() === "|") {
        this.#at++;
        out += "|";
        continue;
      }
      const atom = this.#atom(options);
      out += atom === "" ? atom : this.#quantified(atom);
    }
    this.#depth--;
    return out;
  }

  #atom(options: Options): string {
    const start = this.#at;
    const character = this.#next();
    switch (character) {
      case "(":
        return this.#group(options, start);
      case "[":
        return this.#class(options).atom;
      case ".":
        return options.dotAll ? anything : notNewline;
      case "^":
        if (!options.multiline) return "(?:^)";
        return this.#dialect === "oniguruma" ? "(?:^|(?<=\\n)(?!$))" : "(?:^|(?<=\\n))";
      case "$":
        return options.multiline ? "(?=\\n|$)" : "(?=\\n?$)";
      case "*":
      case "+":
      case "?":
        return this.#fail("a quantifier that has nothing before it", start);
      case "\\":
        return this.#escape(options, start);
      default:
        if (
          options.ignoreCase &&
          this.#dialect === "oniguruma" &&
          /^(?:ß|ss|st|f[fil])/i.test(this.#source.slice(start, start + 2))
        )
          return this.#fail("letters whose other case is a single character, under (?i)", start);
        return literal(character, options);
    }
  }

  #quantified(first: string): string {
    let atom = first;
    for (let isFirst = true; ; isFirst = false) {
      const match = /^(?:[*+?]|\{(\d*)(,?)(\d*)\})/.exec(this.#rest());
      if (match === null || (match[0].startsWith("{") && match[1] === "" && match[3] === "")) return atom;
      if (!isFirst && this.#dialect === "python") this.#fail("a quantifier behind a quantifier");
      this.#at += match[0].length;
      const isInterval = match[0].startsWith("{");
      const isExact = isInterval && match[2] === "";
      const quantifier = isInterval ? `{${match[1] || "0"}${match[2]}${match[3]}}` : match[0];
      const suffix = this.#peek();
      if (suffix === "?") {
        this.#at++;
        atom = isExact && this.#dialect === "oniguruma" ? `(?:${atom}${quantifier})?` : `${atom}${quantifier}?`;
      } else if (suffix === "+" && (!isInterval || this.#dialect === "python")) {
        this.#at++;
        atom = this.#atomic(`${atom}${quantifier}`);
      } else atom = `${atom}${quantifier}`;
      atom = `(?:${atom})`;
    }
  }

  /** A match that is never given back: JavaScript keeps what a lookahead found. */
  #atomic(pattern: string): string {
    if (this.#isBehind) this.#fail("an atomic group or possessive quantifier inside a lookbehind");
    const name = `atomic${++this.#captures}`;
    return `(?:(?=(?<${name}>${pattern}))\\k<${name}>)`;
  }

  #group(options: Options, start: number): string {
    const inside = (inner: Options): string => {
      const pattern = this.#alternatives(inner);
      if (this.#peek() !== ")") this.#fail("a group that is not closed", start);
      this.#at++;
      return pattern;
    };
    if (this.#peek() !== "?") return `(?:${inside(options)})`;
    const opening = /^\?(?::|=|!|<=|<!|>|#[^)]*\)|P?<[\p{L}_][\p{L}\p{N}_]*>|([aiLmsux]*)(?:-([imsx]+))?([:)]))/u.exec(
      this.#rest(),
    );
    const [text = "", on, off = "", end] = opening ?? [];
    if (opening === null || (text.startsWith("?<") && text.endsWith(">") && this.#dialect === "python"))
      return this.#fail(`${JSON.stringify(`(${this.#rest().slice(0, 3)}`)}, which has no equal in JavaScript`, start);
    if (text.startsWith("?P") && this.#dialect === "oniguruma") return this.#fail("Python's (?P<name>", start);
    this.#at += text.length;
    if (text.startsWith("?#")) return "";
    if (text === "?=" || text === "?!") return `(?:(${text}${inside(options)}))`;
    if (text === "?<=" || text === "?<!") {
      const outer = this.#isBehind;
      this.#isBehind = true;
      const pattern = inside(options);
      this.#isBehind = outer;
      return `(?:(${text}${pattern}))`;
    }
    if (text === "?>") return this.#atomic(inside(options));
    if (end === undefined) return `(?:${inside(options)})`;
    const changed = this.#withFlags(options, on ?? "", off);
    if (end === ":") return `(?:${inside(changed)})`;
    if (this.#dialect === "python") return this.#fail("flags that do not stand at the beginning", start);
    return `(?:${this.#alternatives(changed)})`; // up to the end of the group around it
  }

  #withFlags(options: Options, on: string, off: string): Options {
    const changed = { ...options };
    for (const [flags, value] of [
      [on, true],
      [off, false],
    ] as const)
      for (const flag of flags) {
        if (flag === "i") changed.ignoreCase = value;
        else if (flag === "m" && this.#dialect === "oniguruma") changed.dotAll = value;
        else if (flag === "m") changed.multiline = value;
        else if (flag === "s" && this.#dialect === "python") changed.dotAll = value;
        else if (flag !== "u" || this.#dialect === "oniguruma") this.#fail(`the flag "${flag}"`);
      }
    return changed;
  }

  #escape(options: Options, start: number): string {
    const letter = this.#peek();
    const isOniguruma = this.#dialect === "oniguruma";
    const set = this.#setEscape();
    if (set !== undefined) return `[${isOniguruma ? set.replace(word, `${word}${raised}`) : set}]`;
    const w = `[${isOniguruma ? `${word}${raised}` : setEscapes.python.w}]`;
    const anchors: Readonly<Record<string, string | undefined>> = {
      A: "(?:^)",
      z: isOniguruma ? "(?:$)" : undefined,
      Z: isOniguruma ? "(?=\\n?$)" : "(?:$)",
      b: `(?:(?<=${w})(?!${w})|(?<!${w})(?=${w}))`,
      B: `(?:(?<=${w})(?=${w})|(?<!${w})(?!${w}))`,
    };
    const anchor = anchors[letter];
    if (anchor !== undefined) {
      this.#at++;
      return `(?:${anchor})`;
    }
    if (letter === "R" && isOniguruma) {
      this.#at++;
      return this.#atomic("\\r\\n|[\\n-\\r\\u0085\\u2028\\u2029]");
    }
    return literal(this.#characterEscape(start), options);
  }

  /** The inside of a class that `\\d`, `\\P{L}` and the like stand for; undefined if it is another escape. */
  #setEscape(): string | undefined {
    const letter = this.#peek();
    const property = /^([pP])\{(\^?)([\w =-]+)\}/.exec(this.#rest());
    if (property !== null && this.#dialect === "oniguruma") {
      const set = propertySet(property[3]!);
      if (set === undefined) return this.#fail(`the property ${JSON.stringify(property[3])}`);
      this.#at += property[0].length;
      return (property[1] === "P") !== (property[2] === "^") ? `[^${set}]` : set;
    }
    const sets = setEscapes[this.#dialect];
    const set = Object.hasOwn(sets, letter.toLowerCase()) ? sets[letter.toLowerCase()] : undefined;
    if (set === undefined) return undefined;
    this.#at++;
    return letter === letter.toLowerCase() ? set : `[^${set}]`;
  }

  /** The character that the escape at hand stands for; the backslash is read. */
  #characterEscape(start: number): string {
    const hex = /^(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|x\{([0-9a-fA-F]{1,6})\})/.exec(this.#rest());
    if (hex !== null && !(hex[3] !== undefined && this.#dialect === "python")) {
      const code = Number.parseInt(hex[1] ?? hex[2] ?? hex[3]!, 16);
      if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) this.#fail("a code point that there is not", start);
      this.#at += hex[0].length;
      return String.fromCodePoint(code);
    }
    if (this.#at === this.#source.length) this.#fail("a backslash at the end");
    const character = this.#next();
    if (Object.hasOwn(characterEscapes, character)) return characterEscapes[character]!;
    if (/[\p{L}\p{N}]/u.test(character)) this.#fail(`"\\${character}", which has no equal in JavaScript`, start);
    return character;
  }

  /** `[…]`, the bracket is read. The class as one atom, and its inside for a class around it. */
  #class(options: Options): { atom: string } {
    if (++this.#depth > maxDepth) this.#fail(`classes more than ${maxDepth} deep`);
    const start = this.#at - 1;
    const isNegated = this.#peek() === "^";
    if (isNegated) this.#at++;
    const operands: string[] = [];
    let inside = "";
    for (let isFirst = true; ; isFirst = false) {
      if (this.#at >= this.#source.length) this.#fail("a class that is not closed", start);
      const rest = this.#rest();
      if (rest.startsWith("]") && !isFirst) {
        this.#at++;
        break;
      }
      if (rest.startsWith("&&") && this.#dialect === "oniguruma") {
        operands.push(inside);
        inside = "";
        this.#at += 2;
        continue;
      }
      inside += this.#classItem();
    }
    operands.push(inside);
    if (operands.includes("")) this.#fail("a class with nothing in it", start);
    this.#depth--;
    const positive = operands.length === 1 ? `[${inside}]` : `[${operands.map((operand) => `[${operand}]`).join("&&")}]`;
    const folded = ignoringCase(positive, options);
    return { atom: isNegated ? `[^${folded}]` : folded };
  }

  #classItem(): string {
    const start = this.#at;
    const set = this.#classSet();
    if (set !== undefined) {
      if (/^-[^\]]/.test(this.#rest())) this.#fail("a range that begins with a set", start);
      return set;
    }
    const from = this.#classCharacter();
    if (!/^-[^\]]/s.test(this.#rest())) return escaped(from);
    this.#at++;
    if (this.#classSet() !== undefined) this.#fail("a range that ends with a set", start);
    const to = this.#classCharacter();
    if (from.codePointAt(0)! > to.codePointAt(0)!) this.#fail("a range that runs backwards", start);
    return `${escaped(from)}-${escaped(to)}`;
  }

  /** A set inside a class: an escape, `[:alpha:]`, or a class of its own. */
  #classSet(): string | undefined {
    const rest = this.#rest();
    if (rest.startsWith("\\")) {
      this.#at++;
      const set = this.#setEscape();
      if (set === undefined) this.#at--;
      return set;
    }
    if (!rest.startsWith("[") || this.#dialect === "python") return undefined;
    const posix = /^\[:(\^?)(\w+):\]/.exec(rest);
    if (posix !== null) {
      const set = Object.hasOwn(posixSets, posix[2]!) ? posixSets[posix[2]!] : undefined;
      if (set === undefined) return this.#fail(`the class "${posix[0]}"`);
      this.#at += posix[0].length;
      return posix[1] === "^" ? `[^${set}]` : set;
    }
    this.#at++;
    return this.#class({ ignoreCase: false, dotAll: false, multiline: false }).atom;
  }

  #classCharacter(): string {
    const start = this.#at;
    const character = this.#next();
    if (character !== "\\") return character;
    if (this.#peek() === "b") {
      this.#at++;
      return "\b";
    }
    return this.#characterEscape(start);
  }

  #rest(): string {
    return this.#source.slice(this.#at, this.#at + 200);
  }

  #peek(): string {
    return this.#source.charAt(this.#at);
  }

  #next(): string {
    const code = this.#source.codePointAt(this.#at);
    if (code === undefined) return this.#fail("an end where more has to come");
    const character = String.fromCodePoint(code);
    this.#at += character.length;
    return character;
  }

  #fail(what: string, at = this.#at): never {
    throw new SyntaxError(`the regular expression ${quote(this.#source)} has, at character ${at + 1}, ${what}`);
  }
}

function quote(source: string): string {
  return JSON.stringify(source.length > 100 ? `${source.slice(0, 100)}…` : source);
}

/** The inside of a class for a property's name in any case: a general category, a script, a binary property or one of POSIX's. */
function propertySet(name: string): string | undefined {
  const plain = name.replace(/[ _-]/g, "").toLowerCase();
  if (plain === "punct") return "\\p{P}"; // the class [:punct:] has symbols too
  if (Object.hasOwn(posixSets, plain)) return posixSets[plain];
  const spellings = [name, name.charAt(0).toUpperCase() + name.slice(1).toLowerCase()];
  for (const spelling of spellings)
    for (const property of [spelling, `Script=${spelling}`]) {
      try {
        new RegExp(`\\p{${property}}`, "u");
        return `\\p{${property}}`;
      } catch {
        // the next spelling
      }
    }
  return undefined;
}

function escaped(character: string): string {
  return /[0-9A-Za-z]/.test(character) ? character : `\\u{${character.codePointAt(0)!.toString(16)}}`;
}

function literal(character: string, options: Options): string {
  return options.ignoreCase ? ignoringCase(`[${escaped(character)}]`, options) : escaped(character);
}

/** A class together with the other cases of what is in it: JavaScript of Node 20 can ignore case in a whole pattern only. */
function ignoringCase(set: string, { ignoreCase }: Options): string {
  if (!ignoreCase) return set;
  const [exact, loose] = [new RegExp(`^${set}$`, "v"), new RegExp(`^${set}$`, "iv")];
  const others = casedCharacters().filter((character) => loose.test(character) && !exact.test(character));
  return others.length === 0 ? set : `[${set}${others.map(escaped).join("")}]`;
}

let cased: readonly string[] | undefined;

function casedCharacters(): readonly string[] {
  if (cased === undefined) {
    const isCased = /^[\p{CWL}\p{CWU}\p{CWCF}]$/u;
    const all = Array.from({ length: 0x1f000 }, (_, code) => (code >= 0xd800 && code < 0xe000 ? "" : String.fromCodePoint(code)));
    cased = all.filter((character) => isCased.test(character));
  }
  return cased;
}
