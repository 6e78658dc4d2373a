import { Tokenizer as HfTokenizer } from "@huggingface/tokenizers";
import { ModelError } from "../errors.js";
import { hasOnlyKnownPatterns } from "./pre-tokenizers.js";
import { byteCharacters, TokenBytes } from "./token-bytes.js";
import { checkTokenizerJson, type TokenizerJson } from "./tokenizer-json.js";
import { withTimeLimit } from "./work-limit.js";

/** Tokens with a role, as `special_tokens_map.json` names them. */
export interface RoleTokens {
  readonly bos_token?: string;
  readonly eos_token?: string;
  readonly unk_token?: string;
  readonly pad_token?: string;
}

/** Tokens that a model expects around a text: `[CLS]` and `[SEP]`, or a begin-of-sequence token. */
export interface TokenFrame {
  readonly before: readonly string[];
  readonly after: readonly string[];
}

/** A file of a tokenizer, to be saved beside an adapter. */
export interface TextFile {
  readonly name: string;
  readonly contents: string;
}

/** A stretch of text that holds no control token, or one control token (`id`). `start` is where it begins in the whole text. */
export interface Piece {
  readonly text: string;
  readonly start: number;
  readonly id?: number;
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
  /** Whether plain encoding puts the begin-of-sequence token first. The chat template decides for chats, never this. */
  readonly addsBos: boolean;
  /** What plain encoding puts around a text; without it, the begin-of-sequence token where `addsBos` says so. */
  readonly frame?: TokenFrame;
  /** Rows of the model's embedding; tokens beyond them cannot be used. */
  readonly embeddingRows?: number;
  readonly files: readonly TextFile[];
  /** What the user should know about the files. */
  readonly notices?: readonly string[];
  /** For error messages, such as `model/tokenizer.json`. */
  readonly where: string;
}

/** The stages of @huggingface/tokenizers, whose own types do not resolve under Node's module rules. */
interface Stages {
  readonly normalizer: ((text: string) => string) | null;
  readonly pre_tokenizer: ((text: string, options: { section_index: number }) => string[]) | null;
  readonly model: ((words: string[]) => string[]) & {
    readonly tokens_to_ids: ReadonlyMap<string, number>;
    readonly unk_token_id?: number;
    /** Unknown tokens in a row become one, across words. */
    readonly fuse_unk: boolean;
  };
}

const maxCachedWords = 100_000;
const maxCachedWordChars = 64;

interface Added {
  readonly content: string;
  readonly id: number;
  readonly lstrip: boolean;
  readonly rstrip: boolean;
}

/**
 * Text to token ids and back, on the stages of @huggingface/tokenizers (normalise, split, BPE or WordPiece).
 *
 * The stages are driven from here rather than through that library's `encode`, because text from data must never become a control
 * token: control tokens (those marked special) are found only where the caller asks for them. Other added tokens, such as
 * `<think>` or runs of spaces, are ordinary vocabulary and are always found. Ids are those of Hugging Face's tokenizers.
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
  readonly addsBos: boolean;
  readonly chatTemplate: string | undefined;
  /** Whether every stretch of text gets a space in front (Llama 2): encoding two halves is then not encoding the whole. */
  readonly prefixesSpace: boolean;
  /** What the user should know about this tokenizer. */
  readonly notices: readonly string[];

  readonly #frame: { readonly before: readonly number[]; readonly after: readonly number[] };
  readonly #stages: Stages;
  readonly #control: Splitter;
  readonly #literal: Splitter;
  readonly #normalisedLiteral: Splitter;
  readonly #decoder: TokenBytes;
  readonly #files: readonly TextFile[];
  readonly #where: string;
  readonly #trusted: boolean;
  readonly #wordCache = new Map<string, readonly number[]>();

  /** Throws ModelError when the file is damaged, hostile, or of a kind that is not supported. */
  constructor(parts: TokenizerParts) {
    const { where } = parts;
    const json = checkTokenizerJson(parts.json, where);
    const notices = [...(parts.notices ?? [])];

    const rows = parts.embeddingRows ?? Number.POSITIVE_INFINITY;
    const lastWord = Object.values(json.model.vocab).reduce((highest, id) => Math.max(highest, id), -1);
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

    this.#stages = buildStages({ ...json, added_tokens: usable }, where);
    this.#where = where;
    this.#trusted = hasOnlyKnownPatterns([json.normalizer, json.pre_tokenizer]);

    const isNormalised = (token: { normalized: boolean }) => token.normalized && this.#stages.normalizer !== null;
    const literal = usable.filter((token) => !token.special);
    this.#control = new Splitter(usable.filter((token) => token.special));
    this.#literal = new Splitter(literal.filter((token) => !isNormalised(token)));
    this.#normalisedLiteral = new Splitter(
      literal.filter(isNormalised).map((token) => ({ ...token, content: this.#stages.normalizer!(token.content) })),
    );

    this.controlIds = new Set(this.#control.tokens.map((token) => token.id));
    this.vocabSize = usable.reduce((highest, token) => Math.max(highest, token.id), lastWord) + 1;
    this.#decoder = new TokenBytes(json, usable, where);

    const idOf = (token: string | undefined) => (token === undefined ? undefined : this.idOf(token));
    this.roles = parts.roles;
    this.bosId = idOf(parts.roles.bos_token);
    this.eosId = idOf(parts.roles.eos_token);
    this.unkId = this.#stages.model.unk_token_id;
    const stopIds = new Set(parts.stopIds.filter((id) => id < this.vocabSize));
    if (this.eosId !== undefined) stopIds.add(this.eosId);
    this.stopIds = stopIds;
    this.addsBos = parts.addsBos && this.bosId !== undefined;
    const idsOf = (tokens: readonly string[]) => tokens.flatMap((token) => this.idOf(token) ?? []);
    const before = idsOf(parts.frame?.before ?? []);
    if (this.addsBos && before[0] !== this.bosId) before.unshift(this.bosId!);
    this.#frame = { before, after: idsOf(parts.frame?.after ?? []) };
    this.chatTemplate = parts.chatTemplate;
    this.prefixesSpace = this.#words("x", 0).join("") !== "x";

    if (this.#decoder.isByteLevel && this.unkId === undefined) {
      const missing = textBytes.filter((byte) => this.idOf(byteCharacters[byte]!) === undefined).length;
      if (missing > 0)
        notices.push(`${where}: ${missing} bytes of ordinary text have no token; text that needs them loses them.`);
    }
    this.notices = notices;
    this.#files = parts.files;
  }

  /** The id of a token, or undefined when the vocabulary has none of this name. */
  idOf(token: string): number | undefined {
    return this.#stages.model.tokens_to_ids.get(token);
  }

  /**
   * Token ids of a text; no begin- or end-of-sequence token is added.
   * `special: false` is for text from people and data: `<|im_end|>` in it stays plain text. `atStart: false` says that the text
   * continues another, so that tokenizers that put a space before the first word only do not.
   */
  encode(text: string, { special, atStart = true }: { special: boolean; atStart?: boolean }): Int32Array {
    const work = () => {
      const ids: number[] = [];
      for (const piece of special ? this.#control.split(text) : [{ text, start: 0, id: undefined }]) {
        if (piece.id !== undefined) ids.push(piece.id);
        else this.#encodePlain(piece.text, atStart && piece.start === 0, ids);
      }
      return Int32Array.from(ids);
    };
    if (this.#trusted) return work();
    const limitMs = 1000 + text.length / 10;
    const seconds = Math.round(limitMs / 1000);
    return withTimeLimit(limitMs, work, () => {
      const message = `tokenizing ${text.length} characters took over ${seconds} s: a regular expression of the file never ends.`;
      return new ModelError(`${this.#where}: ${message}`);
    });
  }

  /**
   * A text for a model that reads it alone, without a chat: its first tokens, at most `maxLength` with those that belong around it.
   * Ids are those of transformers' `tokenizer(text, truncation=True)`.
   */
  encodeFramed(text: string, maxLength = Number.POSITIVE_INFINITY): Int32Array {
    const { before, after } = this.#frame;
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
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    let isFirst = true;
    return {
      push: (id) => {
        if (!special && this.controlIds.has(id)) return "";
        const text = utf8.decode(this.#decoder.bytesOf(id), { stream: true });
        const stripped = isFirst && this.#decoder.stripsFirstSpace && text.startsWith(" ") ? text.slice(1) : text;
        if (text !== "") isFirst = false;
        return stripped;
      },
      end: () => utf8.decode(),
    };
  }

  /** What `AutoTokenizer.from_pretrained` and `loadTokenizerFolder` need to read the tokenizer and its chat template back. */
  files(): readonly TextFile[] {
    if (this.chatTemplate === undefined) return this.#files;
    return [...this.#files, { name: "chat_template.jinja", contents: this.chatTemplate }];
  }

  #encodePlain(text: string, atStart: boolean, ids: number[]): void {
    if (text === "") return;
    const from = ids.length;
    const { normalizer } = this.#stages;
    for (const outer of this.#literal.split(text)) {
      if (outer.id !== undefined) {
        ids.push(outer.id);
        continue;
      }
      const normalised = normalizer === null ? outer.text : normalizer(outer.text);
      for (const inner of this.#normalisedLiteral.split(normalised)) {
        if (inner.id !== undefined) {
          ids.push(inner.id);
          continue;
        }
        const words = this.#words(inner.text, atStart && outer.start === 0 ? 0 : 1, true);
        if (this.#stages.model.fuse_unk) for (const id of this.#encodeWords(words)) ids.push(id);
        else for (const word of words) for (const id of this.#encodeWord(word)) ids.push(id);
      }
    }
    for (let i = from; i < ids.length; i++) {
      if (this.controlIds.has(ids[i]!) && ids[i] !== this.unkId) this.#encodeBroken(text, atStart, ids, from);
    }
  }

  /** BPE looks at one word at a time, and text repeats its words. */
  #encodeWord(word: string): readonly number[] {
    const known = this.#wordCache.get(word);
    if (known !== undefined) return known;
    const ids = this.#encodeWords([word]);
    if (this.#wordCache.size >= maxCachedWords) this.#wordCache.clear();
    if (word.length <= maxCachedWordChars) this.#wordCache.set(word, ids);
    return ids;
  }

  #encodeWords(words: string[]): number[] {
    const { model } = this.#stages;
    return model(words).flatMap((token) => model.tokens_to_ids.get(token) ?? model.unk_token_id ?? []);
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
    this.#encodePlain(text.slice(0, cut), atStart, ids);
    this.#encodePlain(text.slice(cut), false, ids);
  }

  #words(text: string, section: number, isNormalised = false): string[] {
    const { normalizer, pre_tokenizer } = this.#stages;
    const normalised = isNormalised || normalizer === null ? text : normalizer(text);
    if (normalised === "") return [];
    return pre_tokenizer === null ? [normalised] : pre_tokenizer(normalised, { section_index: section });
  }
}

function buildStages(json: TokenizerJson, where: string): Stages {
  const build = () => new HfTokenizer(json, { clean_up_tokenization_spaces: false }) as unknown as Stages;
  try {
    return withTimeLimit(
      60_000,
      build,
      () => new ModelError(`${where}: loading took over a minute; the file is damaged or hostile.`),
    );
  } catch (error) {
    if (error instanceof ModelError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new ModelError(`${where}: this tokenizer cannot be built: ${reason}`, { cause: error });
  }
}

/** Finds added tokens in text: leftmost first, the longest where several begin. */
class Splitter {
  readonly tokens: readonly Added[];
  readonly #byContent: ReadonlyMap<string, Added>;
  readonly #pattern: RegExp | undefined;

  constructor(tokens: readonly Added[]) {
    this.tokens = tokens;
    this.#byContent = new Map(tokens.map((token) => [token.content, token]));
    const longestFirst = tokens.map((token) => token.content).sort((a, b) => b.length - a.length);
    const escaped = longestFirst.map((content) => content.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    this.#pattern = tokens.length > 0 ? new RegExp(escaped.join("|"), "gu") : undefined;
  }

  split(text: string): Piece[] {
    if (this.#pattern === undefined) return [{ text, start: 0 }];
    const pieces: Piece[] = [];
    let from = 0;
    for (const match of text.matchAll(this.#pattern)) {
      const token = this.#byContent.get(match[0])!;
      let end = match.index;
      if (token.lstrip) end = from + text.slice(from, end).trimEnd().length;
      if (end > from) pieces.push({ text: text.slice(from, end), start: from });
      pieces.push({ text: match[0], start: match.index, id: token.id });
      from = match.index + match[0].length;
      if (token.rstrip) from = text.length - text.slice(from).trimStart().length;
    }
    if (from < text.length) pieces.push({ text: text.slice(from), start: from });
    return pieces;
  }
}

/** The bytes of ordinary UTF-8 text: without control characters, the planes that Unicode leaves empty, and bytes it never uses. */
const textBytes: readonly number[] = byteCharacters
  .map((_, byte) => byte)
  .filter((byte) => (byte >= 0x20 ? ![0x7f, 0xc0, 0xc1, 0xf1, 0xf2].includes(byte) && byte < 0xf5 : [9, 10, 13].includes(byte)));
