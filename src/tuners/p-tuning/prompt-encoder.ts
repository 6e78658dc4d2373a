import { copyInto } from "../../core/linalg.js";
import { activation } from "../../core/ops/activation.js";
import type { Rng } from "../../core/rng.js";
import type { Tensor } from "../../core/tensor.js";
import type { LanguageModel, PromptVectors } from "../../models/language-model.js";
import type { Embedding } from "../../nn/embedding.js";
import { drawnEmbedding, drawnLinear } from "../../nn/init.js";
import type { Linear, Projection } from "../../nn/linear.js";
import { BidirectionalLstm } from "../../nn/lstm.js";
import { Module } from "../../nn/module.js";
import { fitLastLayer } from "../virtual-tokens.js";

export interface PromptEncoderOptions {
  /** P */
  readonly num_virtual_tokens: number;
  readonly encoder_reparameterization_type: "MLP" | "LSTM" | "NONE";
  readonly encoder_hidden_size: number | null;
  readonly encoder_num_layers: number;
  readonly encoder_dropout: number;
}

/** The encoder's width: unless set, as in PEFT's guide to P-Tuning. PEFT's own default, the model's width, makes the encoder as large as a layer. */
export function encoderWidth({ encoder_hidden_size }: Pick<PromptEncoderOptions, "encoder_hidden_size">): number {
  return encoder_hidden_size ?? 128;
}

/**
 * Virtual tokens (P, C), as they are or through an encoder: for MLP three Linears with ReLU between, for LSTM a bidirectional LSTM and two Linears.
 * Source: PEFT 0.21, tuners/p_tuning/model.py, whose names and shapes are kept, and the random start until `startAs`.
 */
export class PromptEncoder extends Module implements PromptVectors {
  readonly embedding: Embedding;
  readonly lstm_head: BidirectionalLstm | null = null;
  readonly mlp_head: readonly Projection[] = [];

  constructor(model: LanguageModel, config: PromptEncoderOptions, rng: Rng) {
    super();
    const { device, shape } = model;
    const { encoder_num_layers: layers, encoder_reparameterization_type: type } = config;
    const hidden = encoderWidth(config);
    const projection = (from: number, to: number) => drawnLinear(device, from, to, rng);
    this.embedding = drawnEmbedding(device, config.num_virtual_tokens, shape.width, rng);
    if (type === "MLP")
      this.mlp_head = [
        projection(shape.width, hidden),
        new Relu(),
        projection(hidden, hidden),
        new Relu(),
        projection(hidden, shape.width),
      ];
    if (type === "LSTM") {
      this.lstm_head = new BidirectionalLstm(device, { inFeatures: shape.width, hidden, layers }, config.encoder_dropout, rng);
      this.mlp_head = [projection(2 * hidden, 2 * hidden), new Relu(), projection(2 * hidden, shape.width)];
    }
  }

  get length(): number {
    return this.embedding.vocabSize;
  }

  get hasEncoder(): boolean {
    return this.mlp_head.length > 0;
  }

  forward(): Tensor {
    return this.#through(this.mlp_head);
  }

  /** Lets the virtual tokens be `vectors` (P, C) for now. */
  startAs(vectors: Tensor): void {
    const last = this.mlp_head.at(-1);
    if (last === undefined) copyInto(this.embedding.weight.value, vectors);
    else fitLastLayer(last as Linear, this.#through(this.mlp_head.slice(0, -1)), vectors);
  }

  #through(layers: readonly Projection[]): Tensor {
    const vectors = this.embedding.weight.value;
    return layers.reduce((x, layer) => layer.forward(x), this.lstm_head?.forward(vectors) ?? vectors);
  }
}

class Relu extends Module implements Projection {
  forward(x: Tensor): Tensor {
    return activation(x, "relu");
  }
}
