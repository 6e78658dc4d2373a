import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { ModelError } from "../errors.js";
import type { ModelFiles } from "../io/model-files.js";
import { parseJson } from "../io/strict-json.js";
import { ggufTokenizer } from "./tokenizer/gguf-tokenizer.js";
import { quote } from "./tokenizer/stage.js";
import { type RoleTokens, type TextFile, Tokenizer, type TokenizerParts } from "./tokenizer/tokenizer.js";
import { checkTokenizerJson, type TokenizerJson } from "./tokenizer/tokenizer-json.js";

type JsonObject = Record<string, unknown>;

/** Tokens that end a turn or a text in the model families at hand; those that a vocabulary has as control tokens stop a generation. */
const endTokens = [
  "</s>",
  "<|im_end|>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|end_of_text|>",
  "<|endoftext|>",
  "<|end_of_turn|>",
  "<end_of_turn>",
  "<|end|>",
  "<｜end▁of▁sentence｜>",
];

const maxFileBytes = 64 * 2 ** 20; // Gemma's tokenizer.json, the largest in use, has 34 MB
const maxValues = 2 ** 23; // Gemma's has 2^21

/**
 * The tokenizer of a model: `tokenizer.json` and its companions of a Hugging Face folder, or the metadata of a GGUF file.
 * Throws ModelError when there is none, or when it is damaged, hostile or of an unsupported kind.
 */
export async function loadTokenizer(model: ModelFiles): Promise<Tokenizer> {
  const rows = model.config.vocab_size;
  const parts =
    model.format === "gguf"
      ? ggufTokenizer(model.ggufMetadata ?? {}, model.path)
      : await folderTokenizer(model.path, endIds(model.config.eos_token_id));
  return new Tokenizer({
    ...parts,
    stopIds: [...parts.stopIds, ...knownEndIds(parts.json)],
    ...(typeof rows === "number" ? { embeddingRows: rows } : {}),
  });
}

/** The tokenizer in a folder such as an adapter's or a checkpoint's, which has no weights to go with it. */
export async function loadTokenizerFolder(folder: string): Promise<Tokenizer> {
  const parts = await folderTokenizer(folder, []);
  return new Tokenizer({ ...parts, stopIds: [...parts.stopIds, ...knownEndIds(parts.json)] });
}

/** The tokenizer.json that a tokenizer was read from, with what its companion files add to it. */
export function tokenizerJsonOf(tokenizer: Tokenizer, where: string): TokenizerJson {
  const parsed = (name: string) => {
    const contents = tokenizer.files().find((file) => file.name === name)?.contents;
    return contents === undefined ? undefined : (JSON.parse(contents) as JsonObject);
  };
  const companions = { config: parsed("tokenizer_config.json") ?? {}, map: parsed("special_tokens_map.json") ?? {}, where };
  return checkTokenizerJson(resolve(parsed("tokenizer.json") ?? {}, companions).json, where);
}

/** The chat template saved in a folder, or undefined. Sources in order: chat_template.jinja, chat_template.json, tokenizer_config.json. */
export async function readChatTemplate(folder: string): Promise<string | undefined> {
  const jinja = await readText(folder, "chat_template.jinja");
  if (jinja !== undefined) return jinja;
  return (
    templateOf(await readJson(folder, "chat_template.json"), join(folder, "chat_template.json")) ??
    templateOf(await readJson(folder, "tokenizer_config.json"), join(folder, "tokenizer_config.json"))
  );
}

async function folderTokenizer(folder: string, modelStopIds: readonly number[]): Promise<TokenizerParts> {
  const where = join(folder, "tokenizer.json");
  const names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] as const;
  const contents = await Promise.all(names.map((name) => readText(folder, name)));
  const [json, config = {}, map = {}] = names.map((name, index) => parsed(folder, name, contents[index]));
  const [generation, chatTemplate] = await Promise.all([readJson(folder, "generation_config.json"), readChatTemplate(folder)]);
  if (json === undefined)
    throw new ModelError(
      `${folder}: there is no tokenizer.json. Models that have only tokenizer.model can be converted with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).`,
    );
  return {
    ...resolve(json, { config, map, where }),
    stopIds: [...modelStopIds, ...endIds(generation?.eos_token_id)],
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
    cleansUpSpaces: config.clean_up_tokenization_spaces === true,
    files: names.flatMap((name, index): TextFile[] => {
      const text = contents[index];
      return text === undefined ? [] : [{ name, contents: text }];
    }),
    where,
  };
}

interface Companions {
  readonly config: JsonObject;
  readonly map: JsonObject;
  readonly where: string;
}

/**
 * A tokenizer.json together with tokenizer_config.json and special_tokens_map.json. Where they say different things, the answer is that of
 * transformers 5 (tokenization_utils_base.py `_from_pretrained`, tokenization_utils_tokenizers.py `__init__`), and a notice tells it: the map
 * counts only where the configuration lists no `added_tokens_decoder`, and then more than the configuration; tokens of that list replace those of
 * tokenizer.json; a token with a role is a control token, and a new one where there is none; `add_bos_token` is left to the post-processor.
 */
function resolve(json: JsonObject, { config, map, where }: Companions): Pick<TokenizerParts, "json" | "roles" | "notices"> {
  const notices: string[] = [];
  const hasList = isObject(config.added_tokens_decoder);
  const names = hasList ? config : { ...config, ...map };
  for (const role of roleNames) {
    const [here, there] = [contentOf(config[role]), contentOf(map[role])];
    if (here !== undefined && there !== undefined && here !== there)
      notices.push(
        `${where}: ${role} is ${quote(here)} in tokenizer_config.json and ${quote(there)} in special_tokens_map.json; ` +
          `${quote(hasList ? here : there)} is taken, as transformers does.`,
      );
  }
  const roles = Object.fromEntries(
    ["bos_token", "eos_token", "unk_token", "pad_token"].flatMap((role) => {
      const content = contentOf(names[role]);
      return content === undefined ? [] : [[role, content]];
    }),
  ) as RoleTokens;

  const added = new Map<unknown, JsonObject>();
  const list: unknown[] = Array.isArray(json.added_tokens) ? json.added_tokens : [];
  for (const token of list) if (isObject(token)) added.set(token.content, token);
  const isUsable = Array.isArray(json.added_tokens ?? []) && list.every(isObject); // what is not, is refused later
  const vocab = isObject(json.model) && isObject(json.model.vocab) ? json.model.vocab : {};
  const size = Object.keys(vocab).length;
  let highest = list.reduce((most: number, token) => (isObject(token) ? Math.max(most, Number(token.id) || 0) : most), -1);
  const add = (content: string, token: JsonObject) => {
    const id = added.get(content)?.id ?? (Object.hasOwn(vocab, content) ? vocab[content] : highest >= size ? highest + 1 : size);
    highest = Math.max(highest, Number(id));
    added.set(content, { ...token, content, id });
  };

  const changed: string[] = [];
  const moved: string[] = [];
  const listed = hasList ? Object.entries(config.added_tokens_decoder as JsonObject) : [];
  for (const [listedId, token] of listed.sort(([a], [b]) => Number(a) - Number(b))) {
    if (!isObject(token) || typeof token.content !== "string") continue;
    const { __type, ...flags } = token;
    const before = added.get(token.content);
    const now = standardFlags(flags);
    if (before !== undefined && flagNames.some((flag) => standardFlags(before)[flag] !== now[flag])) changed.push(token.content);
    add(token.content, now);
    if (added.get(token.content)!.id !== Number(listedId)) moved.push(token.content);
  }
  if (changed.length > 0)
    notices.push(`${where}: tokenizer_config.json changes how ${some(changed)} are found; it is followed, as transformers does.`);
  if (moved.length > 0)
    notices.push(
      `${where}: tokenizer_config.json gives ${some(moved)} another id than tokenizer.json, which is followed, as transformers does.`,
    );
  const named = Object.keys(names).filter((key) => key.endsWith("_token") && contentOf(names[key]) !== undefined);
  const extra: unknown = (names.extra_special_tokens ?? names.additional_special_tokens) || [];
  const extras = Array.isArray(extra) ? extra : isObject(extra) ? Object.values(extra) : [];
  for (const [token, hasRole] of [
    ...named.map((key) => [names[key], true] as const),
    ...extras.map((each) => [each, isObject(extra)] as const),
  ]) {
    const content = contentOf(token);
    if (content === undefined) continue;
    const before = added.get(content);
    if (before !== undefined) {
      if (hasRole) add(content, { ...standardFlags(before), special: true });
      continue;
    }
    const { __type, ...flags } = isObject(token) ? token : { content };
    add(content, standardFlags({ ...flags, special: true }));
  }

  if (
    config.add_bos_token === true &&
    roles.bos_token !== undefined &&
    !JSON.stringify(json.post_processor ?? null).includes(quote(roles.bos_token))
  )
    notices.push(
      `${where}: add_bos_token is true in tokenizer_config.json, but the post_processor adds none; no begin token is added, as in transformers 5.`,
    );

  const stages = followBertOptions(json, config, where, notices);
  return { json: isUsable ? { ...stages, added_tokens: [...added.values()] } : stages, roles, notices };
}

const roleNames = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const flagNames = ["special", "normalized", "lstrip", "rstrip", "single_word"] as const;

function some(tokens: readonly string[]): string {
  return `${tokens.slice(0, 5).map(quote).join(", ")}${tokens.length > 5 ? " and others" : ""}`;
}

/** An added token with every flag that it leaves out, at its default in the tokenizers library. */
function standardFlags(token: JsonObject): JsonObject & Readonly<Record<(typeof flagNames)[number], unknown>> {
  const special = token.special ?? false;
  return { normalized: special !== true, lstrip: false, rstrip: false, single_word: false, ...token, special };
}

/** The text of a token, which files write as it is or as an object. */
function contentOf(token: unknown): string | undefined {
  const content = isObject(token) ? token.content : token;
  return typeof content === "string" && content !== "" ? content : undefined;
}

/** BERT's tokenizers read these options from tokenizer_config.json, whatever the normalizer says (models/bert/tokenization_bert.py). */
function followBertOptions(json: JsonObject, config: JsonObject, where: string, notices: string[]): JsonObject {
  const isBert = /^(?:Distil)?BertTokenizer(?:Fast)?$/.test(String(config.tokenizer_class));
  if (!isBert || !isObject(json.normalizer) || json.normalizer.type !== "BertNormalizer") return json;
  const options = { do_lower_case: "lowercase", strip_accents: "strip_accents", tokenize_chinese_chars: "handle_chinese_chars" };
  const normalizer: Record<string, unknown> = { ...json.normalizer };
  for (const [key, option] of Object.entries(options)) {
    if (config[key] === undefined || config[key] === (normalizer[option] ?? null)) continue;
    notices.push(
      `${where}: ${key} is ${quote(config[key])} in tokenizer_config.json, but the normalizer's ${option} is ${quote(normalizer[option])}; the first is taken, as transformers does.`,
    );
    normalizer[option] = config[key];
  }
  return { ...json, normalizer };
}

/** Ids of the known end tokens that are control tokens of this vocabulary. */
function knownEndIds(json: unknown): number[] {
  const added = isObject(json) && Array.isArray(json.added_tokens) ? json.added_tokens : [];
  return added.flatMap((token: unknown) =>
    isObject(token) && token.special === true && endTokens.includes(String(token.content)) ? [Number(token.id)] : [],
  );
}

function endIds(value: unknown): number[] {
  return (Array.isArray(value) ? value : [value]).filter((id): id is number => Number.isInteger(id) && id >= 0);
}

function templateOf(json: JsonObject | undefined, where: string): string | undefined {
  const template = json?.chat_template;
  if (template === undefined || template === null || typeof template === "string") return template ?? undefined;
  // Models with more than one template list them; the one called "default" is for chats without tools.
  const named: unknown = Array.isArray(template) ? template.find((each) => isObject(each) && each.name === "default") : undefined;
  if (isObject(named) && typeof named.template === "string") return named.template;
  throw new ModelError(`${where}: "chat_template" has to be a string, or a list that has one named "default".`);
}

async function readJson(folder: string, name: string): Promise<JsonObject | undefined> {
  return parsed(folder, name, await readText(folder, name));
}

function parsed(folder: string, name: string, text: string | undefined): JsonObject | undefined {
  if (text === undefined) return undefined;
  let json: unknown;
  try {
    json = parseJson(text, { maxValues });
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ModelError(
      `${join(folder, name)}: this is not JSON: ${reason}. The download may be incomplete; fetch the file again.`,
    );
  }
  if (!isObject(json)) throw new ModelError(`${join(folder, name)}: expected a JSON object.`);
  return json;
}

async function readText(folder: string, name: string): Promise<string | undefined> {
  const path = join(folder, name);
  try {
    const stats = await stat(path);
    if (!stats.isFile()) throw new ModelError(`${path}: not a file.`); // to open a pipe would wait for its other end
    const { size } = stats;
    if (size > maxFileBytes)
      throw new ModelError(`${path}: ${size} bytes are more than any tokenizer has (limit ${maxFileBytes}).`);
    return new TextDecoder("utf-8", { fatal: true }).decode(await readFile(path));
  } catch (error) {
    if (error instanceof ModelError) throw error;
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    if (error instanceof TypeError) throw new ModelError(`${path}: the file is not UTF-8.`, { cause: error });
    throw new ModelError(`${path}: cannot be read: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
