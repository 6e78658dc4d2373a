import type { z } from "zod";
import type { Rng } from "../core/rng.js";
import type { Tensor } from "../core/tensor.js";
import type { AdapterConfig, AdapterLibrary, AdapterOrigin } from "../io/adapters/adapter-folder.js";
import type { TensorEntry } from "../io/model-files.js";
import type { LanguageModel } from "../models/language-model.js";
import type { StoreWeight } from "../models/load.js";

/** A method: which parameters train, and how they enter the model. Knows nothing of losses: that is an objective's work. */
export interface Tuner<Config = unknown> {
  /** Value of `finetuning_type`; kebab-case, unique. */
  readonly name: string;
  /** One line for help and documentation. */
  readonly summary: string;
  /** Settings under LLaMA-Factory's key names: flags, YAML checks, UI forms and docs are made from it. */
  readonly config: z.ZodType<Config>;
  /** Settings that belong to a run and not to an adapter: training that goes on from an adapter takes them from the recipe. */
  readonly ofRun?: readonly string[];
  /** The method with these settings. Throws ConfigError for settings that cannot be combined. */
  bind(config: Config): Tuning;
  /** How its adapters are recognised and read. Absent for a method that trains the model itself: then the whole model is saved. */
  readonly adapter?: AdapterReader<Config>;
}

/** A method with its settings. What trains is what has `requiresGrad` after `apply`; saving, resuming and counting need no more than that. */
export interface Tuning {
  /**
   * How matrices of the base are stored if not as they are read. Called before they are, with a model that has no weights yet; `notify` gets what
   * the user should know.
   */
  storing?(model: LanguageModel, notify: (message: string) => void): StoreWeight;
  /**
   * Whether what was learnt belongs to the base as `storing` stores it, and is merged into that, rather than into the one that the files hold.
   * Not given: the latter.
   */
  readonly mergesIntoStored?: boolean;
  /** Whether weights of the base train in their places, so that the base as it was is gone. */
  readonly changesBase?: boolean;
  /** Changes a loaded model in place. Throws ConfigError if the settings match nothing in it. */
  apply(model: LanguageModel, rng: Rng): void;
  /**
   * Gives what `apply` made a better start than chance, when training begins anew; not when weights are loaded into it. Must leave alone what
   * the adapter does not hold. Throws ConfigError.
   */
  initialize?(model: LanguageModel, start: Start): void;
  /** Turns the change into ordinary weights. Absent where that is impossible: that absence is the flag. */
  merge?(model: LanguageModel): void;
  /**
   * Where all that a method does to a Linear is to add s · x Aᵀ Bᵀ, with factors saved as lora_A and lora_B: s of the layer at a path. Such an adapter
   * leaves as a GGUF file, too.
   */
  scaleAt?(path: string): number;
  /** How the adapter leaves. Absent for a method that trains the model itself: then the whole model is saved. */
  readonly adapter?: AdapterWriter;
}

/** What a start can be made from. */
export interface Start {
  readonly rng: Rng;
  /** Tokens of a plain text. */
  encode(text: string): Int32Array;
}

/** How adapters of a method lie in a folder: `adapter_config.json`, and weights under the names that they have in the model. */
export interface AdapterReader<Config> {
  /** Whose format: PEFT's, AdapterHub's. */
  readonly library: AdapterLibrary;
  /** Whether an adapter_config.json, read from anywhere, is of this method. */
  recognises(json: AdapterConfig): boolean;
  /**
   * The settings with which `apply` makes room for `tensors`: those of the adapter or, where training goes on, its `trainingWeightsName`.
   * Throws ModelError for a variant that attune does not know.
   */
  fromJson(json: AdapterConfig, tensors: ReadonlyMap<string, TensorEntry>): Config;
}

/** How an adapter is written. What leaves is what trains unless `computed` says otherwise. */
export interface AdapterWriter {
  readonly library: AdapterLibrary;
  /** The method's part of adapter_config.json. */
  toJson(model: LanguageModel, origin: AdapterOrigin): AdapterConfig;
  /**
   * For a method whose parameters only make what the model uses: what they make, as it leaves, disposed by the caller. The parameters are then
   * saved beside it, so that training can go on. Null if, with the settings at hand, what trains is what the model uses.
   */
  computed?(model: LanguageModel): ReadonlyMap<string, Tensor> | null;
}

/** Keeps the type of `config` while the list forgets it. */
export function defineTuner<Config>(tuner: Tuner<Config>): Tuner<Config> {
  return tuner;
}
