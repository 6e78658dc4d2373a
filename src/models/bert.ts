import { z } from "zod";
import type { Device } from "../core/device.js";
import { activation } from "../core/ops/activation.js";
import { add } from "../core/ops/add.js";
import { attention } from "../core/ops/attention.js";
import type { Tensor } from "../core/tensor.js";
import { ModelError } from "../errors.js";
import { Dropout } from "../nn/dropout.js";
import { Embedding } from "../nn/embedding.js";
import { LayerNorm } from "../nn/layer-norm.js";
import { Linear, type Projection } from "../nn/linear.js";
import { Module } from "../nn/module.js";
import { Residual } from "../nn/residual.js";
import { activationKey, dropoutKey, headCount, layerCount, positionCount, size } from "./config-keys.js";
import { type Block, LanguageModel, type LayerInput, type ModelShape } from "./language-model.js";
import type { TokenBatch } from "./token-batch.js";

/** The keys of config.json that BERT reads, with the defaults of transformers. */
export const bertKeys = z.object({
  vocab_size: size.default(30522),
  hidden_size: size.default(768),
  num_hidden_layers: layerCount.default(12),
  num_attention_heads: headCount.default(12),
  intermediate_size: size.default(3072),
  hidden_act: activationKey.default("gelu"),
  hidden_dropout_prob: dropoutKey.default(0.1),
  attention_probs_dropout_prob: dropoutKey.default(0.1),
  classifier_dropout: dropoutKey.nullish(),
  max_position_embeddings: positionCount.default(512),
  type_vocab_size: size.default(2),
  layer_norm_eps: z.number().positive().default(1e-12),
  position_embedding_type: z.literal("absolute", "only absolute positions are supported").nullish(),
  is_decoder: z.literal(false, "a BERT that sees only what comes before is not supported").nullish(),
  add_cross_attention: z.literal(false, "attention to another model is not supported").nullish(),
});

/** Of the head of pre-training. */
export const bertInert = ["tie_word_embeddings"];

export const BertConfig = bertKeys.refine(
  ({ hidden_size, num_attention_heads }) => hidden_size % num_attention_heads === 0,
  "hidden_size is no multiple of num_attention_heads",
);
export type BertConfig = z.output<typeof BertConfig>;

/**
 * BERT and what has its architecture (MiniLM …): an encoder, whose tokens see each other both ways. Learned positions, LayerNorm after each
 * sub-layer. All tokens are of type 0, those of a single text.
 *
 * Source: Devlin et al. 2019, arXiv:1810.04805; transformers `modeling_bert.py`, whose names the weights keep.
 */
export class Bert extends LanguageModel {
  readonly bert: BertModel;
  classifier: Linear | null = null;
  readonly dropout: Dropout;
  readonly shape: ModelShape;
  override readonly optionalModules: readonly string[] = ["bert.pooler"];

  constructor(
    readonly device: Device,
    config: BertConfig,
  ) {
    super();
    this.bert = new BertModel(config);
    const { classifier_dropout, hidden_dropout_prob } = config;
    this.dropout = new Dropout(
      typeof classifier_dropout === "number" ? "classifier_dropout" : "hidden_dropout_prob",
      classifier_dropout ?? hidden_dropout_prob,
    );
    this.shape = {
      vocabSize: config.vocab_size,
      width: config.hidden_size,
      layers: config.num_hidden_layers,
      kvWidth: config.hidden_size,
      maxPositions: config.max_position_embeddings,
    };
  }

  get head(): Linear | null {
    return this.classifier;
  }

  readonly headName = "classifier";

  addHead(outputs: number): void {
    const { width } = this.shape;
    this.bert.pooler = new BertPooler(width);
    this.classifier = new Linear(width, outputs, { bias: true });
    this.headModules = [this.headName];
  }

  /** From the first row, as PEFT has it: with a prompt before the tokens that is no longer [CLS]. */
  summary(batch: TokenBatch): Tensor {
    const { pooler } = this.bert;
    if (pooler === null) throw new ModelError("BERT: a summary needs a head");
    return this.dropout.forward(pooler.forward(this.firstHidden(batch)));
  }

  protected embed(ids: Int32Array): Tensor {
    return this.bert.embeddings.word_embeddings.forward(ids);
  }

  protected override start(x: Tensor, positions: Int32Array): Tensor {
    return this.bert.embeddings.forward(x, positions);
  }

  protected get blocks(): readonly Block[] {
    return this.bert.encoder.layer;
  }

  protected finish(x: Tensor): Tensor {
    return x;
  }

  override reasonToLeave(name: string): string | null {
    if (name.startsWith("cls.")) return "the heads of pre-training";
    if (this.bert.pooler === null && /^(?:bert\.)?pooler\./.test(name)) return "the pooler, which only a classifier has";
    return /(?:^|\.)embeddings\.position_ids$/.test(name) ? "numbers of positions" : null;
  }
}

class BertModel extends Module {
  readonly embeddings: BertEmbeddings;
  readonly encoder: BertEncoder;
  pooler: BertPooler | null = null;

  constructor(config: BertConfig) {
    super();
    this.embeddings = new BertEmbeddings(config);
    this.encoder = new BertEncoder(config);
  }
}

class BertEmbeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding;
  readonly token_type_embeddings: Embedding;
  readonly LayerNorm: LayerNorm;
  readonly dropout: Dropout;

  constructor(config: BertConfig) {
    super();
    const { hidden_size: width } = config;
    this.word_embeddings = new Embedding(config.vocab_size, width);
    this.position_embeddings = new Embedding(config.max_position_embeddings, width);
    this.token_type_embeddings = new Embedding(config.type_vocab_size, width);
    this.LayerNorm = new LayerNorm(width, config.layer_norm_eps);
    this.dropout = new Dropout("hidden_dropout_prob", config.hidden_dropout_prob);
  }

  /** Words (T, C) with their places and their type. */
  forward(words: Tensor, positions: Int32Array): Tensor {
    const types = this.token_type_embeddings.forward(new Int32Array(positions.length));
    const placed = add(add(words, types), this.position_embeddings.forward(positions));
    return this.dropout.forward(this.LayerNorm.forward(placed));
  }
}

class BertEncoder extends Module {
  readonly layer: BertLayer[];

  constructor(config: BertConfig) {
    super();
    this.layer = Array.from({ length: config.num_hidden_layers }, (_, i) => new BertLayer(config, i));
  }
}

class BertLayer extends Module implements Block {
  readonly attention: BertAttention;
  readonly intermediate: BertIntermediate;
  readonly output: BertOutput;
  readonly attention_residual: Residual;
  readonly mlp_residual: Residual;

  constructor(config: BertConfig, index: number) {
    super();
    this.attention = new BertAttention(config, index);
    this.intermediate = new BertIntermediate(config);
    this.output = new BertOutput(config.intermediate_size, config);
    this.attention_residual = new Residual({ after: this.attention.output.LayerNorm });
    this.mlp_residual = new Residual({ after: this.output.LayerNorm });
  }

  forward(x: Tensor, input: LayerInput): Tensor {
    const { self, output } = this.attention;
    const attended = output.LayerNorm.forward(this.attention_residual.forward(x, output.narrow(self.forward(x, input))));
    const narrowed = this.output.narrow(this.intermediate.forward(attended));
    return this.output.LayerNorm.forward(this.mlp_residual.forward(attended, narrowed));
  }
}

class BertAttention extends Module {
  readonly self: BertSelfAttention;
  readonly output: BertOutput;

  constructor(config: BertConfig, index: number) {
    super();
    this.self = new BertSelfAttention(config, index);
    this.output = new BertOutput(config.hidden_size, config);
  }
}

class BertSelfAttention extends Module {
  readonly query: Projection;
  readonly key: Projection;
  readonly value: Projection;
  readonly dropout: Dropout;
  readonly #heads: number;
  readonly #index: number;

  constructor({ hidden_size: width, num_attention_heads: heads, attention_probs_dropout_prob }: BertConfig, index: number) {
    super();
    this.query = new Linear(width, width, { bias: true });
    this.key = new Linear(width, width, { bias: true });
    this.value = new Linear(width, width, { bias: true });
    this.dropout = new Dropout("attention_probs_dropout_prob", attention_probs_dropout_prob);
    this.#heads = heads;
    this.#index = index;
  }

  /** Throws ModelError for a text that several share the beginning of: here a beginning sees what follows it. */
  forward(x: Tensor, { segments, keysAndValues }: LayerInput): Tensor {
    if (segments.some(({ prefix }) => prefix !== undefined))
      throw new ModelError(
        "answers cannot share their prompt in an encoder, whose prompt sees the answer: take a model that predicts tokens",
      );
    const [k, v] = keysAndValues(this.#index, this.key.forward(x), this.value.forward(x));
    const heads = { heads: this.#heads, kvHeads: this.#heads, headDim: x.columns / this.#heads };
    return attention(this.query.forward(x), k, v, segments, { ...heads, causal: false, dropout: this.dropout.p });
  }
}

class BertIntermediate extends Module {
  readonly dense: Projection;
  readonly #activation: BertConfig["hidden_act"];

  constructor({ hidden_size, intermediate_size, hidden_act }: BertConfig) {
    super();
    this.dense = new Linear(hidden_size, intermediate_size, { bias: true });
    this.#activation = hidden_act;
  }

  forward(x: Tensor): Tensor {
    return activation(this.dense.forward(x), this.#activation);
  }
}

/** The end of a sub-layer: back to the model's width and, after the residual, the norm. */
class BertOutput extends Module {
  readonly dense: Projection;
  readonly LayerNorm: LayerNorm;
  readonly dropout: Dropout;

  constructor(inner: number, { hidden_size: width, layer_norm_eps, hidden_dropout_prob }: BertConfig) {
    super();
    this.dense = new Linear(inner, width, { bias: true });
    this.LayerNorm = new LayerNorm(width, layer_norm_eps);
    this.dropout = new Dropout("hidden_dropout_prob", hidden_dropout_prob);
  }

  /** What goes into the residual: (T, inner) → (T, C). */
  narrow(x: Tensor): Tensor {
    return this.dropout.forward(this.dense.forward(x));
  }
}

/** The first token's vector, once more through a layer: (S, C) → (S, C). */
class BertPooler extends Module {
  readonly dense: Projection;

  constructor(width: number) {
    super();
    this.dense = new Linear(width, width, { bias: true });
  }

  forward(first: Tensor): Tensor {
    return activation(this.dense.forward(first), "tanh");
  }
}
