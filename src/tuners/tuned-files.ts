import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Rng } from "../core/rng.js";
import { ModelError } from "../errors.js";
import { writeFileAtomic } from "../io/disk.js";
import { openModelFolder } from "../io/hf-folder.js";
import { checkTensors, openAdapter, saveAdapter } from "../io/peft.js";
import { writeShardedSafetensors } from "../io/safetensors.js";
import type { CausalLM } from "../models/causal-lm.js";
import { setValues, sourceOf } from "../models/load.js";
import type { Tuner } from "./tuner.js";

/** The base that a tuned model goes back to. */
export interface Base {
  /** As the recipe names it. */
  readonly name: string;
  /** config.json of the base: saved with a model that was trained whole. */
  readonly config: Readonly<Record<string, unknown>>;
}

/**
 * Writes what a tuner trained: an adapter in PEFT's format where it has one, else the whole model as a Hugging Face folder (f32). Files
 * appear under their final names only when they are complete. Throws NoSpaceError.
 */
export async function saveTuned(folder: string, model: CausalLM, tuner: Tuner, config: unknown, base: Base): Promise<void> {
  const tensors = [...model.trainableParameters()].map(([name, { value }]) => sourceOf(name, value));
  if (tuner.peft !== undefined) {
    const common = {
      peft_type: tuner.peft.peftType,
      task_type: "CAUSAL_LM",
      base_model_name_or_path: base.name,
      inference_mode: true,
    };
    await saveAdapter(folder, { ...common, ...tuner.peft.toPeft(config, model) }, tensors);
    return;
  }
  await mkdir(folder, { recursive: true });
  await writeShardedSafetensors(folder, tensors, { maxShardBytes: 5e9, metadata: { format: "pt" } });
  const { quantization_config: _, ...kept } = base.config;
  await writeFileAtomic(join(folder, "config.json"), `${JSON.stringify({ ...kept, dtype: "float32" }, null, 2)}\n`);
}

/** Reads into a model, to which the tuner was applied already, what `saveTuned` wrote. Throws ModelError unless every tensor fits. */
export async function loadTuned(folder: string, model: CausalLM, tuner: Tuner): Promise<void> {
  const parameters = model.trainableParameters();
  const files = tuner.peft === undefined ? await openModelFolder(folder) : await openAdapter(folder);
  checkTensors(folder, new Map([...parameters].map(([name, { shape }]) => [name, shape])), files.tensors);
  for (const [name, parameter] of parameters) {
    const entry = files.tensors.get(name)!;
    setValues(parameter.value, await files.readTensor(name), entry.dtype);
  }
}

/** Applies an adapter from disk to a loaded model. Returns the method and settings it was made with. Throws ModelError. */
export async function applyAdapter(
  folder: string,
  model: CausalLM,
  tuners: readonly Tuner[],
  rng: Rng,
): Promise<{ tuner: Tuner; config: unknown }> {
  const { config: adapterConfig, tensors } = await openAdapter(folder);
  const tuner = tuners.find(({ peft }) => peft?.peftType === adapterConfig.peft_type);
  if (tuner?.peft === undefined)
    throw new ModelError(`${folder}: attune does not know adapters of type ${adapterConfig.peft_type}`);
  const config = tuner.peft.fromPeft(adapterConfig, [...tensors.keys()]);
  tuner.apply(model, config, rng);
  await loadTuned(folder, model, tuner);
  return { tuner, config };
}
