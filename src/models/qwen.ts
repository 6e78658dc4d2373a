import { z } from "zod";
import type { Device } from "../core/device.js";
import { attention } from "../core/ops/attention.js";
import type { Tensor } from "../core/tensor.js";
import type { Dropout } from "../nn/dropout.js";
import { Linear, type Projection } from "../nn/linear.js";
import { Module } from "../nn/module.js";
import { RMSNorm } from "../nn/rms-norm.js";
import type { RotaryEmbedding } from "../nn/rotary.js";
import { headCount, headWidth, layerTypesKey, positionCount, windowsOf } from "./config-keys.js";
import type { LayerInput } from "./language-model.js";
import { attentionDropout, Llama, LlamaMLP, llamaKeys, readLlama, type SelfAttention } from "./llama.js";

export const qwenKeys = llamaKeys.extend({
  model_type: z.enum(["qwen2", "qwen3"]),
  max_position_embeddings: positionCount.default(32768),
  num_key_value_heads: headCount.nullable().default(32),
  head_dim: headWidth.nullish(),
  use_sliding_window: z.boolean().default(false),
  sliding_window: positionCount.nullable().default(4096),
  max_window_layers: z.int().min(0).default(28),
  layer_types: layerTypesKey,
});

/** Qwen 3 has a key more. */
export const qwen3Keys = qwenKeys.extend({ attention_bias: z.boolean().default(false) });

export const QwenConfig = qwen3Keys.transform((config, context) => {
  const { model_type, use_sliding_window, sliding_window, max_window_layers } = config;
  const window = use_sliding_window ? sliding_window : null;
  const windows = windowsOf({ ...config, sliding_window: window }, (layer) => layer >= max_window_layers, context);
  const head_dim = config.head_dim ?? (model_type === "qwen3" ? 128 : null);
  return readLlama({ ...config, head_dim }, windows, context);
});
export type QwenConfig = z.output<typeof QwenConfig>;

/**
 * Qwen2, Qwen2.5 and Qwen3: Llama with another attention.
 *
 * Source: Qwen team 2024, arXiv:2407.10671 and 2025, arXiv:2505.09388; transformers `modeling_qwen2.py` and `modeling_qwen3.py`, whose names
 * the weights keep.
 */
export class Qwen extends Llama {
  constructor(device: Device, config: QwenConfig) {
    super(device, config, {
      attention: (rotary, index) => new QwenAttention(config, rotary, index),
      mlp: () => new LlamaMLP(config),
    });
  }
}

/** Qwen2 has biases on queries, keys and values. Qwen3 normalises each head of queries and keys instead. */
class QwenAttention extends Module implements SelfAttention {
  readonly q_proj: Projection;
  readonly k_proj: Projection;
  readonly v_proj: Projection;
  readonly o_proj: Projection;
  readonly q_norm: RMSNorm | null = null;
  readonly k_norm: RMSNorm | null = null;
  readonly attention_dropout: Dropout;
  readonly #config: QwenConfig;
  readonly #rotary: RotaryEmbedding;
  readonly #index: number;

  constructor(config: QwenConfig, rotary: RotaryEmbedding, index: number) {
    super();
    const { hidden_size: width, num_attention_heads: heads, kvHeads, headDim, rms_norm_eps: eps } = config;
    const isThird = config.model_type === "qwen3";
    const bias = isThird ? config.attention_bias : true;
    this.q_proj = new Linear(width, heads * headDim, { bias });
    this.k_proj = new Linear(width, kvHeads * headDim, { bias });
    this.v_proj = new Linear(width, kvHeads * headDim, { bias });
    this.o_proj = new Linear(heads * headDim, width, { bias: isThird && bias });
    if (isThird) {
      this.q_norm = new RMSNorm(headDim, eps, { heads });
      this.k_norm = new RMSNorm(headDim, eps, { heads: kvHeads });
    }
    this.attention_dropout = attentionDropout(config);
    this.#config = config;
    this.#rotary = rotary;
    this.#index = index;
  }

  forward(x: Tensor, { positions, segments, keysAndValues }: LayerInput): Tensor {
    const { num_attention_heads: heads, kvHeads, headDim, windows } = this.#config;
    const placed = (projected: Tensor, norm: RMSNorm | null) =>
      this.#rotary.forward(norm === null ? projected : norm.forward(projected), positions);
    const q = placed(this.q_proj.forward(x), this.q_norm);
    const rotated = placed(this.k_proj.forward(x), this.k_norm);
    const [k, v] = keysAndValues(this.#index, rotated, this.v_proj.forward(x));
    const dropout = this.attention_dropout.p;
    const o = attention(q, k, v, segments, { heads, kvHeads, headDim, window: windows[this.#index]!, dropout });
    return this.o_proj.forward(o);
  }
}
