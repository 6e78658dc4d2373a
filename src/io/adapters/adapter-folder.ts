import { join } from "node:path";
import type { z } from "zod";
import { ModelError } from "../../errors.js";
import { namesIn } from "../disk.js";
import { readJsonObject } from "../hf-folder.js";
import type { TensorEntry } from "../model-files.js";
import type { TensorSource } from "../safetensors.js";

/** Adapters as other programs store them: a folder with `adapter_config.json` and weights beside it. */

export const adapterConfigName = "adapter_config.json";

/** adapter_config.json as read. Only the method that it belongs to knows what its keys mean. */
export type AdapterConfig = Readonly<Record<string, unknown>>;

/** An opened adapter: every size is checked, no values are read. */
export interface AdapterFiles {
  readonly path: string;
  readonly config: AdapterConfig;
  /** By attune's names. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** Throws ModelError if a value is NaN or infinite. */
  readTensor(name: string): Promise<Uint8Array>;
}

/** What an adapter folder says of its making, whichever method trained it. */
export interface AdapterOrigin {
  /** The base model, as the recipe names it. */
  readonly name: string;
  /** config.json of the base. */
  readonly config: Readonly<Record<string, unknown>>;
  /** What it was trained for, in PEFT's words (TaskType); CAUSAL_LM unless given. */
  readonly taskType?: string;
  /** Modules that were trained whole beside what the method trains, by the end of their names: a head. */
  readonly modulesToSave?: readonly string[];
  /** Folders inside the adapter's of the adapters that were merged into the base before: `baseAdaptersIn`. */
  readonly baseAdapters?: readonly string[];
  /** Where a whole model is saved: the types to round its weights to, by their names, and the one that config.json names. */
  readonly types?: { of(name: string): "f32" | "f16" | "bf16"; readonly named: string };
}

/**
 * How a library stores adapters in a folder: reads and writes them, and translates between the library's names of tensors and
 * attune's.
 */
export interface AdapterLibrary {
  /** The hub's word for it. */
  readonly name: string;
  /** Markdown for a card: with which releases, and how, Python loads its adapters; `baseAdapters` are merged first. */
  loading(of: { readonly isClassifier: boolean; readonly baseAdapters: readonly string[] }): string;
  /** Throws ModelError that names the file. */
  open(path: string): Promise<AdapterFiles>;
  /** `settings` are the method's part of adapter_config.json. Throws as `writeSafetensors`. */
  save(path: string, settings: AdapterConfig, origin: AdapterOrigin, tensors: Iterable<TensorSource>): Promise<void>;
}

/**
 * The settings of a method, made of what a file says. Throws ModelError that names the key where they are impossible.
 */
export function settingsFrom<Settings extends z.ZodType>(schema: Settings, values: unknown): z.output<Settings> {
  const parsed = schema.safeParse(values);
  if (parsed.success) return parsed.data;
  const { path, message } = parsed.error.issues[0]!;
  throw new ModelError(`${adapterConfigName} and the weights give no valid settings: ${shownPath(path)}: ${message}.`);
}

/**
 * Before memory is taken for a size that a config names, it has to be that of a tensor, which is as large as its file. Throws ModelError.
 */
export function checkSize(
  tensors: ReadonlyMap<string, TensorEntry>,
  { name, axis, key, size }: { readonly name: string; readonly axis: number; readonly key: string; readonly size: number },
): void {
  const shape = tensors.get(name)?.shape;
  if (shape?.[axis] === size) return;
  const found = shape === undefined ? "there is none" : `it is [${shape.join(", ")}]`;
  throw new ModelError(
    `${adapterConfigName}: a tensor is of another shape: ${name}: by ${key} it should have ${size} ${axis === 0 ? "rows" : "columns"}, but ${found}.`,
  );
}

/** Where in a config something is wrong, for messages. */
export function shownPath(path: readonly PropertyKey[]): string {
  return path.map(String).join(".").slice(0, 200);
}

/** Keys by which a config could have a library import modules or run code. */
const codeKeys = ["auto_mapping", "megatron_core", "megatron_config", "tokenizer_kwargs", "auto_map", "custom_pipelines"];

/** Values that mean "not used" in keys that are not understood; and two keys whose unused value is something else. */
const unusedValues: Readonly<Record<string, unknown>> = { megatron_core: "megatron.core", qalora_group_size: 16 };

/** Whether a value of a key that is not understood says that it is not used. */
export function isUnused(key: string, value: unknown): boolean {
  if (value === null || value === false || value === "") return true;
  if (typeof value === "object") return Object.keys(value).length === 0;
  return value === unusedValues[key];
}

/** Where an adapter has no task, PEFT writes down the base's class. One of transformers' own brings no code along. */
function isOwnClass(key: string, value: unknown): boolean {
  if (key !== "auto_mapping" || typeof value !== "object" || value === null) return false;
  const { parent_library: library, base_model_class: name, ...others } = value as Record<string, unknown>;
  const isName = (text: unknown, pattern: RegExp) => typeof text === "string" && pattern.test(text);
  return isName(library, /^transformers(\.\w+)*$/) && isName(name, /^\w+$/) && Object.keys(others).length === 0;
}

/** Reads adapter_config.json of a folder. Throws ModelError if there is none, or if it could make a program run code. */
export async function readAdapterConfig(folder: string): Promise<AdapterConfig> {
  if (!(await namesIn(folder)).includes(adapterConfigName))
    throw new ModelError(`${folder}: no adapter here: it has no ${adapterConfigName}.`);
  const path = join(folder, adapterConfigName);
  const json = await readJsonObject(path);
  for (const key of codeKeys)
    if (Object.hasOwn(json, key) && !isUnused(key, json[key]) && !isOwnClass(key, json[key]))
      throw new ModelError(
        `${path}: "${key}" is refused: it can make a program import and run other code. Remove it if you trust the adapter.`,
      );
  return json;
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
