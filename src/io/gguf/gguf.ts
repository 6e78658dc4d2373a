import { ModelError } from "../../errors.js";
import { fingerprintOf } from "../fingerprint.js";
import type { ModelFiles, TensorEntry } from "../model-files.js";
import { readEntry } from "../safetensors.js";
import { readGgufHeader } from "./header.js";
import { ggufArchitectures, type Heads, huggingFaceName, interleavedHeads, reorderRows, ropeFactorsName } from "./names.js";

/**
 * Opens a GGUF file of a supported architecture as if it were a Hugging Face folder: names and config are translated back
 * (llama.cpp's convert_hf_to_gguf.py, read in reverse). Checks it; reads no weights but the few RoPE factors of Llama 3.
 * Those become `rope_factors` of the config (D/2 numbers): the frequency of pair i is divided by `rope_factors[i]`.
 * Throws ModelError that names the file and what is wrong in it.
 */
export async function openGguf(path: string): Promise<ModelFiles> {
  const header = readGgufHeader(path);
  const metadata = new Metadata(path, header.metadata);
  const tensors = new Map<string, TensorEntry>();
  for (const { name: ggufName, ...extent } of header.tensors) {
    const name = huggingFaceName(ggufName);
    if (tensors.has(name)) throw new ModelError(`${path}: two tensors stand for ${name}.`);
    tensors.set(name, { name, file: path, ...extent });
  }
  const ropeFactors = tensors.get(ropeFactorsName);
  tensors.delete(ropeFactorsName);
  const config = makeConfig(path, metadata, tensors, ropeFactors && (await readFactors(ropeFactors)));
  const unread = metadata.unread(`${config.model_type}.`);
  for (const [name, entry] of tensors)
    tensors.set(name, { ...entry, isPlain: interleavedHeads(moduleOf(name), config) === undefined });

  return {
    path,
    format: "gguf",
    config,
    tensors,
    ggufMetadata: header.metadata,
    notices: unread.length === 0 ? [] : [`${path}: metadata has no effect here, as in llama.cpp: ${unread.join(", ")}`],
    fingerprint: fingerprintOf(config, tensors.values()),
    async readTensor(name) {
      const entry = tensors.get(name);
      if (!entry) throw new ModelError(`${path}: has no tensor ${name}.`);
      const data = await readEntry(entry);
      const heads = interleavedHeads(moduleOf(name), config);
      return heads === undefined ? data : reorderRows(data, entry.shape[0]!, heads, "huggingFace");
    },
  };
}

/** The module that a tensor belongs to: its name without `.weight` or `.bias`. */
function moduleOf(name: string): string {
  return name.slice(0, name.lastIndexOf("."));
}

function makeConfig(
  path: string,
  metadata: Metadata,
  tensors: ReadonlyMap<string, TensorEntry>,
  ropeFactors: number[] | undefined,
): Heads {
  const modelType = metadata.string("general.architecture");
  const architecture = ggufArchitectures.get(modelType);
  if (architecture === undefined) {
    throw new ModelError(
      `${path}: architecture "${modelType.slice(0, 100)}" is not supported; attune reads ${[...ggufArchitectures.keys()].join(", ")}.`,
    );
  }
  const key = (name: string) => `${modelType}.${name}`;
  if (metadata.optionalCount(key("expert_count"))) throw new ModelError(`${path}: mixture-of-experts models are not supported.`);

  const hiddenSize = metadata.count(key("embedding_length"));
  const layers = metadata.count(key("block_count"));
  const heads = metadata.count(key("attention.head_count"));
  const keyValueHeads = metadata.optionalCount(key("attention.head_count_kv")) ?? heads;
  const headDim = metadata.optionalCount(key("attention.key_length")) ?? hiddenSize / heads;
  const valueDim = metadata.optionalCount(key("attention.value_length")) ?? headDim;
  const rotated = metadata.optionalCount(key("rope.dimension_count")) ?? headDim;
  const embedding = tensors.get("model.embed_tokens.weight");

  const wrong = (what: string) => new ModelError(`${path}: not a usable model: ${what}.`);
  if (!embedding) throw wrong("it has no tensor token_embd.weight");
  if (layers > tensors.size) throw wrong(`it claims ${layers} layers, but has only ${tensors.size} tensors`);
  if (!Number.isInteger(headDim) || headDim % 2 !== 0)
    throw wrong(`${hiddenSize} features in ${heads} heads give no even head size`);
  if (heads % keyValueHeads !== 0) throw wrong(`${heads} heads cannot share ${keyValueHeads} key and value heads`);
  if (valueDim !== headDim) throw wrong(`keys of ${headDim} and values of ${valueDim} features per head are not supported`);
  if (rotated !== headDim) throw wrong(`RoPE rotates ${rotated} of ${headDim} features per head, which is not supported`);

  const maxPositions = metadata.count(key("context_length"));
  const config: Heads = {
    architectures: [architecture],
    model_type: modelType,
    hidden_size: hiddenSize,
    intermediate_size: metadata.count(key("feed_forward_length")),
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: keyValueHeads,
    head_dim: headDim,
    hidden_act: "silu",
    rms_norm_eps: shortestDecimal(metadata.positive(key("attention.layer_norm_rms_epsilon"))),
    rope_theta: metadata.optionalPositive(key("rope.freq_base")) ?? 10000,
    rope_scaling: ropeScaling(path, metadata, modelType, maxPositions),
    ...(ropeFactors && { rope_factors: ropeFactors }),
    max_position_embeddings: maxPositions,
    vocab_size: embedding.shape[0],
    tie_word_embeddings: !tensors.has("lm_head.weight"),
    ...metadata.tokenIds(),
  };

  if (ropeFactors && ropeFactors.length !== headDim / 2) {
    throw wrong(`${ropeFactorsName} has ${ropeFactors.length} numbers, expected ${headDim / 2}`);
  }
  for (const { name, shape } of tensors.values()) {
    const interleaved = interleavedHeads(moduleOf(name), config);
    if (interleaved !== undefined && shape[0] !== interleaved * headDim) {
      throw wrong(`${name} has shape [${shape}], expected ${interleaved * headDim} rows`);
    }
  }
  return config;
}

/**
 * As in config.json of transformers; null for none. A factor without a type is linear, and older files call it `rope.scale_linear`.
 * Source: llama.cpp, llama-model.cpp, load_hparams.
 */
function ropeScaling(path: string, metadata: Metadata, modelType: string, maxPositions: number) {
  const key = (name: string) => `${modelType}.rope.scaling.${name}`;
  const type = metadata.optionalString(key("type")) ?? "linear";
  const older = metadata.optionalFactor(`${modelType}.rope.scale_linear`);
  const factor = metadata.optionalFactor(key("factor")) ?? older ?? 1;
  if (type !== "yarn") metadata.refuseUnless(key("attn_factor"), (value) => value === 1);
  if (type === "none" || (type === "linear" && factor === 1)) return null;
  if (type === "linear") return { rope_type: "linear", factor };
  if (type !== "yarn") {
    throw new ModelError(`${path}: RoPE scaling "${type.slice(0, 100)}" is not supported; attune knows linear, llama3 and yarn.`);
  }
  // llama.cpp multiplies its attention factor with YaRN's own; transformers takes the product.
  const ownFactor = metadata.optionalPositive(key("yarn_attn_factor")) ?? metadata.optionalPositive(key("attn_factor"));
  const optional = {
    attention_factor: ownFactor === undefined ? undefined : ownFactor * (1 + 0.1 * Math.log(factor)),
    beta_fast: metadata.optionalPositive(key("yarn_beta_fast")),
    beta_slow: metadata.optionalPositive(key("yarn_beta_slow")),
  };
  return {
    rope_type: "yarn",
    factor,
    original_max_position_embeddings: metadata.optionalCount(key("original_context_length")) ?? maxPositions,
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)),
  };
}

async function readFactors(entry: TensorEntry): Promise<number[]> {
  if (entry.dtype !== "f32") throw new ModelError(`${entry.file}: ${entry.name} has type ${entry.dtype}, expected f32.`);
  const factors = [...new Float32Array((await readEntry(entry)).buffer)];
  if (!factors.every((factor) => factor > 0 && Number.isFinite(factor))) {
    throw new ModelError(`${entry.file}: ${entry.name} holds a factor that is not a positive number.`);
  }
  return factors;
}

/** An epsilon of 1e-5 is stored as float32; the shortest decimal with the same float32 is what config.json had. */
function shortestDecimal(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const candidate = Number(value.toPrecision(digits));
    if (Math.fround(candidate) === value) return candidate;
  }
  return value;
}

const maxCount = 2 ** 31 - 1;

/** Keys of an architecture that change nothing of what a model computes here. */
const inertKeys: ReadonlySet<string> = new Set(["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"]);

const isNothing = (value: unknown) => value === 0 || value === false;
const isNothingOrOne = (value: unknown) => value === 0 || value === 1;

/** Keys that would change what a model computes, and the values under which they do not. */
const changingKeys: Readonly<Record<string, (value: unknown) => boolean>> = {
  "attention.causal": (value) => value === true,
  "attention.clamp_kqv": isNothing,
  "attention.max_alibi_bias": isNothing,
  "attention.output_scale": isNothingOrOne,
  "attention.scale": isNothing,
  "attention.shared_kv_layers": isNothing,
  attn_logit_softcapping: isNothing,
  embedding_scale: isNothingOrOne,
  final_logit_softcapping: isNothing,
  logit_scale: isNothingOrOne,
  nextn_predict_layers: isNothing,
  residual_scale: isNothingOrOne,
  "rope.scaling.alpha": isNothingOrOne,
  "rope.scaling.yarn_ext_factor": (value) => value === 1 || value === -1,
  "rope.scaling.yarn_log_multiplier": isNothing,
  swin_norm: isNothing,
  use_parallel_residual: isNothing,
};

/** Metadata of an untrusted file, by key and expected kind. */
class Metadata {
  readonly #path: string;
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #read = new Set<string>();

  constructor(path: string, values: Readonly<Record<string, unknown>>) {
    this.#path = path;
    this.#values = values;
  }

  #get<T>(key: string, expected: string, accepts: (value: unknown) => value is T): T | undefined {
    const value = this.#values[key];
    this.#read.add(key);
    if (value === undefined || accepts(value)) return value;
    const shown = Array.isArray(value) ? "an array" : String(value).slice(0, 100);
    throw new ModelError(`${this.#path}: metadata "${key}" is ${shown}, expected ${expected}.`);
  }

  /** Throws ModelError if a key has a value that would change the model in a way that attune does not know. */
  refuseUnless(key: string, isNeutral: (value: unknown) => boolean): void {
    this.#read.add(key);
    const value = this.#values[key];
    if (value !== undefined && !isNeutral(value))
      throw new ModelError(`${this.#path}: metadata "${key}" is ${String(value).slice(0, 100)}, which is not supported.`);
  }

  /** The keys that begin so and that nobody has asked for. Throws ModelError for one that would change the model. */
  unread(prefix: string): string[] {
    for (const [name, isNeutral] of Object.entries(changingKeys)) this.refuseUnless(prefix + name, isNeutral);
    const own = Object.keys(this.#values).filter((key) => key.startsWith(prefix) && !this.#read.has(key));
    return own.filter((key) => !inertKeys.has(key.slice(prefix.length)) && !isNothing(this.#values[key]));
  }

  #require<T>(key: string, value: T | undefined): T {
    if (value === undefined) throw new ModelError(`${this.#path}: not a usable model: metadata "${key}" is missing.`);
    return value;
  }

  optionalString(key: string): string | undefined {
    return this.#get(key, "a string", (value) => typeof value === "string");
  }

  string(key: string): string {
    return this.#require(key, this.optionalString(key));
  }

  /** Zero counts as absent, as some converters write it for "none". */
  optionalCount(key: string): number | undefined {
    const isCount = (value: unknown): value is number =>
      Number.isInteger(value) && (value as number) >= 0 && (value as number) <= maxCount;
    return this.#get(key, `a whole number up to ${maxCount}`, isCount) || undefined;
  }

  count(key: string): number {
    return this.#require(key, this.optionalCount(key));
  }

  optionalPositive(key: string): number | undefined {
    const isPositive = (value: unknown): value is number => Number.isFinite(value) && (value as number) > 0;
    return this.#get(key, "a positive number", isPositive);
  }

  /** A factor that may be 0 for none. */
  optionalFactor(key: string): number | undefined {
    const isFactor = (value: unknown): value is number => Number.isFinite(value) && (value as number) >= 0;
    return this.#get(key, "a number of 0 or more", isFactor) || undefined;
  }

  positive(key: string): number {
    return this.#require(key, this.optionalPositive(key));
  }

  tokenIds(): Record<string, number> {
    const ids: Record<string, number> = {};
    for (const [name, key] of Object.entries({ bos_token_id: "bos", eos_token_id: "eos", pad_token_id: "padding" })) {
      const isId = (value: unknown): value is number =>
        Number.isInteger(value) && (value as number) >= 0 && (value as number) <= maxCount;
      const id = this.#get(`tokenizer.ggml.${key}_token_id`, "a token id", isId);
      if (id !== undefined) ids[name] = id;
    }
    return ids;
  }
}
