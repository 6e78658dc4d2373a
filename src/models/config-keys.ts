import { z } from "zod";
import { activations } from "../core/ops/activation.js";
import type { Activation } from "../engine/kernels.js";
import { ropeSettings } from "../io/rope-settings.js";
import { RopeScaling } from "../nn/rotary.js";

/** What several families read from config.json in the same way. Where it says something twice, transformers 5 decides which counts. */

/** Sizes far above those of any model: what is larger is a mistake, and must not be built. */
export const size = z
  .int()
  .positive()
  .max(2 ** 24);
export const layerCount = z.int().positive().max(4096);
export const headCount = z
  .int()
  .positive()
  .max(2 ** 16);
export const headWidth = z
  .int()
  .positive()
  .max(2 ** 14);
export const positionCount = z
  .int()
  .positive()
  .max(2 ** 31 - 1);

/** `hidden_act` and its like. */
export const activationKey = z.string().transform((name, context): Activation => {
  const kind = Object.hasOwn(activations, name) ? activations[name] : undefined;
  if (kind !== undefined) return kind;
  context.addIssue(`expected one of ${Object.keys(activations).join(", ")}, got ${shown(name)}`);
  return z.NEVER;
});

/** The chance of dropping a number in training. */
export const dropoutKey = z.number().min(0).lt(1);

/** `layer_types`: which layers see the whole past, and which a window of it. */
export const layerTypesKey = z.array(z.enum(["full_attention", "sliding_attention"])).nullish();
export type LayerTypes = z.output<typeof layerTypesKey>;

/** How many of the last keys each layer sees, 0 for all. Without `layer_types`, `slides` tells which layers have a window, if there is one. */
export function windowsOf(
  {
    layer_types,
    sliding_window: window,
    num_hidden_layers: layers,
  }: {
    readonly layer_types?: LayerTypes;
    readonly sliding_window?: number | null | undefined;
    readonly num_hidden_layers: number;
  },
  slides: (layer: number) => boolean,
  context: z.RefinementCtx,
): number[] {
  if (layer_types && layer_types.length !== layers)
    context.addIssue(`layer_types has ${layer_types.length} entries for ${layers} layers`);
  if (layer_types?.includes("sliding_attention") && !window)
    context.addIssue("layer_types has layers with a window, and no sliding_window says how wide it is");
  return Array.from({ length: layers }, (_, i) => {
    const isSliding = layer_types ? layer_types[i] === "sliding_attention" : slides(i);
    return isSliding ? (window ?? 0) : 0;
  });
}

export const ropeKey = z.record(z.string(), z.unknown()).nullish();

/** The keys of RoPE: transformers 5 gathers them in `rope_parameters`, older files have them apart. */
export const ropeKeys = {
  rope_theta: z.number().positive().nullish(),
  rope_scaling: ropeKey,
  rope_parameters: ropeKey,
  partial_rotary_factor: z.number().nullish(),
  original_max_position_embeddings: positionCount.nullish(),
};

/** A rotary embedding as a config describes it. */
export interface Rope {
  readonly theta: number;
  readonly ropeScaling: RopeScaling;
  /** In words, what the config says of it beside this. */
  readonly passedOver: readonly string[];
}

/** RoPE of a family whose layers all rotate alike. Adds an issue where attune cannot rotate so. */
export function readRope(
  config: z.output<z.ZodObject<typeof ropeKeys>> & { readonly max_position_embeddings: number },
  context: z.RefinementCtx,
): Rope {
  const { settings, passedOver } = ropeSettings(config);
  if ("full_attention" in settings || "sliding_attention" in settings)
    context.addIssue("rotary positions of their own for layers of each type are not supported in this family");
  const read = readRopeIn(settings, config.max_position_embeddings, context);
  return { ...read, passedOver: [...passedOver, ...read.passedOver] };
}

/** One set of RoPE's settings. */
export function readRopeIn(rope: Readonly<Record<string, unknown>>, maxPositions: number, context: z.RefinementCtx): Rope {
  const type = rope.rope_type ?? rope.type ?? "default";
  const scaling = RopeScaling.safeParse({ original_max_position_embeddings: maxPositions, ...rope, rope_type: type });
  const { rope_theta: theta, partial_rotary_factor: rotated = 1 } = rope;
  if (rotated !== 1) context.addIssue(`partial_rotary_factor ${shown(rotated)}: only whole heads are rotated here`);
  if (typeof theta !== "number" || !(theta > 0) || !Number.isFinite(theta))
    context.addIssue(`rope_theta: expected a positive number, got ${shown(theta)}`);
  if (!scaling.success)
    context.addIssue(`rope_scaling: expected type default, linear, llama3 or yarn with its settings, got ${shown(rope)}`);
  const read = new Set([...settingsOfAnyType, ...(keysOfScaling.get(String(scaling.data?.rope_type)) ?? [])]);
  return {
    theta: Number(theta),
    ropeScaling: scaling.data ?? { rope_type: "default" },
    passedOver: Object.keys(rope)
      .filter((key) => !read.has(key) && rope[key] !== null)
      .map((key) => `${shown(key)} of the rotary positions`),
  };
}

const settingsOfAnyType = ["rope_theta", "partial_rotary_factor", "type", "original_max_position_embeddings"];

const keysOfScaling = new Map(
  RopeScaling.options.map((option) => [option.shape.rope_type.value as string, Object.keys(option.shape)]),
);

/** A value from a file, in a message. */
export function shown(value: unknown): string {
  return JSON.stringify(value)?.slice(0, 200) ?? "nothing";
}

/** The width of a head and the number of key/value heads. Adds an issue if heads do not come out whole. */
export function readHeads(
  config: {
    readonly hidden_size: number;
    readonly num_attention_heads: number;
    readonly num_key_value_heads?: number | null | undefined;
    readonly head_dim?: number | null | undefined;
  },
  context: z.RefinementCtx,
): { headDim: number; kvHeads: number } {
  const { hidden_size: width, num_attention_heads: heads } = config;
  const headDim = config.head_dim ?? width / heads;
  const kvHeads = config.num_key_value_heads ?? heads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0)
    context.addIssue(`hidden_size ${width} over ${heads} heads gives no even head width`);
  if (heads % kvHeads !== 0) context.addIssue(`${heads} heads are not a multiple of ${kvHeads} key/value heads`);
  return { headDim, kvHeads };
}

/**
 * Keys of any config.json that change nothing of what a model computes here: what it is called and was saved with, how its weights began, token
 * ids and classes (which others read), settings of generation, and switches of transformers that leave the results alone.
 */
const inertKeys: ReadonlySet<string> = new Set([
  ...[
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "name_or_path",
    "tokenizer_class",
  ],
  ...["quantization_config", "finetuning_task", "task_specific_params", "prefix", "unsloth_version", "unsloth_fixed"],
  ...["initializer_range", "initializer_factor", "init_std", "pretraining_tp"],
  ...["id2label", "label2id", "num_labels", "problem_type"],
  ...["bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id"],
  ...["decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens"],
  ...["begin_suppress_tokens", "do_sample", "temperature", "top_k", "top_p", "typical_p", "min_length", "max_length"],
  ...["max_new_tokens", "num_beams", "num_beam_groups", "num_return_sequences", "early_stopping", "length_penalty"],
  ...["diversity_penalty", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size"],
  ...["encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits"],
  ...["epsilon_cutoff", "eta_cutoff", "output_scores", "return_dict_in_generate", "cache_implementation"],
  ...["use_cache", "cache_config", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"],
  ...["gradient_checkpointing", "torchscript", "use_bfloat16", "tf_legacy_loss", "attn_implementation", "tie_last_hidden_states"],
  ...["tie_encoder_decoder", "is_decoder", "cross_attention_hidden_size"],
]);

/** Values that say nothing, whatever the key. */
const neutral: Readonly<Record<string, unknown>> = { attention_bias: false, mlp_bias: false, use_sliding_window: false };

/** Keys that would change any model, and the values under which they do not. */
const changing: Readonly<Record<string, { readonly neutral: (value: unknown) => boolean; readonly why: string }>> = {
  is_encoder_decoder: { neutral: (value) => value === false, why: "a model of two halves is not supported" },
  per_layer_config: { neutral: isEmpty, why: "layers that differ from each other are not supported" },
  pruned_heads: { neutral: isEmpty, why: "layers that have lost heads are not supported" },
  compression_config: { neutral: isEmpty, why: "compressed weights are not supported" },
};

function isEmpty(value: unknown): boolean {
  return typeof value === "object" && value !== null && Object.keys(value).length === 0;
}

/**
 * The keys of a config that are neither read by the family nor known to change nothing: attune, and transformers for such a model, leave them
 * alone. `read` are the family's keys, `inert` those that change nothing in it. Throws ModelError for one that would change any model.
 */
export function unreadKeys(
  config: Readonly<Record<string, unknown>>,
  { read, inert = [] }: { readonly read: readonly string[]; readonly inert?: readonly string[] },
): string[] {
  const known = new Set([...inertKeys, ...read, ...inert]);
  return Object.keys(config).filter((key) => {
    const value = config[key];
    return !key.startsWith("_") && !known.has(key) && value !== null && value !== undefined && value !== neutral[key];
  });
}

/** Why a config describes a model that attune has not, whatever the family; null if it does not. */
export function unsupportedKey(config: Readonly<Record<string, unknown>>): string | null {
  for (const [key, { neutral: isNeutral, why }] of Object.entries(changing)) {
    const value = Object.hasOwn(config, key) ? config[key] : null;
    if (value !== null && value !== undefined && !isNeutral(value)) return `${key} ${shown(value)}: ${why}`;
  }
  return null;
}
