import { ModelError } from "../../errors.js";
import { preTokenizers } from "./gguf-pre-tokenizers.js";
import type { RoleTokens, TokenizerParts } from "./tokenizer.js";

type Metadata = Readonly<Record<string, unknown>>;

/** `tokenizer.ggml.token_type` (llama.cpp, include/llama.h: llama_token_type). */
export const tokenType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/**
 * The tokenizer that a GGUF file carries in its metadata, written as a tokenizer.json. `gpt2` is byte-level BPE, `llama` is
 * sentencepiece BPE, whose merges are rebuilt from the scores of the vocabulary.
 * Source: transformers 5, src/transformers/integrations/ggml.py and convert_slow_tokenizer.py (generate_merges).
 * Throws ModelError when the metadata is incomplete, contradicts itself, or names a tokenizer that is not supported.
 */
export function ggufTokenizer(metadata: Metadata, file: string): Omit<TokenizerParts, "embeddingRows"> {
  const fail = (message: string): never => {
    throw new ModelError(`${file}: ${message}`);
  };
  const tokens =
    list(metadata, "tokenizer.ggml.tokens") ?? fail("there is no vocabulary (tokenizer.ggml.tokens) in the metadata.");
  if (!tokens.every((token) => typeof token === "string")) fail("tokenizer.ggml.tokens has to be a list of strings.");
  const vocabulary = tokens as string[];
  const ids = idsOf(vocabulary);
  const repeated = vocabulary.findIndex((token, id) => ids[token] !== id);
  if (repeated >= 0)
    fail(`token ${JSON.stringify(vocabulary[repeated])} stands twice in the vocabulary, as ${repeated} and again later.`);
  const types = list(metadata, "tokenizer.ggml.token_type") ?? vocabulary.map(() => tokenType.normal);
  if (types.length !== vocabulary.length) fail(`there are ${vocabulary.length} tokens, but ${types.length} token types.`);

  const tokenAt = (key: string): string | undefined => {
    const id = metadata[`tokenizer.ggml.${key}`];
    if (id === undefined) return undefined;
    return vocabulary[Number(id)] ?? fail(`tokenizer.ggml.${key} is ${String(id)}, but there are ${vocabulary.length} tokens.`);
  };
  const roles = dropUndefined({
    bos_token: tokenAt("bos_token_id"),
    eos_token: tokenAt("eos_token_id"),
    unk_token: tokenAt("unknown_token_id"),
    pad_token: tokenAt("padding_token_id"),
  });

  const model = metadata["tokenizer.ggml.model"];
  const stages =
    model === "gpt2"
      ? byteLevelBpe(metadata, fail)
      : model === "llama"
        ? sentencepieceBpe(metadata, vocabulary, types.map(Number), roles, fail)
        : fail(`tokenizer ${JSON.stringify(model)} is not supported: expected gpt2 or llama.`);

  const addsBos = (metadata["tokenizer.ggml.add_bos_token"] ?? model === "llama") === true;
  const roleTokens = new Set(Object.values(roles));
  const added = vocabulary.flatMap((content, id) => {
    const type = Number(types[id]);
    const special = type === tokenType.control || type === tokenType.unknown || roleTokens.has(content);
    if (!special && type !== tokenType.userDefined) return [];
    return [{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }];
  });
  const json = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    post_processor: addsBos && roles.bos_token !== undefined ? beginsWith(roles.bos_token, ids[roles.bos_token]!) : null,
    ...stages,
    model: { type: "BPE", dropout: null, continuing_subword_prefix: null, end_of_word_suffix: null, ...stages.model, vocab: ids },
  };

  const chatTemplate = metadata["tokenizer.chat_template"];
  const stopIds = ["eos_token_id", "eot_token_id", "eom_token_id"].map((key) => metadata[`tokenizer.ggml.${key}`]);
  return {
    json,
    roles,
    stopIds: stopIds.filter((id) => id !== undefined).map(Number),
    ...(typeof chatTemplate === "string" && chatTemplate !== "" ? { chatTemplate } : {}),
    notices:
      model === "gpt2" && metadata["tokenizer.ggml.pre"] === undefined
        ? [
            `${file}: it does not say how text is split before BPE (tokenizer.ggml.pre); GPT-2's way is taken. Newer conversions of the model say it.`,
          ]
        : [],
    where: file,
    files: [
      { name: "tokenizer.json", contents: JSON.stringify(json) },
      {
        name: "tokenizer_config.json",
        contents: `${JSON.stringify(
          {
            ...roles,
            added_tokens_decoder: Object.fromEntries(added.map(({ id, ...token }) => [id, token])),
            clean_up_tokenization_spaces: false,
            tokenizer_class: "PreTrainedTokenizerFast",
          },
          null,
          2,
        )}\n`,
      },
      { name: "special_tokens_map.json", contents: `${JSON.stringify(roles, null, 2)}\n` },
    ],
  };
}

/** A post-processor that puts one token before a text. */
function beginsWith(token: string, id: number): object {
  const [first, second] = [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }];
  const begin = { SpecialToken: { id: token, type_id: 0 } };
  return {
    type: "TemplateProcessing",
    single: [begin, first],
    pair: [begin, first, second],
    special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
  };
}

interface BpeStages {
  readonly normalizer: object | null;
  readonly pre_tokenizer: object | null;
  readonly decoder: object;
  readonly model: Record<string, unknown>;
}

function byteLevelBpe(metadata: Metadata, fail: (message: string) => never): BpeStages {
  const name = metadata["tokenizer.ggml.pre"] ?? "default";
  const known = Object.keys(preTokenizers).join(", ");
  if (typeof name !== "string" || !Object.hasOwn(preTokenizers, name))
    return fail(`pre-tokenizer ${JSON.stringify(name)} (tokenizer.ggml.pre) is not supported: expected one of ${known}.`);
  const { stage, normalizer = null, ignoreMerges = false } = preTokenizers[name]!;
  const merges = list(metadata, "tokenizer.ggml.merges") ?? fail("there are no merges (tokenizer.ggml.merges) in the metadata.");
  return {
    normalizer,
    pre_tokenizer: stage,
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { unk_token: null, fuse_unk: false, byte_fallback: false, ignore_merges: ignoreMerges, merges },
  };
}

function sentencepieceBpe(
  metadata: Metadata,
  vocabulary: readonly string[],
  types: readonly number[],
  roles: RoleTokens,
  fail: (message: string) => never,
): BpeStages {
  const scores = list(metadata, "tokenizer.ggml.scores") ?? fail("there are no scores (tokenizer.ggml.scores) in the metadata.");
  if (scores.length !== vocabulary.length) fail(`there are ${vocabulary.length} tokens, but ${scores.length} scores.`);
  const addsSpace = metadata["tokenizer.ggml.add_space_prefix"] !== false;
  const spaces = { type: "Replace", pattern: { String: " " }, content: "▁" };
  const decoders = [
    { type: "Replace", pattern: { String: "▁" }, content: " " },
    { type: "ByteFallback" },
    { type: "Fuse" },
    ...(addsSpace ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
  ];
  return {
    normalizer: { type: "Sequence", normalizers: addsSpace ? [{ type: "Prepend", prepend: "▁" }, spaces] : [spaces] },
    pre_tokenizer: null,
    decoder: { type: "Sequence", decoders },
    model: {
      unk_token: roles.unk_token ?? vocabulary[types.indexOf(tokenType.unknown)] ?? null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      merges: mergesFromScores(vocabulary, types, scores.map(Number)),
    },
  };
}

/**
 * Every way to join two pieces into a third, best score first: what sentencepiece's training would have written down.
 * Only ordinary pieces take part: control and byte tokens are never made by joining text.
 */
function mergesFromScores(
  vocabulary: readonly string[],
  types: readonly number[],
  scores: readonly number[],
): [string, string][] {
  const ids = new Map<string, number>();
  for (const [id, piece] of vocabulary.entries()) if (types[id] === tokenType.normal) ids.set(piece, id);

  const merges: { left: string; right: string; score: number }[] = [];
  for (const [piece, id] of ids) {
    const ways: { left: string; right: string; score: number; order: number[] }[] = [];
    for (let cut = firstLength(piece, 0); cut < piece.length; cut += firstLength(piece, cut)) {
      const [left, right] = [piece.slice(0, cut), piece.slice(cut)];
      const order = [ids.get(left), ids.get(right)];
      if (order.every((half) => half !== undefined)) ways.push({ left, right, score: scores[id]!, order });
    }
    ways.sort((a, b) => a.order[0]! - b.order[0]! || a.order[1]! - b.order[1]!);
    merges.push(...ways);
  }
  merges.sort(
    (a, b) => b.score - a.score || codePoints(b.left) - codePoints(a.left) || codePoints(b.right) - codePoints(a.right),
  );
  return merges.map(({ left, right }) => [left, right]);
}

function firstLength(text: string, at: number): number {
  return text.codePointAt(at)! > 0xffff ? 2 : 1;
}

function codePoints(text: string): number {
  return [...text].length;
}

function idsOf(vocabulary: readonly string[]): Record<string, number> {
  const ids: Record<string, number> = Object.create(null);
  for (const [id, token] of vocabulary.entries()) ids[token] = id;
  return ids;
}

/** A list of the metadata, whether the reader gave it as an array or as a typed array. */
function list(metadata: Metadata, key: string): unknown[] | undefined {
  const value = metadata[key];
  if (Array.isArray(value)) return value;
  return ArrayBuffer.isView(value) ? Array.from(value as Int32Array) : undefined;
}

function dropUndefined(roles: Record<keyof RoleTokens, string | undefined>): RoleTokens {
  return Object.fromEntries(Object.entries(roles).filter(([, token]) => token !== undefined));
}
