import { AttuneError, DataError, ModelError } from "../../errors.js";
import { withTimeLimit } from "../work-limit.js";
import { AddedTokenFinder, type Piece } from "./added-tokens.js";
import { byteCharacters } from "./byte-characters.js";
import { buildDecoder, cleaned, type TextStream } from "./decoders.js";
import { hasOnlyKnownPatterns } from "./gguf-pre-tokenizers.js";
import { buildNormalizer } from "./normalizers.js";
import { type Frame, frameOf } from "./post-processors.js";
import { buildPreTokenizer } from "./pre-tokenizers.js";
import { buildTokenModel, byteToken, type TokenModel, WordCache } from "./token-models.js";
import { checkTokenizerJson, type VocabularyModel } from "./tokenizer-json.js";

export type { Piece } from "./added-tokens.js";

/** Tokens with a role, as `special_tokens_map.json` names them. */
export interface RoleTokens {
  readonly bos_token?: string;
  readonly eos_token?: string;
  readonly unk_token?: string;
  readonly pad_token?: string;
}

/** A file of a tokenizer, to be saved beside an adapter. */
export interface TextFile {
  readonly name: string;
  readonly contents: string;
}

export interface StreamDecoder {
  /** Text that is complete with this token: never half a character. */
  push(id: number): string;
  /** What is left; bytes that are no character come out as U+FFFD. */
  end(): string;
}

export interface TokenizerParts {
  readonly json: unknown;
  readonly roles: RoleTokens;
  /** Ids that end a generation, beside the end-of-sequence token. */
  readonly stopIds: readonly number[];
  readonly chatTemplate?: string;
  /** `clean_up_tokenization_spaces`: whether decoded text loses spaces before punctuation. Byte pairs never do, as in transformers. */
  readonly cleansUpSpaces?: boolean;
  /** Rows of the model's embedding; tokens beyond them cannot be used. */
  readonly embeddingRows?: number;
  readonly files: readonly TextFile[];
  /** What the user should know about the files. */
  readonly notices?: readonly string[];
  /** For error messages, such as `model/tokenizer.json`. */
  readonly where: string;
}

/**
 * Text to token ids and back: added tokens are found, the text between them is normalised and split, and the model makes ids of the words.
 * Ids and decoded text are those of Hugging Face's tokenizers 0.23, whose stages are written out here because those in JavaScript
 * (@huggingface/tokenizers) differ: they lower-case and split otherwise outside ASCII, and pass over options that they do not know.
 *
 * Control tokens (those marked special) are found only where the caller asks for them, as with `encode_special_tokens` there. Other added
 * tokens, such as `<think>` or runs of spaces, are ordinary vocabulary and are always found.
 */
export class Tokenizer {
  /** Highest token id plus one. */
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly unkId: number | undefined;
  /** Generation ends at any of these. */
  readonly stopIds: ReadonlySet<number>;
  readonly controlIds: ReadonlySet<number>;
  readonly roles: RoleTokens;
  /** Whether plain encoding puts the begin-of-sequence token first. The chat template decides for chats, never this. */
  readonly addsBos: boolean;
  readonly chatTemplate: string | undefined;
  /** Whether every stretch of text gets a space in front (Llama 2): encoding two halves is then not encoding the whole. */
  readonly prefixesSpace: boolean;
  /** What the user should know about this tokenizer. */
  readonly notices: readonly string[];

  /** Ids that belong around a text that a model reads alone. */
  readonly frame: Frame;
  readonly #normalizer: ((text: string) => string) | null;
  readonly #preTokenizer: ((text: string, isFirst: boolean) => readonly string[]) | null;
  readonly #model: TokenModel;
  readonly #control: AddedTokenFinder;
  /** Added tokens that are looked for before the text is normalised, and after it. */
  readonly #exact: AddedTokenFinder;
  readonly #normalised: AddedTokenFinder;
  readonly #vocab: ReadonlyMap<string, number>;
  readonly #added: ReadonlyMap<string, number>;
  /** What is decoded for an id. */
  readonly #spellings: readonly (string | undefined)[];
  readonly #startDecoder: () => TextStream;
  readonly #files: readonly TextFile[];
  readonly #where: string;
  /** Whether encoding and decoding come to an end with any text, so that they need no time limit. */
  readonly #isTrusted: boolean;
  readonly #decodesTrusted: boolean;
  readonly #wordCache = new WordCache();

  /** Throws ModelError when the file is damaged, hostile, or of a kind that is not supported. */
  constructor(parts: TokenizerParts) {
    const { where } = parts;
    const json = checkTokenizerJson(parts.json, where);
    const notices = [...(parts.notices ?? []), ...json.notices];

    const rows = parts.embeddingRows ?? Number.POSITIVE_INFINITY;
    const { vocab } = json.model;
    let lastWord = -1;
    for (const id of vocab.values()) lastWord = Math.max(lastWord, id);
    if (lastWord >= rows)
      throw new ModelError(
        `${where}: the vocabulary reaches id ${lastWord}, but the model has only ${rows} embeddings: this tokenizer belongs to another model.`,
      );
    const usable = json.added_tokens.filter((token) => token.id < rows);
    const unusable = json.added_tokens.filter((token) => token.id >= rows);
    if (unusable.length > 0)
      notices.push(
        `${where}: ${unusable.map((token) => token.content).join(", ")} have no embedding in this model (${rows} rows) and are read as plain text.`,
      );

    this.#where = where;
    this.#normalizer = buildNormalizer(json.normalizer, where);
    this.#preTokenizer = buildPreTokenizer(json.pre_tokenizer, where);
    this.#model = buildTokenModel(json.model, where);
    const startDecoder = buildDecoder(json.decoder, where);
    const cleansUp = parts.cleansUpSpaces === true && json.model.type !== "BPE";
    this.#startDecoder = cleansUp ? () => cleaned(startDecoder()) : startDecoder;

    const spelled = this.#limited(usable, () =>
      usable.map((token) =>
        token.normalized ? { ...token, content: this.#normalizer?.(token.content) ?? token.content } : token,
      ),
    );
    this.#control = new AddedTokenFinder(usable.filter((token) => token.special));
    this.#exact = new AddedTokenFinder(usable.filter((token) => !token.normalized));
    this.#normalised = new AddedTokenFinder(spelled.filter((token) => token.normalized));
    this.#isTrusted =
      hasOnlyKnownPatterns([json.normalizer, json.pre_tokenizer]) &&
      json.model.max_input_chars_per_word <= maxTrustedWord &&
      Math.max(this.#exact.mostLengths, this.#normalised.mostLengths) <= maxTrustedLengths;

    this.#decodesTrusted = hasOnlyKnownPatterns(json.decoder);

    this.controlIds = new Set(this.#control.tokens.map((token) => token.id));
    this.vocabSize = usable.reduce((highest, token) => Math.max(highest, token.id), lastWord) + 1;
    this.#vocab = vocab;
    this.#added = new Map(usable.map(({ content, id }) => [content, id]));
    const spellings: string[] = [];
    for (const [token, id] of vocab) spellings[id] = token;
    for (const { content, id } of spelled) spellings[id] = content;
    this.#spellings = spellings;

    const idOf = (token: string | undefined) => (token === undefined ? undefined : this.idOf(token));
    this.roles = parts.roles;
    this.bosId = idOf(parts.roles.bos_token);
    this.eosId = idOf(parts.roles.eos_token);
    this.unkId = this.#model.unkId;
    const stopIds = new Set(parts.stopIds.filter((id) => id < this.vocabSize));
    if (this.eosId !== undefined) stopIds.add(this.eosId);
    this.stopIds = stopIds;
    this.frame = frameOf(json.post_processor, where);
    const stranger = [...this.frame.before, ...this.frame.after].find((id) => this.#spellings[id] === undefined);
    if (stranger !== undefined) throw new ModelError(`${where}: post_processor: there is no token ${stranger}.`);
    this.addsBos = this.bosId !== undefined && this.frame.before[0] === this.bosId;
    this.chatTemplate = parts.chatTemplate;
    this.prefixesSpace = this.#limited([], () => this.#words(this.#normalizer?.("x") ?? "x", true).join("") !== "x");
    notices.push(...lossNotices(json.model, where));
    this.notices = notices;
    this.#files = parts.files;
  }

  /** The id of a token, or undefined when the vocabulary has none of this name. */
  idOf(token: string): number | undefined {
    return this.#added.get(token) ?? this.#vocab.get(token);
  }

  /** The first of this tokenizer's ids that stands for something else in another one; undefined where all mean the same there. */
  firstDifference(other: Tokenizer): number | undefined {
    for (let id = 0; id < this.vocabSize; id++) if (this.#spellings[id] !== other.#spellings[id]) return id;
    return undefined;
  }

  /**
   * Token ids of a text; no begin- or end-of-sequence token is added.
   * `special: false` is for text from people and data: `<|im_end|>` in it stays plain text. `atStart: false` says that the text
   * continues another, so that tokenizers that put a space before the first word only do not.
   * Throws DataError for a text that is too long to be split, ModelError when a stage of the file never ends.
   */
  encode(text: string, { special, atStart = true }: { special: boolean; atStart?: boolean }): Int32Array {
    const wellFormed = text.replace(/\p{Surrogate}/gu, "\uFFFD");
    const work = () => {
      const ids: number[] = [];
      this.#encode(wellFormed, special, atStart, ids);
      return Int32Array.from(ids);
    };
    try {
      return this.#isTrusted ? work() : this.#limited([{ content: wellFormed }], work);
    } catch (error) {
      if (error instanceof AttuneError || !(error instanceof Error)) throw error;
      // V8's regular expressions give up on stretches of millions of characters, and on patterns that become too large.
      throw new DataError(
        `${this.#where}: a text of ${text.length} characters cannot be split into words: ${error.message}. Break it into lines.`,
        { cause: error },
      );
    }
  }

  /**
   * A text for a model that reads it alone, without a chat: its first tokens, at most `maxLength` with those that belong around it.
   * Ids are those of transformers' `tokenizer(text, truncation=True)`.
   */
  encodeFramed(text: string, maxLength = Number.POSITIVE_INFINITY): Int32Array {
    const { before, after } = this.frame;
    const room = Math.max(0, maxLength - before.length - after.length);
    return Int32Array.from([...before, ...this.encode(text, { special: false }).subarray(0, room), ...after]);
  }

  /** Cuts a text at the control tokens in it, in order; the texts between them may still hold other added tokens. */
  split(text: string): Piece[] {
    return this.#control.split(text);
  }

  /** The text of the tokens. Control tokens are left out unless `special` is set. Bytes that are no UTF-8 become U+FFFD. */
  decode(ids: Iterable<number>, { special = false }: { special?: boolean } = {}): string {
    const stream = this.decodeStream({ special });
    let text = "";
    for (const id of ids) text += stream.push(id);
    return text + stream.end();
  }

  /** Decodes token by token, as a generation brings them. The pieces joined are exactly what `decode` returns. */
  decodeStream({ special = false }: { special?: boolean } = {}): StreamDecoder {
    const stream = this.#startDecoder();
    const limited = (work: () => string) => (this.#decodesTrusted ? work() : this.#limited([], work));
    return {
      push: (id) => {
        const token = !special && this.controlIds.has(id) ? undefined : this.#spellings[id];
        return token === undefined ? "" : limited(() => stream.push(token));
      },
      end: () => limited(() => stream.end()),
    };
  }

  /** What `AutoTokenizer.from_pretrained` and `loadTokenizerFolder` need to read the tokenizer and its chat template back. */
  files(): readonly TextFile[] {
    if (this.chatTemplate === undefined) return this.#files;
    return [...this.#files, { name: "chat_template.jinja", contents: this.chatTemplate }];
  }

  #encode(text: string, special: boolean, atStart: boolean, ids: number[]): void {
    if (text === "") return;
    const from = ids.length;
    const skips = (token: { special: boolean }) => token.special && !special;
    for (const outer of this.#exact.split(text, skips)) {
      if (outer.id !== undefined) {
        ids.push(outer.id);
        continue;
      }
      const normalised = this.#normalizer?.(outer.text) ?? outer.text;
      for (const inner of this.#normalised.split(normalised, skips)) {
        if (inner.id !== undefined) ids.push(inner.id);
        else
          for (const word of this.#words(inner.text, atStart && outer.start === 0 && inner.start === 0))
            for (const id of this.#wordCache.of(word, () => this.#model.encode(word))) ids.push(id);
      }
    }
    if (special) return;
    for (let i = from; i < ids.length; i++)
      if (this.controlIds.has(ids[i]!) && ids[i] !== this.unkId) this.#encodeBroken(text, atStart, ids, from);
  }

  /** Models that take whole words from the vocabulary would give a control token for its name: the name is encoded in two halves. */
  #encodeBroken(text: string, atStart: boolean, ids: number[], from: number): void {
    const found = this.#control.split(text).find((piece) => piece.id !== undefined && piece.text.length > 1);
    if (found === undefined)
      throw new ModelError(
        `${this.#where}: ${JSON.stringify(text.slice(0, 80))} cannot be encoded as plain text with this vocabulary.`,
      );
    ids.length = from;
    const cut = found.start + ((text.codePointAt(found.start) ?? 0) > 0xffff ? 2 : 1);
    this.#encode(text.slice(0, cut), false, atStart, ids);
    this.#encode(text.slice(cut), false, false, ids);
  }

  #words(text: string, isFirst: boolean): readonly string[] {
    if (text === "") return [];
    return this.#preTokenizer === null ? [text] : this.#preTokenizer(text, isFirst);
  }

  /** Runs stages of the file on these texts, for as long as any that end would need. */
  #limited<T>(texts: readonly { readonly content: string }[], work: () => T): T {
    const length = texts.reduce((total, { content }) => total + content.length, 0);
    const limitMs = 2000 + length / 150; // the slowest text measured takes 1 µs for a character
    return withTimeLimit(limitMs, work, () => {
      const seconds = Math.round(limitMs / 1000);
      const message = `tokenizing ${length} characters took over ${seconds} s: a regular expression of the file never ends.`;
      return new ModelError(`${this.#where}: ${message}`);
    });
  }
}

/** What of a text gets lost with this vocabulary: nothing where there is a token for the unknown. */
function lossNotices(model: VocabularyModel, where: string): string[] {
  if (model.type !== "BPE" || model.unk_token !== null) return [];
  const lacking = (name: (byte: number) => string) => textBytes.filter((byte) => !model.vocab.has(name(byte))).length;
  const missing = model.byte_fallback ? lacking(byteToken) : lacking((byte) => byteCharacters[byte]!);
  if (missing === 0) return [];
  return [`${where}: ${missing} bytes of ordinary text have no token; text that needs them loses them.`];
}

const maxTrustedWord = 1000;
const maxTrustedLengths = 64;

/** The bytes of ordinary UTF-8 text: without control characters, the planes that Unicode leaves empty, and bytes it never uses. */
const textBytes: readonly number[] = byteCharacters
  .map((_, byte) => byte)
  .filter((byte) => (byte >= 0x20 ? ![0x7f, 0xc0, 0xc1, 0xf1, 0xf2].includes(byte) && byte < 0xf5 : [9, 10, 13].includes(byte)));
