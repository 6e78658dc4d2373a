import { gatherRows } from "../core/ops/rows.js";
import type { Tensor } from "../core/tensor.js";
import type { Linear } from "../nn/linear.js";
import { LanguageModel } from "./language-model.js";
import type { TokenBatch } from "./token-batch.js";

/** A decoder that predicts the next token. */
export abstract class CausalLM extends LanguageModel {
  /** The output projection: weight (V, C). */
  abstract readonly lm_head: Linear;

  /** Logits (rows, V) at the given rows of the batch. */
  logits(batch: TokenBatch, rows: Int32Array): Tensor {
    return this.lm_head.forward(gatherRows(this.hidden(batch), rows));
  }
}
