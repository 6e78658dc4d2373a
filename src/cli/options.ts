import { ConfigError } from "../errors.js";

export interface Range {
  readonly from?: number;
  /** The same, without the number itself. */
  readonly above?: number;
  readonly to?: number;
  readonly whole?: boolean;
}

/** The value of an option that has no default. Throws ConfigError if it is not given. */
export function required<Value extends string>(name: string, value: Value | undefined): Value {
  if (value !== undefined && value !== "") return value;
  throw new ConfigError(`--${name} is missing: see --help`);
}

/** Reads the value of an option that takes a number; the reader throws ConfigError with the range. */
export function numberFor(name: string, range: Range) {
  return (text: string): number => numberOf(`--${name}`, text, range);
}

/** A number that somebody wrote for what is called `label`. Throws ConfigError with the range. */
export function numberOf(label: string, text: string, { from, above, to, whole = false }: Range): number {
  const value = Number(text);
  const isIn = value >= (from ?? -Infinity) && value > (above ?? -Infinity) && value <= (to ?? Infinity);
  if (text.trim() !== "" && isIn && Number.isFinite(value) && (!whole || Number.isInteger(value))) return value;
  const bounds = `${from === undefined ? "" : ` from ${from}`}${above === undefined ? "" : ` above ${above}`}`;
  throw new ConfigError(
    `${label}: expected ${whole ? "a whole number" : "a number"}${bounds}${to === undefined ? "" : ` to ${to}`}, got ${JSON.stringify(text)}`,
  );
}

/** Reads the value of an option that takes one of a few words, in either case; the reader throws ConfigError that lists them. */
export function choiceFor<Choice extends string>(name: string, choices: readonly Choice[]) {
  return (text: string): Choice => {
    const choice = choices.find((each) => each === text.toLowerCase());
    if (choice !== undefined) return choice;
    throw new ConfigError(`--${name}: expected one of ${choices.join(", ")}, got ${JSON.stringify(text)}`);
  };
}
