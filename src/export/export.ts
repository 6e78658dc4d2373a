import { join, resolve } from "node:path";
import { everyMethod } from "../backends/index.js";
import { Rng } from "../core/rng.js";
import { loadDataset, tokenizeDataset } from "../data/dataset.js";
import type { Example } from "../data/example.js";
import { loadEngine } from "../engine/load.js";
import { ConfigError, DivergedError, ModelError } from "../errors.js";
import { readAdapterConfig } from "../io/adapters/adapter-folder.js";
import { publishNewFolder, requireEmpty } from "../io/checkpoint.js";
import { namesIn, writeFileAtomic } from "../io/disk.js";
import { ggufShape } from "../io/gguf/config.js";
import type { ModelFiles } from "../io/model-files.js";
import { openModel } from "../io/open-model.js";
import { resolveModel } from "../io/resolve.js";
import { asCausalLM, type CausalLM } from "../models/causal-lm.js";
import { firstBroken } from "../models/finite.js";
import type { LanguageModel } from "../models/language-model.js";
import { loadModel, type StoreWeight, settleTying } from "../models/load.js";
import { parseRecipe, readRecipe } from "../recipe/parse.js";
import { loadTokenizer, readChatTemplate } from "../text/load-tokenizer.js";
import type { ChatFormat } from "../text/supervised.js";
import { chooseTemplate } from "../text/templates.js";
import { tuners } from "../tuners/index.js";
import { applyAdapter } from "../tuners/tuned-files.js";
import type { Tuning } from "../tuners/tuner.js";
import type { ExportTarget, NumberType } from "./choices.js";
import { writeGgufModel } from "./gguf-file.js";
import { writeGgufLora } from "./gguf-lora.js";
import { writeHfFolder } from "./hf-folder.js";
import { type Drift, driftBetween, type Measurement, measure, probesFor } from "./measure.js";
import { ollamaModelfile } from "./modelfile.js";
import { isPlain, matrixType, storeMatrices } from "./number-types.js";

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
  /** For Ollama: write the adapter alone, to be put on top of this model of Ollama's or GGUF file. */
  readonly ollamaFrom?: string | undefined;
  /** Called with what the user should know. */
  readonly onNotice?: (message: string) => void;
  /** Called while a model is downloaded. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  readonly signal?: AbortSignal;
}

/** What an export wrote, and what that changed. */
export interface ExportReport {
  /** What was written, by name in `out`. */
  readonly written: readonly string[];
  readonly type: NumberType | null;
  /** How what was written differs from the base with its adapter; null where an adapter was written. */
  readonly drift: Drift | null;
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
 * adapter; if a logit changed by more than `maxDrift`, nothing stays. The folder appears when all of it is there, and only then. Weights of a quantized
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

  if (adapterAlone)
    return await publishNewFolder(out, async (folder) => {
      await writeGgufLora(join(folder, ggufAdapterName), adapter!, files);
      if (to === "ollama") await writeModelfile(folder, { from: ollamaFrom!, adapter: `./${ggufAdapterName}` }, chat, onNotice);
      return { written: (await namesIn(folder)).sort(), type: null, drift: null };
    });
  if (to !== "hf") {
    ggufShape(files.config, 1, files.path); // refuses before any work
    warnOfWindow(files, onNotice);
  }
  const type = options.type ?? (to === "hf" ? "bf16" : "q8_0");
  const heldOut = await heldOutRows(options.data, chat, files, onNotice);

  const model = await opened(files, adapter === undefined ? undefined : await storedInTraining(adapter, onNotice));
  try {
    const tuning = adapter === undefined ? undefined : await adapterOn(model, adapter);
    const probes = probesFor(chat, heldOut, model.shape);
    const before = await measure(model, probes, heldOut);
    tuning?.merge?.(model);
    const broken = await firstBroken(model.namedParameters());
    if (broken !== null) throw new DivergedError(`${broken} holds a number that is not finite: such a model is not exported`);
    const mixture = { type, layers: model.shape.layers, isTied: model.isTied };
    storeMatrices(model, (name, shape) => matrixType(name, shape, mixture));
    return await publishNewFolder(out, async (folder) => {
      const file = join(folder, ggufModelName);
      if (to === "hf") await writeHfFolder(folder, model, files, chat, { type: type as "f32" | "f16" | "bf16", shardBytes });
      else await writeGgufModel(file, model, files, chat, type);
      if (to === "ollama") await writeModelfile(folder, { from: `./${ggufModelName}` }, chat, onNotice);
      model.dispose(); // only one of them at a time need fit into memory
      const after = await measureWritten(to === "hf" ? folder : file, probes, heldOut);
      const drift = driftBetween(before, after, probes);
      const limit = options.maxDrift ?? defaultMaxDrift[type];
      if (!(drift.maxLogitDifference <= limit)) throw drifted(drift, type, limit);
      return { written: (await namesIn(folder)).sort(), type, drift };
    });
  } finally {
    model.dispose();
  }
}

async function opened(files: ModelFiles, storing?: (model: LanguageModel) => StoreWeight | undefined): Promise<CausalLM> {
  const model = await loadModel({ kernels: loadEngine(), compute: "f32" }, files, undefined, storing);
  try {
    return asCausalLM(model, "export");
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Puts an adapter on a model, to be merged. Throws ConfigError for a method that cannot be. */
async function adapterOn(model: CausalLM, adapter: string): Promise<Tuning> {
  const { tuner, tuning } = await applyAdapter(adapter, model, tuners, new Rng(0));
  if (tuning.merge !== undefined) return tuning;
  throw new ConfigError(
    `${adapter}: ${tuner.name} cannot be merged: it adds parts to the model that ordinary weights cannot hold. ` +
      "The adapter's own folder is what PEFT and transformers load.",
  );
}

/** What the written model computes when it is opened again. */
async function measureWritten(path: string, probes: readonly Int32Array[], heldOut: readonly Example[]): Promise<Measurement> {
  const model = await opened(await settleTying(await openModel(path)));
  try {
    return await measure(model, probes, heldOut);
  } finally {
    model.dispose();
  }
}

function checkOptions({ model, adapter, to, type, ollamaFrom, shardBytes }: ExportOptions, adapterAlone: boolean): void {
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
 * How the run that made an adapter stored its base, read from the recipe beside the adapter. An adapter that was trained on a
 * base in 4 bits is merged into that base, expanded.
 */
async function storedInTraining(adapter: string, onNotice: (message: string) => void) {
  if (!(await namesIn(adapter)).includes("recipe.yaml")) return undefined;
  const { recipe } = parseRecipe(await readRecipe(join(adapter, "recipe.yaml")), [], everyMethod);
  const tuning = tuners.find(({ name }) => name === recipe.finetuning_type)?.bind(recipe.tuner);
  if (tuning?.mergesIntoStored !== true) return undefined;
  onNotice("The adapter was trained on a base in 4 bits: it is merged into that base, expanded.");
  return (model: LanguageModel) => tuning.storing?.(model, onNotice);
}

async function heldOutRows(
  data: string | undefined,
  chat: ChatFormat,
  files: ModelFiles,
  onNotice: (message: string) => void,
): Promise<readonly Example[]> {
  if (data === undefined) return [];
  const loaded = await loadDataset({ dataset: [data] });
  const longest = typeof files.config.max_position_embeddings === "number" ? files.config.max_position_embeddings : 2048;
  const { examples, report } = await tokenizeDataset(loaded.conversations, chat, { cutoffLen: Math.min(2048, longest) });
  for (const message of [...loaded.notices, ...report.notices]) onNotice(message);
  return examples;
}

function drifted({ maxLogitDifference, lossBefore, lossAfter }: Drift, type: NumberType, limit: number): ModelError {
  const losses = lossBefore === null ? "" : ` (held-out loss ${lossBefore.toFixed(4)} before, ${lossAfter!.toFixed(4)} after)`;
  return new ModelError(
    `The exported model would say something else: merged, rounded to ${type} and opened again, a logit changes by ` +
      `${maxLogitDifference.toPrecision(3)}${losses}, more than the limit of ${limit}. Nothing was written. Choose a type with more bits, or raise the limit (--max-drift) if you accept it.`,
  );
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
