import { z } from "zod";
import type { Device } from "../core/device.js";
import { attention } from "../core/ops/attention.js";
import { scale } from "../core/ops/scale.js";
import type { Tensor } from "../core/tensor.js";
import type { DType } from "../engine/dtype.js";
import type { Dropout } from "../nn/dropout.js";
import { Embedding } from "../nn/embedding.js";
import { Linear, type OutputProjection, type Projection } from "../nn/linear.js";
import { Module } from "../nn/module.js";
import { Residual } from "../nn/residual.js";
import { RMSNorm } from "../nn/rms-norm.js";
import { RotaryEmbedding } from "../nn/rotary.js";
import { CausalLM } from "./causal-lm.js";
import {
  activationKey,
  dropoutKey,
  headCount,
  headWidth,
  layerCount,
  layerTypesKey,
  positionCount,
  readHeads,
  readRopeIn,
  ropeKey,
  size,
  windowsOf,
} from "./config-keys.js";
import type { Block, LayerInput, ModelShape } from "./language-model.js";
import { attentionDropout, LlamaMLP } from "./llama.js";

/** The keys of config.json that Gemma 3 reads, with the defaults of transformers: Gemma's own files leave many out. */
export const gemma3Keys = z.object({
  vocab_size: size.default(262208),
  hidden_size: size.default(2304),
  intermediate_size: size.default(9216),
  num_hidden_layers: layerCount.default(26),
  num_attention_heads: headCount.default(8),
  num_key_value_heads: headCount.default(4),
  head_dim: headWidth.default(256),
  hidden_activation: activationKey.default("gelu_tanh"),
  max_position_embeddings: positionCount.default(131072),
  rms_norm_eps: z.number().positive().default(1e-6),
  tie_word_embeddings: z.boolean().default(true),
  attention_bias: z.boolean().default(false),
  attention_dropout: dropoutKey.nullish(),
  query_pre_attn_scalar: z.number().positive().default(256),
  sliding_window: positionCount.default(4096),
  sliding_window_pattern: z.int().positive().default(6),
  layer_types: layerTypesKey,
  rope_theta: z.number().positive().default(1e6),
  rope_local_base_freq: z.number().positive().default(10000),
  rope_scaling: ropeKey,
  rope_parameters: z.strictObject({ full_attention: ropeKey, sliding_attention: ropeKey }).nullish(),
  partial_rotary_factor: z.literal(1, "only whole heads are rotated here").nullish(),
  final_logit_softcapping: z.null("logits are not capped here").optional(),
  attn_logit_softcapping: z.null("attention scores are not capped here").optional(),
  use_bidirectional_attention: z.literal(false, "attention that looks ahead is not for generating").nullish(),
});

/** `rope_scaling` stretches the layers that see everything, over what `rope_parameters` says of them. */
export const Gemma3Config = gemma3Keys.transform((config, context) => {
  const { rope_parameters: rope, rope_scaling, rope_theta, rope_local_base_freq } = config;
  const readWith = (settings: Readonly<Record<string, unknown>>) => readRopeIn(settings, config.max_position_embeddings, context);
  const globalRope = readWith({ rope_theta, ...rope?.full_attention, ...rope_scaling });
  const localRope = readWith({ rope_theta: rope_local_base_freq, ...rope?.sliding_attention });
  return {
    ...config,
    ...readHeads(config, context),
    windows: windowsOf(config, (layer) => (layer + 1) % config.sliding_window_pattern !== 0, context),
    globalRope,
    localRope,
    passedOver: [...globalRope.passedOver, ...localRope.passedOver],
  };
});
export type Gemma3Config = z.output<typeof Gemma3Config>;

/**
 * Gemma 3, text only: scaled embeddings, RMSNorms of weight 1 + w before and after each sub-layer and over each head of queries and keys,
 * GeGLU, and layers that see a sliding window between layers that see everything, the latter with slower rotary positions.
 *
 * Source: Gemma team 2025, arXiv:2503.19786; transformers `modeling_gemma3.py`, whose names the weights keep.
 */
export class Gemma3 extends CausalLM {
  readonly model: Gemma3Model;
  readonly lm_head: OutputProjection;
  readonly shape: ModelShape;

  constructor(
    readonly device: Device,
    readonly config: Gemma3Config,
  ) {
    super();
    this.model = new Gemma3Model(config);
    const tied = config.tie_word_embeddings ? { weight: this.model.embed_tokens.weight } : {};
    this.lm_head = new Linear(config.hidden_size, config.vocab_size, tied);
    this.shape = {
      vocabSize: config.vocab_size,
      width: config.hidden_size,
      layers: config.num_hidden_layers,
      kvWidth: config.kvHeads * config.headDim,
      maxPositions: config.max_position_embeddings,
    };
  }

  /** √C is rounded to the type of the table, as in transformers: in bf16, √1152 is 34. */
  protected embed(ids: Int32Array): Tensor {
    const { embed_tokens: table } = this.model;
    return scale(table.forward(ids), rounded(Math.sqrt(this.config.hidden_size), table.weight.value.dtype));
  }

  protected get blocks(): readonly Block[] {
    return this.model.layers;
  }

  protected finish(x: Tensor): Tensor {
    return this.model.norm.forward(x);
  }

  override dispose(): void {
    super.dispose();
    this.model.globalRotary.dispose();
    this.model.localRotary.dispose();
  }
}

class Gemma3Model extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: Gemma3Layer[];
  readonly norm: RMSNorm;
  readonly globalRotary: RotaryEmbedding;
  readonly localRotary: RotaryEmbedding;

  constructor(config: Gemma3Config) {
    super();
    const { headDim, max_position_embeddings: positions, globalRope, localRope, windows } = config;
    this.globalRotary = new RotaryEmbedding(headDim, globalRope.theta, globalRope.ropeScaling, positions);
    this.localRotary = new RotaryEmbedding(headDim, localRope.theta, localRope.ropeScaling, positions);
    this.embed_tokens = new Embedding(config.vocab_size, config.hidden_size);
    this.layers = windows.map(
      (window, i) => new Gemma3Layer(config, window > 0 ? this.localRotary : this.globalRotary, window, i),
    );
    this.norm = norm(config.hidden_size, config);
  }
}

class Gemma3Layer extends Module implements Block {
  readonly self_attn: Gemma3Attention;
  readonly mlp: LlamaMLP;
  readonly input_layernorm: RMSNorm;
  readonly post_attention_layernorm: RMSNorm;
  readonly pre_feedforward_layernorm: RMSNorm;
  readonly post_feedforward_layernorm: RMSNorm;
  readonly attention_residual: Residual;
  readonly mlp_residual: Residual;

  constructor(config: Gemma3Config, rotary: RotaryEmbedding, window: number, index: number) {
    super();
    this.self_attn = new Gemma3Attention(config, rotary, window, index);
    this.mlp = new LlamaMLP({ ...config, hidden_act: config.hidden_activation, mlp_bias: false });
    this.input_layernorm = norm(config.hidden_size, config);
    this.post_attention_layernorm = norm(config.hidden_size, config);
    this.pre_feedforward_layernorm = norm(config.hidden_size, config);
    this.post_feedforward_layernorm = norm(config.hidden_size, config);
    this.attention_residual = new Residual({ before: this.post_attention_layernorm });
    this.mlp_residual = new Residual({ before: this.post_feedforward_layernorm });
  }

  forward(x: Tensor, input: LayerInput): Tensor {
    const attended = this.attention_residual.forward(x, this.self_attn.forward(this.input_layernorm.forward(x), input));
    return this.mlp_residual.forward(attended, this.mlp.forward(this.pre_feedforward_layernorm.forward(attended)));
  }
}

class Gemma3Attention extends Module {
  readonly q_proj: Projection;
  readonly k_proj: Projection;
  readonly v_proj: Projection;
  readonly o_proj: Projection;
  readonly q_norm: RMSNorm;
  readonly k_norm: RMSNorm;
  readonly attention_dropout: Dropout;
  readonly #config: Gemma3Config;
  readonly #rotary: RotaryEmbedding;
  readonly #window: number;
  readonly #index: number;

  constructor(config: Gemma3Config, rotary: RotaryEmbedding, window: number, index: number) {
    super();
    const { hidden_size: width, num_attention_heads: heads, kvHeads, headDim } = config;
    const options = { bias: config.attention_bias };
    this.q_proj = new Linear(width, heads * headDim, options);
    this.k_proj = new Linear(width, kvHeads * headDim, options);
    this.v_proj = new Linear(width, kvHeads * headDim, options);
    this.o_proj = new Linear(heads * headDim, width, options);
    this.q_norm = norm(headDim, config, heads);
    this.k_norm = norm(headDim, config, kvHeads);
    this.attention_dropout = attentionDropout(config);
    this.#config = config;
    this.#rotary = rotary;
    this.#window = window;
    this.#index = index;
  }

  forward(x: Tensor, { positions, segments, keysAndValues }: LayerInput): Tensor {
    const { num_attention_heads: heads, kvHeads, headDim, query_pre_attn_scalar } = this.#config;
    const q = this.#rotary.forward(this.q_norm.forward(this.q_proj.forward(x)), positions);
    const rotated = this.#rotary.forward(this.k_norm.forward(this.k_proj.forward(x)), positions);
    const [k, v] = keysAndValues(this.#index, rotated, this.v_proj.forward(x));
    const scale = query_pre_attn_scalar ** -0.5;
    const dropout = this.attention_dropout.p;
    const o = attention(q, k, v, segments, { heads, kvHeads, headDim, scale, window: this.#window, dropout });
    return this.o_proj.forward(o);
  }
}

/** The nearest number of a type, or of f32 where weights stand in blocks. */
function rounded(value: number, dtype: DType): number {
  const step = 2 ** (Math.floor(Math.log2(value)) - (dtype === "bf16" ? 7 : dtype === "f16" ? 10 : 23));
  return Math.round(value / step) * step;
}

/** Files hold w, the weight is 1 + w. */
function norm(width: number, { rms_norm_eps }: Gemma3Config, heads = 1): RMSNorm {
  return new RMSNorm(width, rms_norm_eps, { heads, offset: 1 });
}
