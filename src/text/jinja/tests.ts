import { bind } from "./arguments.js";
import { TemplateError } from "./errors.js";
import { type FilterContext, filters } from "./filters.js";
import { contains, isLower, isUpper } from "./methods.js";
import {
  asNumeric,
  Callable,
  compare,
  Dict,
  demand,
  equal,
  isNumber,
  isText,
  itemsOf,
  type Keywords,
  lengthOf,
  Markup,
  Namespace,
  toText,
  typeName,
  Undefined,
  type Value,
  View,
} from "./values.js";

type Test = (input: Value, args: readonly Value[], keywords: Keywords, context: FilterContext) => boolean;

function test(
  name: string,
  parameters: string,
  run: (input: Value, args: readonly Value[], context: FilterContext) => boolean,
): Test {
  return (input, args, keywords, context) => run(input, bind(name, parameters, args, keywords) as Value[], context);
}

function remainder(input: Value, by: Value, context: FilterContext): bigint | number {
  demand(input);
  if (!isNumber(input)) throw new TemplateError(`unsupported operand type(s) for %: '${typeName(input)}' and 'int'`);
  return asNumeric(context.binary("%", input, by) as bigint | number);
}

const comparison = (operator: string, isTrue: (order: number) => boolean) =>
  test(operator, "other", (input, [other], { work }) => isTrue(compare(input, other!, operator, work)));
const less = comparison("<", (order) => order < 0);
const greater = comparison(">", (order) => order > 0);
const isEqual = test("eq", "other", (input, [other], { work }) => equal(input, other!, work));
const isUnequal = test("ne", "other", (input, [other], { work }) => !equal(input, other!, work));
const lessOrEqual = comparison("<=", (order) => order <= 0);
const greaterOrEqual = comparison(">=", (order) => order >= 0);

/** Jinja's tests. Source: Jinja 3.1.6, jinja2/tests.py. */
export const tests: Readonly<Record<string, Test>> = {
  boolean: test("boolean", "", (input) => typeof input === "boolean"),
  callable: test("callable", "", (input) => input instanceof Callable || input instanceof Undefined),
  defined: test("defined", "", (input) => !(input instanceof Undefined)),
  divisibleby: test("divisibleby", "num", (input, [by], context) => Number(remainder(input, by!, context)) === 0),
  eq: isEqual,
  equalto: isEqual,
  escaped: test("escaped", "", (input) => input instanceof Markup),
  even: test("even", "", (input, _, context) => Number(remainder(input, 2n, context)) === 0),
  false: test("false", "", (input) => input === false),
  filter: test("filter", "", (input) => typeof input === "string" && Object.hasOwn(filters, input)),
  float: test("float", "", (input) => typeof input === "number"),
  ge: greaterOrEqual,
  greaterthan: greater,
  gt: greater,
  in: test("in", "seq", (input, [sequence], { work }) => contains(sequence!, input, work)),
  integer: test("integer", "", (input) => typeof input === "bigint"),
  iterable: test("iterable", "", (input, _, { work }) => itemsOf(input, work) !== undefined),
  le: lessOrEqual,
  lessthan: less,
  lower: test("lower", "", (input, _, { work }) => isLower(toText(input, work))),
  lt: less,
  mapping: test("mapping", "", (input) => input instanceof Dict),
  ne: isUnequal,
  none: test("none", "", (input) => input === null),
  number: test("number", "", isNumber),
  odd: test("odd", "", (input, _, context) => Number(remainder(input, 2n, context)) === 1),
  sameas: test("sameas", "other", (input, [other]) => input === other),
  sequence: test(
    "sequence",
    "",
    (input) =>
      !(input instanceof View || input instanceof Callable || input instanceof Namespace) && lengthOf(input) !== undefined,
  ),
  string: test("string", "", isText),
  test: test("test", "", (input) => typeof input === "string" && Object.hasOwn(tests, input)),
  true: test("true", "", (input) => input === true),
  undefined: test("undefined", "", (input) => input instanceof Undefined),
  upper: test("upper", "", (input, _, { work }) => isUpper(toText(input, work))),
  "==": isEqual,
  "!=": isUnequal,
  "<": less,
  "<=": lessOrEqual,
  ">": greater,
  ">=": greaterOrEqual,
};
