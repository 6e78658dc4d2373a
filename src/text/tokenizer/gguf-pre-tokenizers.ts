/**
 * How GGUF's `tokenizer.ggml.pre` names the split before BPE, as the `pre_tokenizer` of a tokenizer.json.
 * Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_bpe), and the tokenizer.json of the models that the names stand for.
 */

const gpt2 = byteLevel(true);
const llama3Pattern = wordPattern("{1,3}");
const qwen2Pattern = wordPattern("");
const tekkenPattern =
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" +
  "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" +
  "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const smollm = sequence({ type: "Digits", individual_digits: true }, gpt2);
const llama3 = sequence(split(llama3Pattern), byteLevel(false));
const qwen2 = sequence(split(qwen2Pattern), byteLevel(false));
const tekken = sequence(split(tekkenPattern), byteLevel(false));

export interface PreTokenizer {
  readonly stage: object;
  /** Words that are in the vocabulary are taken whole, without merging. */
  readonly ignoreMerges?: boolean;
  readonly normalizer?: object;
}

export const preTokenizers: Readonly<Record<string, PreTokenizer>> = {
  "gpt-2": { stage: gpt2 },
  default: { stage: gpt2 },
  smollm: { stage: smollm },
  starcoder: { stage: smollm },
  "llama-bpe": { stage: llama3, ignoreMerges: true },
  llama3: { stage: llama3, ignoreMerges: true },
  "llama-v3": { stage: llama3, ignoreMerges: true },
  "smaug-bpe": { stage: llama3 },
  qwen2: { stage: qwen2, normalizer: { type: "NFC" } },
  "deepseek-r1-qwen": { stage: qwen2, normalizer: { type: "NFC" } },
  tekken: { stage: tekken, ignoreMerges: true },
};

/** Patterns that are known not to run away on any text; others run under a time limit. */
const knownPatterns: ReadonlySet<string> = new Set([llama3Pattern, qwen2Pattern, tekkenPattern]);

export function hasOnlyKnownPatterns(stages: unknown): boolean {
  if (typeof stages !== "object" || stages === null) return true;
  return Object.entries(stages).every(([key, value]) =>
    key === "Regex" ? knownPatterns.has(value) : hasOnlyKnownPatterns(value),
  );
}

/** The split of cl100k, with `digits` after the class of numbers. */
function wordPattern(digits: string): string {
  return (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" +
    `${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`
  );
}

function split(pattern: string): object {
  return { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
}

function byteLevel(usesRegex: boolean): object {
  return { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: usesRegex };
}

function sequence(...stages: object[]): object {
  return { type: "Sequence", pretokenizers: stages };
}
