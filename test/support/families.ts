import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ComputeType } from "../../src/engine/kernels.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import type { ModelFiles } from "../../src/io/model-files.js";
import { asCausalLM, type CausalLM } from "../../src/models/causal-lm.js";
import { buildModel, loadWeights, type StoreWeight } from "../../src/models/load.js";
import { device } from "./gradient-check.js";
import { readTensors, tinyLlama } from "./tiny-llama.js";

/** A very small model of a family; V = 259, so the sequences of tiny-llama fit all. */
export interface Family {
  readonly name: string;
  /** A fresh copy, perhaps with other settings in its config, or with weights stored otherwise. */
  load(
    changes?: Readonly<Record<string, unknown>>,
    compute?: ComputeType,
    storing?: (model: CausalLM) => StoreWeight | undefined,
  ): Promise<{ readonly model: CausalLM; readonly files: ModelFiles }>;
}

export interface FamilyReference {
  /** Mean over the supervised tokens of all sequences. */
  readonly loss: number;
  /** Of each gradient, in the file's layout: norm, Σ g · cos(i), Σ g · sin(i). */
  readonly gradients: Readonly<Record<string, readonly [norm: number, cosines: number, sines: number]>>;
}

/** Made by test/fixtures/make_families.py, which says what each file holds. */
export const familyFolder = (name: string) => join(import.meta.dirname, "../../../test/fixtures/families", name);

/** Families that have a reference in `familyFolder`. */
export const referenced = ["qwen2", "qwen3", "gemma3", "phi3", "gpt2"].map((name) => familyIn(name, familyFolder(name)));

export const llama = familyIn("llama", join(tinyLlama, "tied"));

/** Every family of decoders. */
export const families: readonly Family[] = [llama, ...referenced];

function familyIn(name: string, folder: string): Family {
  return {
    name,
    async load(changes = {}, compute = "f32", storing = () => undefined) {
      const files = await openModelFolder(folder);
      const model = asCausalLM(buildModel({ ...device, compute }, { ...files.config, ...changes }, files.path), "the test");
      await loadWeights(model, files, undefined, storing(model));
      return { model, files };
    },
  };
}

export function readReference(name: string): FamilyReference {
  return JSON.parse(readFileSync(join(familyFolder(name), "reference.json"), "utf8")) as FamilyReference;
}

/** The last 16 rows of logits of each sequence. */
export async function readLogits(name: string): Promise<Float32Array[]> {
  const tensors = await readTensors(join("../families", name, "logits.safetensors"));
  return [tensors.get("logits.0")!, tensors.get("logits.1")!];
}
