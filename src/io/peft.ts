import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { z } from "zod";
import { ModelError } from "../errors.js";
import { namesIn, writeFileAtomic } from "./disk.js";
import { pickleRefused, readJsonObject } from "./hf-folder.js";
import type { TensorEntry } from "./model-files.js";
import { openSafetensors, readEntry, type TensorSource, toTensorEntry, writeSafetensors } from "./safetensors.js";

/**
 * Adapter folders as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.
 * Source: PEFT 0.21, utils/save_and_load.py. In a file a tensor is called
 * `base_model.model.MODULE.lora_A.weight`; here `MODULE.lora_A.weight`.
 */

export const adapterConfigName = "adapter_config.json";
export const adapterWeightsName = "adapter_model.safetensors";
const pickleWeightsName = "adapter_model.bin";
const namePrefix = "base_model.model.";

/** adapter_config.json as it stands: what its keys mean is known to the method that `peft_type` names. */
export type AdapterConfig = Readonly<Record<string, unknown>> & { readonly peft_type: string };

/** Values that mean "not used" in keys that are not understood; and two keys whose unused value is something else. */
const unusedValues: Readonly<Record<string, unknown>> = { megatron_core: "megatron.core", qalora_group_size: 16 };

/** Keys by which a config could have PEFT import modules or run code. */
const codeKeys = ["auto_mapping", "megatron_core", "megatron_config", "tokenizer_kwargs", "auto_map", "custom_pipelines"];

function isUnused(key: string, value: unknown): boolean {
  if (value === null || value === false || value === "") return true;
  if (typeof value === "object") return Object.keys(value).length === 0;
  return value === unusedValues[key];
}

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
    if (Object.hasOwn(known.shape, key) || isUnused(key, value)) continue;
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

async function readAdapterConfig(path: string): Promise<AdapterConfig> {
  const json = await readJsonObject(path);
  for (const key of codeKeys)
    if (Object.hasOwn(json, key) && !isUnused(key, json[key]))
      throw new ModelError(
        `${path}: "${key}" is refused: it can make a program import and run other code. Remove it if you trust the adapter.`,
      );
  const { peft_type } = json;
  if (typeof peft_type !== "string") throw new ModelError(`${path}: peft_type is missing or no text.`);
  return { ...json, peft_type };
}

export interface AdapterFiles {
  readonly path: string;
  readonly config: AdapterConfig;
  /** By attune's names, without `base_model.model.`. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** Throws ModelError if a value is NaN or infinite. */
  readTensor(name: string): Promise<Uint8Array>;
}

/** Opens an adapter folder and checks everything but the values. Throws ModelError that names the file. */
export async function openAdapter(path: string): Promise<AdapterFiles> {
  const found = await namesIn(path);
  if (!found.includes(adapterConfigName)) throw new ModelError(`${path}: no adapter here: it has no ${adapterConfigName}.`);
  if (!found.includes(adapterWeightsName) && found.includes(pickleWeightsName)) {
    throw pickleRefused(join(path, pickleWeightsName), adapterWeightsName);
  }
  const configPath = join(path, adapterConfigName);
  const config = await readAdapterConfig(configPath);

  const file = await openSafetensors(join(path, adapterWeightsName));
  const tensors = new Map<string, TensorEntry>();
  for (const stored of file.tensors.values()) {
    if (!stored.name.startsWith(namePrefix)) {
      throw new ModelError(
        `${file.path}: tensor ${JSON.stringify(stored.name.slice(0, 200))} does not begin with "${namePrefix}".`,
      );
    }
    const name = stored.name.slice(namePrefix.length);
    tensors.set(name, { ...toTensorEntry(stored), name });
  }
  return {
    path,
    config,
    tensors,
    async readTensor(name) {
      const entry = tensors.get(name);
      if (!entry) throw new ModelError(`${file.path}: has no tensor ${namePrefix}${name}.`);
      const data = await readEntry(entry);
      const bad = firstNonFinite(data, entry.dtype);
      if (bad >= 0)
        throw new ModelError(
          `${file.path}: tensor ${namePrefix}${name}: value ${bad} is not a finite number; the adapter is broken.`,
        );
      return data;
    },
  };
}

/** Index of the first NaN or infinite value, -1 if there is none: those whose exponent is all ones. */
function firstNonFinite(data: Uint8Array, dtype: string): number {
  const isWide = dtype === "f32";
  const words = isWide ? new Uint32Array(data.buffer) : new Uint16Array(data.buffer);
  const exponent = isWide ? 0x7f800000 : dtype === "f16" ? 0x7c00 : 0x7f80;
  return words.findIndex((word: number) => (word & exponent) === exponent);
}

/**
 * Compares the tensors of a file with what the model needs, by name and shape.
 * Throws ModelError that lists what is missing, left over and of another shape.
 */
export function checkTensors(
  where: string,
  expected: ReadonlyMap<string, readonly number[]>,
  actual: ReadonlyMap<string, { readonly shape: readonly number[] }>,
): void {
  const missing = [...expected.keys()].filter((name) => !actual.has(name));
  const leftover = [...actual.keys()].filter((name) => !expected.has(name));
  const misshapen: string[] = [];
  for (const [name, shape] of expected) {
    const found = actual.get(name)?.shape;
    if (found && found.join() !== shape.join()) misshapen.push(`${name} is [${found}], expected [${shape}]`);
  }
  const findings = [list("missing", missing), list("left over", leftover), list("of another shape", misshapen)].filter(Boolean);
  if (findings.length > 0) {
    throw new ModelError(
      `${where}: the tensors do not fit the model: ${findings.join("; ")}. Was it made for another base model?`,
    );
  }
}

const maxListed = 5;

function list(what: string, items: string[]): string {
  if (items.length === 0) return "";
  const more = items.length > maxListed ? `, … (${items.length} in all)` : "";
  return `${what}: ${items.slice(0, maxListed).join(", ")}${more}`;
}

/**
 * Writes an adapter folder that PEFT loads, with a small model card. Tensors carry attune's names.
 * The config comes last: a folder without it is not taken for an adapter. Throws as `writeSafetensors`.
 */
export async function saveAdapter(path: string, config: AdapterConfig, tensors: Iterable<TensorSource>): Promise<void> {
  await mkdir(path, { recursive: true });
  const renamed = [...tensors].map((tensor) => ({ ...tensor, name: namePrefix + tensor.name }));
  await writeSafetensors(join(path, adapterWeightsName), renamed, { metadata: { format: "pt" } });
  await writeFileAtomic(join(path, "README.md"), modelCard(config));
  await writeFileAtomic(join(path, adapterConfigName), `${JSON.stringify(config, null, 2)}\n`);
}

function modelCard({ base_model_name_or_path: base, peft_type: method }: AdapterConfig): string {
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
