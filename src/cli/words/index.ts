import { ConfigError } from "../../errors.js";
import { en, type Words } from "./en.js";
import { zh } from "./zh.js";

export type { Words } from "./en.js";

const languages = { en, zh };

export type Language = keyof typeof languages;

export const languageNames = Object.keys(languages) as Language[];

/** The texts of the commands in the language that the environment asks for: ATTUNE_LANG, then LC_ALL, LC_MESSAGES, LANG; else English. */
export function wordsFor(env: Readonly<Record<string, string | undefined>>): Words {
  const locale = env.ATTUNE_LANG || env.LC_ALL || env.LC_MESSAGES || env.LANG || "";
  const language = /^[a-z]+/i.exec(locale)?.[0].toLowerCase() ?? "";
  return Object.hasOwn(languages, language) ? languages[language as Language] : en;
}

/**
 * Takes `--lang NAME` or `--lang=NAME` out of a command line, wherever it stands: the language must be known before the commands, whose help is in
 * it, are declared. Throws ConfigError for a language that is not there.
 */
export function takeLanguage(argv: readonly string[]): { readonly language: Language | undefined; readonly rest: string[] } {
  const rest: string[] = [];
  let language: Language | undefined;
  for (let i = 0; i < argv.length; i++) {
    const [, value = argv[i + 1] ?? ""] = /^--lang(?:=(.*))?$/s.exec(argv[i]!) ?? [];
    if (!/^--lang(=|$)/.test(argv[i]!)) {
      rest.push(argv[i]!);
      continue;
    }
    if (!Object.hasOwn(languages, value))
      throw new ConfigError(`--lang: expected one of ${languageNames.join(", ")}, got ${JSON.stringify(value)}`);
    language = value as Language;
    if (argv[i] === "--lang") i++;
  }
  return { language, rest };
}
