import { ModelError } from "../errors.js";

/** The parts of a `tokenizer.json` that are read here; stages are handed on to @huggingface/tokenizers as they are. */
export interface TokenizerJson {
  readonly added_tokens: readonly AddedToken[];
  readonly normalizer: unknown;
  readonly pre_tokenizer: unknown;
  readonly post_processor: unknown;
  readonly decoder: unknown;
  readonly model: {
    readonly type: "BPE" | "WordPiece";
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges: readonly (string | readonly [string, string])[];
    readonly [option: string]: unknown;
  };
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

/**
 * Checks a parsed tokenizer.json before anything is built from it: kinds, ids, and that merges stay inside the vocabulary.
 * Throws ModelError that names the entry.
 */
export function checkTokenizerJson(json: unknown, where: string): TokenizerJson {
  const fail = (message: string): never => {
    throw new ModelError(`${where}: ${message}`);
  };
  if (!isRecord(json)) return fail("expected a JSON object with a model, as the tokenizers library writes it.");
  const { model } = json;
  if (!isRecord(model)) return fail('there is no "model" in it: this is not a tokenizer.json of the tokenizers library.');
  const { type = "BPE" } = model;
  if (type !== "BPE" && type !== "WordPiece")
    return fail(`model type ${quote(type)} is not supported: expected BPE or WordPiece.`);
  if (!isRecord(model.vocab)) return fail('"model.vocab" has to map tokens to ids.');

  const vocab = model.vocab as Record<string, number>;
  const seen = new Set<number>();
  for (const [token, id] of Object.entries(vocab)) {
    if (!isId(id)) fail(`token ${quote(token)} has id ${quote(id)}: expected a whole number below ${maxId}.`);
    if (seen.has(id)) fail(`id ${id} is given to more than one token, ${quote(token)} among them.`);
    seen.add(id);
  }
  if (seen.size === 0) fail("the vocabulary is empty.");

  const merges = model.merges ?? [];
  if (!Array.isArray(merges)) return fail('"model.merges" has to be a list.');
  const suffix = typeof model.continuing_subword_prefix === "string" ? model.continuing_subword_prefix.length : 0;
  for (const [index, merge] of merges.entries()) {
    const pair: unknown = typeof merge === "string" ? merge.split(" ") : merge;
    if (!Array.isArray(pair) || pair.length !== 2 || !pair.every((half) => typeof half === "string"))
      fail(`merge ${index} is ${quote(merge)}: expected two tokens.`);
    const [left, right] = pair as [string, string];
    for (const token of [left, right, left + right.slice(suffix)])
      if (!Object.hasOwn(vocab, token))
        fail(`merge ${index} (${quote(merge)}) needs the token ${quote(token)}, which the vocabulary lacks.`);
  }

  const added = json.added_tokens ?? [];
  if (!Array.isArray(added)) return fail('"added_tokens" has to be a list.');
  const addedTokens = added.map((entry: unknown, index): AddedToken => {
    if (!isRecord(entry) || typeof entry.content !== "string" || entry.content === "" || !isId(entry.id))
      return fail(`added_tokens[${index}] is ${quote(entry)}: expected a content and a whole number as id.`);
    const flag = (name: string, standard: boolean) => (typeof entry[name] === "boolean" ? entry[name] : standard);
    const special = flag("special", false);
    return {
      id: entry.id,
      content: entry.content,
      special,
      normalized: flag("normalized", !special),
      lstrip: flag("lstrip", false),
      rstrip: flag("rstrip", false),
      single_word: flag("single_word", false),
    };
  });

  return {
    added_tokens: addedTokens,
    normalizer: json.normalizer ?? null,
    pre_tokenizer: json.pre_tokenizer ?? null,
    post_processor: json.post_processor ?? null,
    decoder: json.decoder ?? null,
    model: { ...model, type, vocab, merges },
  };
}

/** A part of damaged input for an error message: JSON, short. */
function quote(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isId(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < maxId;
}
