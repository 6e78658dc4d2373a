import { createHash } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { Rng } from "../core/rng.js";
import { ConfigError, ModelError } from "../errors.js";
import {
  type AdapterFiles,
  type AdapterOrigin,
  adapterConfigName,
  checkTensors,
  readAdapterConfig,
} from "../io/adapters/adapter-folder.js";
import { baseAdaptersIn, copyBaseAdapters } from "../io/adapters/base-adapters.js";
import { modulesToSaveOf } from "../io/adapters/peft.js";
import { withValueHead } from "../io/adapters/value-head.js";
import { namesIn, sha256OfFile, writeFileAtomic } from "../io/disk.js";
import { openModelFolder } from "../io/hf-folder.js";
import {
  openSafetensors,
  readFinite,
  type TensorSource,
  toTensorEntry,
  writeSafetensors,
  writeShardedSafetensors,
} from "../io/safetensors.js";
import type { LanguageModel } from "../models/language-model.js";
import { type PlainType, placeHead, setValues, sourceOf } from "../models/load.js";
import type { Parameter } from "../nn/module.js";
import { isBelow } from "./module-names.js";
import { parametersBelow, saveCopies, trainModules } from "./train-whole.js";
import type { AdapterReader, Tuner, Tuning } from "./tuner.js";

/**
 * attune's own file beside an adapter that holds only computed tensors: the parameters that train, so that training can go on.
 */
export const trainingWeightsName = "training_weights.safetensors";

/** What was trained, ready to be written; it holds tensors, and is disposed when that is done. */
export interface Tuned {
  write(folder: string): Promise<void>;
  dispose(): void;
}

/**
 * What is to be written of a model that was trained: an adapter in its library's format where the method has one, else the whole model as a Hugging
 * Face folder: in f32 what trained, unless `origin` says otherwise. It is collected at once, so that the adapter need not stay in its places while files are written.
 */
export function collectTuned(model: LanguageModel, { adapter }: Tuning, origin: AdapterOrigin): Tuned {
  if (adapter === undefined) {
    const weights = sourcesOf(model.namedParameters(), origin.types?.of);
    return { write: (folder) => writeWholeModel(folder, weights, origin), dispose: () => {} };
  }
  const parameters = sourcesOf(model.savedParameters());
  const json = adapter.toJson(model, origin);
  const made = adapter.computed?.(model) ?? null;
  if (made === null)
    return {
      async write(folder) {
        await rm(join(folder, trainingWeightsName), { force: true }); // an earlier adapter's would be taken for this one's
        await adapter.library.save(folder, json, origin, parameters);
      },
      dispose: () => {},
    };
  const whole = sourcesOf(parametersBelow(model, origin.modulesToSave ?? [])).filter(({ name }) => !made.has(name));
  const leaving = [...[...made].map(([name, tensor]) => sourceOf(name, tensor)), ...whole];
  return {
    async write(folder) {
      await writeSafetensors(join(folder, trainingWeightsName), parameters);
      await adapter.library.save(folder, json, origin, leaving);
    },
    dispose() {
      for (const tensor of made.values()) tensor.dispose();
    },
  };
}

async function writeWholeModel(
  folder: string,
  weights: readonly TensorSource[],
  { config, types }: AdapterOrigin,
): Promise<void> {
  await writeShardedSafetensors(folder, weights, { maxShardBytes: 5e9, metadata: { format: "pt" } });
  const { quantization_config: _, torch_dtype: __, ...rest } = config;
  const written = { ...rest, dtype: types?.named ?? "float32" };
  await writeFileAtomic(join(folder, "config.json"), `${JSON.stringify(written, null, 2)}\n`);
}

/** Writes what `collectTuned` collects. Files appear under their final names only when they are complete. Throws NoSpaceError. */
export async function saveTuned(folder: string, model: LanguageModel, tuning: Tuning, origin: AdapterOrigin): Promise<void> {
  await writeTuned(folder, collectTuned(model, tuning, origin));
}

/** As `saveTuned`, for what was collected; disposes it. */
export async function writeTuned(folder: string, tuned: Tuned): Promise<void> {
  try {
    await mkdir(folder, { recursive: true });
    await tuned.write(folder);
  } finally {
    tuned.dispose();
  }
}

function sourcesOf(
  parameters: Iterable<[name: string, parameter: Parameter]>,
  typeOf?: (name: string) => PlainType,
): TensorSource[] {
  return [...parameters].map(([name, { value, isStoredTransposed }]) =>
    sourceOf(name, value, isStoredTransposed, typeOf?.(name)),
  );
}

/** Opens what `saveTuned` wrote, for training to go on. Throws ModelError. */
export async function openTuned(folder: string, { adapter }: Tuning): Promise<WeightFiles> {
  return adapter === undefined ? await openModelFolder(folder) : await openForTraining(folder, adapter);
}

/** The parameters of a model, to which the method was applied already, that opened weights belong in. Throws ModelError unless every tensor fits. */
export function placeTuned(model: LanguageModel, { adapter }: Tuning, files: WeightFiles): Map<string, Parameter> {
  if (adapter !== undefined) placeBaseLayers(model, files);
  const isThere = ([name]: [string, Parameter]) =>
    files.hasNoHead !== true || !model.headModules.some((module) => isBelow(name, module));
  const parameters = new Map([...model.savedParameters()].filter(isThere));
  checkFit(adapter === undefined ? new Map([...model.namedParameters()].filter(isThere)) : parameters, files);
  return parameters;
}

/** Reads into a model, to which the method was applied already, what `saveTuned` wrote. Throws ModelError unless every tensor fits. */
export async function loadTuned(folder: string, model: LanguageModel, tuning: Tuning): Promise<void> {
  const files = await openTuned(folder, tuning);
  await readInto(placeTuned(model, tuning, files), files);
}

/** The method and settings with which training goes on from an adapter. Throws ModelError. */
export async function settingsOfAdapter(folder: string, tuners: readonly Tuner[]): Promise<{ tuner: Tuner; config: unknown }> {
  const { tuner, reader, json } = await recognise(folder, tuners);
  const { tensors } = await openForTraining(folder, reader);
  return { tuner, config: reader.fromJson(json, tensors) };
}

/**
 * Opens the adapters in folders, and before each those that it has below it: all are merged into a base, in this order, before anything else sits on it.
 * Throws ModelError, and ConfigError for a method that cannot be merged.
 */
export async function openBaseAdapters(folders: readonly string[], tuners: readonly Tuner[]): Promise<OpenedAdapter[]> {
  const all: OpenedAdapter[] = [];
  const open = async (folder: string) => {
    const opened = await openAdapter(folder, tuners);
    for (const below of baseAdaptersIn(folder, opened.files.config)) await open(below);
    all.push(opened);
    if (all.length > maxBaseAdapters) throw new ModelError(`${folders[0]}: has more than ${maxBaseAdapters} adapters below it.`);
    if (opened.tuning.merge === undefined)
      throw new ConfigError(
        `${folder}: ${opened.tuner.name} cannot be merged: it adds parts to the model that ordinary weights cannot hold. So no new adapter can be ` +
          "trained over it; go on from it with create_new_adapter=false",
      );
  };
  for (const folder of folders) await open(folder);
  return all;
}

const maxBaseAdapters = 64;

/** The folders of the adapters that belong below what a folder holds: none where it holds no adapter. Throws ModelError. */
export async function baseAdaptersBelow(folder: string): Promise<string[]> {
  if (!(await namesIn(folder)).includes(adapterConfigName)) return [];
  return baseAdaptersIn(folder, await readAdapterConfig(folder));
}

/** Copies adapters to where those that are trained over them find them: `copyBaseAdapters`. */
export async function keepBaseAdapters(folders: readonly string[], into: string, tuners: readonly Tuner[]): Promise<void> {
  await copyBaseAdapters(folders, into, async (folder) => (await openAdapter(folder, tuners)).files);
}

/** sha256 of an adapter's weights: the same for its copies. Throws ModelError. */
export async function digestOf({ files }: OpenedAdapter): Promise<string> {
  const hash = createHash("sha256");
  for (const file of new Set([...files.tensors.values()].map(({ file }) => file))) hash.update(await sha256OfFile(file));
  return hash.digest("hex");
}

/** The numbers of an adapter, by the names of its tensors. */
export type AdapterValues = ReadonlyMap<string, Uint8Array>;

/** Throws ModelError if a value is NaN or infinite. */
export async function readValues({ files }: OpenedAdapter): Promise<AdapterValues> {
  const values = new Map<string, Uint8Array>();
  for (const name of files.tensors.keys()) values.set(name, await files.readTensor(name));
  return values;
}

/**
 * Merges adapters into a loaded model, in f32: it is the base of what comes over them. On shapes alone no values are given. Throws as `placeAdapter`.
 */
export function mergeBaseAdapter(model: LanguageModel, opened: OpenedAdapter, values: AdapterValues | null): void {
  const { files, tuning } = opened;
  const parameters = placeAdapter(model, opened, new Rng(0));
  if (values !== null)
    for (const [name, { value, isStoredTransposed }] of parameters)
      setValues(value, values.get(name)!, files.tensors.get(name)!.dtype, isStoredTransposed);
  tuning.merge!(model);
  model.freeze();
  const inUse = new Set([...model.namedParameters()].map(([, parameter]) => parameter));
  for (const parameter of inUse) {
    parameter.isSaved = false; // with the adapter that is merged now, not with what comes over it
    if (parameter.original !== null && !inUse.has(parameter.original)) parameter.original.dispose();
  }
}

/** An adapter on disk whose settings are read, before it is put on a model. */
export interface OpenedAdapter {
  readonly tuner: Tuner;
  readonly config: unknown;
  readonly tuning: Tuning;
  readonly files: AdapterFiles;
}

export interface OpenAdapterOptions {
  /** Takes the head that lies beside an adapter, of a reward or value model (`withValueHead`), where the adapter has none. */
  readonly valueHead?: boolean;
}

/** Reads an adapter's method and settings, but not its weights. Throws ModelError. */
export async function openAdapter(
  folder: string,
  tuners: readonly Tuner[],
  { valueHead = false }: OpenAdapterOptions = {},
): Promise<OpenedAdapter> {
  const { tuner, reader } = await recognise(folder, tuners);
  const files = await reader.library.open(folder);
  const config = reader.fromJson(files.config, files.tensors);
  return { tuner, config, tuning: tuner.bind(config), files: valueHead ? await withValueHead(folder, files) : files };
}

/**
 * Makes room for an adapter in a loaded model. Returns the parameters that its weights belong in, by their names in its files. Throws ModelError
 * unless every one fits, ConfigError if the settings match nothing in the model.
 */
export function placeAdapter(model: LanguageModel, { tuning, files }: OpenedAdapter, rng: Rng): Map<string, Parameter> {
  const { headName } = model;
  const head = files.tensors.get(`${headName}.weight`);
  if (head !== undefined && model.head === null) placeHead(model, head.shape[0]!, rng, files.tensors.has(`${headName}.bias`));
  tuning.apply(model, rng);
  trainModules(model, [...modulesToSaveOf(files.config), ...(head === undefined ? [] : [headName])]);
  placeBaseLayers(model, files);
  const parameters = model.savedParameters();
  checkFit(parameters, files);
  return parameters;
}

/**
 * Beside the LoRA of an embedding or an output projection PEFT saves the base's weight itself, and on loading takes it for the
 * base's.
 */
function placeBaseLayers(model: LanguageModel, { tensors }: WeightFiles): void {
  saveCopies(model, (path) => path.endsWith(".base_layer.weight") && tensors.has(path));
}

/**
 * Applies an adapter from disk to a loaded model, for use; those below it are merged. Returns what it is. Throws as `placeAdapter` and
 * `openBaseAdapters`.
 */
export async function applyAdapter(
  folder: string,
  model: LanguageModel,
  tuners: readonly Tuner[],
  rng: Rng,
): Promise<OpenedAdapter> {
  const opened = await openAdapter(folder, tuners);
  for (const below of await openBaseAdapters(baseAdaptersIn(folder, opened.files.config), tuners))
    mergeBaseAdapter(model, below, await readValues(below));
  await readInto(placeAdapter(model, opened, rng), opened.files);
  return opened;
}

async function recognise(folder: string, tuners: readonly Tuner[]) {
  const json = await readAdapterConfig(folder);
  for (const tuner of tuners) if (tuner.adapter?.recognises(json)) return { tuner, reader: tuner.adapter, json };
  throw new ModelError(`${folder}: attune does not know adapters of type ${shown(json.peft_type)}`);
}

const shown = (type: unknown) => (typeof type === "string" ? type.slice(0, 100) : "unknown");

/** The file to go on training from: the parameters beside the adapter where there are such, else the adapter's own tensors. */
async function openForTraining(folder: string, { library }: Pick<AdapterReader<unknown>, "library">): Promise<WeightFiles> {
  const path = join(folder, trainingWeightsName);
  if (!(await namesIn(folder)).includes(trainingWeightsName)) return library.open(folder);
  const file = await openSafetensors(path);
  const tensors = new Map([...file.tensors].map(([name, stored]) => [name, toTensorEntry(stored)]));
  return { path, tensors, readTensor: (name) => readFinite(tensors.get(name)!) };
}

/** Opened weights: every size is checked, no values are read. */
export interface WeightFiles extends Pick<AdapterFiles, "path" | "tensors" | "readTensor"> {
  /** They are of a model without the head that trains, which begins anew. */
  readonly hasNoHead?: boolean;
}

/** Throws ModelError unless the tensors of the files are those of the parameters. */
function checkFit(parameters: ReadonlyMap<string, Parameter>, { path, tensors }: WeightFiles): void {
  checkTensors(path, new Map([...parameters].map(([name, { storedShape }]) => [name, storedShape])), tensors);
}

/** Gives parameters the values of the tensors of their names. Throws ModelError if a file is damaged. */
export async function readInto(parameters: ReadonlyMap<string, Parameter>, { tensors, readTensor }: WeightFiles): Promise<void> {
  for (const [name, { value, isStoredTransposed }] of parameters)
    setValues(value, await readTensor(name), tensors.get(name)!.dtype, isStoredTransposed);
}
