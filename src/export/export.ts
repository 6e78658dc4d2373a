import { join, resolve } from "node:path";
import { ConfigError } from "../errors.js";
import { readAdapterConfig } from "../io/adapters/adapter-folder.js";
import { publishNewFolder, requireEmpty } from "../io/checkpoint.js";
import { namesIn, writeFileAtomic } from "../io/disk.js";
import { ggufShape } from "../io/gguf/config.js";
import type { ModelFiles } from "../io/model-files.js";
import { resolveModel } from "../io/resolve.js";
import { settleTying } from "../models/load.js";
import type { Recipe } from "../recipe/schema.js";
import { loadTokenizer, readChatTemplate } from "../text/load-tokenizer.js";
import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { tuners } from "../tuners/index.js";
import { Check } from "./check.js";
import { type ExportTarget, exportTargets, type NumberType, numberTypes } from "./choices.js";
import { exportMerged } from "./export-merged.js";
import { writeGgufModel } from "./gguf-file.js";
import { writeGgufLora } from "./gguf-lora.js";
import { writeHfFolder } from "./hf-folder.js";
import type { Drift } from "./measure.js";
import type { Storing } from "./merged-model.js";
import { ollamaModelfile } from "./modelfile.js";
import { isPlain } from "./number-types.js";
import type { Receipt } from "./receipt.js";
import { type CheckRows, recipeOfRun, rowsGiven, rowsOfRun } from "./run-rows.js";

/** What to export, where to, and as what. */
export interface ExportOptions {
  /** A folder, a GGUF file, or a repository name of the hub. Default: the base that the adapter names. */
  readonly model?: string | undefined;
  /** Folder of an adapter to merge, or to export. */
  readonly adapter?: string | undefined;
  readonly to: ExportTarget;
  /** Default: bf16 for a Hugging Face folder, q8_0 for GGUF. */
  readonly type?: NumberType | undefined;
  /** Of a Hugging Face folder: the most bytes of a file of weights; default 5 GB, as transformers. */
  readonly shardBytes?: number | undefined;
  /** Folder to write into; must be new or empty. */
  readonly out: string;
  /** Name of a chat template; default: the adapter's, else the model's own. */
  readonly template?: string | undefined;
  /** Held-out rows to compare on, in any format that training reads. */
  readonly data?: string | undefined;
  /** Refuse to write if a logit changes by more; default: `defaultMaxDrift` of the type. */
  readonly maxDrift?: number | undefined;
  /**
   * How many rows the written model answers, and the adapter on its base before it; default 50. 0 checks with none. Rows are those of `data`, else those
   * that the run held out, else those that it trained on.
   */
  readonly checkRows?: number | undefined;
  /** Write although the receipt refuses. */
  readonly force?: boolean | undefined;
  /** For Ollama: write the adapter alone, to be put on top of this model of Ollama's or GGUF file. */
  readonly ollamaFrom?: string | undefined;
  /** Called with what the user should know. */
  readonly onNotice?: (message: string) => void;
  /** Called while a model is downloaded. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Hears how many answers of a check are done. */
  readonly onCheck?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** What an export wrote, and what that changed. */
export interface ExportReport {
  /** What was written, by name in `out`. */
  readonly written: readonly string[];
  readonly type: NumberType | null;
  /** How what was written differs from the base with its adapter; null where an adapter was written. */
  readonly drift: Drift | null;
  /** What was found of what was written, as in `export_receipt.json`; null where an adapter was written, as nothing of it is rounded. */
  readonly receipt: Receipt | null;
}

/**
 * How much a logit may change by rounding to a type before an export is refused: a few times the largest change among 25 million
 * logits, measured with SmolLM2-135M. Its logits reach about 30; Q8_0 changes one by up to 1.6, Q4_0 by 25, Q4_K_M by 8. More
 * means that something went wrong.
 */
export const defaultMaxDrift: Readonly<Record<NumberType, number>> = {
  f32: 0.02,
  f16: 0.2,
  bf16: 3,
  q8_0: 6,
  q4_0: 80,
  q4_k_m: 40,
};

export const ggufModelName = "model.gguf";
export const ggufAdapterName = "adapter.gguf";

/**
 * Takes a model, or an adapter merged into its base, to other programs. What was written is opened again and measured against the base with its
 * adapter: its logits on some text, and its loss and answers on rows of the run, in the arithmetic of the program that will read it. If a logit changed
 * by more than `maxDrift`, or the receipt refuses, nothing stays. The folder appears when all of it is there, and only then. Weights of a quantized
 * base are expanded before they are changed. Throws ConfigError, ModelError, DivergedError, CheckpointError if `out` is in use, NoSpaceError.
 */
export async function exportModel(options: ExportOptions): Promise<ExportReport> {
  const { to, adapter, ollamaFrom, shardBytes = 5e9, onNotice = () => {}, onProgress = () => {} } = options;
  const out = resolve(options.out);
  const adapterAlone = to === "gguf-lora" || ollamaFrom !== undefined;
  checkOptions(options, adapterAlone);
  await requireEmpty(out);
  const signal = options.signal ?? new AbortController().signal;
  const files = await settleTying(
    await resolveModel(options.model ?? (await baseOf(adapter!)), { onNotice, onProgress, signal }),
  );
  const chat = await chatFormat(files, options, onNotice);

  if (ollamaFrom !== undefined)
    onNotice(
      "Ollama from 0.34.1 on refuses ADAPTER in a Modelfile (ollama/ollama#14969). For it, leave out --ollama-from: the merged model is written.",
    );
  if (adapterAlone)
    return await publishNewFolder(out, async (folder) => {
      await writeGgufLora(join(folder, ggufAdapterName), adapter!, files);
      if (to === "ollama") await writeModelfile(folder, { from: ollamaFrom!, adapter: `./${ggufAdapterName}` }, chat, onNotice);
      return { written: (await namesIn(folder)).sort(), type: null, drift: null, receipt: null };
    });
  if (to !== "hf") {
    ggufShape(files.config, 1, files.path); // refuses before any work
    warnOfWindow(files, onNotice);
  }
  const type = options.type ?? (to === "hf" ? "bf16" : "q8_0");
  const recipe = await recipeOfRun(adapter ?? (files.format === "safetensors" ? files.path : undefined));
  const rows = await checkRowsOf(options, recipe, { chat, files, onNotice });
  const check = new Check(rows, chat.tokenizer, options);
  return await exportMerged({
    out,
    name: options.model ?? files.path,
    source: { files, adapter, storing: adapter === undefined ? undefined : storedInTraining(recipe, onNotice) },
    to,
    type,
    recipe,
    check,
    probeRows: options.data === undefined ? [] : check.lossRows,
    chat,
    maxDrift: options.maxDrift ?? defaultMaxDrift[type],
    force: options.force === true,
    async writeWeights(folder, model) {
      if (to === "hf") await writeHfFolder(folder, model, files, chat, { type: type as "f32" | "f16" | "bf16", shardBytes });
      else await writeGgufModel(join(folder, ggufModelName), model, files, chat, type);
      if (to === "ollama") await writeModelfile(folder, { from: `./${ggufModelName}` }, chat, onNotice);
      return to === "hf" ? folder : join(folder, ggufModelName);
    },
  });
}

/** A compiler does not say so to callers in JavaScript. */
function requireOneOf(option: string, value: string, choices: readonly string[]): void {
  if (!choices.includes(value))
    throw new ConfigError(`export: ${option}: expected one of ${choices.join(", ")}, got ${JSON.stringify(value)}`);
}

function checkOptions({ model, adapter, to, type, ollamaFrom, shardBytes }: ExportOptions, adapterAlone: boolean): void {
  requireOneOf("to", to, exportTargets);
  if (type !== undefined) requireOneOf("type", type, numberTypes);
  if (shardBytes !== undefined && to !== "hf")
    throw new ConfigError("export: a GGUF file is one file: only a Hugging Face folder (--to hf) comes in shards");
  if (model === undefined && adapter === undefined) throw new ConfigError("export: name a model, an adapter, or both");
  if (ollamaFrom !== undefined && to !== "ollama")
    throw new ConfigError(`export: a base of Ollama's has no meaning for --to ${to}`);
  if (adapterAlone && adapter === undefined) throw new ConfigError("export: this writes an adapter, so name one");
  if (adapterAlone && type !== undefined)
    throw new ConfigError(`export: an adapter is written in f32; leave out the type (${type})`);
  if (to === "hf" && type !== undefined && !isPlain(type))
    throw new ConfigError(
      `export: a Hugging Face folder holds f32, f16 or bf16, not ${type}, which is a type of GGUF: use --to gguf`,
    );
}

async function baseOf(adapter: string): Promise<string> {
  const { base_model_name_or_path: base } = await readAdapterConfig(adapter);
  if (typeof base === "string" && base !== "") return base;
  throw new ConfigError(`${adapter}: adapter_config.json does not name its base model: give it as the model`);
}

async function chatFormat(
  files: ModelFiles,
  { adapter, template: name }: ExportOptions,
  onNotice: (message: string) => void,
): Promise<ChatFormat> {
  const tokenizer = await loadTokenizer(files);
  const source = adapter === undefined || name !== undefined ? undefined : await readChatTemplate(adapter);
  const { template, notices } = chooseTemplate(tokenizer, { name, source });
  for (const message of [...tokenizer.notices, ...notices]) onNotice(message);
  return { tokenizer, template };
}

/**
 * How the run that made an adapter stored its base. An adapter that was trained on a base in 4 bits is merged into that base, expanded.
 */
function storedInTraining(recipe: Recipe | undefined, onNotice: (message: string) => void): Storing | undefined {
  if (recipe === undefined) return undefined;
  const tuning = tuners.find(({ name }) => name === recipe.finetuning_type)?.bind(recipe.tuner);
  if (tuning?.mergesIntoStored !== true) return undefined;
  onNotice("The adapter was trained on a base in 4 bits: it is merged into that base, expanded.");
  return (model) => tuning.storing?.(model, () => {});
}

/** The rows to check with: those given, else the run's own. */
async function checkRowsOf(
  { data, checkRows }: ExportOptions,
  recipe: Recipe | undefined,
  { chat, files, onNotice }: { chat: ChatFormat; files: ModelFiles; onNotice: (message: string) => void },
): Promise<CheckRows | null> {
  if (data !== undefined) return await rowsGiven(data, chat, files, onNotice);
  return recipe === undefined || checkRows === 0 ? null : await rowsOfRun(recipe, files, onNotice);
}

function warnOfWindow({ config }: ModelFiles, onNotice: (message: string) => void): void {
  const { model_type, sliding_window: window = 4096, max_position_embeddings: positions = 131072 } = config;
  if (model_type === "mistral" && typeof window === "number" && window < Number(positions))
    onNotice(`llama.cpp gives Mistral no sliding window: texts of more than ${window} tokens are computed differently there.`);
}

async function writeModelfile(
  out: string,
  options: { from: string; adapter?: string },
  chat: ChatFormat,
  onNotice: (message: string) => void,
): Promise<void> {
  const { text, notices } = ollamaModelfile(options, chat);
  for (const message of notices) onNotice(message);
  await writeFileAtomic(join(out, "Modelfile"), text);
}
