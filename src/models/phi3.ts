import { z } from "zod";
import type { Device } from "../core/device.js";
import { attention } from "../core/ops/attention.js";
import { splitColumns } from "../core/ops/columns.js";
import { gated } from "../core/ops/gated.js";
import type { Tensor } from "../core/tensor.js";
import { Dropout } from "../nn/dropout.js";
import { Linear, type Projection } from "../nn/linear.js";
import { Module } from "../nn/module.js";
import type { RotaryEmbedding } from "../nn/rotary.js";
import { dropoutKey, positionCount, windowsOf } from "./config-keys.js";
import type { LayerInput } from "./language-model.js";
import { attentionDropout, Llama, llamaKeys, readLlama, type SelfAttention } from "./llama.js";

export const phi3Keys = llamaKeys.extend({
  max_position_embeddings: positionCount.default(4096),
  rms_norm_eps: z.number().positive().default(1e-5),
  sliding_window: positionCount.nullish(),
  resid_pdrop: dropoutKey.default(0),
});

/** transformers has no dropout on Phi's embeddings. */
export const phi3Inert = ["embd_pdrop"];

export const Phi3Config = phi3Keys.transform((config, context) => {
  const read = {
    ...readLlama(
      config,
      windowsOf(config, () => true, context),
      context,
    ),
    attention_bias: false,
  };
  const settings = { ...config.rope_parameters, ...config.rope_scaling };
  if (read.ropeScaling.rope_type !== "default" || "long_factor" in settings || "short_factor" in settings)
    context.addIssue("Phi's stretched positions (longrope, of the 128k models) are not supported; a 4k model of it has none");
  return read;
});
export type Phi3Config = z.output<typeof Phi3Config>;

/**
 * Phi-3 and Phi-4: Llama with one product for queries, keys and values, and one for both halves of the gated unit. They stay one
 * product each, so that checkpoints and adapters fit (`qkv_proj`, `gate_up_proj`), and their outputs are split.
 *
 * Source: Microsoft 2024, arXiv:2404.14219; transformers `modeling_phi3.py`, whose names the weights keep.
 */
export class Phi3 extends Llama {
  constructor(device: Device, config: Phi3Config) {
    super(device, config, {
      attention: (rotary, index) => new Phi3Attention(config, rotary, index),
      mlp: () => new Phi3MLP(config),
    });
  }
}

class Phi3Attention extends Module implements SelfAttention {
  readonly qkv_proj: Projection;
  readonly o_proj: Projection;
  readonly attention_dropout: Dropout;
  readonly resid_attn_dropout: Dropout;
  readonly #config: Phi3Config;
  readonly #rotary: RotaryEmbedding;
  readonly #index: number;

  constructor(config: Phi3Config, rotary: RotaryEmbedding, index: number) {
    super();
    const { hidden_size: width, num_attention_heads: heads, kvHeads, headDim } = config;
    this.qkv_proj = new Linear(width, (heads + 2 * kvHeads) * headDim);
    this.o_proj = new Linear(heads * headDim, width);
    this.attention_dropout = attentionDropout(config);
    this.resid_attn_dropout = new Dropout("resid_pdrop", config.resid_pdrop);
    this.#config = config;
    this.#rotary = rotary;
    this.#index = index;
  }

  forward(x: Tensor, { positions, segments, keysAndValues }: LayerInput): Tensor {
    const { num_attention_heads: heads, kvHeads, headDim, windows } = this.#config;
    const parts = splitColumns(this.qkv_proj.forward(x), [heads * headDim, kvHeads * headDim, kvHeads * headDim]);
    const [queries, keys, values] = parts as [Tensor, Tensor, Tensor];
    const q = this.#rotary.forward(queries, positions);
    const [k, v] = keysAndValues(this.#index, this.#rotary.forward(keys, positions), values);
    const dropout = this.attention_dropout.p;
    const o = attention(q, k, v, segments, { heads, kvHeads, headDim, window: windows[this.#index]!, dropout });
    return this.resid_attn_dropout.forward(this.o_proj.forward(o));
  }
}

class Phi3MLP extends Module implements Projection {
  readonly gate_up_proj: Projection;
  readonly down_proj: Projection;
  readonly resid_mlp_dropout: Dropout;
  readonly #config: Phi3Config;

  constructor(config: Phi3Config) {
    super();
    const { hidden_size: width, intermediate_size: inner } = config;
    this.gate_up_proj = new Linear(width, 2 * inner);
    this.down_proj = new Linear(inner, width);
    this.resid_mlp_dropout = new Dropout("resid_pdrop", config.resid_pdrop);
    this.#config = config;
  }

  forward(x: Tensor): Tensor {
    const { intermediate_size: inner, hidden_act } = this.#config;
    const [gate, up] = splitColumns(this.gate_up_proj.forward(x), [inner, inner]) as [Tensor, Tensor];
    return this.resid_mlp_dropout.forward(this.down_proj.forward(gated(gate, up, hidden_act)));
  }
}
