import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/core/rng.js";
import type { LabelledExample } from "../../src/data/example.js";
import type { ComputeType } from "../../src/engine/kernels.js";
import { openModelFolder } from "../../src/io/hf-folder.js";
import type { ModelFiles } from "../../src/io/model-files.js";
import { classesOf } from "../../src/models/classes.js";
import type { LanguageModel } from "../../src/models/language-model.js";
import { loadModel } from "../../src/models/load.js";
import { classification } from "../../src/objectives/classification/classification.js";
import type { Task } from "../../src/objectives/objective.js";
import { byteTokenizer } from "../../src/text/tokenizer/byte-tokenizer.js";
import { familyFolder } from "./families.js";
import { device } from "./gradient-check.js";
import { tinyLlama } from "./tiny-llama.js";

/** Made by test/fixtures/make_classifiers.py, which says what each folder holds. */
export const classifierFolder = (name: string) => join(import.meta.dirname, "../../../test/fixtures/classifiers", name);

export interface ClassifierReference {
  readonly rows: readonly {
    readonly text: string;
    readonly ids: readonly number[];
    readonly label: string;
    readonly logits: readonly number[];
  }[];
  /** Summed over the rows. */
  readonly loss: number;
  /** Of each gradient: norm, Σ g · cos(i), Σ g · sin(i). */
  readonly gradients: Readonly<Record<string, readonly [norm: number, cosines: number, sines: number]>>;
}

export function readReference(name: "bert" | "llama"): ClassifierReference {
  return JSON.parse(readFileSync(join(classifierFolder(name), "reference.json"), "utf8")) as ClassifierReference;
}

export const examplesOf = ({ rows }: ClassifierReference): LabelledExample[] =>
  rows.map(({ ids, label, text }) => ({ ids: Int32Array.from(ids), label, where: text, tokens: ids.length }));

/** Bases without a head, by family. */
export const bases: Readonly<Record<string, string>> = {
  bert: classifierFolder("bert-base"),
  llama: join(tinyLlama, "tied"),
  ...Object.fromEntries(["qwen2", "qwen3", "gemma3", "phi3", "gpt2"].map((name) => [name, familyFolder(name)])),
};

/** A base under the classification objective: the model with a new head, the task, and the files with the model's config. */
export async function classifierOn(
  folder: string,
  examples: readonly LabelledExample[],
  compute: ComputeType = "f32",
): Promise<{ model: LanguageModel; task: Task<LabelledExample>; files: ModelFiles }> {
  const base = await openModelFolder(folder);
  const task = classification.task(examples, classification.config.parse({}), {
    base: base.config,
    heldOut: [],
    tokenizer: byteTokenizer(),
    warn: assert.fail,
  });
  const files = { ...base, config: task.modelConfig! };
  const hasHead = classesOf(base.config) !== null;
  const model = await loadModel({ ...device, compute }, files, hasHead ? undefined : new Rng(3));
  return { model, task, files };
}
