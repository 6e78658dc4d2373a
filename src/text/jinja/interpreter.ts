import { bind } from "./arguments.js";
import { TemplateError, Unsupported, type Work } from "./errors.js";
import { type FilterContext, filters } from "./filters.js";
import { attributeName, globals } from "./globals.js";
import { contains, methodOf, slice } from "./methods.js";
import type { Args, Expr, Filter, Signature, Statement, Target } from "./nodes.js";
import { binary, position, unary } from "./operators.js";
import { tests } from "./tests.js";
import {
  Callable,
  compare,
  Dict,
  demand,
  equal,
  Generator,
  hasSurrogates,
  isList,
  isTrue,
  iterate,
  type Keywords,
  lengthOf,
  Markup,
  Namespace,
  noKeywords,
  points,
  Range,
  Tuple,
  toText,
  typeName,
  Undefined,
  type Value,
} from "./values.js";

/** Variables, in those of the block around. */
class Scope {
  readonly #own = new Map<string, Value>();
  readonly #parent: Scope | undefined;

  constructor(parent?: Scope) {
    this.#parent = parent;
  }

  get(name: string): Value | undefined {
    return this.#own.get(name) ?? (this.#own.has(name) ? null : this.#parent?.get(name));
  }

  set(name: string, value: Value): void {
    this.#own.set(name, value);
  }
}

/** How a statement ends, other than by going on with the next. */
type End = "break" | "continue" | undefined;

/**
 * Writes a parsed template with Python's Jinja's meaning, in its immutable sandbox and without escaping.
 * Source: Jinja 3.1.6, jinja2/compiler.py and runtime.py. Throws TemplateError, Refusal, OverBudget.
 */
export function renderTemplate(body: readonly Statement[], variables: Iterable<readonly [string, Value]>, work: Work): string {
  return new Interpreter(work).render(body, variables);
}

class Interpreter implements FilterContext {
  readonly work: Work;

  constructor(work: Work) {
    this.work = work;
  }

  render(body: readonly Statement[], variables: Iterable<readonly [string, Value]>): string {
    const root = new Scope();
    for (const [name, value] of globals(this.work)) root.set(name, value);
    for (const [name, value] of variables) root.set(name, value);
    return this.#capture(body, root);
  }

  #capture(body: readonly Statement[], scope: Scope): string {
    const out = new Output(this.work);
    this.#run(body, scope, out);
    return out.text();
  }

  #run(body: readonly Statement[], scope: Scope, out: Output): End {
    for (const statement of body) {
      const end = this.#statement(statement, scope, out);
      if (end !== undefined) return end;
    }
    return undefined;
  }

  #statement(statement: Statement, scope: Scope, out: Output): End {
    this.work.count();
    switch (statement.kind) {
      case "text":
        out.write(statement.text);
        return undefined;
      case "output":
        out.write(toText(this.#value(statement.value, scope), this.work));
        return undefined;
      case "if":
        for (const [test, body] of statement.branches) if (isTrue(this.#value(test, scope))) return this.#run(body, scope, out);
        return this.#run(statement.otherwise, scope, out);
      case "for":
        this.#for(statement, scope, out, this.#value(statement.list, scope), 0);
        return undefined;
      case "set":
        this.#assign(statement.target, this.#value(statement.value, scope), scope);
        return undefined;
      case "set-block": {
        const text = this.#capture(statement.body, new Scope(scope));
        const value = statement.filter === undefined ? text : this.#filtered(statement.filter, scope, text);
        this.#assign(statement.target, value, scope);
        return undefined;
      }
      case "macro":
        scope.set(statement.name, this.#macro(statement.name, statement.signature, statement.body, scope));
        return undefined;
      case "call-block": {
        const { call, signature, body } = statement;
        if (call.kind !== "call") throw new TemplateError("expected call");
        const { args, keywords } = this.#arguments(call.args, scope);
        const caller = this.#macro("caller", signature, body, scope);
        const callee = this.#value(call.callee, scope);
        out.write(toText(this.#call(callee, args, new Map([...keywords, ["caller", caller]])), this.work));
        return undefined;
      }
      case "filter-block": {
        const text = this.#capture(statement.body, new Scope(scope));
        out.write(toText(this.#filtered(statement.filter, scope, text), this.work));
        return undefined;
      }
      case "with": {
        const inner = new Scope(scope);
        for (const [target, value] of statement.values) this.#assign(target, this.#value(value, scope), inner);
        return this.#run(statement.body, inner, out);
      }
      case "generation":
        out.write(this.#capture(statement.body, new Scope(scope)));
        return undefined;
      case "break":
      case "continue":
        return statement.kind;
    }
  }

  #for(statement: Extract<Statement, { kind: "for" }>, scope: Scope, out: Output, list: Value, depth: number): void {
    const { target, test, body } = statement;
    const recurse = (inner: Value): string => {
      const nested = new Output(this.work);
      this.#for(statement, scope, nested, inner, depth + 1);
      return nested.text();
    };
    const items = test === undefined ? iterate(list, this.work) : this.#chosen(target, test, scope, iterate(list, this.work));
    const length = test === undefined && !(list instanceof Generator) ? lengthOf(list) : undefined;
    const loop = new Loop(items, length, depth, statement.isRecursive ? recurse : undefined, this.work);
    const variable = loop.variable();
    let isEmpty = true;
    for (let item = loop.next(); item !== undefined; item = loop.next()) {
      isEmpty = false;
      const inner = new Scope(scope);
      inner.set("loop", variable);
      this.#assign(target, item.value, inner);
      if (this.#run(body, inner, out) === "break") break;
    }
    if (isEmpty) this.#run(statement.otherwise, new Scope(scope), out);
  }

  /** The items that pass the loop's own `if`, each asked for when its turn comes. */
  *#chosen(target: Target, test: Expr, scope: Scope, items: Iterable<Value>): Iterable<Value> {
    for (const item of items) {
      const inner = new Scope(scope);
      this.#assign(target, item, inner);
      if (isTrue(this.#value(test, inner))) yield item;
    }
  }

  #assign(target: Target, value: Value, scope: Scope): void {
    if (target.kind === "name") scope.set(target.name, value);
    else if (target.kind === "namespace") {
      const object = this.#name(target.name, scope);
      if (!(object instanceof Namespace)) throw new TemplateError("cannot assign attribute on non-namespace object");
      object.attributes.set(attributeName(target.attribute), value);
    } else {
      const values = [...iterate(value, this.work)];
      if (values.length !== target.targets.length)
        throw new TemplateError(
          values.length < target.targets.length
            ? `not enough values to unpack (expected ${target.targets.length}, got ${values.length})`
            : `too many values to unpack (expected ${target.targets.length})`,
        );
      for (const [i, each] of target.targets.entries()) this.#assign(each, values[i]!, scope);
    }
  }

  #macro(name: string, { parameters, reads }: Signature, body: readonly Statement[], scope: Scope): Callable {
    const call = (args: readonly Value[], keywords: Keywords): Value => {
      const inner = new Scope(scope);
      const left = new Map(keywords);
      const given = parameters.map((parameter, i) => {
        if (i < args.length) return args[i];
        const value = left.get(parameter.name);
        left.delete(parameter.name);
        return value;
      });
      if (reads.has("caller")) {
        inner.set("caller", left.get("caller") ?? new Undefined("No caller defined"));
        left.delete("caller");
      }
      if (reads.has("kwargs")) inner.set("kwargs", new Dict(left));
      else if (left.size > 0) throw new TemplateError(`macro '${name}' takes no keyword argument '${[...left.keys()][0]}'`);
      if (reads.has("varargs")) inner.set("varargs", new Tuple(args.slice(parameters.length)));
      else if (args.length > parameters.length)
        throw new TemplateError(`macro '${name}' takes not more than ${parameters.length} argument(s)`);
      for (const [i, { name: parameter }] of parameters.entries())
        inner.set(parameter, given[i] ?? (given[i] === null ? null : new Undefined(`parameter '${parameter}' was not provided`)));
      for (const [i, { name: parameter, fallback }] of parameters.entries())
        if (given[i] === undefined && fallback !== undefined) inner.set(parameter, this.#value(fallback, inner));
      return this.#capture(body, inner);
    };
    return new Callable(name, call, {
      attribute: (attribute) => {
        if (["name", "arguments", "catch_kwargs", "catch_varargs", "caller", "explicit_caller"].includes(attribute))
          throw new Unsupported(`.${attribute} of a macro`);
        return undefined;
      },
    });
  }

  #name(name: string, scope: Scope): Value {
    const value = scope.get(name);
    if (value !== undefined) return value;
    if (name === "self" || name === "super") throw new Unsupported(name);
    return new Undefined(`'${name}' is undefined`);
  }

  #value(node: Expr, scope: Scope): Value {
    this.work.count();
    switch (node.kind) {
      case "const":
        return node.value;
      case "name":
        return this.#name(node.name, scope);
      case "tuple":
        return new Tuple(node.items.map((item) => this.#value(item, scope)));
      case "list":
        return node.items.map((item) => this.#value(item, scope));
      case "dict":
        return new Dict(node.pairs.map(([key, value]) => [this.#value(key, scope), this.#value(value, scope)] as const));
      case "attribute":
        return this.attribute(this.#value(node.object, scope), node.name);
      case "item": {
        const object = this.#value(node.object, scope);
        if (node.index.kind !== "slice") return this.item(object, this.#value(node.index, scope));
        const parts = node.index.parts.map((part) => (part === undefined ? undefined : this.#value(part, scope)));
        return slice(object, parts, this.work);
      }
      case "slice":
        throw new Unsupported("slices in several dimensions");
      case "call": {
        const callee = this.#value(node.callee, scope);
        const { args, keywords } = this.#arguments(node.args, scope);
        return this.#call(callee, args, keywords);
      }
      case "filter": {
        const input = this.#value(node.input!, scope);
        const { args, keywords } = this.#arguments(node.args, scope);
        return this.filter(node.name, input, args, keywords);
      }
      case "test": {
        const input = this.#value(node.input, scope);
        const { args, keywords } = this.#arguments(node.args, scope);
        return this.test(node.name, input, args, keywords);
      }
      case "unary":
        return unary(node.operator, this.#value(node.operand, scope));
      case "binary":
        return binary(node.operator, this.#value(node.left, scope), this.#value(node.right, scope), this.work);
      case "concat": {
        const parts = node.parts.map((part) => toText(this.#value(part, scope), this.work));
        this.work.text(parts.reduce((total, { length }) => total + length, 0));
        return parts.join("");
      }
      case "compare":
        return this.#compare(node.first, node.rest, scope);
      case "and": {
        const left = this.#value(node.left, scope);
        return isTrue(left) ? this.#value(node.right, scope) : left;
      }
      case "or": {
        const left = this.#value(node.left, scope);
        return isTrue(left) ? left : this.#value(node.right, scope);
      }
      case "not":
        return !isTrue(this.#value(node.operand, scope));
      case "conditional":
        if (isTrue(this.#value(node.test, scope))) return this.#value(node.value, scope);
        if (node.otherwise !== undefined) return this.#value(node.otherwise, scope);
        return new Undefined("the inline if-expression evaluated to false and no else section was defined.");
    }
  }

  /** `a < b < c`: each pair in turn, up to the first that does not hold. */
  #compare(first: Expr, rest: readonly (readonly [string, Expr])[], scope: Scope): boolean {
    let left = this.#value(first, scope);
    for (const [operator, node] of rest) {
      const right = this.#value(node, scope);
      if (!this.#holds(operator, left, right)) return false;
      left = right;
    }
    return true;
  }

  #holds(operator: string, left: Value, right: Value): boolean {
    const { work } = this;
    switch (operator) {
      case "==":
        return equal(left, right, work);
      case "!=":
        return !equal(left, right, work);
      case "in":
        return contains(right, left, work);
      case "not":
        return !contains(right, left, work);
      case "<":
        return compare(left, right, operator, work) < 0;
      case "<=":
        return compare(left, right, operator, work) <= 0;
      case ">":
        return compare(left, right, operator, work) > 0;
      default:
        return compare(left, right, operator, work) >= 0;
    }
  }

  #arguments({ positional, keywords, rest, keywordRest }: Args, scope: Scope): { args: Value[]; keywords: Keywords } {
    const args = positional.map((node) => this.#value(node, scope));
    if (rest !== undefined) args.push(...iterate(this.#value(rest, scope), this.work));
    if (keywords.length === 0 && keywordRest === undefined) return { args, keywords: noKeywords };
    const named = new Map<string, Value>();
    for (const [name, node] of keywords) named.set(name, this.#value(node, scope));
    if (keywordRest !== undefined) {
      const more = this.#value(keywordRest, scope);
      if (!(more instanceof Dict)) throw new TemplateError(`argument after ** must be a mapping, not ${typeName(more)}`);
      for (const [key, value] of more.entries()) {
        if (typeof key !== "string" || named.has(key)) throw new TemplateError("keywords must be different texts");
        named.set(key, value);
      }
    }
    return { args, keywords: named };
  }

  #call(callee: Value, args: readonly Value[], keywords: Keywords): Value {
    demand(callee);
    if (callee instanceof Callable) return callee.call(args, keywords);
    throw new TemplateError(`'${typeName(callee)}' object is not callable`);
  }

  /** Filters one behind the other, of which the first gets `input`. */
  #filtered(node: Filter, scope: Scope, input: Value): Value {
    const inner = node.input === undefined ? input : this.#filtered(node.input as Filter, scope, input);
    const { args, keywords } = this.#arguments(node.args, scope);
    return this.filter(node.name, inner, args, keywords);
  }

  filter(name: string, input: Value, args: readonly Value[], keywords: Keywords): Value {
    this.work.count();
    const found = Object.hasOwn(filters, name) ? filters[name] : undefined;
    if (found === undefined) throw new TemplateError(`No filter named '${name}'.`);
    return found(input, args, keywords, this);
  }

  test(name: string, input: Value, args: readonly Value[], keywords: Keywords): boolean {
    this.work.count();
    const found = Object.hasOwn(tests, name) ? tests[name] : undefined;
    if (found === undefined) throw new TemplateError(`No test named '${name}'.`);
    return found(input, args, keywords, this);
  }

  binary(operator: string, left: Value, right: Value): Value {
    return binary(operator, left, right, this.work);
  }

  /** `object.name`: an attribute, or else an item. */
  attribute(object: Value, name: string): Value {
    demand(object);
    const own = ownAttribute(object, name, this.work);
    if (own !== undefined) return own;
    const item = object instanceof Dict ? itemOf(object, name) : undefined;
    return item === undefined ? missing(object, name) : item;
  }

  /** `object[key]`: an item, or else an attribute. */
  item(object: Value, key: Value): Value {
    demand(object);
    const found = itemOf(object, key);
    if (found !== undefined) return found;
    const attribute = typeof key === "string" ? ownAttribute(object, key, this.work) : undefined;
    return attribute === undefined ? missing(object, key) : attribute;
  }
}

function missing(object: Value, key: Value): Undefined {
  return new Undefined(`'${typeName(object)} object' has no attribute '${typeof key === "object" ? "…" : String(key)}'`);
}

/** None is an item as well: undefined says that there is none. */
function itemOf(object: Value, key: Value): Value | undefined {
  if (object instanceof Dict) {
    if (isList(key) || key instanceof Dict) return undefined;
    return object.get(key);
  }
  if (typeof key !== "bigint" && typeof key !== "boolean") return undefined;
  if (
    !(
      typeof object === "string" ||
      isList(object) ||
      object instanceof Tuple ||
      object instanceof Range ||
      object instanceof Markup
    )
  )
    return undefined;
  const at = position(object, key);
  if (at === undefined) return undefined;
  if (typeof object === "string") return hasSurrogates(object) ? points(object)[at] : object[at];
  if (object instanceof Range) return object.at(at);
  if (object instanceof Markup) return new Markup(points(object.text)[at]!);
  return isList(object) ? object[at] : object.items[at];
}

function ownAttribute(object: Value, name: string, work: Work): Value | undefined {
  if (name.startsWith("__")) return new Undefined(`access to attribute '${name}' of '${typeName(object)}' object is unsafe.`);
  if (object instanceof Namespace) return object.attributes.get(name);
  if (object instanceof Callable) return object.attribute?.(name);
  if (object instanceof Generator && ["close", "send", "throw"].includes(name)) throw new Unsupported(`.${name} of a generator`);
  return methodOf(object, name, work);
}

/** What a template writes. */
class Output {
  readonly #parts: string[] = [];
  readonly #work: Work;
  #chars = 0;

  constructor(work: Work) {
    this.#work = work;
  }

  write(text: string): void {
    this.#parts.push(text);
    this.#chars += text.length;
    this.#work.text(text.length);
    this.#work.bound(this.#chars);
  }

  text(): string {
    return this.#parts.join("");
  }
}

/** A running loop, and what `loop` says of it. Source: jinja2/runtime.py (LoopContext). Items are taken when they are asked for. */
class Loop {
  readonly #depth: number;
  readonly #recurse: ((items: Value) => string) | undefined;
  readonly #work: Work;
  #iterator: Iterator<Value>;
  #length: number | undefined;
  #index = -1;
  #peeked: IteratorResult<Value> | undefined;
  #current: Value | undefined;
  #before: Value | undefined;
  #lastChanged: Value | undefined;

  constructor(
    items: Iterable<Value>,
    length: number | undefined,
    depth: number,
    recurse: ((items: Value) => string) | undefined,
    work: Work,
  ) {
    this.#iterator = items[Symbol.iterator]();
    this.#length = length;
    this.#depth = depth;
    this.#recurse = recurse;
    this.#work = work;
  }

  next(): { readonly value: Value } | undefined {
    const { done, value } = this.#peek();
    this.#peeked = undefined;
    if (done === true) return undefined;
    this.#index++;
    this.#before = this.#current;
    this.#current = value as Value;
    return { value: value as Value };
  }

  #peek(): IteratorResult<Value> {
    this.#peeked ??= this.#iterator.next();
    return this.#peeked;
  }

  #size(): number {
    if (this.#length !== undefined) return this.#length;
    const left: Value[] = [];
    for (let item = this.#iterator.next(); item.done !== true; item = this.#iterator.next()) left.push(item.value);
    this.#iterator = left[Symbol.iterator]();
    this.#length = left.length + this.#index + 1 + (this.#peeked !== undefined && this.#peeked.done !== true ? 1 : 0);
    return this.#length;
  }

  variable(): Callable {
    const call = (args: readonly Value[], keywords: Keywords): Value => {
      const [items] = bind("loop", "iterable", args, keywords);
      if (this.#recurse === undefined)
        throw new TemplateError("The loop must have the 'recursive' marker to be called recursively.");
      return this.#recurse(items!);
    };
    return new Callable("loop", call, { attribute: (name) => this.#attribute(name), length: () => this.#size() });
  }

  #attribute(name: string): Value | undefined {
    const int = (value: number) => BigInt(value);
    switch (name) {
      case "index":
        return int(this.#index + 1);
      case "index0":
        return int(this.#index);
      case "revindex":
        return int(this.#size() - this.#index);
      case "revindex0":
        return int(this.#size() - this.#index - 1);
      case "first":
        return this.#index === 0;
      case "last":
        return this.#peek().done === true;
      case "length":
        return int(this.#size());
      case "depth":
        return int(this.#depth + 1);
      case "depth0":
        return int(this.#depth);
      case "previtem":
        return this.#index === 0 ? new Undefined("there is no previous item") : this.#before;
      case "nextitem": {
        const next = this.#peek();
        return next.done === true ? new Undefined("there is no next item") : next.value;
      }
      case "cycle":
        return new Callable("cycle", (args) => {
          if (args.length === 0) throw new TemplateError("no items for cycling given");
          return args[this.#index % args.length]!;
        });
      case "changed":
        return new Callable("changed", (args) => {
          const value = new Tuple(args);
          if (this.#lastChanged !== undefined && equal(this.#lastChanged, value, this.#work)) return false;
          this.#lastChanged = value;
          return true;
        });
      default:
        return undefined;
    }
  }
}
