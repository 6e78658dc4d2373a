import { ConfigError } from "../errors.js";

interface Range {
  readonly from: number;
  readonly to?: number;
  readonly whole?: boolean;
}

/** The value of an option that has no default. Throws ConfigError if it is not given. */
export function required<Value extends string>(name: string, value: Value | undefined): Value {
  if (value !== undefined && value !== "") return value;
  throw new ConfigError(`--${name} is missing: see --help`);
}

/** Reads the value of an option that takes a number; the reader throws ConfigError with the range. */
export function numberFor(name: string, { from, to = Number.POSITIVE_INFINITY, whole = false }: Range) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() !== "" && value >= from && value <= to && Number.isFinite(value) && (!whole || Number.isInteger(value)))
      return value;
    const upTo = to === Number.POSITIVE_INFINITY ? "" : ` to ${to}`;
    throw new ConfigError(
      `--${name}: expected ${whole ? "a whole number" : "a number"} from ${from}${upTo}, got ${JSON.stringify(text)}`,
    );
  };
}

/** Reads the value of an option that takes one of a few words, in either case; the reader throws ConfigError that lists them. */
export function choiceFor<Choice extends string>(name: string, choices: readonly Choice[]) {
  return (text: string): Choice => {
    const choice = choices.find((each) => each === text.toLowerCase());
    if (choice !== undefined) return choice;
    throw new ConfigError(`--${name}: expected one of ${choices.join(", ")}, got ${JSON.stringify(text)}`);
  };
}
