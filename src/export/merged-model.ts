import { Rng } from "../core/rng.js";
import type { ComputeType } from "../engine/kernels.js";
import { loadEngine } from "../engine/load.js";
import { ConfigError, DivergedError } from "../errors.js";
import type { ModelFiles } from "../io/model-files.js";
import { openModel } from "../io/open-model.js";
import { asCausalLM, type CausalLM } from "../models/causal-lm.js";
import { firstBroken } from "../models/finite.js";
import type { LanguageModel } from "../models/language-model.js";
import { loadModel, type StoreWeight, settleTying } from "../models/load.js";
import type { Parameter } from "../nn/module.js";
import { tuners } from "../tuners/index.js";
import { applyAdapter } from "../tuners/tuned-files.js";
import type { Tuning } from "../tuners/tuner.js";
import { type SurvivingChange, survivingChanges } from "./change.js";
import type { NumberType } from "./choices.js";
import { type Directions, roundKeeping } from "./kept-rounding.js";
import { matrixType, storeMatrices } from "./number-types.js";
import type { Reader } from "./reader.js";

/** How a base's matrices are stored while they are read, as `Tuning.storing`. */
export type Storing = (model: LanguageModel) => StoreWeight | undefined;

/** A base, and the adapter to merge into it. */
export interface Source {
  readonly files: ModelFiles;
  readonly adapter: string | undefined;
  readonly storing: Storing | undefined;
}

/** A base in memory, with how its matrices were stored as they were read. */
export interface OpenedBase {
  readonly model: CausalLM;
  readonly store: StoreWeight | undefined;
  /** The weights as they were read. */
  readonly own: ReadonlySet<Parameter>;
}

/** Opens a base to compute in f32, or as given. Throws ModelError. */
export async function openBase(
  { files, storing }: Pick<Source, "files" | "storing">,
  compute: ComputeType = "f32",
): Promise<OpenedBase> {
  let store: StoreWeight | undefined;
  const model = await loadModel({ kernels: loadEngine(), compute }, files, undefined, (unread) => {
    store = storing?.(unread);
    return store;
  });
  try {
    return { model: asCausalLM(model, "export"), store, own: new Set(parametersOf(model)) };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Lets `use` have the model that was written. */
export async function usingWritten<T>(path: string, compute: ComputeType, use: (model: CausalLM) => Promise<T>): Promise<T> {
  const { model } = await openBase({ files: await settleTying(await openModel(path)), storing: undefined }, compute);
  try {
    return await use(model);
  } finally {
    model.dispose();
  }
}

/** Puts an adapter on a model, to be merged. Throws ConfigError for a method that cannot be. */
export async function adapterOn(model: CausalLM, adapter: string): Promise<Tuning> {
  const { tuner, tuning } = await applyAdapter(adapter, model, tuners, new Rng(0));
  if (tuning.merge !== undefined) return tuning;
  throw new ConfigError(
    `${adapter}: ${tuner.name} cannot be merged: it adds parts to the model that ordinary weights cannot hold. ` +
      "The adapter's own folder is what PEFT and transformers load.",
  );
}

/**
 * Merges what sits on a base into it, in f32, and stores the matrices as `type` says: rounded to the nearest, or, of a LoRA in bf16, by `roundKeeping`. Returns what rounding leaves of the change for each reader, null
 * without an adapter. Throws DivergedError if a number is not finite.
 */
export async function mergeAndStore(
  { model, store, own }: OpenedBase,
  tuning: Tuning | undefined,
  { files, type, readers }: { readonly files: ModelFiles; readonly type: NumberType; readonly readers: readonly Reader[] },
): Promise<(SurvivingChange | null)[]> {
  // What is neither the base's own nor the adapter's was changed by the adapters below it.
  const before = new Set(parametersOf(model).filter((part) => own.has(part) || part.requiresGrad || part.isSaved));
  const directions = await directionsOf(model, tuning);
  tuning?.merge?.(model);
  await requireFinite(model);
  const mixture = { type, layers: model.shape.layers, isTied: model.isTied };
  const roundings = readers.map(({ compute }) => (name: string, weight: { readonly shape: readonly number[] }) => {
    const stored = matrixType(name, weight.shape, mixture);
    return compute === "bf16" ? [stored, "bf16" as const] : [stored];
  });
  const changes =
    tuning === undefined
      ? readers.map(() => null)
      : await survivingChanges(model, before, { files, store }, roundings, async (name, { value }) => {
          const along = directions.get(name);
          if (along === undefined || matrixType(name, value.shape, mixture) !== "bf16") return;
          const values = await value.read();
          roundKeeping(values, value.columns, along);
          value.device.kernels.write(value.id, 0, values);
        });
  storeMatrices(model, (name, shape) => matrixType(name, shape, mixture));
  return changes;
}

/** Throws DivergedError that names a weight with a number that is not finite. */
export async function requireFinite(model: LanguageModel): Promise<void> {
  const broken = await firstBroken(model.namedParameters());
  if (broken !== null) throw new DivergedError(`${broken} holds a number that is not finite: such a model is not exported`);
}

const parametersOf = (model: LanguageModel) => [...model.namedParameters()].map(([, parameter]) => parameter);

/** Where the factors of a change are known, what it looks at, by the names of the weights that it changes. */
async function directionsOf(model: CausalLM, tuning: Tuning | undefined): Promise<ReadonlyMap<string, Directions>> {
  const found = new Map<string, Directions>();
  if (tuning?.scaleAt === undefined) return found;
  for (const [name, { value }] of model.namedParameters()) {
    const path = /^(.*)\.lora_A\.weight$/.exec(name)?.[1];
    if (path !== undefined) found.set(`${path}.weight`, { a: await value.read(), rank: value.shape[0]! });
  }
  return found;
}
