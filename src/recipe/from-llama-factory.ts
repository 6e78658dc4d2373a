import { code, rows } from "./docs.js";
import { aliases, differently, needless, type RefusedKey, refused } from "./foreign-keys.js";
import { chinese } from "./foreign-keys.zh.js";
import { axesOf, type KeySchema, type Methods, recipeJsonSchema } from "./schema.js";

/** The keys of LLaMA-Factory's recipes by the class that has them, each with its default where that is a plain value. */
export type ForeignKeyList = Readonly<Record<string, Readonly<Record<string, unknown>>>>;

const words = {
  en: {
    heading: ["Key", "Here", "What to know"],
    obeyed: "obeyed",
    differently: "obeyed differently",
    needless: "needless",
    refused: "refused",
    isReadAs: (key: string) => `is read as ${key}`,
    defaults: (here: string, there: string) => `where not set: ${here}; there ${there}`,
    write: (instead: string) => `; write ${instead}`,
    accepts: (values: readonly string[]) => `; accepted: ${values.join(", ")}`,
    others: "Keys of axolotl, TRL and PEFT",
    count: (total: number, counts: string) => `Of ${total} keys: ${counts}.`,
  },
  zh: {
    heading: ["键", "在 attune 中", "说明"],
    obeyed: "照做",
    differently: "做法不同",
    needless: "不需要",
    refused: "拒绝",
    isReadAs: (key: string) => `按 ${key} 读取`,
    defaults: (here: string, there: string) => `未设置时：这里为 ${here}，LLaMA-Factory 为 ${there}`,
    write: (instead: string) => `；请改写 ${instead}`,
    accepts: (values: readonly string[]) => `；可接受：${values.join("、")}`,
    others: "axolotl、TRL 与 PEFT 的键",
    count: (total: number, counts: string) => `共 ${total} 个键：${counts}。`,
  },
} as const;

type Language = keyof typeof words;
type Fate = "obeyed" | "differently" | "needless" | "refused";

/** What a key of another trainer is here, in words of `language`. Undefined if attune does not know it. */
function fateOf(
  key: string,
  there: unknown,
  properties: Readonly<Record<string, KeySchema>>,
  methods: Methods,
  language: Language,
) {
  const { isReadAs, defaults, write, accepts } = words[language];
  const say = (sentence: string) => (language === "en" ? sentence : translated(sentence));
  const ofMethods = Object.values(axesOf(methods))
    .flat()
    .map((method) => method.needless ?? {});
  const reasons: Readonly<Record<string, string>> = Object.assign({}, ...ofMethods, needless);
  const otherwise: Readonly<Record<string, string>> = differently;
  const refusals: Readonly<Record<string, RefusedKey>> = refused;
  const fate = (name: Fate, text: string) => ({ fate: name, text });

  if (Object.hasOwn(properties, key)) {
    const here = properties[key]!.default;
    const isOther = here !== undefined && here !== null && there !== null && there !== undefined && here !== there;
    const own = isOther ? defaults(code(String(here)), code(String(there))) : "";
    if (!Object.hasOwn(otherwise, key)) return fate("obeyed", own);
    return fate("differently", [say(otherwise[key]!), own].filter(Boolean).join(language === "en" ? "; " : "；"));
  }
  if (Object.hasOwn(aliases, key)) return fate("differently", isReadAs(code(aliases[key]!)));
  if (Object.hasOwn(otherwise, key)) return fate("differently", say(otherwise[key]!));
  if (Object.hasOwn(reasons, key)) return fate("needless", say(reasons[key]!));
  if (!Object.hasOwn(refusals, key)) return undefined;
  const { why, instead, harmless = [] } = refusals[key]!;
  const accepted = harmless.filter((value) => value !== false && value !== 0 && value !== "" && typeof value !== "object");
  return fate(
    "refused",
    say(why) +
      (instead ? write(code(instead)) : "") +
      (accepted.length > 0 ? accepts(accepted.map((value) => code(String(value)))) : ""),
  );
}

function translated(sentence: string): string {
  const sentences: Readonly<Record<string, string>> = chinese;
  if (!Object.hasOwn(sentences, sentence))
    throw new Error(`foreign-keys.zh.ts has no translation of ${JSON.stringify(sentence)}`);
  return sentences[sentence]!;
}

/** What stands below it is made by scripts/make-recipe-docs.mjs. */
const mark = "<!-- Below: made by scripts/make-recipe-docs.mjs from src/recipe/foreign-keys.ts. Change it there. -->\n";

/** docs/from-llama-factory.md or its Chinese page, with the tables of its keys made anew. Throws if `page` has no mark. */
export function withKeys(page: string, list: ForeignKeyList, methods: Methods, language: Language): string {
  const end = page.indexOf(mark);
  if (end < 0) throw new Error(`the page has no line ${mark}`);
  return `${page.slice(0, end)}${mark}\n${keysOf(list, methods, language)}`;
}

/** Every key of `list`, then what attune knows of other trainers besides. */
function keysOf(list: ForeignKeyList, methods: Methods, language: Language): string {
  const { properties } = recipeJsonSchema(methods);
  const { heading, others, count } = words[language];
  const counts: Record<Fate, number> = { obeyed: 0, differently: 0, needless: 0, refused: 0 };
  const cells = (keys: Readonly<Record<string, unknown>>, isCounted: boolean) =>
    Object.entries(keys).map(([key, there]) => {
      const known = fateOf(key, there, properties, methods, language);
      if (known === undefined) throw new Error(`${key} is not known: foreign-keys.ts should say what becomes of it`);
      if (isCounted) counts[known.fate]++;
      return [code(key), words[language][known.fate], known.text];
    });
  const section = (title: string, keys: Readonly<Record<string, unknown>>, isCounted: boolean) =>
    `### ${title}\n\n${rows(heading, cells(keys, isCounted))}`;

  const listed = new Set(Object.values(list).flatMap(Object.keys));
  const rest = [aliases, needless, ...methods.backends.map((backend) => backend.needless ?? {}), refused]
    .flatMap(Object.keys)
    .filter((key) => !listed.has(key) && !Object.hasOwn(properties, key));
  const sections = Object.entries(list).map(([title, keys]) => section(title, keys, true));
  const more = section(others, Object.fromEntries([...new Set(rest)].map((key) => [key, undefined])), false);
  const ofEach = (Object.keys(counts) as Fate[]).map((fate) => `${counts[fate]} ${words[language][fate]}`);
  return `${[count(listed.size, ofEach.join(language === "en" ? ", " : "，")), ...sections, more].join("\n\n")}\n`;
}
