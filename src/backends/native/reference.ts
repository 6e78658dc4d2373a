import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { basename, isAbsolute, join, relative, resolve } from "node:path";
import type { StepWork } from "../../advise/estimate.js";
import type { Device } from "../../core/device.js";
import type { SymbolicDevice } from "../../core/symbolic.js";
import type { Row } from "../../data/example.js";
import { CheckpointError, ConfigError } from "../../errors.js";
import { namesIn, sha256OfFile } from "../../io/disk.js";
import { hubName } from "../../io/model-card.js";
import type { ModelFiles } from "../../io/model-files.js";
import { openSafetensors, readEntry, type TensorSource, toTensorEntry, writeSafetensors } from "../../io/safetensors.js";
import { settleTying } from "../../models/load.js";
import type { ReferenceSettings } from "../../objectives/objective.js";
import { adapterNames, type Recipe } from "../../recipe/schema.js";
import { loadTokenizer } from "../../text/load-tokenizer.js";
import {
  assemble,
  type BaseParts,
  type Beginning,
  loadBase,
  type Parts,
  sketchBase,
  type Trainee,
} from "../../train/assemble.js";
import { tuners } from "../../tuners/index.js";
import { quantizedBase } from "../../tuners/quantized-base.js";
import type { SharedBase } from "../../tuners/shared-base.js";
import { type OpenedAdapter, openAdapter, openBaseAdapters } from "../../tuners/tuned-files.js";
import type { Tuning } from "../../tuners/tuner.js";
import type { RunData } from "./run-data.js";

/** What a run's policy is compared with. */
export interface Reference {
  /** In words. */
  readonly name: string;
  /** Of the files of its weights, and the settings of its adapters. */
  readonly sha256: string;
  /** The folder of the adapter that training began from, where the reference is with it: null for the base alone, and for another model. */
  readonly from: string | null;
  /** Whether it is asked about every row before training, and never again. */
  readonly isAskedOnce: boolean;
  /** Another model than the policy's, where it is one. */
  readonly model: OtherModel | null;
}

/** A model that is opened beside the policy, with an adapter on it. */
interface OtherModel {
  readonly parts: BaseParts;
  readonly adapter: string | null;
}

interface ReferenceWork {
  readonly recipe: Recipe;
  readonly files: ModelFiles;
  readonly baseAdapters: readonly OpenedAdapter[];
  readonly data: RunData;
  /** Opens a model as the recipe's is opened. */
  readonly open: (name: string) => Promise<ModelFiles>;
  readonly notify: (message: string) => void;
  readonly warn: (message: string) => void;
}

const adapterName = "ref_model_adapters";

/**
 * What the task of a run compares its policy with; null where that is nothing. Reads files whole, for their digest, and loads nothing. Throws
 * ConfigError, ModelError.
 */
export async function findReference(work: ReferenceWork): Promise<Reference | null> {
  const { recipe, data, files, baseAdapters } = work;
  const { task } = data;
  if (task.usesBase !== true && task.reference === undefined) return null;
  const { adapter_name_or_path: adapter, create_new_adapter: isNew, model_name_or_path: model } = recipe;
  const from = isNew ? null : adapter;
  if (from !== null && isWithin(recipe.output_dir, from))
    throw new ConfigError(
      "adapter_name_or_path: training goes on from the adapter in output_dir, and is compared with it as it was: choose another output_dir, " +
        "so that it stays as it is",
    );
  const ownAdapters = [...baseAdapters, ...(from === null ? [] : [await openAdapter(from, tuners)])];
  const own = { sha256: await digestOf(files, ownAdapters), from, model: null };
  const { reference = { model: null, isAskedOnce: false } } = task;
  if (reference.isAskedOnce && task.keepReference === undefined)
    throw new ConfigError(
      `precompute_ref_log_probs: stage ${recipe.stage} asks the reference about texts that are known only while it trains: remove it`,
    );
  if (reference.model === null) return { ...own, name: nameOf(model, adapter), isAskedOnce: reference.isAskedOnce };
  const other = await openOther(reference.model, work);
  if (other.sha256 === own.sha256)
    work.notify("ref_model: these are the files that training begins from: without ref_model, nothing would be read twice");
  else
    work.warn(
      `the reference is not what training begins from, but ${other.name}: before the first step the two differ already, so a preference loss does not begin at ln 2, nor its rewards at 0`,
    );
  return { ...other, from: null, isAskedOnce: task.keepReference !== undefined };
}

/** A model and the adapters over it, as a record names them: without the folders that they lie in. */
function nameOf(model: string, adapters: string | null): string {
  const short = (name: string) => hubName(name) ?? basename(name);
  return [short(model), ...adapterNames(adapters ?? "").map(short)].join(" + ");
}

function isWithin(folder: string, path: string): boolean {
  const way = relative(folder, path);
  return way === "" || !(way.startsWith("..") || isAbsolute(way));
}

async function openOther(
  { name, adapters: setting, quantizationBit }: NonNullable<ReferenceSettings["model"]>,
  { recipe, data, open, notify }: ReferenceWork,
): Promise<Pick<Reference, "name" | "sha256"> & { readonly model: OtherModel }> {
  const files = await settleTying(await open(name));
  await checkVocabulary(name, files, data);
  const folders = adapterNames(setting ?? "");
  const below = await openBaseAdapters(folders.slice(0, -1), tuners);
  const adapter = folders.at(-1) ?? null;
  const settings = { quantization_bit: quantizationBit, quantization_type: "nf4", double_quantization: true } as const;
  const tuning: Tuning = {
    apply: () => {},
    ...(quantizationBit !== null && { storing: (model) => quantizedBase(model, settings, notify) }),
  };
  if (quantizationBit !== null && below.length > 0)
    throw new ConfigError(
      "ref_model_adapters: all but the last are merged into ref_model in f32, which ref_model_quantization_bit would quantize: name one adapter, or remove ref_model_quantization_bit",
    );
  const parts = { files, tuning, baseAdapters: below, seed: recipe.seed, gradientCheckpointing: false, disableDropout: true };
  const all = adapter === null ? below : [...below, await openAdapter(adapter, tuners)];
  return {
    name: `${nameOf(name, setting)}${quantizationBit === null ? "" : ` in ${quantizationBit} bits`}`,
    sha256: await digestOf(files, all),
    model: { parts, adapter },
  };
}

/** A reference reads the policy's tokens: they have to mean the same to it. Throws ConfigError. */
async function checkVocabulary(name: string, files: ModelFiles, { tokenizer }: RunData): Promise<void> {
  const other = await loadTokenizer(files);
  const id = tokenizer.firstDifference(other);
  if (id === undefined) return;
  const spelled = (of: typeof other) => (id < of.vocabSize ? JSON.stringify(of.decode([id], { special: true })) : "nothing");
  throw new ConfigError(
    `ref_model: ${name} has another vocabulary than the model that trains: token ${id} is ${spelled(other)} there, and ${spelled(tokenizer)} here. ` +
      "Name a model with the same tokenizer",
  );
}

/** sha256 over the fingerprint and the files of a base, and the settings and files of the adapters over it. */
async function digestOf(files: ModelFiles, adapters: readonly OpenedAdapter[]): Promise<string> {
  const hashes = async (tensors: ReadonlyMap<string, { readonly file: string }>) => {
    const paths = [...new Set([...tensors.values()].map(({ file }) => resolve(file)))].sort();
    const found: string[] = [];
    for (const path of paths) found.push(await sha256OfFile(path));
    return found;
  };
  const parts: unknown[] = [files.fingerprint, await hashes(files.tensors)];
  for (const { tuner, config, files: of } of adapters) parts.push([tuner.name, config, await hashes(of.tensors)]);
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}

/** What trains, and the rows that it trains on and is measured on, with what a reference says of them if that is asked before. */
export interface Begun extends Rows {
  readonly trainee: Trainee;
}

/** Puts what trains together, with its reference beside it, or asked before. Throws as `assemble`, `keptAnswers` and `askAboutRows` do. */
export async function assembleBeside(
  reference: Reference | null,
  device: Device,
  parts: Parts,
  beginning: Beginning,
  asking: Omit<Asking, "reference">,
): Promise<Begun> {
  const { trainRows, evalRows } = asking.data;
  if (reference === null) return { trainee: await assemble(device, parts, beginning), trainRows, evalRows };
  const { from, model, isAskedOnce } = reference;
  if (!isAskedOnce) {
    const trainee = await assemble(device, { ...parts, referenceFrom: from }, beginning);
    if (model !== null) trainee.base.setReference(await loadOther(device, model));
    return { trainee, trainRows, evalRows };
  }
  let rows = await keptAnswers({ ...asking, reference });
  const ask = async (base: SharedBase) => {
    rows = await askAboutRows(base, { ...asking, reference });
  };
  if (rows === null && model !== null) {
    const other = await loadOther(device, model);
    await ask(other).finally(() => other.dispose());
  }
  const trainee = await (rows === null
    ? assemble(device, { ...parts, referenceFrom: from }, { ...beginning, askReference: ask })
    : assemble(device, parts, beginning));
  trainee.base.endReference();
  return { trainee, ...rows! };
}

/** What an estimate needs to know of the reference beside what trains. */
export function partsBeside(reference: Reference | null, parts: Parts): Pick<StepWork, "parts" | "other"> {
  if (reference === null) return { parts };
  const { from, model, isAskedOnce } = reference;
  const open = async (device: SymbolicDevice) =>
    model === null
      ? sketchBase(device, { ...parts, referenceFrom: from })
      : await withAdapter(sketchBase(device, model.parts), model.adapter);
  if (isAskedOnce || model !== null) return { parts, other: { open, isAskedOnce } };
  return { parts: { ...parts, referenceFrom: from } };
}

async function loadOther(device: Device, { parts, adapter }: OtherModel): Promise<SharedBase> {
  return await withAdapter(await loadBase(device, parts), adapter);
}

async function withAdapter(base: SharedBase, adapter: string | null): Promise<SharedBase> {
  if (adapter === null) return base;
  try {
    await base.load(adapterName, adapter);
    base.setReference(adapterName);
    return base;
  } catch (error) {
    base.dispose();
    throw error;
  }
}

/** The rows of a run. */
type Rows = Pick<RunData, "trainRows" | "evalRows">;

export interface Asking {
  readonly recipe: Recipe;
  readonly reference: Reference;
  readonly data: RunData;
  /** The type that products are computed in. */
  readonly compute: string;
  readonly isResumed: boolean;
  readonly signal: AbortSignal;
  readonly onRows: (done: number, total: number) => void;
}

const keptName = "reference_log_probs.safetensors";

/**
 * The rows with what a reference says of them, as output_dir keeps it; null where nothing is kept there. What belongs to other rows, or another
 * reference, is removed when a run begins. Throws CheckpointError where a resumed run finds such, ModelError if the file is damaged.
 */
async function keptAnswers({ recipe, data, isResumed, ...asking }: Asking): Promise<Rows | null> {
  const path = join(recipe.output_dir, keptName);
  if (!(await namesIn(recipe.output_dir)).includes(keptName)) return null;
  const { metadata, tensors } = await openSafetensors(path);
  if (metadata.get("belongs_to") !== keyOf({ recipe, data, ...asking })) {
    if (isResumed)
      throw new CheckpointError(
        `${path}: holds what another reference said, or of other rows. Restore the settings, the data and the reference, or start anew with overwrite_output_dir=true`,
      );
    await rm(path);
    return null;
  }
  const read = async (name: string) => {
    const bytes = await readEntry(toTensorEntry(tensors.get(name)!));
    return { values: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), shape: tensors.get(name)!.shape };
  };
  const rowsWith = async (rows: readonly Row[], split: string): Promise<Row[]> => {
    const [{ values }, { values: lengths, shape }] = [await read(split), await read(`${split}.lengths`)];
    let start = 0;
    return rows.map((row, i) => {
      const reference = Array.from({ length: shape[1]! }, (_, answer) => {
        const length = lengths[i * shape[1]! + answer]!;
        start += length;
        return values.slice(start - length, start);
      });
      return { ...row, reference };
    });
  };
  return { trainRows: await rowsWith(data.trainRows, "train"), evalRows: await rowsWith(data.evalRows, "eval") };
}

/** Asks a reference about all rows, and keeps in output_dir what it says. Throws the signal's reason, DivergedError if it says no numbers, NoSpaceError. */
async function askAboutRows(base: SharedBase, asking: Asking): Promise<Rows> {
  const { recipe, data, signal, onRows } = asking;
  const total = data.trainRows.length + data.evalRows.length;
  const ask = async (rows: readonly Row[], before: number) =>
    rows.length === 0
      ? []
      : await data.task.keepReference!(rows, (body) => base.withReference(body), {
          signal,
          onRows: (done) => onRows(before + done, total),
        });
  const trainRows = await ask(data.trainRows, 0);
  const evalRows = await ask(data.evalRows, trainRows.length);
  const sources = [...sourcesOf(trainRows, "train"), ...sourcesOf(evalRows, "eval")];
  await writeSafetensors(join(recipe.output_dir, keptName), sources, { metadata: { belongs_to: keyOf(asking) } });
  return { trainRows, evalRows };
}

/** All numbers of a split, one behind the other (N), and how many belong to each answer of each row (rows, answers). */
function sourcesOf(rows: readonly Row[], split: string): TensorSource[] {
  const kept = rows.map((row) => (row as { reference?: readonly Float32Array[] }).reference!);
  const answers = kept[0]?.length ?? 0;
  if (kept.some(({ length }) => length !== answers))
    throw new RangeError("keepReference: rows have different numbers of answers");
  const source = (name: string, values: Float32Array, shape: readonly number[]): TensorSource => ({
    ...{ name, dtype: "f32", shape },
    data: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
  });
  const lengths = Float32Array.from(kept.flatMap((row) => row.map(({ length }) => length)));
  const values = new Float32Array(lengths.reduce((sum, length) => sum + length, 0));
  let start = 0;
  for (const numbers of kept.flat()) {
    values.set(numbers, start);
    start += numbers.length;
  }
  return [source(split, values, [values.length]), source(`${split}.lengths`, lengths, [kept.length, answers])];
}

/** Identifies all that the numbers follow from. */
function keyOf({ recipe, reference, data, compute }: Pick<Asking, "recipe" | "reference" | "data" | "compute">): string {
  const stored = reference.model === null ? [recipe.finetuning_type, recipe.tuner] : reference.name;
  const all = [data.digest, data.evalDigest, reference.sha256, stored, compute];
  return createHash("sha256").update(JSON.stringify(all)).digest("hex");
}
