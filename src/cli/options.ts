import { ConfigError } from "../errors.js";

interface Range {
  readonly from: number;
  readonly to?: number;
  readonly whole?: boolean;
}

/** The value of an option that has no default. Throws ConfigError if it is not given. */
export function requiredOption(name: string, value: string | undefined): string {
  if (value !== undefined && value !== "") return value;
  throw new ConfigError(`--${name} is missing: see --help`);
}

/** The value of an option that takes a number. Throws ConfigError with the range. */
export function numberOption(name: string, text: string, { from, to = Number.POSITIVE_INFINITY, whole = false }: Range): number {
  const value = Number(text);
  if (text.trim() !== "" && value >= from && value <= to && Number.isFinite(value) && (!whole || Number.isInteger(value)))
    return value;
  const upTo = to === Number.POSITIVE_INFINITY ? "" : ` to ${to}`;
  throw new ConfigError(
    `--${name}: expected ${whole ? "a whole number" : "a number"} from ${from}${upTo}, got ${JSON.stringify(text)}`,
  );
}

/** The value of an option that takes one of a few words. Throws ConfigError that lists them. */
export function choiceOption<Choice extends string>(name: string, text: string, choices: readonly Choice[]): Choice {
  const choice = choices.find((each) => each === text);
  if (choice !== undefined) return choice;
  throw new ConfigError(`--${name}: expected one of ${choices.join(", ")}, got ${JSON.stringify(text)}`);
}
