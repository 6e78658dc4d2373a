import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { z } from "zod";
import { ModelError } from "../errors.js";
import {
  type AdapterConfig,
  type AdapterFiles,
  type AdapterLibrary,
  adapterConfigName,
  firstNonFinite,
  isUnused,
  readAdapterConfig,
} from "./adapter-folder.js";
import { namesIn, writeFileAtomic } from "./disk.js";
import { pickleRefused } from "./hf-folder.js";
import type { TensorEntry } from "./model-files.js";
import { openSafetensors, readEntry, type TensorSource, toTensorEntry, writeSafetensors } from "./safetensors.js";

/**
 * Adapter folders as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.
 * Source: PEFT 0.21, utils/save_and_load.py.
 */
export const peft: AdapterLibrary = {
  open: openAdapter,
  save: (path, settings, { name, taskType = "CAUSAL_LM", modulesToSave = [] }, tensors) => {
    const common = { task_type: taskType, base_model_name_or_path: name, inference_mode: true };
    const whole = [...new Set([...modulesToSaveOf(settings), ...modulesToSave])];
    const config = { ...common, ...settings, ...(whole.length > 0 && { modules_to_save: whole }) };
    return saveAdapter(path, withPeftType(config, "settings"), tensors);
  },
};

const adapterWeightsName = "adapter_model.safetensors";
const pickleWeightsName = "adapter_model.bin";

/** adapter_config.json of PEFT: which method it is for. */
export type PeftConfig = AdapterConfig & { readonly peft_type: string };

/** Where attune keeps the vectors that PEFT's prompt-learning methods save under one name, `prompt_embeddings`. */
const promptNames: ReadonlyMap<string, string> = new Map([
  ["P_TUNING", "prompt.embedding.weight"],
  ["PROMPT_TUNING", "prompt.embedding.weight"],
  ["PREFIX_TUNING", "prefix.embedding.weight"],
]);

/**
 * What a tensor is called in a file. PEFT wraps the base model once for prompt learning and twice for other methods; here a tensor has the name
 * that it has in the model: `MODULE.lora_A.weight`.
 */
function peftName(name: string, { peft_type }: PeftConfig): string {
  const promptName = promptNames.get(peft_type);
  if (name === promptName) return "prompt_embeddings";
  return (promptName === undefined ? "base_model.model." : "base_model.") + name;
}

/** The reverse of `peftName`; undefined if it is no such name. */
function ownName(name: string, { peft_type }: PeftConfig): string | undefined {
  const promptName = promptNames.get(peft_type);
  if (promptName !== undefined && name === "prompt_embeddings") return promptName;
  const prefix = promptName === undefined ? "base_model.model." : "base_model.";
  return name.startsWith(prefix) ? name.slice(prefix.length) : undefined;
}

/** The modules that an adapter brings whole. Throws ModelError. */
export function modulesToSaveOf({ modules_to_save: names }: AdapterConfig): readonly string[] {
  if (names === undefined || names === null) return [];
  if (Array.isArray(names) && names.every((name): name is string => typeof name === "string")) return names;
  throw new ModelError(`${adapterConfigName}: modules_to_save: expected a list of names.`);
}

/** What every method's config may hold beside its own. */
const commonKeys = new Set([
  "peft_type",
  "task_type",
  "base_model_name_or_path",
  "revision",
  "inference_mode",
  "modules_to_save",
  "peft_version",
]);

/**
 * Checks an untrusted adapter config against the keys that a method understands. Other keys may be there as long as they say "not used".
 * Throws ModelError that names the key.
 */
export function checkAdapterConfig<Known extends z.ZodObject>(
  where: string,
  config: AdapterConfig,
  known: Known,
): z.output<Known> {
  for (const [key, value] of Object.entries(config)) {
    if (Object.hasOwn(known.shape, key) || commonKeys.has(key) || isUnused(key, value)) continue;
    const shown = JSON.stringify(key.slice(0, 100));
    throw new ModelError(
      `${where}: ${shown} is set to something attune does not know, so the adapter would compute something else than it was trained for.`,
    );
  }
  const parsed = known.safeParse(config);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const message = issue.code === "invalid_key" ? issue.issues[0]!.message : issue.message;
  throw new ModelError(`${where}: ${issue.path.map(String).join(".").slice(0, 200)}: ${message}.`);
}

function withPeftType(config: AdapterConfig, where: string): PeftConfig {
  const { peft_type } = config;
  if (typeof peft_type !== "string") throw new ModelError(`${where}: peft_type is missing or no text.`);
  return { ...config, peft_type };
}

/** Opens an adapter folder and checks everything but the values. Throws ModelError that names the file. */
export async function openAdapter(path: string): Promise<AdapterFiles> {
  const config = withPeftType(await readAdapterConfig(path), join(path, adapterConfigName));
  const found = await namesIn(path);
  if (!found.includes(adapterWeightsName) && found.includes(pickleWeightsName)) {
    throw pickleRefused(join(path, pickleWeightsName), adapterWeightsName);
  }
  const file = await openSafetensors(join(path, adapterWeightsName));
  const tensors = new Map<string, TensorEntry>();
  for (const stored of file.tensors.values()) {
    const name = ownName(stored.name, config);
    if (name === undefined)
      throw new ModelError(
        `${file.path}: tensor ${JSON.stringify(stored.name.slice(0, 200))} does not begin with "${peftName("", config)}".`,
      );
    tensors.set(name, { ...toTensorEntry(stored), name });
  }
  return {
    path,
    config,
    tensors,
    async readTensor(name) {
      const entry = tensors.get(name);
      if (!entry) throw new ModelError(`${file.path}: has no tensor ${peftName(name, config)}.`);
      const data = await readEntry(entry);
      const bad = firstNonFinite(data, entry.dtype);
      if (bad >= 0)
        throw new ModelError(
          `${file.path}: tensor ${peftName(name, config)}: value ${bad} is not a finite number; the adapter is broken.`,
        );
      return data;
    },
  };
}

/**
 * Writes an adapter folder that PEFT loads, with a small model card. Tensors carry attune's names.
 * The config comes last: a folder without it is not taken for an adapter. Throws as `writeSafetensors`.
 */
export async function saveAdapter(path: string, config: PeftConfig, tensors: Iterable<TensorSource>): Promise<void> {
  await mkdir(path, { recursive: true });
  const renamed = [...tensors].map((tensor) => ({ ...tensor, name: peftName(tensor.name, config) }));
  await writeSafetensors(join(path, adapterWeightsName), renamed, { metadata: { format: "pt" } });
  await writeFileAtomic(join(path, "README.md"), modelCard(config));
  await writeFileAtomic(join(path, adapterConfigName), `${JSON.stringify(config, null, 2)}\n`);
}

function modelCard({ base_model_name_or_path: base, peft_type: method }: PeftConfig): string {
  const yamlString = JSON.stringify(base ?? "unknown"); // JSON strings are YAML strings
  return `---
base_model: ${yamlString}
library_name: peft
pipeline_tag: text-generation
tags: [${method.toLowerCase()}, attune]
---

# ${method} adapter

Trained with attune. It loads with attune and with PEFT:

\`\`\`python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
\`\`\`
`;
}
