import { z } from "zod";
import type { Device } from "../core/device.js";
import { activation } from "../core/ops/activation.js";
import { add } from "../core/ops/add.js";
import { attention } from "../core/ops/attention.js";
import { splitColumns } from "../core/ops/columns.js";
import type { Tensor } from "../core/tensor.js";
import { ModelError } from "../errors.js";
import { Dropout } from "../nn/dropout.js";
import { Embedding } from "../nn/embedding.js";
import { LayerNorm } from "../nn/layer-norm.js";
import { Linear, type OutputProjection, type Projection } from "../nn/linear.js";
import { Module } from "../nn/module.js";
import { Residual } from "../nn/residual.js";
import { CausalLM } from "./causal-lm.js";
import { activationKey, dropoutKey, headCount, layerCount, positionCount, size } from "./config-keys.js";
import type { Block, LayerInput, ModelShape } from "./language-model.js";

/** The keys of config.json that GPT-2 reads, with the defaults of transformers. */
export const gpt2Keys = z.object({
  vocab_size: size.default(50257),
  n_positions: positionCount.default(1024),
  n_embd: size.default(768),
  n_layer: layerCount.default(12),
  n_head: headCount.default(12),
  n_inner: size.nullish(),
  activation_function: activationKey.default("gelu_tanh"),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  resid_pdrop: dropoutKey.default(0.1),
  embd_pdrop: dropoutKey.default(0.1),
  attn_pdrop: dropoutKey.default(0.1),
  scale_attn_weights: z.boolean().default(true),
  scale_attn_by_inverse_layer_idx: z.boolean().default(false),
  add_cross_attention: z.literal(false, "attention to an encoder is not supported").nullish(),
  tie_word_embeddings: z.boolean().default(true),
});

/** Other names of transformers for the same keys; where a config has both, these count. */
export const gpt2Aliases: Readonly<Record<string, keyof typeof gpt2Keys.shape>> = {
  hidden_size: "n_embd",
  max_position_embeddings: "n_positions",
  num_attention_heads: "n_head",
  num_hidden_layers: "n_layer",
};

/**
 * Keys without effect here: of heads that attune does not have (for pairs of texts, for tokens), of an older implementation, of
 * how products are ordered.
 */
export const gpt2Inert = [
  ...["summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"],
  ...["summary_last_dropout", "classifier_dropout", "hidden_dropout", "n_ctx", "reorder_and_upcast_attn"],
];

function ofAliases(config: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const found = Object.entries(gpt2Aliases).filter(([alias]) => config[alias] !== undefined && config[alias] !== null);
  return Object.fromEntries(found.map(([alias, name]) => [name, config[alias]]));
}

export const Gpt2Config = z.preprocess(
  (config: Readonly<Record<string, unknown>>) => ({ ...config, ...ofAliases(config) }),
  gpt2Keys.refine(({ n_embd, n_head }) => n_embd % n_head === 0, "n_embd is no multiple of n_head"),
);
export type Gpt2Config = z.output<typeof Gpt2Config>;

/**
 * GPT-2: learned positions, LayerNorm before each sub-layer, one product for queries, keys and values. Files hold the weights of its products
 * transposed, (in, out).
 *
 * Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; transformers `modeling_gpt2.py`, whose names the weights
 * keep.
 */
export class Gpt2 extends CausalLM {
  readonly transformer: Gpt2Model;
  readonly lm_head: OutputProjection;
  readonly shape: ModelShape;

  constructor(
    readonly device: Device,
    readonly config: Gpt2Config,
  ) {
    super();
    this.transformer = new Gpt2Model(config);
    const tied = config.tie_word_embeddings ? { weight: this.transformer.wte.weight } : {};
    this.lm_head = new Linear(config.n_embd, config.vocab_size, tied);
    this.shape = {
      vocabSize: config.vocab_size,
      width: config.n_embd,
      layers: config.n_layer,
      kvWidth: config.n_embd,
      maxPositions: config.n_positions,
    };
  }

  protected embed(ids: Int32Array): Tensor {
    return this.transformer.wte.forward(ids);
  }

  /** Throws ModelError past the last position that was learned. */
  protected override start(x: Tensor, positions: Int32Array): Tensor {
    const last = positions.reduce((most, position) => Math.max(most, position), 0);
    if (last >= this.config.n_positions)
      throw new ModelError(
        `this model has learned ${this.config.n_positions} positions, and a sequence of ${last + 1} tokens needs more, virtual ones counted. ` +
          "Use a smaller cutoff_len.",
      );
    return this.transformer.drop.forward(add(x, this.transformer.wpe.forward(positions)));
  }

  protected get blocks(): readonly Block[] {
    return this.transformer.h;
  }

  protected finish(x: Tensor): Tensor {
    return this.transformer.ln_f.forward(x);
  }

  override reasonToLeave(name: string): string | null {
    return /\.attn\.(masked_)?bias$/.test(name) ? "causal masks" : super.reasonToLeave(name);
  }
}

class Gpt2Model extends Module {
  readonly wte: Embedding;
  readonly wpe: Embedding;
  readonly drop: Dropout;
  readonly h: Gpt2Layer[];
  readonly ln_f: LayerNorm;

  constructor(config: Gpt2Config) {
    super();
    this.wte = new Embedding(config.vocab_size, config.n_embd);
    this.wpe = new Embedding(config.n_positions, config.n_embd);
    this.drop = new Dropout("embd_pdrop", config.embd_pdrop);
    this.h = Array.from({ length: config.n_layer }, (_, i) => new Gpt2Layer(config, i));
    this.ln_f = new LayerNorm(config.n_embd, config.layer_norm_epsilon);
  }
}

class Gpt2Layer extends Module implements Block {
  readonly ln_1: LayerNorm;
  readonly attn: Gpt2Attention;
  readonly ln_2: LayerNorm;
  readonly mlp: Gpt2MLP;
  readonly attention_residual: Residual = new Residual();
  readonly mlp_residual: Residual = new Residual();

  constructor(config: Gpt2Config, index: number) {
    super();
    this.ln_1 = new LayerNorm(config.n_embd, config.layer_norm_epsilon);
    this.attn = new Gpt2Attention(config, index);
    this.ln_2 = new LayerNorm(config.n_embd, config.layer_norm_epsilon);
    this.mlp = new Gpt2MLP(config);
  }

  forward(x: Tensor, input: LayerInput): Tensor {
    const attended = this.attention_residual.forward(x, this.attn.forward(this.ln_1.forward(x), input));
    return this.mlp_residual.forward(attended, this.mlp.forward(this.ln_2.forward(attended)));
  }
}

class Gpt2Attention extends Module {
  readonly c_attn: Projection;
  readonly c_proj: Projection;
  readonly attn_dropout: Dropout;
  readonly resid_dropout: Dropout;
  readonly #heads: number;
  readonly #scale: number;
  readonly #index: number;

  constructor(config: Gpt2Config, index: number) {
    super();
    const { n_embd: width, n_head: heads } = config;
    this.c_attn = conv1d(width, 3 * width);
    this.c_proj = conv1d(width, width);
    this.attn_dropout = new Dropout("attn_pdrop", config.attn_pdrop);
    this.resid_dropout = new Dropout("resid_pdrop", config.resid_pdrop);
    this.#heads = heads;
    const scale = config.scale_attn_weights ? (width / heads) ** -0.5 : 1;
    this.#scale = config.scale_attn_by_inverse_layer_idx ? scale / (index + 1) : scale;
    this.#index = index;
  }

  forward(x: Tensor, { segments, keysAndValues }: LayerInput): Tensor {
    const width = x.columns;
    const [q, keys, values] = splitColumns(this.c_attn.forward(x), [width, width, width]) as [Tensor, Tensor, Tensor];
    const [k, v] = keysAndValues(this.#index, keys, values);
    const heads = { heads: this.#heads, kvHeads: this.#heads, headDim: width / this.#heads };
    const o = attention(q, k, v, segments, { ...heads, scale: this.#scale, dropout: this.attn_dropout.p });
    return this.resid_dropout.forward(this.c_proj.forward(o));
  }
}

class Gpt2MLP extends Module {
  readonly c_fc: Projection;
  readonly c_proj: Projection;
  readonly dropout: Dropout;
  readonly #config: Gpt2Config;

  constructor(config: Gpt2Config) {
    super();
    const { n_embd: width } = config;
    const inner = config.n_inner ?? 4 * width;
    this.c_fc = conv1d(width, inner);
    this.c_proj = conv1d(inner, width);
    this.dropout = new Dropout("resid_pdrop", config.resid_pdrop);
    this.#config = config;
  }

  forward(x: Tensor): Tensor {
    return this.dropout.forward(this.c_proj.forward(activation(this.c_fc.forward(x), this.#config.activation_function)));
  }
}

/** transformers' `Conv1D`: a Linear whose files hold the weight as (in, out). */
function conv1d(inFeatures: number, outFeatures: number): Linear {
  return new Linear(inFeatures, outFeatures, { bias: true, isStoredTransposed: true });
}
