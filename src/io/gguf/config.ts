import { ModelError } from "../../errors.js";
import { ropeSettings } from "../rope-settings.js";
import { ggufArchitectures } from "./names.js";
import type { GgufMetadata, GgufValue } from "./writer.js";

type Config = Readonly<Record<string, unknown>>;

/** The shape of a model and its rotary positions, as GGUF stores them. */
export interface GgufShape {
  /** `general.architecture`, which is also the first part of the other keys. */
  readonly architecture: string;
  readonly metadata: GgufMetadata;
  /** Divisors of RoPE's frequencies, to be stored as a tensor; none for scalings that have their own keys. */
  readonly ropeFactors: Float32Array | undefined;
}

/**
 * A config.json as metadata of a GGUF file: the reverse of what `openGguf` makes of it. `rows` are those of the embedding.
 * Source: llama.cpp, convert_hf_to_gguf.py (TextModel, LlamaModel, Qwen2Model, Qwen3Model).
 * Throws ModelError for an architecture or a setting that cannot be written.
 */
export function ggufShape(config: Config, rows: number, where: string): GgufShape {
  const modelType = String(config.model_type);
  const architecture = modelType === "mistral" ? "llama" : modelType;
  if (!ggufArchitectures.has(architecture))
    throw new ModelError(
      `${where}: models of type ${JSON.stringify(modelType)} cannot be written as GGUF by attune yet; llama, mistral, qwen2 and qwen3 can. ` +
        "Export a Hugging Face folder and use llama.cpp's convert_hf_to_gguf.py.",
    );
  const number = (name: string): number => {
    const value = config[name];
    if (typeof value !== "number") throw new ModelError(`${where}: config.json has no number "${name}", which GGUF needs.`);
    return value;
  };
  const optional = (name: string): number | undefined => (typeof config[name] === "number" ? config[name] : undefined);
  const heads = number("num_attention_heads");
  const headDim = optional("head_dim") ?? number("hidden_size") / heads;
  const { settings: rope } = ropeSettings(config);
  const theta = rope.rope_theta;
  const maxPositions = optional("max_position_embeddings") ?? 2048;
  const scaling = ropeScaling(rope, maxPositions, where);

  const values: Record<string, GgufValue> = {
    vocab_size: { u32: rows },
    context_length: { u32: maxPositions },
    embedding_length: { u32: number("hidden_size") },
    block_count: { u32: number("num_hidden_layers") },
    feed_forward_length: { u32: number("intermediate_size") },
    "attention.head_count": { u32: heads },
    "attention.head_count_kv": { u32: optional("num_key_value_heads") ?? heads },
    "attention.key_length": { u32: headDim },
    "attention.value_length": { u32: headDim },
    "attention.layer_norm_rms_epsilon": { f32: optional("rms_norm_eps") ?? 1e-6 },
    "rope.dimension_count": { u32: headDim },
    "rope.freq_base": { f32: Number(theta) },
    ...scaling,
  };
  return {
    architecture,
    metadata: Object.fromEntries(Object.entries(values).map(([key, value]) => [`${architecture}.${key}`, value])),
    ropeFactors: Array.isArray(config.rope_factors)
      ? Float32Array.from(config.rope_factors as number[])
      : llama3Factors(rope, Number(theta), headDim),
  };
}

function ropeScaling(rope: Config, maxPositions: number, where: string): Record<string, GgufValue> {
  const type = rope.rope_type;
  if (type === "default" || type === "llama3") return {};
  const factor = Number(rope.factor);
  if (type === "linear") return { "rope.scaling.type": { string: "linear" }, "rope.scaling.factor": { f32: factor } };
  if (type !== "yarn") throw new ModelError(`${where}: RoPE scaling ${JSON.stringify(type)} cannot be written as GGUF.`);
  if (rope.truncate === false || rope.mscale_all_dim)
    throw new ModelError(
      `${where}: YaRN with truncate: false or mscale_all_dim cannot be written as GGUF: llama.cpp has no such setting for it.`,
    );
  const values: Record<string, GgufValue> = {
    "rope.scaling.type": { string: "yarn" },
    "rope.scaling.factor": { f32: factor },
    "rope.scaling.original_context_length": { u32: Number(rope.original_max_position_embeddings ?? maxPositions) },
  };
  // transformers takes the whole attention factor, llama.cpp what is to be multiplied with YaRN's own.
  if (typeof rope.attention_factor === "number")
    values["rope.scaling.yarn_attn_factor"] = { f32: rope.attention_factor / (1 + 0.1 * Math.log(factor)) };
  for (const name of ["beta_fast", "beta_slow"])
    if (typeof rope[name] === "number") values[`rope.scaling.yarn_${name}`] = { f32: rope[name] };
  return values;
}

/** What llama3's scaling divides each frequency by: short waves by 1, long ones by the factor, smoothly between. */
function llama3Factors(rope: Config, theta: number, headDim: number): Float32Array | undefined {
  if (rope.rope_type !== "llama3") return undefined;
  const [factor, low, high, context] = [
    rope.factor,
    rope.low_freq_factor,
    rope.high_freq_factor,
    rope.original_max_position_embeddings,
  ].map(Number) as [number, number, number, number];
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const turns = (context * theta ** ((-2 * i) / headDim)) / (2 * Math.PI);
    if (turns > high) return 1;
    if (turns < low) return factor;
    const smooth = (turns - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}
