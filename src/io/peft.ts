import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { ModelError } from "../errors.js";
import { namesIn, writeFileAtomic } from "./disk.js";
import { pickleRefused, readJsonObject } from "./hf-folder.js";
import type { TensorEntry } from "./model-files.js";
import { openSafetensors, readEntry, type TensorSource, toTensorEntry, writeSafetensors } from "./safetensors.js";

/**
 * Adapter folders as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.
 * Source: PEFT 0.21, tuners/lora/config.py and utils/save_and_load.py. In a file a tensor is called
 * `base_model.model.MODULE.lora_A.weight`; here `MODULE.lora_A.weight`.
 */

export const adapterConfigName = "adapter_config.json";
export const adapterWeightsName = "adapter_model.safetensors";
const pickleWeightsName = "adapter_model.bin";
const namePrefix = "base_model.model.";

/** PEFT takes these keys for regular expressions; a plain path means the same and cannot be made to run for ever. */
const modulePath = z
  .string()
  .regex(/^\^?[\w-]+(?:\.[\w-]+)*\$?$/, "expected a module path; regular expressions are not supported");
const names = z.union([z.string(), z.array(z.string())]);

/**
 * The keys that attune understands, with PEFT's defaults. `init_lora_weights` lists only starts that leave the base model
 * as it is: with the others (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) the adapter does not fit the unchanged base.
 */
export const LoraAdapterConfig = z.object({
  peft_type: z.literal("LORA"),
  task_type: z.string().nullable().default(null),
  base_model_name_or_path: z.string().nullable().default(null),
  revision: z.string().nullable().default(null),
  inference_mode: z.boolean().default(true),
  r: z.int().min(1),
  lora_alpha: z.number(),
  lora_dropout: z.number().min(0).lt(1).default(0),
  /** Names, or one regular expression: which modules are adapted is better told from the tensors. */
  target_modules: names.nullable().default(null),
  exclude_modules: names.nullable().default(null),
  modules_to_save: z.array(z.string()).nullable().default(null),
  rank_pattern: z.record(modulePath, z.int().min(1)).nullable().default({}),
  alpha_pattern: z.record(modulePath, z.number()).nullable().default({}),
  use_rslora: z.boolean().default(false),
  use_dora: z.boolean().default(false),
  bias: z.literal("none").default("none"),
  fan_in_fan_out: z.boolean().default(false),
  init_lora_weights: z.union([z.boolean(), z.enum(["gaussian", "eva", "orthogonal"])]).default(true),
  layers_to_transform: z
    .union([z.int(), z.array(z.int())])
    .nullable()
    .default(null),
  layers_pattern: names.nullable().default(null),
  peft_version: z.string().nullable().optional(),
});
export type LoraAdapterConfig = z.output<typeof LoraAdapterConfig>;

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
 * Checks an untrusted adapter config against the list above. Other keys may be there as long as they say "not used".
 * Throws ModelError that names the key.
 */
export function parseAdapterConfig(where: string, json: Readonly<Record<string, unknown>>): LoraAdapterConfig {
  for (const [key, value] of Object.entries(json)) {
    if (Object.hasOwn(LoraAdapterConfig.shape, key) || isUnused(key, value)) continue;
    const shown = JSON.stringify(key.slice(0, 100));
    throw new ModelError(
      codeKeys.includes(key)
        ? `${where}: ${shown} is refused: it can make a program import and run other code. Remove it if you trust the adapter.`
        : `${where}: ${shown} is set to something attune does not know, so the adapter would compute something else than it was trained for.`,
    );
  }
  if (json.peft_type !== "LORA") {
    throw new ModelError(`${where}: peft_type is ${JSON.stringify(json.peft_type)?.slice(0, 100)}; attune reads LORA.`);
  }
  const parsed = LoraAdapterConfig.safeParse(json);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0]!;
  throw new ModelError(`${where}: ${path.map(String).join(".").slice(0, 200)}: ${message}.`);
}

export interface AdapterFiles {
  readonly path: string;
  readonly config: LoraAdapterConfig;
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
  const config = parseAdapterConfig(configPath, await readJsonObject(configPath));

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
export async function saveAdapter(
  path: string,
  config: z.input<typeof LoraAdapterConfig>,
  tensors: Iterable<TensorSource>,
): Promise<void> {
  const parsed = parseAdapterConfig(join(path, adapterConfigName), config);
  await mkdir(path, { recursive: true });
  const renamed = [...tensors].map((tensor) => ({ ...tensor, name: namePrefix + tensor.name }));
  await writeSafetensors(join(path, adapterWeightsName), renamed, { metadata: { format: "pt" } });
  await writeFileAtomic(join(path, "README.md"), modelCard(parsed));
  await writeFileAtomic(join(path, adapterConfigName), `${JSON.stringify(parsed, null, 2)}\n`);
}

function modelCard({ base_model_name_or_path: base, r, lora_alpha: alpha }: LoraAdapterConfig): string {
  const yamlString = JSON.stringify(base ?? "unknown"); // JSON strings are YAML strings
  return `---
base_model: ${yamlString}
library_name: peft
pipeline_tag: text-generation
tags: [lora, attune]
---

# LoRA adapter

Trained with attune: rank ${r}, alpha ${alpha}. It loads with attune and with PEFT:

\`\`\`python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
\`\`\`
`;
}
