import type { Device } from "../core/device.js";
import { Rng } from "../core/rng.js";
import type { SymbolicDevice } from "../core/symbolic.js";
import type { Tensor } from "../core/tensor.js";
import { ConfigError } from "../errors.js";
import { valueHeadName, withValueHead } from "../io/adapters/value-head.js";
import type { ModelFiles } from "../io/model-files.js";
import type { LanguageModel } from "../models/language-model.js";
import { buildModel, loadModel, placeWeights } from "../models/load.js";
import type { Module, Parameter } from "../nn/module.js";
import { Optimizer, type RuleSettings } from "../optim/optimizer.js";
import { type OptimizerName, optimizerNamed } from "../optim/optimizers.js";
import { weightDecays } from "../optim/weight-decay.js";
import { SharedBase } from "../tuners/shared-base.js";
import {
  digestOf,
  mergeBaseAdapter,
  type OpenedAdapter,
  openTuned,
  readInto,
  readValues,
  type WeightFiles,
} from "../tuners/tuned-files.js";
import type { Start, Tuning } from "../tuners/tuner.js";
import { loadValueHead, newValueHead } from "./value-head.js";

/** What the model that trains is put together from. */
export interface Parts {
  /** The base, with the config of the model that trains. */
  readonly files: ModelFiles;
  readonly tuning: Tuning;
  /** Merged into the base before the method is put on it. */
  readonly baseAdapters?: readonly OpenedAdapter[];
  /** Draws the weights that begin by chance. */
  readonly seed: number;
  readonly gradientCheckpointing: boolean;
  /** Whether the base's own dropout is left out. */
  readonly disableDropout: boolean;
  /** Of the noise on the vectors of tokens; 0 where not given. */
  readonly noiseAlpha?: number;
  /** Whether the base must stay as it was beside what trains: `AddOptions.keepsBase`. */
  readonly keepsBase?: boolean;
  /**
   * The folder of the adapter that training began from, which a frozen copy of what trains keeps as it was, to be the reference; null where the base
   * alone is.
   */
  readonly referenceFrom?: string | null;
  /** Whether a value head trains beside the model. */
  readonly hasValueHead?: boolean;
  readonly optimizer: OptimizerChoice;
  /** Gets what the user should know of how the base is stored. */
  readonly onNotice?: (message: string) => void;
}

/** An optimizer with its settings. */
export interface OptimizerChoice extends RuleSettings {
  readonly name: OptimizerName;
  /** Of all that trains but biases and norms. */
  readonly weightDecay: number;
}

/** The name of what trains among all that sits on the base: PEFT's. */
export const trainedName = "default";

/** The name of the frozen copy of the adapter that training began from. */
const referenceName = "reference";

/** A model that trains, with its optimizer. */
export interface Trainee {
  readonly base: SharedBase;
  /** What trains, by name. */
  readonly parameters: ReadonlyMap<string, Parameter>;
  readonly optimizer: Optimizer;
  dispose(): void;
}

export interface Beginning {
  /** The folder of the adapter or checkpoint whose weights training goes on from; null to begin anew. */
  readonly weightsFrom: string | null;
  /** What a method may begin with where it begins anew. */
  readonly start: Start;
  /** Whether the files lack the head that the config describes: its weights are drawn. */
  readonly hasNewHead: boolean;
  /** Whether `weightsFrom` is an adapter that a run starts with, which may have no head or one in a file of its own, and no checkpoint. */
  readonly isStart?: boolean;
  /** Called with the base before anything sits on it. */
  readonly onBase?: (model: LanguageModel) => void;
  /** Called while nothing trains yet: whoever asks the reference here asks it for the last time. */
  readonly askReference?: ((base: SharedBase) => Promise<void>) | null;
}

/** Reads the base, puts the method on it and makes the optimizer. Throws ModelError, ConfigError, EngineError; nothing then stays in memory. */
export async function assemble(
  device: Device,
  parts: Parts,
  { weightsFrom, start, hasNewHead, isStart = false, onBase = () => {}, askReference = null }: Beginning,
): Promise<Trainee> {
  const { tuning, seed, keepsBase = false, onNotice = () => {} } = parts;
  const base = await loadBase(device, parts, hasNewHead);
  try {
    base.with(null, onBase);
    if (askReference !== null) {
      await askReference(base);
      base.endReference();
    }
    const opened = weightsFrom === null ? undefined : await openTuned(weightsFrom, tuning);
    const headPlace = base.with(null, ({ head, headName }) => ({ head, headName }));
    const weights = opened && hasNewHead && isStart ? await withHead(weightsFrom!, opened, headPlace, onNotice) : opened;
    const options = { rng: Rng.for(seed, "tuner"), keepsBase, ...besideOf(device, base, parts), ...(weights && { weights }) };
    const parameters = base.add(trainedName, tuning, options);
    if (weightsFrom !== null)
      await loadValueHead(
        weightsFrom,
        base.with(trainedName, () => base.beside),
      );
    if (weights !== undefined) await readInto(parameters, weights);
    else base.with(trainedName, (tuned) => tuning.initialize?.(tuned, start));
    return withOptimizer(base, parts);
  } catch (error) {
    base.dispose();
    throw error;
  }
}

/** The weights that a run starts with, with the head of a reward model that lies beside them; a head that is nowhere begins anew. */
async function withHead(
  folder: string,
  files: WeightFiles,
  { head, headName }: Pick<LanguageModel, "head" | "headName">,
  notify: (message: string) => void,
): Promise<WeightFiles> {
  if (head === null || files.tensors.has(`${headName}.weight`)) return files;
  const whole = head.outFeatures === 1 ? await withValueHead(folder, files) : files;
  if (whole === files) {
    notify(`${folder} has no head: a new one begins by chance`);
    return { ...files, hasNoHead: true };
  }
  const tensors = new Map(whole.tensors);
  if (head.bias === null && tensors.delete(`${headName}.bias`))
    notify(`${folder}: the bias of ${valueHeadName} is left out: it adds the same to every score`);
  return { ...whole, tensors };
}

/** The same on shapes alone: nothing is read, and what begins from data or from files begins like the rest. */
export function sketch(device: SymbolicDevice, parts: Parts): Trainee {
  const base = sketchBase(device, parts);
  const { tuning, seed, keepsBase = false } = parts;
  base.add(trainedName, tuning, { rng: Rng.for(seed, "tuner"), keepsBase, ...besideOf(device, base, parts) });
  return withOptimizer(base, parts);
}

/** What a base is put together from, before anything on it trains. */
export type BaseParts = Omit<Parts, "optimizer" | "keepsBase">;

/** Reads a base, merges what belongs below, and puts the reference on it if that is an adapter. Throws as `assemble`. */
export async function loadBase(device: Device, parts: BaseParts, hasNewHead = false): Promise<SharedBase> {
  const { files, tuning, baseAdapters = [], seed, referenceFrom = null, onNotice = () => {} } = parts;
  const merged: string[] = [];
  for (const adapter of baseAdapters) merged.push(await digestOf(adapter));
  const model = await loadModel(device, files, hasNewHead ? Rng.for(seed, "head") : undefined, (unread) =>
    storingOf(parts, unread, onNotice),
  );
  const base = new SharedBase(model, { merged });
  try {
    for (const adapter of baseAdapters) {
      checkHead(model, adapter);
      mergeBaseAdapter(model, adapter, await readValues(adapter));
    }
    settle(model, parts);
    if (referenceFrom !== null) {
      const weights = await openTuned(referenceFrom, tuning);
      await readInto(addReference(base, parts, weights), weights);
    }
    return base;
  } catch (error) {
    base.dispose();
    throw error;
  }
}

/** The same on shapes alone. */
export function sketchBase(device: SymbolicDevice, parts: BaseParts): SharedBase {
  const { files, baseAdapters = [], referenceFrom = null } = parts;
  const model = buildModel(device, files.config, files.path);
  placeWeights(
    model,
    files,
    storingOf(parts, model, () => {}),
  );
  for (const adapter of baseAdapters) mergeBaseAdapter(model, adapter, null);
  settle(model, parts);
  const base = new SharedBase(model);
  if (referenceFrom !== null) addReference(base, parts);
  return base;
}

/** Makes room for the adapter that training began from, which stays as it is, as the reference. Returns the parameters that its weights belong in. */
function addReference(base: SharedBase, { tuning, seed }: BaseParts, weights?: WeightFiles): ReadonlyMap<string, Parameter> {
  const rng = Rng.for(seed, "tuner");
  const parameters = base.add(referenceName, tuning, { rng, isFrozen: true, ...(weights && { weights }) });
  base.setReference(referenceName);
  return parameters;
}

function besideOf(device: Device, { shape }: SharedBase, { hasValueHead = false }: Parts): { beside?: Module } {
  return hasValueHead ? { beside: newValueHead(device, shape.width) } : {};
}

/** Throws ConfigError for an adapter with a head that what trains has no use for. */
function checkHead({ head, headName }: LanguageModel, { files }: OpenedAdapter): void {
  if (head === null && files.tensors.has(`${headName}.weight`))
    throw new ConfigError(
      `create_new_adapter: ${files.path} brings a head (${headName}), which this stage does not train: it was trained for another task`,
    );
}

/** Throws, while weights are stored, ConfigError where adapters would have to be merged into a base that the method quantizes. */
function storingOf({ tuning, baseAdapters = [] }: BaseParts, unread: LanguageModel, notify: (message: string) => void) {
  const store = tuning.storing?.(unread, notify);
  if (store === undefined || baseAdapters.length === 0) return store;
  return (name: string, read: Tensor): Tensor => {
    const stored = store(name, read);
    if (stored === read) return read;
    stored.dispose();
    throw new ConfigError(
      "create_new_adapter: the old adapters are merged into the base in f32, and this method would quantize that base: export a merged model " +
        "(attune export --to hf), and name it as model_name_or_path",
    );
  };
}

function settle(model: LanguageModel, { gradientCheckpointing, disableDropout, noiseAlpha = 0 }: BaseParts): void {
  model.gradientCheckpointing = gradientCheckpointing;
  model.noiseAlpha = noiseAlpha;
  if (disableDropout) model.disableDropout();
}

function withOptimizer(base: SharedBase, { optimizer: { name, weightDecay, ...settings } }: Parts): Trainee {
  const parameters = base.parametersOf(trainedName);
  const decays = base.with(trainedName, (model) => weightDecays(model, weightDecay));
  const optimizer = new Optimizer(parameters, optimizerNamed(name).ruleFor(settings), decays);
  return {
    base,
    parameters,
    optimizer,
    dispose() {
      optimizer.dispose();
      base.dispose();
    },
  };
}
