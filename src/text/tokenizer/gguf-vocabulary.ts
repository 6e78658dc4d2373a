import { isDeepStrictEqual } from "node:util";
import { ModelError } from "../../errors.js";
import type { GgufMetadata, GgufValue } from "../../io/gguf/writer.js";
import { tokenizerJsonOf } from "../load-tokenizer.js";
import { type PreTokenizer, preTokenizers } from "./gguf-pre-tokenizers.js";
import { tokenType } from "./gguf-tokenizer.js";
import type { Tokenizer } from "./tokenizer.js";
import type { TokenizerJson } from "./tokenizer-json.js";

interface VocabularyOptions {
  /** Of the model's embedding: ids without a token become unused tokens. */
  readonly rows: number;
  /** The chat template to store. */
  readonly template: string | undefined;
  /** For error messages: where the tokenizer comes from. */
  readonly where: string;
}

/**
 * A tokenizer as `tokenizer.ggml.*` metadata of a GGUF file: the reverse of `ggufTokenizer`.
 *
 * Source: llama.cpp, convert_hf_to_gguf.py (get_vocab_base, _set_vocab_gpt2, _set_vocab_llama_hf) and gguf-py/gguf/vocab.py. There the
 * split before BPE is told from a hash of encoded text, here from the stages of tokenizer.json; there a sentencepiece vocabulary without its
 * own file loses its scores, here they are the order of the merges; there tokens that look special are control tokens, here those that
 * are marked so.
 * Throws ModelError for a tokenizer that llama.cpp has no name for.
 */
export function ggufVocabulary(tokenizer: Tokenizer, { rows, template, where }: VocabularyOptions): GgufMetadata {
  const json = tokenizerJsonOf(tokenizer, where);
  const contents = new Map([...json.model.vocab].map(([content, id]) => [id, content]));
  for (const { id, content } of json.added_tokens) if (id < rows) contents.set(id, content);
  const added = new Set(json.added_tokens.map(({ id }) => id));
  const isSentencepiece = json.model.byte_fallback === true;
  const unknown = tokenizer.unkId;

  const tokens = Array.from({ length: rows }, (_, id) => contents.get(id) ?? `[PAD${id}]`);
  const types = tokens.map((token, id) => {
    if (!contents.has(id)) return tokenType.unused;
    if (isSentencepiece && id === unknown) return tokenType.unknown;
    if (tokenizer.controlIds.has(id)) return tokenType.control;
    if (added.has(id)) return tokenType.userDefined;
    return isSentencepiece && /^<0x[0-9A-F]{2}>$/.test(token) ? tokenType.byte : tokenType.normal;
  });

  const ids: Record<string, GgufValue> = {};
  for (const [role, name] of roleNames) {
    const token = tokenizer.roles[role];
    const id = token === undefined ? undefined : tokenizer.idOf(token);
    if (id !== undefined && id < rows) ids[`tokenizer.ggml.${name}_token_id`] = { u32: id };
  }
  return {
    ...(isSentencepiece ? sentencepieceKeys(json, tokens, where) : byteLevelKeys(json, where)),
    "tokenizer.ggml.tokens": { strings: tokens },
    "tokenizer.ggml.token_type": { i32s: types },
    ...ids,
    "tokenizer.ggml.add_bos_token": { bool: tokenizer.addsBos },
    ...(template === undefined ? {} : { "tokenizer.chat_template": { string: template } }),
  };
}

const roleNames = [
  ["bos_token", "bos"],
  ["eos_token", "eos"],
  ["unk_token", "unknown"],
  ["pad_token", "padding"],
] as const;

function byteLevelKeys(json: TokenizerJson, where: string): GgufMetadata {
  const ignoreMerges = json.model.ignore_merges === true;
  const matches = (known: PreTokenizer) =>
    isDeepStrictEqual(withoutOffsets(json.pre_tokenizer), withoutOffsets(known.stage)) &&
    isDeepStrictEqual(json.normalizer, known.normalizer ?? null) &&
    ignoreMerges === (known.ignoreMerges ?? false);
  const name = Object.keys(preTokenizers).find((key) => matches(preTokenizers[key]!));
  if (name === undefined)
    throw new ModelError(
      `${where}: this tokenizer cannot go into a GGUF file: its way of splitting text (normalizer, pre_tokenizer, ignore_merges) is none of ` +
        `those that attune knows llama.cpp to have: ${Object.keys(preTokenizers).join(", ")}.`,
    );
  // A space inside a half would cut it in two; byte-level vocabularies write it as Ġ.
  const merges = json.model.merges.map((merge) => merge.map((half) => half.replaceAll(" ", "Ġ")).join(" "));
  return {
    "tokenizer.ggml.model": { string: "gpt2" },
    "tokenizer.ggml.pre": { string: name },
    "tokenizer.ggml.merges": { strings: merges },
  };
}

/** `trim_offsets` concerns positions in the text, never the tokens. */
function withoutOffsets(stage: unknown): unknown {
  return JSON.parse(JSON.stringify(stage, (key, value) => (key === "trim_offsets" ? undefined : value)));
}

function sentencepieceKeys(json: TokenizerJson, tokens: readonly string[], where: string): GgufMetadata {
  const prefixes = prefixesSpace(json);
  if (prefixes === undefined)
    throw new ModelError(
      `${where}: this tokenizer cannot go into a GGUF file: a byte-fallback BPE whose spaces are neither replaced nor split as sentencepiece does.`,
    );
  // The first merge that makes a token is the best; tokens that no merge makes come after all others.
  const ranks = new Map<string, number>();
  for (const [rank, merge] of json.model.merges.entries()) {
    const token = merge.join("");
    if (!ranks.has(token)) ranks.set(token, rank);
  }
  return {
    "tokenizer.ggml.model": { string: "llama" },
    "tokenizer.ggml.pre": { string: "default" },
    "tokenizer.ggml.scores": { f32s: tokens.map((token) => -(ranks.get(token) ?? json.model.merges.length)) },
    "tokenizer.ggml.add_space_prefix": { bool: prefixes },
  };
}

/** Whether a sentencepiece tokenizer puts a space before the text; undefined for a tokenizer of another kind. */
function prefixesSpace({ normalizer, pre_tokenizer }: TokenizerJson): boolean | undefined {
  const metaspace = stagesOf(pre_tokenizer, "pretokenizers").find(({ type }) => type === "Metaspace");
  if (metaspace !== undefined) return (metaspace.prepend_scheme ?? "always") !== "never" && metaspace.add_prefix_space !== false;
  const stages = stagesOf(normalizer, "normalizers");
  if (!stages.some(({ type, content }) => type === "Replace" && content === "▁")) return undefined;
  return stages.some(({ type }) => type === "Prepend");
}

interface Stage {
  readonly type?: unknown;
  readonly [option: string]: unknown;
}

/** A stage, or those in its sequence. */
function stagesOf(stage: unknown, listName: "normalizers" | "pretokenizers"): readonly Stage[] {
  if (typeof stage !== "object" || stage === null) return [];
  const list: unknown = (stage as Record<string, unknown>)[listName];
  return Array.isArray(list) ? (list as Stage[]) : [stage as Stage];
}
