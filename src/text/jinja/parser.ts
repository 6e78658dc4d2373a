import { type TemplateError, Unsupported } from "./errors.js";
import { filters } from "./filters.js";
import { syntaxError, type Token, tokenize } from "./lexer.js";
import type { Args, Expr, Filter, Signature, Statement, Target } from "./nodes.js";
import { tests } from "./tests.js";

/**
 * A template's source as statements. Throws TemplateError where Jinja refuses to compile it, Unsupported where it needs other templates or
 * escapes HTML.
 * Source: Jinja 3.1.6, jinja2/parser.py; tags of transformers (`generation`) and of jinja2.ext.loopcontrols (`break`, `continue`).
 */
export function parseTemplate(source: string): Statement[] {
  return new Parser(tokenize(source)).template();
}

const compareOperators: Readonly<Record<string, string>> = { "==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=" };
const refusedTags: readonly string[] = ["block", "extends", "include", "import", "from", "autoescape"];

class Parser {
  readonly #tokens: readonly Token[];
  #at = 0;
  /** Names that the bodies of the macros around read. */
  readonly #reads: Set<string>[] = [];
  /** What encloses the statement at hand, from where `break` and `continue` look outwards. */
  readonly #around: ("loop" | "function")[] = [];
  readonly #unknown: TemplateError[] = [];
  #isConditional = false;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  template(): Statement[] {
    const body = this.#statements([]);
    if (this.#unknown[0] !== undefined) throw this.#unknown[0];
    return body;
  }

  /** Jinja looks for the names of filters and tests when it compiles, but for those that a condition may keep from being used. */
  #checkName(what: "filter" | "test", name: string, line: number): void {
    if (!this.#isConditional && !Object.hasOwn(what === "filter" ? filters : tests, name))
      this.#unknown.push(syntaxError(`No ${what} named '${name}'.`, line));
  }

  #inside<T>(isConditional: boolean, work: () => T): T {
    const before = this.#isConditional;
    this.#isConditional = isConditional;
    const result = work();
    this.#isConditional = before;
    return result;
  }

  get #current(): Token {
    return this.#tokens[this.#at]!;
  }

  #next(): Token {
    const token = this.#current;
    if (token.type !== "eof") this.#at++;
    return token;
  }

  #is(type: Token["type"], ...values: readonly string[]): boolean {
    const token = this.#current;
    return token.type === type && (values.length === 0 || values.includes(token.value));
  }

  #skip(type: Token["type"], value: string): boolean {
    if (!this.#is(type, value)) return false;
    this.#at++;
    return true;
  }

  #expect(type: Token["type"], value?: string): Token {
    if (!this.#is(type, ...(value === undefined ? [] : [value]))) throw this.#unexpected(value ?? type);
    return this.#next();
  }

  #unexpected(expected: string): TemplateError {
    const { type, value, line } = this.#current;
    const got = type === "eof" ? "the end of the template" : type === "end" ? "the end of the tag" : `'${value}'`;
    return syntaxError(`expected ${expected === "end" ? "the end of the tag" : `'${expected}'`}, got ${got}`, line);
  }

  /** Statements up to the tag that has one of these names; it stays to be read. */
  #statements(ends: readonly string[]): Statement[] {
    const body: Statement[] = [];
    for (;;) {
      const token = this.#next();
      if (token.type === "eof") {
        if (ends.length === 0) return body;
        throw syntaxError(`unexpected end of template, expected ${ends.join(" or ")}`, token.line);
      }
      if (token.type === "data") body.push({ kind: "text", text: token.value });
      else if (token.value === "{{") {
        body.push({ kind: "output", value: this.#tuple() });
        this.#expect("end");
      } else {
        if (this.#is("name", ...ends) && ends.length > 0) return body;
        const statement = this.#statement();
        if (statement !== undefined) body.push(...statement);
        this.#expect("end");
      }
    }
  }

  #body(...ends: readonly string[]): Statement[] {
    this.#skip("operator", ":");
    this.#expect("end");
    return this.#statements(ends);
  }

  /** A body that ends with this tag and nothing else. */
  #bodyTo(end: string): Statement[] {
    const body = this.#inside(false, () => this.#body(end));
    this.#next();
    return body;
  }

  #within<T>(around: "loop" | "function", work: () => T): T {
    this.#around.push(around);
    try {
      return work();
    } finally {
      this.#around.pop();
    }
  }

  #statement(): Statement[] {
    const { value: tag, line } = this.#expect("name");
    switch (tag) {
      case "for":
        return [this.#for()];
      case "if":
        return [this.#inside(true, () => this.#if())];
      case "set":
        return [this.#set()];
      case "macro": {
        const { value: name } = this.#expect("name");
        const { signature, body } = this.#macroBody("endmacro", true);
        return [{ kind: "macro", name, signature, body }];
      }
      case "call": {
        const parameters = this.#is("operator", "(") ? this.#parameters() : [];
        const call = this.#expression();
        if (call.kind !== "call") throw syntaxError("expected call", line);
        const { signature, body } = this.#macroBody("endcall", false, parameters);
        return [{ kind: "call-block", call, signature, body }];
      }
      case "filter": {
        const filter = this.#filter(undefined, true) as Filter;
        return [{ kind: "filter-block", filter, body: this.#bodyTo("endfilter") }];
      }
      case "with":
        return [this.#with()];
      case "print": {
        const values: Statement[] = [];
        while (!this.#is("end")) {
          if (values.length > 0) this.#expect("operator", ",");
          values.push({ kind: "output", value: this.#expression() });
        }
        return values;
      }
      case "generation":
        return [{ kind: "generation", body: this.#within("function", () => this.#bodyTo("endgeneration")) }];
      case "break":
      case "continue":
        if (this.#around.at(-1) !== "loop") throw syntaxError(`'${tag}' outside loop`, line);
        return [{ kind: tag }];
      default:
        if (refusedTags.includes(tag)) throw new Unsupported(`the tag ${tag}`);
        throw syntaxError(`Encountered unknown tag '${tag}'.`, line);
    }
  }

  #for(): Statement {
    const target = this.#target("in");
    this.#expect("name", "in");
    const list = this.#tuple({ conditional: false, end: "recursive" });
    const test = this.#skip("name", "if") ? this.#inside(false, () => this.#expression()) : undefined;
    const isRecursive = this.#skip("name", "recursive");
    const body = this.#inside(false, () => this.#within("loop", () => this.#body("endfor", "else")));
    const otherwise = this.#next().value === "endfor" ? [] : this.#bodyTo("endfor");
    return { kind: "for", target, list, test, isRecursive, body, otherwise };
  }

  #if(): Statement {
    const branches: [Expr, Statement[]][] = [];
    for (;;) {
      const test = this.#tuple({ conditional: false });
      branches.push([test, this.#body("elif", "else", "endif")]);
      const { value: tag } = this.#next();
      if (tag === "elif") continue;
      if (tag === "endif") return { kind: "if", branches, otherwise: [] };
      const otherwise = this.#body("endif");
      this.#next();
      return { kind: "if", branches, otherwise };
    }
  }

  #set(): Statement {
    const target = this.#target(undefined, true);
    if (this.#skip("operator", "=")) return { kind: "set", target, value: this.#tuple() };
    const filter = this.#filter(undefined) as Filter | undefined;
    return { kind: "set-block", target, filter, body: this.#bodyTo("endset") };
  }

  #with(): Statement {
    const values: [Target, Expr][] = [];
    while (!this.#is("end")) {
      if (values.length > 0) this.#expect("operator", ",");
      const target = this.#target();
      this.#expect("operator", "=");
      values.push([target, this.#expression()]);
    }
    return { kind: "with", values, body: this.#bodyTo("endwith") };
  }

  #macroBody(
    end: string,
    hasSignature: boolean,
    given: Signature["parameters"] = [],
  ): { readonly signature: Signature; readonly body: Statement[] } {
    const parameters = hasSignature ? this.#parameters() : given;
    const reads = new Set<string>();
    this.#reads.push(reads);
    const body = this.#within("function", () => this.#bodyTo(end));
    this.#reads.pop();
    for (const { name } of parameters) {
      if (name === "caller" && reads.has(name)) throw new Unsupported("a macro with a parameter called caller");
      reads.delete(name);
    }
    return { signature: { parameters, reads }, body };
  }

  #parameters(): Signature["parameters"] {
    const parameters: { name: string; fallback: Expr | undefined }[] = [];
    this.#expect("operator", "(");
    while (!this.#is("operator", ")")) {
      if (parameters.length > 0) this.#expect("operator", ",");
      const { value: name, line } = this.#expect("name");
      const fallback = this.#skip("operator", "=") ? this.#expression() : undefined;
      if (fallback === undefined && parameters.at(-1)?.fallback !== undefined)
        throw syntaxError("non-default argument follows default argument", line);
      parameters.push({ name, fallback });
    }
    this.#next();
    return parameters;
  }

  #target(end?: string, withNamespace = false): Target {
    const targets: Target[] = [];
    let isTuple = false;
    for (;;) {
      if (targets.length > 0) this.#expect("operator", ",");
      if (this.#is("end") || this.#is("operator", ")") || (end !== undefined && this.#is("name", end))) break;
      targets.push(this.#primaryTarget(withNamespace));
      if (!this.#is("operator", ",")) break;
      isTuple = true;
    }
    if (isTuple) return { kind: "targets", targets };
    if (targets[0] === undefined) throw this.#unexpected("name");
    return targets[0];
  }

  #primaryTarget(withNamespace: boolean): Target {
    if (this.#skip("operator", "(")) {
      const target = this.#target(undefined, withNamespace);
      this.#expect("operator", ")");
      return target;
    }
    const { value: name, line } = this.#expect("name");
    if (["true", "false", "none", "True", "False", "None"].includes(name)) throw syntaxError("can't assign to 'const'", line);
    if (withNamespace && this.#skip("operator", ".")) return { kind: "namespace", name, attribute: this.#expect("name").value };
    if (name === "loop") throw syntaxError("Can't assign to special loop variable in for-loop target", line);
    return { kind: "name", name };
  }

  /** An expression, or several with commas between them. */
  #tuple({
    conditional = true,
    end,
    isEnclosed = false,
  }: {
    conditional?: boolean;
    end?: string;
    isEnclosed?: boolean;
  } = {}): Expr {
    const items: Expr[] = [];
    let isTuple = false;
    for (;;) {
      if (items.length > 0) this.#expect("operator", ",");
      if (this.#is("end") || this.#is("operator", ")") || (end !== undefined && this.#is("name", end))) break;
      items.push(conditional ? this.#expression() : this.#or());
      if (!this.#is("operator", ",")) break;
      isTuple = true;
    }
    if (!isTuple && items[0] !== undefined) return items[0];
    if (!isTuple && !isEnclosed) throw this.#unexpected("an expression");
    return { kind: "tuple", items };
  }

  #expression(): Expr {
    const known = this.#unknown.length;
    let value = this.#or();
    while (this.#skip("name", "if")) {
      const test = this.#or();
      value = { kind: "conditional", test, value, otherwise: this.#skip("name", "else") ? this.#expression() : undefined };
      this.#unknown.length = known;
    }
    return value;
  }

  #or(): Expr {
    let left = this.#and();
    while (this.#skip("name", "or")) left = { kind: "or", left, right: this.#and() };
    return left;
  }

  #and(): Expr {
    let left = this.#not();
    while (this.#skip("name", "and")) left = { kind: "and", left, right: this.#not() };
    return left;
  }

  #not(): Expr {
    return this.#skip("name", "not") ? { kind: "not", operand: this.#not() } : this.#compare();
  }

  #compare(): Expr {
    const first = this.#sum();
    const rest: [string, Expr][] = [];
    for (;;) {
      const { type, value } = this.#current;
      if (type === "operator" && compareOperators[value] !== undefined) this.#at++;
      else if (type === "name" && value === "in") this.#at++;
      else if (type === "name" && value === "not" && this.#tokens[this.#at + 1]?.value === "in") this.#at += 2;
      else break;
      rest.push([value, this.#sum()]);
    }
    return rest.length === 0 ? first : { kind: "compare", first, rest };
  }

  #sum(): Expr {
    let left = this.#concat();
    while (this.#is("operator", "+", "-")) left = { kind: "binary", operator: this.#next().value, left, right: this.#concat() };
    return left;
  }

  #concat(): Expr {
    const parts = [this.#product()];
    while (this.#skip("operator", "~")) parts.push(this.#product());
    return parts.length === 1 ? parts[0]! : { kind: "concat", parts };
  }

  #product(): Expr {
    let left = this.#power();
    while (this.#is("operator", "*", "/", "//", "%"))
      left = { kind: "binary", operator: this.#next().value, left, right: this.#power() };
    return left;
  }

  #power(): Expr {
    let left = this.#unary();
    while (this.#skip("operator", "**")) left = { kind: "binary", operator: "**", left, right: this.#unary() };
    return left;
  }

  #unary(withFilter = true): Expr {
    let value: Expr;
    if (this.#is("operator", "-", "+"))
      value = { kind: "unary", operator: this.#next().value as "+" | "-", operand: this.#unary(false) };
    else value = this.#primary();
    value = this.#postfix(value);
    return withFilter ? this.#filters(value) : value;
  }

  #primary(): Expr {
    const token = this.#next();
    const { type, value } = token;
    switch (type) {
      case "name":
        if (value === "true" || value === "True") return { kind: "const", value: true };
        if (value === "false" || value === "False") return { kind: "const", value: false };
        if (value === "none" || value === "None") return { kind: "const", value: null };
        for (const reads of this.#reads) if (["caller", "kwargs", "varargs"].includes(value)) reads.add(value);
        return { kind: "name", name: value };
      case "string": {
        let text = value;
        while (this.#is("string")) text += this.#next().value;
        return { kind: "const", value: text };
      }
      case "integer":
        return { kind: "const", value: BigInt(value.replaceAll("_", "").toLowerCase()) };
      case "float":
        return { kind: "const", value: Number(value.replaceAll("_", "")) };
      case "operator":
        if (value === "(") {
          const inner = this.#tuple({ isEnclosed: true });
          this.#expect("operator", ")");
          return inner;
        }
        if (value === "[") return { kind: "list", items: this.#listed("]", () => this.#expression()) };
        if (value === "{")
          return {
            kind: "dict",
            pairs: this.#listed("}", () => {
              const key = this.#expression();
              this.#expect("operator", ":");
              return [key, this.#expression()] as const;
            }),
          };
    }
    this.#at--;
    throw this.#unexpected("an expression");
  }

  /** Items with commas between them, up to a bracket; there may be a comma before it. */
  #listed<T>(end: string, item: () => T): T[] {
    const items: T[] = [];
    while (!this.#is("operator", end)) {
      if (items.length > 0) this.#expect("operator", ",");
      if (this.#is("operator", end)) break;
      items.push(item());
    }
    this.#next();
    return items;
  }

  #postfix(start: Expr): Expr {
    let value = start;
    for (;;) {
      if (this.#skip("operator", ".")) {
        const token = this.#next();
        if (token.type === "name") value = { kind: "attribute", object: value, name: token.value };
        else if (token.type === "integer")
          value = { kind: "item", object: value, index: { kind: "const", value: BigInt(token.value.replaceAll("_", "")) } };
        else throw syntaxError("expected name or number", token.line);
      } else if (this.#skip("operator", "[")) {
        const items: Expr[] = [];
        while (!this.#is("operator", "]")) {
          if (items.length > 0) this.#expect("operator", ",");
          items.push(this.#subscript());
        }
        this.#next();
        value = { kind: "item", object: value, index: items.length === 1 ? items[0]! : { kind: "tuple", items } };
      } else if (this.#is("operator", "(")) value = { kind: "call", callee: value, args: this.#args() };
      else return value;
    }
  }

  #subscript(): Expr {
    const isOver = () => this.#is("operator", ":", "]", ",");
    const first = this.#is("operator", ":") ? undefined : this.#expression();
    if (!this.#skip("operator", ":")) return first!;
    const parts = [first, isOver() ? undefined : this.#expression()];
    if (this.#skip("operator", ":")) parts.push(isOver() ? undefined : this.#expression());
    return { kind: "slice", parts };
  }

  #args(): Args {
    const { line } = this.#expect("operator", "(");
    const positional: Expr[] = [];
    const keywords: [string, Expr][] = [];
    let rest: Expr | undefined;
    let keywordRest: Expr | undefined;
    const ensure = (isValid: boolean) => {
      if (!isValid) throw syntaxError("invalid syntax for function call expression", line);
    };
    let isFirst = true;
    while (!this.#is("operator", ")")) {
      if (!isFirst) this.#expect("operator", ",");
      isFirst = false;
      if (this.#is("operator", ")")) break;
      const following = this.#tokens[this.#at + 1];
      if (this.#skip("operator", "*")) {
        ensure(rest === undefined && keywordRest === undefined);
        rest = this.#expression();
      } else if (this.#skip("operator", "**")) {
        ensure(keywordRest === undefined);
        keywordRest = this.#expression();
      } else if (this.#is("name") && following?.type === "operator" && following.value === "=") {
        ensure(keywordRest === undefined);
        const { value: name } = this.#next();
        this.#at++;
        ensure(!keywords.some(([known]) => known === name));
        keywords.push([name, this.#expression()]);
      } else {
        ensure(rest === undefined && keywordRest === undefined && keywords.length === 0);
        positional.push(this.#expression());
      }
    }
    this.#next();
    return {
      positional,
      keywords,
      ...(rest === undefined ? {} : { rest }),
      ...(keywordRest === undefined ? {} : { keywordRest }),
    };
  }

  #filters(start: Expr): Expr {
    let value = start;
    for (;;) {
      if (this.#is("operator", "|")) value = this.#filter(value)!;
      else if (this.#is("name", "is")) value = this.#test(value);
      else if (this.#is("operator", "(")) value = { kind: "call", callee: value, args: this.#args() };
      else return value;
    }
  }

  /** The filters that follow; the first without its bar where a tag opens with it. */
  #filter(start: Expr | undefined, isInline = false): Expr | undefined {
    let value = start;
    for (let first = isInline; first || this.#is("operator", "|"); first = false) {
      if (!first) this.#at++;
      const { line } = this.#current;
      const filter = this.#dottedName();
      this.#checkName("filter", filter, line);
      value = { kind: "filter", name: filter, input: value, args: this.#is("operator", "(") ? this.#args() : noArgs };
    }
    return value;
  }

  #test(input: Expr): Expr {
    this.#at++;
    const isNegated = this.#skip("name", "not");
    const name = this.#dottedName();
    const { type, value, line } = this.#current;
    this.#checkName("test", name, line);
    let args = noArgs;
    if (type === "operator" && value === "(") args = this.#args();
    else if (
      (["name", "string", "integer", "float"].includes(type) && !(type === "name" && ["else", "or", "and"].includes(value))) ||
      (type === "operator" && ["[", "{"].includes(value))
    ) {
      if (type === "name" && value === "is") throw syntaxError("You cannot chain multiple tests with is", line);
      args = { positional: [this.#postfix(this.#primary())], keywords: [] };
    }
    const test: Expr = { kind: "test", name, input, args };
    return isNegated ? { kind: "not", operand: test } : test;
  }

  #dottedName(): string {
    let name = this.#expect("name").value;
    while (this.#skip("operator", ".")) name += `.${this.#expect("name").value}`;
    return name;
  }
}

const noArgs: Args = { positional: [], keywords: [] };
