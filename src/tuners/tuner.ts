import type { z } from "zod";
import type { Rng } from "../core/rng.js";
import type { AdapterConfig } from "../io/peft.js";
import type { CausalLM } from "../models/causal-lm.js";

/**
 * Which parameters train, and how they enter the model. Knows nothing of losses: that is an objective's work. What trains is what has
 * `requiresGrad` after `apply`; saving, resuming and counting need no more than that.
 */
export interface Tuner<Config = unknown> {
  /** Value of `finetuning_type`; kebab-case, unique. */
  readonly name: string;
  /** One line for help and documentation. */
  readonly summary: string;
  /** Settings under LLaMA-Factory's key names: flags, YAML checks, UI forms and docs are made from it. */
  readonly config: z.ZodType<Config>;
  /** Changes a loaded model in place. Throws ConfigError if the settings match nothing in it. */
  apply(model: CausalLM, config: Config, rng: Rng): void;
  /** Turns the change into ordinary weights. Absent where that is impossible: that absence is the flag. */
  readonly merge?: (model: CausalLM) => void;
  /** How PEFT knows it. Absent for a method that trains the model itself: then the whole model is saved. */
  readonly peft?: PeftFormat<Config>;
}

export interface PeftFormat<Config> {
  readonly peftType: string;
  /** Method's part of adapter_config.json. */
  toPeft(config: Config, model: CausalLM): Readonly<Record<string, unknown>>;
  /** `tensors` are the names in the adapter's file. Throws ConfigError for a variant that attune does not train. */
  fromPeft(adapterConfig: AdapterConfig, tensors: readonly string[]): Config;
}

/** Keeps the type of `config` while the list forgets it. */
export function defineTuner<Config>(tuner: Tuner<Config>): Tuner<Config> {
  return tuner;
}
