import { ModelError } from "../../errors.js";
import { quote } from "./stage.js";

/** A tokenizer.json whose model and added tokens are checked; its stages are checked where they are built. */
export interface TokenizerJson {
  readonly added_tokens: readonly AddedToken[];
  readonly normalizer: unknown;
  readonly pre_tokenizer: unknown;
  readonly post_processor: unknown;
  readonly decoder: unknown;
  readonly model: VocabularyModel;
  /** What the file asks for and nobody here does, in words. */
  readonly notices: readonly string[];
}

export const modelTypes = ["BPE", "WordPiece", "WordLevel"] as const;

/** The model with every option, at its default where a type does not have it. */
export interface VocabularyModel {
  readonly type: (typeof modelTypes)[number];
  readonly vocab: ReadonlyMap<string, number>;
  readonly merges: readonly (readonly [left: string, right: string])[];
  readonly unk_token: string | null;
  readonly continuing_subword_prefix: string;
  readonly end_of_word_suffix: string;
  readonly fuse_unk: boolean;
  readonly byte_fallback: boolean;
  readonly ignore_merges: boolean;
  readonly max_input_chars_per_word: number;
}

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  readonly normalized: boolean;
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  readonly single_word: boolean;
}

const maxId = 2 ** 24; // the largest vocabularies in use have 2^18 entries
const maxMerges = 2 ** 21; // the most in use are 2^19
const maxAddedTokens = 2 ** 18;

type Json = Readonly<Record<string, unknown>>;

/**
 * Checks a parsed tokenizer.json before anything is built from it: kinds, options and ids. What the
 * tokenizers library would read otherwise than the file says is refused.
 * Throws ModelError that names the entry.
 */
export function checkTokenizerJson(json: unknown, where: string): TokenizerJson {
  const fail = (message: string): never => {
    throw new ModelError(`${where}: ${message}`);
  };
  if (!isRecord(json)) return fail("expected a JSON object with a model, as the tokenizers library writes it.");
  if (!isRecord(json.model)) return fail('there is no "model" in it: this is not a tokenizer.json of the tokenizers library.');
  if ((json.version ?? "1.0") !== "1.0") fail(`version ${quote(json.version)} is not supported: expected "1.0".`);
  const model = checkModel(json.model, fail);
  const known = [
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
  ];
  const unknown = Object.keys(json).filter((key) => !known.includes(key));
  const unused = ["truncation", "padding"].filter((key) => (json[key] ?? null) !== null);
  return {
    added_tokens: checkAddedTokens(json.added_tokens ?? [], model.vocab, fail),
    normalizer: json.normalizer ?? null,
    pre_tokenizer: json.pre_tokenizer ?? null,
    post_processor: json.post_processor ?? null,
    decoder: json.decoder ?? null,
    model,
    notices: [
      ...(json.model.type === undefined
        ? [`${where}: its model states no type; it is read as ${model.type}, which has what it holds.`]
        : []),
      ...(unknown.length > 0
        ? [`${where}: ${unknown.map(quote).join(", ")} means nothing to the tokenizers library and is not read.`]
        : []),
      ...(unused.length > 0
        ? [`${where}: its ${unused.join(" and ")} are not used, as in transformers: the recipe decides on lengths.`]
        : []),
    ],
  };
}

const vocabularyOptions: Readonly<Record<VocabularyModel["type"], readonly string[]>> = {
  BPE: [
    "merges",
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
  ],
  WordPiece: ["unk_token", "continuing_subword_prefix", "max_input_chars_per_word"],
  WordLevel: ["unk_token"],
};

type Fail = (message: string) => never;

function checkModel(json: Json, fail: Fail): VocabularyModel {
  const type = typeOf(json, fail);
  const isTagged = json.type !== undefined;
  const options = ["type", "vocab", ...vocabularyOptions[type]];
  const unknown = Object.keys(json).filter((key) => !options.includes(key));
  // An untagged model is the first type whose options it has, whatever else it holds.
  if (unknown.length > 0 && isTagged) fail(`"model" has the unknown option ${unknown.map(quote).join(", ")} for ${type}.`);

  const vocab = checkVocab(json.vocab, fail);
  const option = <T>(name: string, kind: "string" | "boolean" | "number", standard: T): T => {
    const value = json[name] ?? null;
    if (value === null || !options.includes(name)) return standard;
    if (typeof value !== kind) return fail(`"model.${name}" is ${quote(value)}: expected a ${kind}.`);
    return value as T;
  };
  const required = <T>(name: string, kind: "string" | "number"): T => {
    if (options.includes(name) && typeof json[name] !== kind)
      fail(`"model.${name}" is ${quote(json[name])}: ${type} needs a ${kind}.`);
    return json[name] as T;
  };
  const isBpe = type === "BPE";
  const dropout = option<number>("dropout", "number", 0);
  if (dropout !== 0)
    fail(
      `"model.dropout" is ${dropout}: merges that are left out at random are not supported. Set it to null to leave out none.`,
    );
  const prefix = isBpe
    ? option("continuing_subword_prefix", "string", "")
    : (required<string>("continuing_subword_prefix", "string") ?? "");
  return {
    type,
    vocab,
    merges: isBpe ? checkMerges(json.merges, fail) : [],
    unk_token: isBpe ? option<string | null>("unk_token", "string", null) : required<string>("unk_token", "string"),
    continuing_subword_prefix: type === "WordLevel" ? "" : prefix,
    end_of_word_suffix: option("end_of_word_suffix", "string", ""),
    fuse_unk: option("fuse_unk", "boolean", false),
    byte_fallback: option("byte_fallback", "boolean", false),
    ignore_merges: option("ignore_merges", "boolean", false),
    max_input_chars_per_word: type === "WordPiece" ? required<number>("max_input_chars_per_word", "number") : 0,
  };
}

/**
 * The type that a model states or, in files from before there was one (BERT's own), that its options tell: the first of BPE, WordPiece,
 * WordLevel and Unigram that has what it needs. Source: tokenizers, src/models/mod.rs (`ModelUntagged`).
 */
function typeOf(json: Json, fail: Fail): VocabularyModel["type"] {
  const { type, vocab } = json;
  const expected = `expected ${modelTypes.slice(0, -1).join(", ")} or ${modelTypes.at(-1)}`;
  if (type !== undefined)
    return modelTypes.find((known) => known === type) ?? fail(`model type ${quote(type)} is not supported: ${expected}.`);
  const isText = (name: string) => typeof json[name] === "string";
  if (isRecord(vocab)) {
    if (Array.isArray(json.merges)) return "BPE";
    if (isText("unk_token") && isText("continuing_subword_prefix") && typeof json.max_input_chars_per_word === "number")
      return "WordPiece";
    if (isText("unk_token")) return "WordLevel";
  }
  const what = Array.isArray(vocab)
    ? "is Unigram by its vocabulary, which is not supported"
    : "does not hold what any type needs";
  return fail(`"model" has no type and ${what}: ${expected}.`);
}

function checkVocab(json: unknown, fail: Fail): ReadonlyMap<string, number> {
  if (!isRecord(json)) return fail('"model.vocab" has to map tokens to ids.');
  const vocab = new Map<string, number>();
  const seen = new Set<number>();
  for (const token of Object.keys(json)) {
    const id = json[token];
    if (!isId(id)) return fail(`token ${quote(token)} has id ${quote(id)}: expected a whole number below ${maxId}.`);
    if (seen.has(id)) fail(`id ${id} is given to more than one token, ${quote(token)} among them.`);
    seen.add(id);
    vocab.set(token, id);
  }
  if (vocab.size === 0) fail("the vocabulary is empty.");
  return vocab;
}

/** Pairs of tokens; that the vocabulary has them is for the model to see. */
function checkMerges(merges: unknown, fail: Fail): readonly (readonly [string, string])[] {
  if (!Array.isArray(merges)) return fail('"model.merges" has to be a list.');
  if (merges.length > maxMerges) fail(`${merges.length} merges are more than the ${maxMerges} allowed.`);
  return merges
    .filter((merge) => !(typeof merge === "string" && merge.startsWith("#version")))
    .map((merge: unknown, index) => {
      const pair: unknown = typeof merge === "string" ? merge.split(" ") : merge;
      if (!Array.isArray(pair) || pair.length !== 2 || !pair.every((half) => typeof half === "string"))
        return fail(`merge ${index} is ${quote(merge)}: expected two tokens.`);
      return pair as unknown as readonly [string, string];
    });
}

/**
 * Added tokens with the ids that the tokenizers library gives them: of the vocabulary where it has the token, else the next that is free. The
 * ids that the file states are not asked there; where they are others, the file is refused. Source: src/tokenizer/added_vocabulary.rs.
 */
function checkAddedTokens(added: unknown, vocab: ReadonlyMap<string, number>, fail: Fail): readonly AddedToken[] {
  if (!Array.isArray(added)) return fail('"added_tokens" has to be a list.');
  if (added.length > maxAddedTokens) fail(`${added.length} added tokens are more than the ${maxAddedTokens} allowed.`);
  const tokens = new Map<string, AddedToken>();
  const size = vocab.size;
  let highest = -1;
  for (const [index, entry] of added.entries() as ArrayIterator<[number, unknown]>) {
    if (!isRecord(entry) || typeof entry.content !== "string" || entry.content === "" || !isId(entry.id))
      return fail(`added_tokens[${index}] is ${quote(entry)}: expected a content and a whole number as id.`);
    const { content, id } = entry;
    const flag = (name: string, standard: boolean): boolean => {
      const value = entry[name] ?? standard;
      return typeof value === "boolean"
        ? value
        : fail(`added_tokens[${index}] ${quote(content)}: "${name}" has to be true or false.`);
    };
    const unknown = Object.keys(entry).filter((key) => !addedTokenKeys.includes(key));
    if (unknown.length > 0)
      fail(`added_tokens[${index}] ${quote(content)} has the unknown option ${unknown.map(quote).join(", ")}.`);
    const free = highest >= size ? highest + 1 : size;
    const given = tokens.get(content)?.id ?? vocab.get(content) ?? free;
    if (given !== id)
      fail(
        `added_tokens[${index}] ${quote(content)} has id ${id}, but the tokenizers library would give it ${given}: the file contradicts itself.`,
      );
    const special = flag("special", false);
    tokens.set(content, {
      id,
      content,
      special,
      normalized: flag("normalized", !special),
      lstrip: flag("lstrip", false),
      rstrip: flag("rstrip", false),
      single_word: flag("single_word", false),
    });
    highest = Math.max(highest, id);
  }
  return [...tokens.values()];
}

const addedTokenKeys = ["id", "content", "special", "normalized", "lstrip", "rstrip", "single_word"];

function isRecord(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < maxId;
}
