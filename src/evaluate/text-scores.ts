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
  const [hypothesis, reference] = [cut(answer).join(" "), cut(wanted).join(" ")];
  const isEmpty = wordsOf(hypothesis).length === 0 || wordsOf(reference).length === 0;
  const [h, r] = [sentencesOf(hypothesis), sentencesOf(reference)].map((sentences) => sentences.flatMap((one) => one.split(" ")));
  return {
    "rouge-1": isEmpty ? 0 : rounded(100 * rougeN(h!, r!, 1)),
    "rouge-2": isEmpty ? 0 : rounded(100 * rougeN(h!, r!, 2)),
    "rouge-l": isEmpty ? 0 : rounded(100 * rougeL(h!, r!)),
    "bleu-4": rounded(100 * bleu4([...answer], [...wanted])),
  };
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
  let row = new Uint32Array(reference.length + 1);
  for (const word of hypothesis) {
    const next = new Uint32Array(row.length);
    for (const [j, other] of reference.entries()) next[j + 1] = word === other ? row[j]! + 1 : Math.max(row[j + 1]!, next[j]!);
    row = next;
  }
  const common = row.at(-1)!;
  return fScore(common / hypothesis.length, common / reference.length);
}

/** nltk's sentence_bleu with one reference; a precision of 0 counts as 1 / 2ᵏ of one n-gram, at the k-th such one (smoothing method 3). */
function bleu4(hypothesis: readonly string[], reference: readonly string[]): number {
  let [sum, misses] = [0, 0];
  for (let n = 1; n <= 4; n++) {
    const [found, wanted] = [hypothesis, reference].map((characters) => counted(ngrams(characters, n, "")));
    const hits = [...found!].reduce((total, [ngram, count]) => total + Math.min(count, wanted!.get(ngram) ?? 0), 0);
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
