import { readFileSync } from "node:fs";
import { join } from "node:path";
import { scope } from "../../src/core/tensor.js";
import type { Example } from "../../src/data/example.js";
import type { ComputeType } from "../../src/engine/kernels.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import type { ModelFiles } from "../../src/io/model-files.js";
import { openSafetensors, readEntry, toTensorEntry } from "../../src/io/safetensors.js";
import { asCausalLM, type CausalLM } from "../../src/models/causal-lm.js";
import { buildModel, loadWeights, type StoreWeight } from "../../src/models/load.js";
import { packSequences } from "../../src/models/token-batch.js";
import { device } from "./gradient-check.js";
import { type StepSettings, trainSteps } from "./train-steps.js";

/** Made by test/fixtures/make_llama.py, which says what each file holds. */
export const tinyLlama = join(import.meta.dirname, "../../../test/fixtures/tiny-llama");

interface Sequence {
  readonly ids: readonly number[];
  readonly supervised: readonly number[];
}

interface Training {
  readonly settings: StepSettings;
  readonly loss: readonly number[];
  readonly grad_norm: readonly number[];
  readonly lr: readonly number[];
  readonly tokens: readonly number[];
}

export interface Reference {
  readonly sequences: readonly Sequence[];
  readonly loss: { readonly tied: number; readonly untied: number };
  readonly rope: Readonly<Record<string, { rope_parameters: Record<string, unknown>; older: Record<string, unknown> }>>;
  readonly batches: readonly { readonly micro_batches: readonly (readonly Sequence[])[] }[];
  readonly full: Training;
  readonly lora: Training;
}

export const reference = JSON.parse(readFileSync(join(tinyLlama, "reference.json"), "utf8")) as Reference;

export function exampleOf({ ids, supervised }: Sequence, where = "test"): Example {
  return { ids: Int32Array.from(ids), supervised: Uint8Array.from(supervised), where, tokens: ids.length };
}

/** The two sequences, which a batch of logits is of unless said otherwise. */
export const sequences = reference.sequences.map(({ ids }) => Int32Array.from(ids));

/** Logits (T, V) of every token of a batch. */
export async function logitsOf(model: CausalLM, batch = packSequences(sequences)): Promise<Float32Array> {
  const rows = Int32Array.from(batch.ids.keys());
  const logits = scope(() => model.logits(batch, rows));
  const values = await logits.read();
  logits.dispose();
  return values;
}

/** Runs the reference's 20 steps through the training loop. */
export async function runReference(model: CausalLM, training: Reference["full"], { splitSteps = true } = {}) {
  const rows: Example[] = [];
  const steps = reference.batches.map(({ micro_batches }) => {
    const numbered = micro_batches.map((batch) => batch.map((sequence) => rows.push(exampleOf(sequence)) - 1));
    return splitSteps ? numbered : [numbered.flat()];
  });
  return await trainSteps(model, rows, steps.flat(), splitSteps ? 2 : 1, training.settings);
}

/** A fresh copy of the model, perhaps with other settings in its config, or with weights stored otherwise. */
export async function loadTinyLlama(
  name: "tied" | "untied",
  changes: Readonly<Record<string, unknown>> = {},
  compute: ComputeType = "f32",
  storing?: (model: CausalLM) => StoreWeight | undefined,
): Promise<{ model: CausalLM; files: ModelFiles }> {
  const files = await openModelFolder(join(tinyLlama, name));
  const model = asCausalLM(buildModel({ ...device, compute }, { ...files.config, ...changes }, files.path), "the test");
  await loadWeights(model, files, undefined, storing?.(model));
  return { model, files };
}

export async function readTensors(...names: string[]): Promise<Map<string, Float32Array>> {
  const tensors = new Map<string, Float32Array>();
  for (const name of names) {
    const file = await openSafetensors(join(tinyLlama, name));
    for (const [key, entry] of file.tensors) tensors.set(key, new Float32Array((await readEntry(toTensorEntry(entry))).buffer));
  }
  return tensors;
}
