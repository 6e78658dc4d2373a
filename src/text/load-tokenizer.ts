import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { ModelError } from "../errors.js";
import type { ModelFiles } from "../io/model-files.js";
import { parseJson } from "../io/strict-json.js";
import { ggufTokenizer } from "./gguf-tokenizer.js";
import { type RoleTokens, type TextFile, type TokenFrame, Tokenizer, type TokenizerParts } from "./tokenizer.js";
import { checkTokenizerJson, type TokenizerJson } from "./tokenizer-json.js";

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

const maxFileBytes = 256 * 2 ** 20; // Gemma's tokenizer.json, the largest in use, has 34 MB

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

/** The tokenizer.json behind a tokenizer, with the tokens that only its tokenizer_config.json lists. */
export function tokenizerJsonOf(tokenizer: Tokenizer, where: string): TokenizerJson {
  const parsed = (name: string) => {
    const contents = tokenizer.files().find((file) => file.name === name)?.contents;
    return contents === undefined ? {} : (JSON.parse(contents) as JsonObject);
  };
  return checkTokenizerJson(withConfiguredTokens(parsed("tokenizer.json"), parsed("tokenizer_config.json")), where);
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
  const [json, config, map, generation, chatTemplate] = await Promise.all([
    readJson(folder, "tokenizer.json"),
    readJson(folder, "tokenizer_config.json"),
    readJson(folder, "special_tokens_map.json"),
    readJson(folder, "generation_config.json"),
    readChatTemplate(folder),
  ]);
  if (json === undefined)
    throw new ModelError(
      `${folder}: there is no tokenizer.json. Models that have only tokenizer.model can be converted with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…).`,
    );

  const roles = rolesOf(map, config);
  const names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
  const contents = await Promise.all(names.map((name) => readText(folder, name)));
  const files: TextFile[] = names.flatMap((name, index) => {
    const text = contents[index];
    return text === undefined ? [] : [{ name, contents: text }];
  });
  const frame = frameOf(json.post_processor);
  return {
    json: withConfiguredTokens(json, config),
    roles,
    stopIds: [...modelStopIds, ...endIds(generation?.eos_token_id)],
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
    addsBos: config?.add_bos_token === true || frame.before[0] === roles.bos_token,
    frame,
    files,
    where,
  };
}

/** tokenizer_config.json may list added tokens that tokenizer.json does not have. */
function withConfiguredTokens(json: JsonObject, config: JsonObject | undefined): JsonObject {
  const configured = config?.added_tokens_decoder;
  if (!isObject(configured)) return json;
  const added: unknown[] = Array.isArray(json.added_tokens) ? json.added_tokens : [];
  const known = new Set(added.map((token) => (isObject(token) ? token.content : undefined)));
  const missing = Object.entries(configured).flatMap(([id, token]) =>
    isObject(token) && !known.has(token.content) ? [{ ...token, id: Number(id) }] : [],
  );
  return { ...json, added_tokens: [...added, ...missing] };
}

function rolesOf(...sources: (JsonObject | undefined)[]): RoleTokens {
  const roles: Record<string, string> = {};
  for (const source of sources) {
    for (const role of ["bos_token", "eos_token", "unk_token", "pad_token"]) {
      const token = source?.[role];
      const content = isObject(token) ? token.content : token;
      if (typeof content === "string" && content !== "") roles[role] = content;
    }
  }
  return roles;
}

/** The tokens that a post-processor puts around a text. */
function frameOf(postProcessor: unknown): TokenFrame {
  if (!isObject(postProcessor)) return { before: [], after: [] };
  const { type, processors, single, cls, sep } = postProcessor;
  if (Array.isArray(processors)) {
    const frames = processors.map(frameOf);
    return { before: frames.flatMap(({ before }) => before), after: frames.flatMap(({ after }) => after) };
  }
  if (type === "BertProcessing" || type === "RobertaProcessing") return { before: [nameOf(cls)], after: [nameOf(sep)] };
  const parts: unknown[] = Array.isArray(single) ? single : [];
  const at = parts.findIndex((part) => isObject(part) && part.Sequence !== undefined);
  const namesIn = (some: unknown[]) =>
    some.flatMap((part) => (isObject(part) && isObject(part.SpecialToken) ? [String(part.SpecialToken.id)] : []));
  return { before: namesIn(parts.slice(0, Math.max(0, at))), after: namesIn(parts.slice(at + 1)) };
}

/** The token of a pair [token, id]. */
function nameOf(pair: unknown): string {
  return Array.isArray(pair) ? String(pair[0]) : "";
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
  const text = await readText(folder, name);
  if (text === undefined) return undefined;
  let json: unknown;
  try {
    json = parseJson(text);
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
    const { size } = await stat(path);
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
