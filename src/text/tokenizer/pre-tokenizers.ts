import { spellBytes } from "./byte-characters.js";
import { forEachMatch, Stage } from "./stage.js";

/** Words of a text, in order. `isFirst`: the first of them stands at the very beginning of the whole text. */
interface Words {
  readonly texts: readonly string[];
  readonly isFirst: boolean;
}

type Split = (words: Words) => Words;

/**
 * The pre-tokenizer of a tokenizer.json: cuts a text into words, which the model then looks at one by one. Source: tokenizers 0.23,
 * src/pre_tokenizers and tokenizer/normalizer.rs (`split`).
 * Throws ModelError for kinds and options that are not known.
 */
export function buildPreTokenizer(value: unknown, where: string): ((text: string, isFirst: boolean) => readonly string[]) | null {
  if (value === null) return null;
  const split = new Stage(value, "pre_tokenizer", where).build(kinds);
  return (text, isFirst) => split({ texts: [text], isFirst }).texts;
}

const behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] as const;
type Behavior = (typeof behaviors)[number];

const spaces = /\p{White_Space}/gu;
const gpt2Words =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const wordClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const punctuation = /[!-/:-@[-`{-~\p{P}]/gu;

const kinds: Readonly<Record<string, (stage: Stage) => Split>> = {
  BertPreTokenizer: () => {
    const [bySpaces, byPunctuation] = [splitter(spaces, "Removed"), splitter(punctuation, "Isolated")];
    return (words) => byPunctuation(bySpaces(words));
  },
  ByteLevel(stage) {
    const addsSpace = stage.boolean("add_prefix_space");
    const split = stage.boolean("use_regex", true) ? splitter(gpt2Words, "Isolated") : (words: Words) => words;
    stage.ignore("trim_offsets");
    return ({ texts, isFirst }) => {
      const spaced = addsSpace ? texts.map((text) => (text.startsWith(" ") ? text : ` ${text}`)) : texts;
      return { texts: split({ texts: spaced, isFirst }).texts.map(spellBytes), isFirst };
    };
  },
  CharDelimiterSplit(stage) {
    return splitter(literally(stage.character("delimiter")), "Removed");
  },
  Digits(stage) {
    return splitter(/\p{N}/gu, stage.boolean("individual_digits") ? "Isolated" : "Contiguous");
  },
  FixedLength(stage) {
    const length = stage.count("length", 5);
    if (length === 0) return stage.fail('"length" is 0.');
    return ({ texts, isFirst }) => ({
      texts: texts.flatMap((text) => {
        const characters = [...text];
        const pieces: string[] = [];
        for (let at = 0; at < characters.length; at += length) pieces.push(characters.slice(at, at + length).join(""));
        return pieces;
      }),
      isFirst,
    });
  },
  Metaspace(stage) {
    const { replacement, scheme } = metaspaceOptions(stage);
    const split = stage.boolean("split", true) ? splitter(literally(replacement), "MergedWithNext") : (words: Words) => words;
    return ({ texts, isFirst }) => {
      const marked = texts.map((text, index) => {
        const spelled = text.replaceAll(" ", () => replacement);
        const prepends = scheme === "always" || (scheme === "first" && isFirst && index === 0);
        return prepends && !spelled.startsWith(replacement) ? replacement + spelled : spelled;
      });
      return split({ texts: marked, isFirst });
    };
  },
  Punctuation(stage) {
    return splitter(punctuation, stage.oneOf("behavior", behaviors, "Isolated"));
  },
  Sequence(stage) {
    const steps = stage.stages("pretokenizers").map((each) => each.build(kinds));
    return (words) => steps.reduce((parts, step) => step(parts), words);
  },
  Split(stage) {
    return splitter(stage.pattern(), stage.oneOf("behavior", behaviors), stage.boolean("invert"));
  },
  Whitespace: () => splitter(new RegExp(`[${wordClass}]+|[^${wordClass}\\p{White_Space}]+`, "gu"), "Removed", true),
  WhitespaceSplit: () => splitter(spaces, "Removed"),
};

/** What a Metaspace is made of, as a pre-tokenizer and as a decoder. */
export function metaspaceOptions(stage: Stage): { replacement: string; scheme: "first" | "never" | "always" } {
  const replacement = stage.character("replacement");
  let scheme = stage.oneOf("prepend_scheme", ["first", "never", "always"], "always");
  if (stage.has("add_prefix_space") && !stage.boolean("add_prefix_space")) {
    if (stage.has("prepend_scheme") && scheme !== "never")
      stage.fail(`"add_prefix_space" is false, but "prepend_scheme" is ${scheme}.`);
    scheme = "never";
  }
  stage.ignore("add_prefix_space", "str_rep");
  return { replacement, scheme };
}

function literally(character: string): RegExp {
  return new RegExp(`\\u{${character.codePointAt(0)!.toString(16)}}`, "gu");
}

/** Cuts every word where the pattern matches; `isInverted` says that the pattern is what is kept between the cuts. */
function splitter(pattern: RegExp, behavior: Behavior, isInverted = false): Split {
  return ({ texts, isFirst }) => {
    const parts: string[] = [];
    let startsFirst = isFirst;
    for (const [index, text] of texts.entries()) {
      const before = parts.length;
      const from = splitWord(text, pattern, behavior, isInverted, parts);
      if (index === 0) startsFirst = isFirst && from === 0 && parts.length > before;
    }
    return { texts: parts, isFirst: startsFirst };
  };
}

/** Appends the parts of one word and returns where the first of them begins in it. */
function splitWord(text: string, pattern: RegExp, behavior: Behavior, isInverted: boolean, parts: string[]): number {
  if (behavior === "Isolated") {
    forEachMatch(text, pattern, (start, end) => {
      if (end > start) parts.push(text.slice(start, end));
    });
    return 0;
  }
  if (behavior === "Removed") {
    let first = -1;
    forEachMatch(text, pattern, (start, end, matches) => {
      if (matches !== isInverted || end === start) return;
      if (first < 0) first = start;
      parts.push(text.slice(start, end));
    });
    return first;
  }
  const stretches: [start: number, end: number, matches: boolean][] = [];
  forEachMatch(text, pattern, (start, end, matches) => stretches.push([start, end, matches !== isInverted]));
  const cuts = cutsOf(stretches, behavior);
  for (const [index, start] of cuts.entries()) {
    const end = cuts[index + 1] ?? text.length;
    if (end > start) parts.push(text.slice(start, end));
  }
  return 0;
}

/** Where the parts begin. */
function cutsOf(stretches: readonly (readonly [number, number, boolean])[], behavior: Behavior): number[] {
  const cuts: number[] = [];
  if (behavior === "MergedWithNext") {
    // From behind: a match begins what comes after it, unless that is a match itself.
    let isBeforeMatch = false;
    for (const [start, , matches] of [...stretches].reverse()) {
      if (matches && !isBeforeMatch && cuts.length > 0) cuts[cuts.length - 1] = start;
      else cuts.push(start);
      isBeforeMatch = matches;
    }
    return cuts.reverse();
  }
  let isAfterMatch = false;
  for (const [start, , matches] of stretches) {
    const joins = behavior === "Contiguous" ? matches === isAfterMatch : matches && !isAfterMatch;
    if (!joins || cuts.length === 0) cuts.push(start);
    isAfterMatch = matches;
  }
  return cuts;
}
