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
  /** The steps with which the method learns, where a recipe does not say: the first case whose settings fit. docs/defaults.md has the measurements. */
  readonly defaults?: readonly StepDefaults<Config>[];
  /**
   * Settings that an adapter's file does not say, as they concern only its training: a run that goes on from an adapter takes
   * them from the recipe.
   */
  readonly ofRun?: readonly string[];
  /** The method with these settings. Throws ConfigError for settings that cannot be combined. */
  bind(config: Config): Tuning;
  /** How its adapters are recognised and read. Absent for a method that trains the model itself: then the whole model is saved. */
  readonly adapter?: AdapterReader<Config>;
}

/** How steps are taken where a recipe names no learning rate. Rates are AdamW's. */
export interface StepDefaults<Config = unknown> {
  /** The settings that they are for; absent for all that no case before has taken. */
  readonly where?: { readonly words: string; fits(config: Config): boolean };
  readonly learning_rate: number;
  /** Rows that a step sums over: what `per_device_train_batch_size` leaves of them is accumulated. */
  readonly rowsPerStep: number;
  readonly warmup_ratio: number;
}

/** A method with its settings. What trains is what has `requiresGrad` after `apply`; saving, resuming and counting need no more than that. */
export interface Tuning {
  /**
   * Says how matrices of the base are stored; absent if as they are read. Called before they are read, with a model that has no
   * weights yet; `notify` gets what the user should know.
   */
  storing?(model: LanguageModel, notify: (message: string) => void): StoreWeight;
  /**
   * Whether the adapter is merged into the base as `storing` stores it (quantized, then expanded), on which it was trained.
   * Absent: into the base that the files hold.
   */
  readonly mergesIntoStored?: boolean;
  /** Whether the base's own weights change, so that the model as it was before training is gone. */
  readonly changesBase?: boolean;
  /** Changes a loaded model in place. Throws ConfigError if the settings match nothing in it. */
  apply(model: LanguageModel, rng: Rng): void;
  /**
   * Gives the parameters that `apply` made first values better than random ones. Called when training begins, but not when
   * weights are loaded instead. Must not change what the adapter's file does not hold. Throws ConfigError.
   */
  initialize?(model: LanguageModel, start: Start): void;
  /**
   * Turns the change into ordinary weights of the model. Absent where that is impossible; shared code asks whether it is there.
   */
  merge?(model: LanguageModel): void;
  /**
   * Where all that a method does to a Linear is to add s · x Aᵀ Bᵀ, with factors saved as lora_A and lora_B: s of the layer at a path. Such an adapter
   * leaves as a GGUF file, too.
   */
  scaleAt?(path: string): number;
  /** How the adapter leaves. Absent for a method that trains the model itself: then the whole model is saved. */
  readonly adapter?: AdapterWriter;
}

/** What `initialize` can use. */
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

/** How an adapter is written. Its tensors are the parameters that train, unless `computed` gives others. */
export interface AdapterWriter {
  readonly library: AdapterLibrary;
  /** The method's part of adapter_config.json. */
  toJson(model: LanguageModel, origin: AdapterOrigin): AdapterConfig;
  /**
   * For a method whose parameters compute what the model uses (an encoder that makes virtual tokens): the computed tensors, which
   * are saved as the adapter; the caller disposes them. The parameters are then saved beside it, so that training can go on. Null
   * if, with these settings, the model uses the parameters directly.
   */
  computed?(model: LanguageModel): ReadonlyMap<string, Tensor> | null;
}

/** Checks a tuner against the type of its own settings, which the list of all tuners does not know. */
export function defineTuner<Config>(tuner: Tuner<Config>): Tuner<Config> {
  return tuner;
}
