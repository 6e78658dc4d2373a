import { ModelError } from "../errors.js";
import type { AddedToken, TokenizerJson } from "./tokenizer-json.js";

/** GPT-2's spelling of the 256 bytes as visible characters: printable Latin-1 as is, the others from U+0100 on. */
export const byteCharacters: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const isVisible = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(isVisible ? byte : next++);
  });
})();
const byteOfCharacter: ReadonlyMap<string, number> = new Map(byteCharacters.map((character, byte) => [character, byte]));

const utf8Encoder = new TextEncoder();

/**
 * The bytes that each token stands for. Decoding is joining them and reading UTF-8, which is the same whether the tokens come at
 * once or one by one. Hugging Face's byte fallback differs in one case: it turns a whole run of byte tokens into U+FFFD when
 * any of it is not UTF-8, here the good characters of the run survive.
 */
export class TokenBytes {
  readonly isByteLevel: boolean;
  /** Sentencepiece and WordPiece put a space before the first word, which is not part of the text. */
  readonly stripsFirstSpace: boolean;
  readonly #tokens: (string | undefined)[] = [];
  readonly #cache: (Uint8Array | undefined)[] = [];
  readonly #added: ReadonlySet<number>;
  /** What marks a token that continues a word in a WordPiece vocabulary; undefined in others. */
  readonly #continuation: string | undefined;

  constructor(json: TokenizerJson, added: readonly AddedToken[], where: string) {
    for (const [token, id] of Object.entries(json.model.vocab)) this.#tokens[id] = token;
    for (const token of added) this.#tokens[token.id] = token.content;
    this.#added = new Set(added.map((token) => token.id));

    const decoders = decodersOf(json.decoder);
    const types = decoders.map((decoder) => String(decoder.type));
    this.isByteLevel = types.includes("ByteLevel");
    const isSentencepiece = types.includes("Metaspace") || (types.includes("Replace") && types.includes("Fuse"));
    const wordPiece = decoders.find(({ type }) => type === "WordPiece");
    if (!this.isByteLevel && !isSentencepiece && wordPiece === undefined)
      throw new ModelError(
        `${where}: decoder ${types.join(" + ") || "null"} is not supported: expected ByteLevel, WordPiece or sentencepiece's.`,
      );
    if (wordPiece !== undefined) this.#continuation = typeof wordPiece.prefix === "string" ? wordPiece.prefix : "##";
    this.stripsFirstSpace =
      wordPiece !== undefined ||
      decoders.some(
        (decoder) =>
          (decoder.type === "Strip" && decoder.content === " " && decoder.start === 1) ||
          (decoder.type === "Metaspace" && decoder.prepend_scheme !== "never" && decoder.add_prefix_space !== false),
      );
  }

  bytesOf(id: number): Uint8Array {
    const cached = this.#cache[id];
    if (cached !== undefined) return cached;
    const bytes = this.#spell(id);
    this.#cache[id] = bytes;
    return bytes;
  }

  #spell(id: number): Uint8Array {
    const token = this.#tokens[id];
    if (token === undefined) return new Uint8Array();
    if (this.#added.has(id)) return utf8Encoder.encode(token);
    if (this.isByteLevel) {
      const bytes = Array.from(token, (character) => byteOfCharacter.get(character));
      return bytes.includes(undefined) ? utf8Encoder.encode(token) : Uint8Array.from(bytes as number[]);
    }
    if (this.#continuation !== undefined)
      return utf8Encoder.encode(token.startsWith(this.#continuation) ? token.slice(this.#continuation.length) : ` ${token}`);
    const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
    return byte ? Uint8Array.of(Number.parseInt(byte[1]!, 16)) : utf8Encoder.encode(token.replaceAll("▁", " "));
  }
}

/** A decoder, or the decoders of a Sequence, as one list. */
function decodersOf(stage: unknown): Record<string, unknown>[] {
  if (typeof stage !== "object" || stage === null) return [];
  const record = stage as Record<string, unknown>;
  return Array.isArray(record.decoders) ? record.decoders.flatMap(decodersOf) : [record];
}
