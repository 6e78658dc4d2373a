import { TemplateError } from "./errors.js";
import { asNumeric, demand, type Keywords, typeName, type Value } from "./values.js";

/**
 * Arguments of a call bound to parameters, as Python binds them: by position, then by name. Parameters that end in "?" may be left out, and
 * those after "*" have only names. Throws TemplateError as Python a TypeError.
 */
export function bind(name: string, parameters: string, args: readonly Value[], keywords: Keywords): (Value | undefined)[] {
  const [positional, named = ""] = parameters.split("*");
  const words = (text: string) => text.split(" ").filter((word) => word !== "");
  const all = [...words(positional!), ...words(named)].map((word) => ({
    key: word.replace("?", ""),
    isOptional: word.endsWith("?"),
  }));
  if (args.length > words(positional!).length)
    throw new TemplateError(`${name}() takes at most ${words(positional!).length} arguments (${args.length} given)`);
  for (const key of keywords.keys())
    if (!all.some((each) => each.key === key)) throw new TemplateError(`${name}() got an unexpected keyword argument '${key}'`);
  return all.map(({ key, isOptional }, i) => {
    const value = keywords.get(key);
    if (i < args.length) {
      if (value !== undefined) throw new TemplateError(`${name}() got multiple values for argument '${key}'`);
      return args[i];
    }
    if (value === undefined && !isOptional) throw new TemplateError(`${name}() missing a required argument: '${key}'`);
    return value;
  });
}

/** An int, or what Python takes for one. Far beyond the lengths that occur, sizes do not matter. */
export function integer(value: Value, what: string): number {
  demand(value);
  if (typeof value !== "bigint" && typeof value !== "boolean")
    throw new TemplateError(`${what}: '${typeName(value)}' object cannot be interpreted as an integer`);
  const limit = 2n ** 53n;
  const whole = asNumeric(value) as bigint;
  return Number(whole > limit ? limit : whole < -limit ? -limit : whole);
}
