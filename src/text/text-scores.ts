/**
 * How near answers come to the wanted texts: BLEU-4 over characters and ROUGE-1, 2 and L over words, in percent.
 *
 * Source: LLaMA-Factory src/llamafactory/train/sft/metric.py (ComputeSimilarity), with jieba 0.42.1, rouge_chinese 1.0.3 and nltk's sentence_bleu with
 * its smoothing method 3, whose every step is repeated, so that numbers are comparable.
 */

/** Under the names that LLaMA-Factory gives them. */
export interface TextScores {
  readonly "bleu-4": number;
  readonly "rouge-1": number;
  readonly "rouge-2": number;
  readonly "rouge-l": number;
}

/** Cuts a text into words, and what stands between them. */
export type CutWords = (text: string) => string[];

/** jieba's words, as Python's `jieba.cut`. The dictionary takes a second or two to load. */
export async function loadJieba(): Promise<CutWords> {
  const { cut } = await import("jieba-wasm");
  return (text) => asInPython(cut(text, true));
}

/**
 * jieba-rs takes `A-1` for one word, and in `A-1red` leaves `red` for another: its pattern of decimals has any sign where Python's has a point. What lies
 * behind such a word is cut once more with it.
 */
function asInPython(words: readonly string[]): string[] {
  const cut: string[] = [];
  for (let i = 0; i < words.length; i++) {
    let word = words[i]!;
    if (!/^[a-zA-Z0-9]+[+#&_%-]\d+%?$/.test(word)) {
      cut.push(word);
      continue;
    }
    while (/^[a-zA-Z0-9+#&._%-]+$/.test(words[i + 1] ?? "")) word += words[++i]!;
    cut.push(...word.split(/([a-zA-Z0-9]+(?:\.\d+)?%?)/).filter((part) => part !== ""));
  }
  return cut;
}

/** The scores of one answer, each rounded to 4 decimals. */
export function scoresOf(answer: string, wanted: string, cut: CutWords): TextScores {
  return {
    "rouge-1": rounded(100 * rouge(answer, wanted, 1, cut)),
    "rouge-2": rounded(100 * rouge(answer, wanted, 2, cut)),
    "rouge-l": rounded(100 * rouge(answer, wanted, "l", cut)),
    "bleu-4": rounded(100 * bleu4(answer, wanted)),
  };
}

/** ROUGE's F-score from 0 to 1, over n-grams of words or by their longest common subsequence; 0 where a text has no words. */
export function rouge(answer: string, wanted: string, kind: number | "l", cut: CutWords): number {
  const [hypothesis, reference] = [answer, wanted].map((text) => cut(text).join(" "));
  if ([hypothesis!, reference!].some((text) => wordsOf(text).length === 0)) return 0;
  const [h, r] = [hypothesis!, reference!].map((text) => sentencesOf(text).flatMap((one) => one.split(" ")));
  return kind === "l" ? rougeL(h!, r!) : rougeN(h!, r!, kind);
}

/** 1 − edits / length of the longer text, where an edit inserts, deletes or replaces a character (Levenshtein). */
export function editSimilarity(a: string, b: string): number {
  const [x, y] = [codePoints(a), codePoints(b)];
  let row = Uint32Array.from({ length: y.length + 1 }, (_, j) => j);
  let next = new Uint32Array(row.length);
  for (let i = 0; i < x.length; i++) {
    next[0] = i + 1;
    for (let j = 0; j < y.length; j++) next[j + 1] = Math.min(row[j]! + (x[i] === y[j] ? 0 : 1), row[j + 1]! + 1, next[j]! + 1);
    [row, next] = [next, row];
  }
  const longer = Math.max(x.length, y.length);
  return longer === 0 ? 1 : 1 - row[y.length]! / longer;
}

/** 2 · longest common subsequence / length of both texts: rapidfuzz's `fuzz.ratio`, from 0 to 1. */
export function indelSimilarity(a: string, b: string): number {
  const [x, y] = [codePoints(a), codePoints(b)];
  return x.length + y.length === 0 ? 1 : (2 * longestCommon(x, y)) / (x.length + y.length);
}

const codePoints = (text: string) => Int32Array.from(text, (character) => character.codePointAt(0)!);

/** Length of the longest common subsequence. */
function longestCommon<T>(a: ArrayLike<T>, b: ArrayLike<T>): number {
  let row = new Uint32Array(b.length + 1);
  let next = new Uint32Array(row.length);
  for (let i = 0; i < a.length; i++) {
    for (let j = 0; j < b.length; j++) next[j + 1] = a[i] === b[j] ? row[j]! + 1 : Math.max(row[j + 1]!, next[j]!);
    [row, next] = [next, row];
  }
  return row[b.length]!;
}

export function meanScores(scores: readonly TextScores[]): TextScores {
  const mean = (name: keyof TextScores) => scores.reduce((sum, one) => sum + one[name], 0) / Math.max(1, scores.length);
  return { "bleu-4": mean("bleu-4"), "rouge-1": mean("rouge-1"), "rouge-2": mean("rouge-2"), "rouge-l": mean("rouge-l") };
}

/** What Python's str.split() splits at. */
const space = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const spaces = new RegExp(`${space}+`, "u");
const spacesAtEnd = new RegExp(`${space}+$`, "u");

const wordsOf = (text: string) => text.split(spaces).filter((word) => word !== "");

/** rouge_chinese's cut_sent, and what it makes of each sentence: one of spaces alone stays, as an empty one. */
function sentencesOf(text: string): string[] {
  return text
    .replace(/([。！？?])([^”’])/gu, "$1\n$2")
    .replace(/(\.{6})([^”’])/gu, "$1\n$2")
    .replace(/(…{2})([^”’])/gu, "$1\n$2")
    .replace(/([。！？?][”’])([^，。！？?])/gu, "$1\n$2")
    .replace(spacesAtEnd, "")
    .split("\n")
    .filter((sentence) => sentence.length > 0)
    .map((sentence) => wordsOf(sentence).join(" "));
}

function fScore(precision: number, recall: number): number {
  return 2 * ((precision * recall) / (precision + recall + 1e-8));
}

/** Over the different n-grams of both. */
function rougeN(hypothesis: readonly string[], reference: readonly string[], n: number): number {
  const [h, r] = [hypothesis, reference].map((words) => new Set(ngrams(words, n, " ")));
  const common = [...h!].filter((ngram) => r!.has(ngram)).length;
  return fScore(h!.size === 0 ? 0 : common / h!.size, r!.size === 0 ? 0 : common / r!.size);
}

/** By the longest common subsequence of all words. */
function rougeL(hypothesis: readonly string[], reference: readonly string[]): number {
  const common = longestCommon(hypothesis, reference);
  return fScore(common / hypothesis.length, common / reference.length);
}

/**
 * BLEU over up to 4 characters, from 0 to 1: nltk's sentence_bleu with one reference; a precision of 0 counts as 1 / 2ᵏ of one n-gram, at the k-th such
 * one (smoothing method 3).
 */
export function bleu4(answer: string, wanted: string): number {
  const [hypothesis, reference] = [[...answer], [...wanted]];
  let [sum, misses] = [0, 0];
  for (let n = 1; n <= 4; n++) {
    const [found, known] = [hypothesis, reference].map((characters) => counted(ngrams(characters, n, "")));
    const hits = [...found!].reduce((total, [ngram, count]) => total + Math.min(count, known!.get(ngram) ?? 0), 0);
    if (n === 1 && hits === 0) return 0;
    const total = Math.max(1, hypothesis.length - n + 1);
    sum += Math.log(hits > 0 ? hits / total : 1 / (2 ** ++misses * total)) / 4;
  }
  const [length, wantedLength] = [hypothesis.length, reference.length];
  return (length > wantedLength ? 1 : Math.exp(1 - wantedLength / length)) * Math.exp(sum);
}

function ngrams(items: readonly string[], n: number, between: string): string[] {
  return Array.from({ length: Math.max(0, items.length - n + 1) }, (_, i) => items.slice(i, i + n).join(between));
}

function counted(items: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return counts;
}

/** To 4 decimals, and halves to the even neighbour, as Python rounds. */
function rounded(value: number): number {
  const scaled = value * 1e4;
  return scaled % 1 === 0.5 ? (2 * Math.round(scaled / 2)) / 1e4 : Number(value.toFixed(4));
}
