import type { AddedToken } from "./tokenizer-json.js";

/** A stretch of text that holds no added token, or one of them (`id`). `start` is where it begins in the whole text. */
export interface Piece {
  readonly text: string;
  readonly start: number;
  readonly id?: number;
}

const wordCharacter = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const space = /\p{White_Space}/u;

/**
 * Finds added tokens in text: leftmost first, the longest where several begin.
 * Source: tokenizers 0.23, src/tokenizer/added_vocabulary.rs (`find_matches`).
 */
export class AddedTokenFinder {
  readonly tokens: readonly AddedToken[];
  readonly #byContent: ReadonlyMap<string, AddedToken>;
  /** 1 for code units that begin a token. */
  readonly #begins = new Uint8Array(2 ** 16);
  /** The lengths of the tokens that begin with a code unit, longest first. */
  readonly #lengths = new Map<number, number[]>();

  constructor(tokens: readonly AddedToken[]) {
    this.tokens = tokens.filter(({ content }) => content !== "");
    this.#byContent = new Map(this.tokens.map((token) => [token.content, token]));
    for (const { content } of this.tokens) {
      this.#begins[content.charCodeAt(0)] = 1;
      const lengths = this.#lengths.get(content.charCodeAt(0)) ?? [];
      this.#lengths.set(content.charCodeAt(0), lengths);
      if (!lengths.includes(content.length)) lengths.push(content.length);
    }
    for (const lengths of this.#lengths.values()) lengths.sort((a, b) => b - a);
  }

  /** How many lengths have to be tried at one place in a text. */
  get mostLengths(): number {
    return [...this.#lengths.values()].reduce((most, lengths) => Math.max(most, lengths.length), 0);
  }

  /** Cuts a text at its tokens. Those that `skips` says stay text, and so does what lies within them. */
  split(text: string, skips: (token: AddedToken) => boolean = () => false): Piece[] {
    const pieces: Piece[] = [];
    let from = 0;
    if (this.tokens.length === 0) return [{ text, start: 0 }];
    for (let at = 0; at < text.length; at++) {
      const token = this.#begins[text.charCodeAt(at)] === 1 ? this.#at(text, at) : undefined;
      if (token === undefined) continue;
      let [start, end] = [at, at + token.content.length];
      at = end - 1;
      if (skips(token) || (token.single_word && !isWord(text, start, end))) continue;
      if (token.lstrip) while (start > from && space.test(text[start - 1]!)) start--;
      if (token.rstrip) while (end < text.length && space.test(text[end]!)) end++;
      if (start > from) pieces.push({ text: text.slice(from, start), start: from });
      pieces.push({ text: token.content, start: at + 1 - token.content.length, id: token.id });
      from = end;
      at = Math.max(at, end - 1);
    }
    if (from < text.length) pieces.push({ text: text.slice(from), start: from });
    return pieces;
  }

  #at(text: string, at: number): AddedToken | undefined {
    for (const length of this.#lengths.get(text.charCodeAt(at)) ?? none) {
      const token = this.#byContent.get(text.slice(at, at + length));
      if (token !== undefined) return token;
    }
    return undefined;
  }
}

const none: readonly number[] = [];

function isWord(text: string, start: number, end: number): boolean {
  const lowSurrogate = (text.charCodeAt(start - 1) & 0xfc00) === 0xdc00;
  const before = text.slice(Math.max(0, start - (lowSurrogate ? 2 : 1)), start);
  const after = end < text.length ? String.fromCodePoint(text.codePointAt(end)!) : "";
  return !wordCharacter.test(before) && !wordCharacter.test(after);
}
