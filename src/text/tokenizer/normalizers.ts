import { spellBytes } from "./byte-characters.js";
import { forEachMatch, Stage } from "./stage.js";

/** Rewrites a text before it is split. `maxLength`: what the result may have at most. */
type Rewrite = (text: string, maxLength: number) => string;

/**
 * The normalizer of a tokenizer.json. Source: tokenizers 0.23, src/normalizers. Texts come out as there, but for characters that are younger
 * than its Unicode tables (versions 8 and 9 for accents and categories).
 * Throws ModelError for kinds and options that are not known, and when a text grows beyond all measure.
 */
export function buildNormalizer(value: unknown, where: string): ((text: string) => string) | null {
  if (value === null) return null;
  const stage = new Stage(value, "normalizer", where);
  const rewrite = stage.build(kinds);
  return (text) => {
    const maxLength = 64 * text.length + 2 ** 16;
    const result = rewrite(text, maxLength);
    if (result.length > maxLength) tooLong(stage, maxLength);
    return result;
  };
}

function tooLong(stage: Stage, maxLength: number): never {
  return stage.fail(`it makes a text longer than ${maxLength} characters out of one 64 times as short.`);
}

const kinds: Readonly<Record<string, (stage: Stage) => Rewrite>> = {
  BertNormalizer(stage) {
    const cleans = stage.boolean("clean_text");
    const spacesChinese = stage.boolean("handle_chinese_chars");
    const lowers = stage.boolean("lowercase");
    const stripsAccents = stage.boolean("strip_accents", lowers);
    return (text) => {
      let result = text;
      if (cleans) result = result.replace(/[\0\uFFFD]|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]/gu, "").replace(/\p{White_Space}/gu, " ");
      if (spacesChinese) result = result.replace(chinese, " $& ");
      if (stripsAccents) result = result.normalize("NFD").replace(/\p{Mn}/gu, "");
      return lowers ? lowercase(result) : result;
    };
  },
  Strip(stage) {
    const [left, right] = [stage.boolean("strip_left"), stage.boolean("strip_right")];
    return (text) => {
      let [start, end] = [0, text.length];
      while (left && start < end && isSpace(text[start]!)) start++;
      while (right && end > start && isSpace(text[end - 1]!)) end--;
      return text.slice(start, end);
    };
  },
  StripAccents: () => (text) => text.replace(/\p{M}/gu, ""),
  NFC: () => (text) => text.normalize("NFC"),
  NFD: () => (text) => text.normalize("NFD"),
  NFKC: () => (text) => text.normalize("NFKC"),
  NFKD: () => (text) => text.normalize("NFKD"),
  Lowercase: () => lowercase,
  Nmt: () => (text) =>
    text
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is removed
      .replace(/[\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f]/g, "")
      .replace(/[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/g, " "),
  Replace(stage) {
    const pattern = stage.pattern();
    const content = stage.text("content");
    return (text, maxLength) => {
      const parts: string[] = [];
      let length = 0;
      forEachMatch(text, pattern, (start, end, isMatch) => {
        const part = isMatch ? content : text.slice(start, end);
        length += part.length;
        if (length > maxLength) tooLong(stage, maxLength);
        parts.push(part);
      });
      return parts.join("");
    };
  },
  Prepend(stage) {
    const prefix = stage.text("prepend");
    return (text) => (text === "" ? "" : prefix + text);
  },
  ByteLevel: () => spellBytes,
  Sequence(stage) {
    const steps = stage.stages("normalizers").map((each) => each.build(kinds));
    return (text, maxLength) => {
      let result = text;
      for (const step of steps) {
        result = step(result, maxLength);
        if (result.length > maxLength) tooLong(stage, maxLength);
      }
      return result;
    };
  },
};

/** As in tokenizers, where the fifth range begins at 2B920, not 2B820. */
const chinese =
  /[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}\u{2B740}-\u{2B81F}\u{2B920}-\u{2CEAF}\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}]/gu;

/** Each character on its own: the Σ at the end of a word has no form of its own here. */
function lowercase(text: string): string {
  return text.replaceAll("Σ", "σ").toLowerCase();
}

function isSpace(character: string): boolean {
  return /\p{White_Space}/u.test(character);
}
