import { ModelError } from "../../errors.js";
import { quote } from "./stage.js";
import type { VocabularyModel } from "./tokenizer-json.js";

/** The stage that knows the vocabulary: turns one word into token ids. Source: tokenizers 0.23, src/models. */
export interface TokenModel {
  encode(word: string): readonly number[];
  /** What stands for text that the vocabulary lacks. */
  readonly unkId: number | undefined;
}

/** Throws ModelError when merges leave the vocabulary. */
export function buildTokenModel(model: VocabularyModel, where: string): TokenModel {
  switch (model.type) {
    case "BPE":
      return new BytePairs(model, where);
    case "WordPiece":
      return wordPiece(model, where);
    case "WordLevel":
      return wordLevel(model, where);
  }
}

const pairBase = 2 ** 24; // above every id
const positionBase = 2 ** 31;

/**
 * Byte pair encoding: the characters of a word, joined pair by pair in the order of the merges, the leftmost first.
 * Source: tokenizers, src/models/bpe/model.rs (`merge_word`) and word.rs (`merge_all`).
 */
class BytePairs implements TokenModel {
  readonly unkId: number | undefined;
  readonly #vocab: ReadonlyMap<string, number>;
  readonly #options: VocabularyModel;
  readonly #where: string;
  /** left · 2²⁴ + right → rank. */
  readonly #ranks = new Map<number, number>();
  /** What the merge of a rank makes. */
  readonly #made: Int32Array;
  readonly #byteIds: readonly (number | undefined)[];
  readonly #cutsAtSpaces: boolean;

  constructor(options: VocabularyModel, where: string) {
    const { vocab } = options;
    this.#vocab = vocab;
    this.#options = options;
    this.#where = where;
    const { merges, unk_token, continuing_subword_prefix: prefix, end_of_word_suffix: suffix } = options;
    this.unkId = unk_token === null ? undefined : vocab.get(unk_token);
    this.#made = new Int32Array(merges.length);
    let joinsAtSpaces = false;
    const idOf = (token: string, rank: number): number => {
      const id = vocab.get(token);
      if (id !== undefined) return id;
      const merge = quote(merges[rank]);
      throw new ModelError(`${where}: merge ${rank} (${merge}) needs the token ${quote(token)}, which the vocabulary lacks.`);
    };
    for (const [rank, [left, right]] of merges.entries()) {
      this.#ranks.set(idOf(left, rank) * pairBase + idOf(right, rank), rank);
      this.#made[rank] = idOf(left + right.slice(prefix.length), rank);
      joinsAtSpaces ||= right.startsWith("▁") && !left.endsWith("▁");
    }
    this.#byteIds = Array.from({ length: 256 }, (_, byte) => vocab.get(byteToken(byte)));
    this.#cutsAtSpaces = !joinsAtSpaces && vocab.has("▁") && prefix === "" && suffix === "";
  }

  /** Where no merge reaches across the beginning of a ▁, the parts before and after it are words of their own. */
  encode(word: string): readonly number[] {
    if (this.#options.ignore_merges) {
      const whole = this.#vocab.get(word);
      if (whole !== undefined) return [whole];
    }
    if (!this.#cutsAtSpaces) return this.#merge(word);
    const ids: number[] = [];
    for (let from = 0; from < word.length; ) {
      let to = from;
      while (word[to] === "▁") to++;
      while (to < word.length && word[to] !== "▁") to++;
      for (const id of this.#cached(word.slice(from, to))) ids.push(id);
      from = to;
    }
    return ids;
  }

  readonly #cache = new WordCache();

  #cached(part: string): readonly number[] {
    return this.#cache.of(part, () => this.#merge(part));
  }

  #merge(word: string): readonly number[] {
    const ids = this.#characters(word);
    const count = ids.length;
    if (count < 2) return ids;
    const next = Int32Array.from(ids, (_, index) => index + 1);
    const previous = Int32Array.from(ids, (_, index) => index - 1);
    const heap = new Heap();
    const offer = (left: number, right: number) => {
      const rank = this.#ranks.get(ids[left]! * pairBase + ids[right]!);
      if (rank !== undefined) heap.push(rank * positionBase + left);
    };
    for (let left = 0; left + 1 < count; left++) offer(left, left + 1);

    for (let best = heap.pop(); best !== undefined; best = heap.pop()) {
      const rank = Math.floor(best / positionBase);
      const left = best % positionBase;
      const right = next[left]!;
      if (ids[left] === removed || right === count) continue;
      const now = this.#ranks.get(ids[left]! * pairBase + ids[right]!); // the pair may have changed since it was offered
      if (now === undefined || this.#made[now] !== this.#made[rank]) continue;
      ids[left] = this.#made[rank]!;
      ids[right] = removed;
      next[left] = next[right]!;
      if (next[left]! < count) previous[next[left]!] = left;
      if (previous[left]! >= 0) offer(previous[left]!, left);
      if (next[left]! < count) offer(left, next[left]!);
    }
    return ids.filter((id) => id !== removed);
  }

  #characters(word: string): number[] {
    const { continuing_subword_prefix: prefix, end_of_word_suffix: suffix, byte_fallback, fuse_unk, unk_token } = this.#options;
    const ids: number[] = [];
    let isPending = false; // an unknown token comes when it is known how far it reaches; bytes overtake it, as in tokenizers
    const unknown = () => ids.push(this.unkId ?? lacksUnknown(unk_token!, this.#where));
    for (let at = 0; at < word.length; ) {
      const character = String.fromCodePoint(word.codePointAt(at)!);
      const end = at + character.length;
      const token = (at > 0 ? prefix : "") + character + (end === word.length ? suffix : "");
      at = end;
      const id = this.#vocab.get(token);
      if (id !== undefined) {
        if (isPending) unknown();
        isPending = false;
        ids.push(id);
        continue;
      }
      const bytes = byte_fallback ? Array.from(utf8.encode(token), (byte) => this.#byteIds[byte]) : [undefined];
      if (!bytes.includes(undefined)) for (const byte of bytes) ids.push(byte!);
      else if (unk_token !== null) {
        if (isPending && !fuse_unk) unknown();
        isPending = true;
      }
    }
    if (isPending) unknown();
    return ids;
  }
}

const removed = -1;
const utf8 = new TextEncoder();

/** What stands for a byte in a vocabulary with byte fallback. */
export function byteToken(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}

function lacksUnknown(token: string, where: string): never {
  throw new ModelError(
    `${where}: the text has characters that the vocabulary lacks, and the vocabulary lacks ${quote(token)} for them.`,
  );
}

/** The longest tokens of the vocabulary from the left; a word for which there are none is unknown as a whole. */
function wordPiece(model: VocabularyModel, where: string): TokenModel {
  const { vocab, unk_token, continuing_subword_prefix: prefix, max_input_chars_per_word: maxCharacters } = model;
  const unkId = unk_token === null ? undefined : vocab.get(unk_token);
  const longest = [...vocab.keys()].reduce((most, token) => Math.max(most, token.length), 0);
  return {
    unkId,
    encode(word) {
      const unknown = () => [unkId ?? lacksUnknown(unk_token ?? "unk_token", where)];
      if (word.length > maxCharacters && [...word].length > maxCharacters) return unknown();
      const ids: number[] = [];
      for (let start = 0; start < word.length; ) {
        let end = Math.min(word.length, start + longest);
        let id: number | undefined;
        for (; end > start; end--) {
          id = vocab.get((start > 0 ? prefix : "") + word.slice(start, end));
          if (id !== undefined) break;
        }
        if (id === undefined) return unknown();
        ids.push(id);
        start = end;
      }
      return ids;
    },
  };
}

/** A word is a token or unknown. */
function wordLevel({ vocab, unk_token }: VocabularyModel, where: string): TokenModel {
  const unkId = unk_token === null ? undefined : vocab.get(unk_token);
  return { unkId, encode: (word) => [vocab.get(word) ?? unkId ?? lacksUnknown(unk_token ?? "unk_token", where)] };
}

const maxCachedWords = 100_000;
const maxCachedWordChars = 64;

/** Text repeats its words, and models look at one word at a time. */
export class WordCache {
  readonly #ids = new Map<string, readonly number[]>();

  of(word: string, encode: () => readonly number[]): readonly number[] {
    const known = this.#ids.get(word);
    if (known !== undefined) return known;
    const ids = encode();
    if (word.length > maxCachedWordChars) return ids;
    if (this.#ids.size >= maxCachedWords) this.#ids.clear();
    this.#ids.set(word, ids);
    return ids;
  }
}

/** A heap of numbers, the smallest first. */
class Heap {
  readonly #items: number[] = [];

  push(item: number): void {
    const items = this.#items;
    let at = items.push(item) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (items[parent]! <= item) break;
      items[at] = items[parent]!;
      at = parent;
    }
    items[at] = item;
  }

  pop(): number | undefined {
    const items = this.#items;
    const smallest = items[0];
    const last = items.pop();
    if (last === undefined || items.length === 0) return smallest;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && items[child + 1]! < items[child]!) child++;
      if (items[child]! >= last) break;
      items[at] = items[child]!;
      at = child;
    }
    items[at] = last;
    return smallest;
  }
}
