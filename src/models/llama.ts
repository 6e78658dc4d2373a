import { z } from "zod";
import type { Device } from "../core/device.js";
import { attention } from "../core/ops/attention.js";
import { gated } from "../core/ops/gated.js";
import type { Tensor } from "../core/tensor.js";
import type { Activation } from "../engine/kernels.js";
import { Dropout } from "../nn/dropout.js";
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
  readRope,
  ropeKeys,
  size,
  windowsOf,
} from "./config-keys.js";
import type { Block, LayerInput, ModelShape } from "./language-model.js";

/** The keys of config.json that all families of Llama's build read. */
export const llamaKeys = z.object({
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: headCount,
  num_key_value_heads: headCount.nullish(),
  head_dim: headWidth.nullish(),
  hidden_act: activationKey.default("silu"),
  max_position_embeddings: positionCount.default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  tie_word_embeddings: z.boolean().default(false),
  attention_dropout: dropoutKey.nullish(),
  ...ropeKeys,
  /** Divisors of RoPE's frequencies, as a GGUF file may carry them. */
  rope_factors: z.array(z.number().positive()).nullish(),
});

/** Adds what the keys say together; `windows` as `windowsOf` gives them. */
export function readLlama<Keys extends z.output<typeof llamaKeys>>(config: Keys, windows: number[], context: z.RefinementCtx) {
  const heads = readHeads(config, context);
  if (config.rope_factors && config.rope_factors.length !== heads.headDim / 2)
    context.addIssue(`rope_factors has ${config.rope_factors.length} numbers for heads of ${heads.headDim}`);
  return { mlp_bias: false, ...config, ...heads, ...readRope(config, context), windows };
}

export const ownLlamaKeys = llamaKeys.extend({
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
});

/** Every layer sees the whole past, whatever else the config says. */
export const LlamaConfig = ownLlamaKeys.transform((config, context) =>
  readLlama(
    config,
    windowsOf({ ...config, layer_types: null }, () => false, context),
    context,
  ),
);
export type LlamaConfig = z.output<typeof LlamaConfig>;

export const mistralKeys = llamaKeys.extend({
  max_position_embeddings: positionCount.default(131072),
  num_key_value_heads: headCount.nullable().default(8),
  sliding_window: positionCount.nullable().default(4096),
  layer_types: layerTypesKey,
});

/** Mistral's layers see a window; those of Ministral, and of what calls itself Mistral and has `layer_types`, as these say. */
export const MistralConfig = mistralKeys.transform(
  (config, context): LlamaConfig => ({
    ...readLlama(
      config,
      windowsOf(config, () => true, context),
      context,
    ),
    attention_bias: false,
  }),
);

/** What a family of the same build puts in the place of Llama's sub-layers. */
export interface LlamaParts {
  attention(rotary: RotaryEmbedding, index: number): SelfAttention;
  mlp(): Projection;
}

export interface SelfAttention extends Module {
  /** x (T, C) → (T, C) */
  forward(x: Tensor, input: LayerInput): Tensor;
}

/**
 * Llama, and what has its architecture (SmolLM2, Mistral, TinyLlama …): RMSNorm before each sub-layer, rotary positions, grouped-query
 * attention, SwiGLU.
 *
 * Source: Touvron et al. 2023, arXiv:2307.09288; transformers `modeling_llama.py`, whose names the weights keep.
 */
export class Llama extends CausalLM {
  readonly model: LlamaModel;
  readonly lm_head: OutputProjection;
  readonly shape: ModelShape;

  constructor(
    readonly device: Device,
    readonly config: LlamaConfig,
    parts: LlamaParts = {
      attention: (rotary, index) => new LlamaAttention(config, rotary, index),
      mlp: () => new LlamaMLP(config),
    },
  ) {
    super();
    this.model = new LlamaModel(config, parts);
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

  protected embed(ids: Int32Array): Tensor {
    return this.model.embed_tokens.forward(ids);
  }

  protected get blocks(): readonly Block[] {
    return this.model.layers;
  }

  protected finish(x: Tensor): Tensor {
    return this.model.norm.forward(x);
  }

  override reasonToLeave(name: string): string | null {
    const isRope = name.endsWith(".rotary_emb.inv_freq");
    return isRope ? "frequencies of rotary positions, which follow from the config" : super.reasonToLeave(name);
  }

  override dispose(): void {
    super.dispose();
    this.model.rotary.dispose();
  }
}

class LlamaModel extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: LlamaLayer[];
  readonly norm: RMSNorm;
  readonly rotary: RotaryEmbedding;

  constructor(config: LlamaConfig, parts: LlamaParts) {
    super();
    const factors = config.rope_factors ? Float32Array.from(config.rope_factors) : null;
    this.rotary = new RotaryEmbedding(config.headDim, config.theta, config.ropeScaling, config.max_position_embeddings, factors);
    this.embed_tokens = new Embedding(config.vocab_size, config.hidden_size);
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, i) => new LlamaLayer(config, this.rotary, i, parts));
    this.norm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
  }
}

class LlamaLayer extends Module implements Block {
  readonly self_attn: SelfAttention;
  readonly mlp: Projection;
  readonly input_layernorm: RMSNorm;
  readonly post_attention_layernorm: RMSNorm;
  readonly attention_residual: Residual = new Residual();
  readonly mlp_residual: Residual = new Residual();

  constructor(config: LlamaConfig, rotary: RotaryEmbedding, index: number, parts: LlamaParts) {
    super();
    this.self_attn = parts.attention(rotary, index);
    this.mlp = parts.mlp();
    this.input_layernorm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
    this.post_attention_layernorm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
  }

  forward(x: Tensor, input: LayerInput): Tensor {
    const attended = this.attention_residual.forward(x, this.self_attn.forward(this.input_layernorm.forward(x), input));
    return this.mlp_residual.forward(attended, this.mlp.forward(this.post_attention_layernorm.forward(attended)));
  }
}

class LlamaAttention extends Module implements SelfAttention {
  readonly q_proj: Projection;
  readonly k_proj: Projection;
  readonly v_proj: Projection;
  readonly o_proj: Projection;
  readonly attention_dropout: Dropout;
  readonly #config: LlamaConfig;
  readonly #rotary: RotaryEmbedding;
  readonly #index: number;

  constructor(config: LlamaConfig, rotary: RotaryEmbedding, index: number) {
    super();
    const { hidden_size: width, num_attention_heads: heads, kvHeads, headDim } = config;
    const options = { bias: config.attention_bias };
    this.q_proj = new Linear(width, heads * headDim, options);
    this.k_proj = new Linear(width, kvHeads * headDim, options);
    this.v_proj = new Linear(width, kvHeads * headDim, options);
    this.o_proj = new Linear(heads * headDim, width, options);
    this.attention_dropout = attentionDropout(config);
    this.#config = config;
    this.#rotary = rotary;
    this.#index = index;
  }

  forward(x: Tensor, { positions, segments, keysAndValues }: LayerInput): Tensor {
    const { num_attention_heads: heads, kvHeads, headDim, windows } = this.#config;
    const q = this.#rotary.forward(this.q_proj.forward(x), positions);
    const rotated = this.#rotary.forward(this.k_proj.forward(x), positions);
    const [k, v] = keysAndValues(this.#index, rotated, this.v_proj.forward(x));
    const dropout = this.attention_dropout.p;
    const o = attention(q, k, v, segments, { heads, kvHeads, headDim, window: windows[this.#index]!, dropout });
    return this.o_proj.forward(o);
  }
}

/** Of the probabilities of attention. */
export function attentionDropout({ attention_dropout: p }: { readonly attention_dropout?: number | null | undefined }): Dropout {
  return new Dropout("attention_dropout", p ?? 0);
}

/** down(f(gate(x)) · up(x)); f is silu in SwiGLU, gelu in GeGLU. */
export class LlamaMLP extends Module implements Projection {
  readonly gate_proj: Projection;
  readonly up_proj: Projection;
  readonly down_proj: Projection;
  readonly #activation: Activation;

  constructor(config: Pick<LlamaConfig, "hidden_size" | "intermediate_size" | "mlp_bias" | "hidden_act">) {
    super();
    const { hidden_size: width, intermediate_size: inner } = config;
    const options = { bias: config.mlp_bias };
    this.gate_proj = new Linear(width, inner, options);
    this.up_proj = new Linear(width, inner, options);
    this.down_proj = new Linear(inner, width, options);
    this.#activation = config.hidden_act;
  }

  forward(x: Tensor): Tensor {
    return this.down_proj.forward(gated(this.gate_proj.forward(x), this.up_proj.forward(x), this.#activation));
  }
}
