import { multiplyRows, product, productTransposed, svd } from "../core/linalg.js";
import { Rng } from "../core/rng.js";
import { scope, Tensor, unscoped } from "../core/tensor.js";
import { loadEngine } from "../engine/load.js";
import { ConfigError } from "../errors.js";
import type { AdapterFiles } from "../io/adapters/adapter-folder.js";
import { requireNoBaseAdapters } from "../io/adapters/base-adapters.js";
import { modulesToSaveOf, openAdapter, type PeftConfig, saveAdapter } from "../io/adapters/peft.js";
import type { TensorSource } from "../io/safetensors.js";
import { setValues } from "../models/load.js";
import type { LoraConfig } from "../tuners/lora/config.js";
import { peftLora } from "../tuners/lora/peft-lora.js";
import { updateAt } from "../tuners/lora/targets.js";
import { drop, electedMean, keepLargest, sum, type Weighted } from "./blend.js";

/** How changes can be put together: `CombineOptions`. */
export const combinationMethods = ["linear", "cat", "svd", "ties", "dare_linear", "dare_ties"] as const;
/** One of `combinationMethods`. */
export type CombinationMethod = (typeof combinationMethods)[number];

/** An adapter, and how much of it. */
export interface WeightedAdapter {
  /** A folder in PEFT's format. */
  readonly path: string;
  /** Its change is multiplied by this; may be negative. */
  readonly weight: number;
}

/** How adapters are combined. */
export interface CombineOptions {
  /**
   * cat: exactly the weighted sum of the changes, of the sum of the ranks. svd: the nearest to it of rank `rank`. linear: weighted sums of A and of
   * B, which only resemble it. ties, dare_linear, dare_ties: the same after thinning out.
   */
  readonly method: CombinationMethod;
  /** Of svd; the largest of the adapters' where not given. */
  readonly rank?: number;
  /** The share of the values that ties and dare leave in; the others become 0. Default 1: all. */
  readonly density?: number;
  /** How ties chooses the sign at each place: by the sum of the values, or by their number. */
  readonly majoritySign?: "total" | "frequency";
  /** Seed of dare's random choice of values. */
  readonly seed?: number;
}

/**
 * Makes one LoRA adapter of several and writes it to a folder in PEFT's format.
 *
 * Source: PEFT 0.21, lora/model.py `add_weighted_adapter`; blend.ts has the formulas. Unlike there, the new adapter never scales by rsLoRA's root:
 * its update counts once. Throws ConfigError for adapters that cannot be combined so, ModelError for a folder that has none.
 */
export async function combineAdapters(
  adapters: readonly WeightedAdapter[],
  output: string,
  options: CombineOptions,
): Promise<void> {
  const { method, density = 1 } = options;
  if (adapters.length === 0) throw new ConfigError("combining needs at least one adapter");
  if (!(density > 0 && density <= 1)) throw new ConfigError(`density: expected a share above 0 and at most 1, got ${density}`);
  const parts = await Promise.all(adapters.map(open));
  const paths = [...new Set(parts.flatMap(({ ranks }) => [...ranks.keys()]))];
  const ranks = parts.map((part) => Math.max(...part.ranks.values()));
  const largest = Math.max(...ranks);
  const rank = { cat: ranks.reduce((a, b) => a + b, 0), svd: options.rank ?? largest }[method as string] ?? largest;

  const sources: TensorSource[] = [];
  for (const path of paths) {
    const changes: Change[] = [];
    for (const part of parts) if (part.ranks.has(path)) changes.push(await readChange(part, path));
    const { a, b, inFeatures, outFeatures } = await combineChanges(path, changes, rank, options);
    sources.push(floatSource(`${path}.lora_A.weight`, a, [rank, inFeatures]));
    sources.push(floatSource(`${path}.lora_B.weight`, b, [outFeatures, rank]));
  }
  const whole = await wholeTensors(parts);
  const { base_model_name_or_path, task_type } = parts[0]!.files.config;
  const config: PeftConfig = {
    ...{ peft_type: "LORA", task_type, base_model_name_or_path, inference_mode: true },
    ...{ r: rank, lora_alpha: rank, lora_dropout: 0, target_modules: paths, bias: "none", init_lora_weights: true },
    ...{ use_rslora: false, use_dora: false, fan_in_fan_out: false, modules_to_save: whole.modules },
  };
  await saveAdapter(output, config, [...sources, ...whole.sources]);
}

/** One of the adapters, opened. */
interface Part {
  readonly files: AdapterFiles;
  readonly config: LoraConfig;
  readonly weight: number;
  /** By the path of the layer. */
  readonly ranks: ReadonlyMap<string, number>;
}

async function open({ path, weight }: WeightedAdapter): Promise<Part> {
  if (!Number.isFinite(weight)) throw new ConfigError(`${path}: expected a number as its weight, got ${weight}`);
  const files = await openAdapter(path);
  requireNoBaseAdapters(path, files.config);
  if (!peftLora.recognises(files.config)) throw new ConfigError(`${path}: only LoRA adapters can be combined`);
  const config = peftLora.fromJson(files.config, files.tensors);
  const table = [...files.tensors.keys()].find((name) => /\.(?:lora_embedding_[AB]|base_layer\.weight)$/.test(name));
  const reason = config.use_dora
    ? "DoRA's change is not the product of two factors"
    : config.bias !== "none"
      ? "it trained biases"
      : table !== undefined && `it has ${table}, and only changes of Linear layers can be combined`;
  if (reason) throw new ConfigError(`${path}: cannot be combined: ${reason}. Merge it into the model instead`);
  const ranks = new Map<string, number>();
  for (const [name, { shape }] of files.tensors) if (name.endsWith(".lora_A.weight")) ranks.set(name.slice(0, -14), shape[0]!);
  return { files, config, weight, ranks };
}

/** What an adapter changes in one layer: scale · B A, with a (R, in) and b (out, R). */
interface Change {
  readonly a: Float32Array;
  readonly b: Float32Array;
  readonly rank: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** The layer's scaling times the adapter's weight. */
  readonly scale: number;
}

async function readChange({ files, config, weight, ranks }: Part, path: string): Promise<Change> {
  const rank = ranks.get(path)!;
  const a = await readFloats(files, `${path}.lora_A.weight`);
  const b = await readFloats(files, `${path}.lora_B.weight`);
  const scale = weight * updateAt(config, path).scaling;
  return { a, b, rank, inFeatures: a.length / rank, outFeatures: b.length / rank, scale };
}

async function combineChanges(path: string, changes: readonly Change[], rank: number, options: CombineOptions): Promise<Change> {
  const { method, density = 1, majoritySign = "total", seed = 0 } = options;
  if (method === "cat") return sideBySide(changes, rank);
  if (method === "svd") return nearest(sideBySide(changes), rank);
  for (const change of changes)
    if (change.rank !== rank)
      throw new ConfigError(
        `${method}: expected adapters of one rank, got ${change.rank} and ${rank} (${path}): choose svd or cat`,
      );
  const rng = Rng.for(seed, path);
  const thin = (values: Float32Array) => {
    if (method === "ties") return keepLargest(values, density);
    return method === "linear" ? values : drop(values, density, rng);
  };
  const join = (parts: Weighted[]) => (method.endsWith("ties") ? electedMean(parts, majoritySign) : sum(parts));
  // Each factor takes the root of the scale; its sign goes to one of them.
  const a = join(changes.map(({ a, scale }) => ({ values: thin(a), factor: Math.sign(scale) * Math.sqrt(Math.abs(scale)) })));
  const b = join(changes.map(({ b, scale }) => ({ values: thin(b), factor: Math.sqrt(Math.abs(scale)) })));
  return { ...changes[0]!, a, b, scale: 1 };
}

/** Exactly the sum of all changes: their factors side by side, filled up with zeros to the rank. */
function sideBySide(changes: readonly Change[], rank = changes.reduce((total, change) => total + change.rank, 0)): Change {
  const { inFeatures, outFeatures } = changes[0]!;
  const a = new Float32Array(rank * inFeatures);
  const b = new Float32Array(outFeatures * rank);
  let start = 0;
  for (const change of changes) {
    const scaled = change.a.map((value) => change.scale * value);
    a.set(scaled, start * inFeatures);
    for (let row = 0; row < outFeatures; row++)
      b.set(change.b.subarray(row * change.rank, (row + 1) * change.rank), row * rank + start);
    start += change.rank;
  }
  return { a, b, rank, inFeatures, outFeatures, scale: 1 };
}

/**
 * The nearest change of rank `rank`, from two small singular value decompositions: A = uᵀ diag(s) v, then diag(s) u Bᵀ = u₂ᵀ diag(s₂) v₂, so that
 * B A = (v₂ᵀ diag(s₂)) (u₂ v): of these the first columns and rows.
 */
async function nearest(change: Change, rank: number): Promise<Change> {
  const device = engineDevice();
  const { rank: full, inFeatures, outFeatures } = change;
  const factors = scope(() => {
    const { u, s, v } = svd(Tensor.from(device, change.a, [full, inFeatures]));
    const turned = productTransposed(u, Tensor.from(device, change.b, [outFeatures, full]));
    multiplyRows(turned, s);
    const second = svd(turned);
    multiplyRows(second.v, second.s);
    return { a: product(second.u, v), transposedB: second.v };
  });
  const [a, transposedB] = [await take(factors.a), await take(factors.transposedB)];
  const kept = Math.min(rank, full);
  const b = Float32Array.from(
    { length: outFeatures * kept },
    (_, i) => transposedB[(i % kept) * outFeatures + Math.floor(i / kept)]!,
  );
  return sideBySide([{ ...change, a: a.subarray(0, kept * inFeatures), b, rank: kept }], rank);
}

const engineDevice = () => ({ kernels: loadEngine(), compute: "f32" }) as const;

async function take(tensor: Tensor): Promise<Float32Array> {
  const values = await tensor.read();
  tensor.dispose();
  return values;
}

async function readFloats(files: AdapterFiles, name: string): Promise<Float32Array> {
  const { shape, dtype } = files.tensors.get(name)!;
  const tensor = unscoped(() => Tensor.empty(engineDevice(), shape));
  setValues(tensor, await files.readTensor(name), dtype);
  return await take(tensor);
}

function floatSource(name: string, values: Float32Array, shape: readonly number[]): TensorSource {
  return { name, dtype: "f32", shape, data: () => new Uint8Array(values.buffer, values.byteOffset, values.byteLength) };
}

/** Takes over the modules that an adapter holds whole, if only one adapter has any. Throws ConfigError. */
async function wholeTensors(parts: readonly Part[]): Promise<{ modules: readonly string[] | null; sources: TensorSource[] }> {
  const owners = parts.filter(({ config }) => config.additional_target !== null);
  if (owners.length > 1)
    throw new ConfigError(
      `${owners.map(({ files }) => files.path).join(" and ")} both bring whole modules, which cannot be combined`,
    );
  const [owner] = owners;
  if (owner === undefined) return { modules: null, sources: [] };
  const { files } = owner;
  const names = [...files.tensors.keys()].filter((name) => !/\.lora_[AB]\.weight$/.test(name));
  const sources = names.map(async (name) => floatSource(name, await readFloats(files, name), files.tensors.get(name)!.shape));
  return { modules: modulesToSaveOf(files.config), sources: await Promise.all(sources) };
}
