import { gatherRows } from "../core/ops/rows.js";
import type { Tensor } from "../core/tensor.js";
import { ModelError } from "../errors.js";
import { Linear, type OutputProjection } from "../nn/linear.js";
import { LanguageModel } from "./language-model.js";
import type { TokenBatch } from "./token-batch.js";

/** A decoder: it predicts the next token or, with a head, the class of a text by its last token. */
export abstract class CausalLM extends LanguageModel {
  /** The output projection: weight (V, C). In a classifier it is the embedding's, and nobody uses it. */
  abstract readonly lm_head: OutputProjection;
  score: Linear | null = null;

  get head(): Linear | null {
    return this.score;
  }

  readonly headName = "score";

  addHead(outputs: number, hasBias = false): void {
    this.score = new Linear(this.shape.width, outputs, { bias: hasBias });
    this.headModules = [this.headName];
  }

  summary(batch: TokenBatch): Tensor {
    return gatherRows(
      this.hidden(batch),
      Int32Array.from(batch.segments, ({ qStart, qLength }) => qStart + qLength - 1),
    );
  }

  override reasonToLeave(name: string): string | null {
    return name === "lm_head.weight" && this.isClassifier ? "an output projection, which a classifier does not use" : null;
  }

  /** Whether the output projection is the embedding's table as well; of a model without adapters. */
  get isTied(): boolean {
    return ![...this.namedParameters()].some(([name]) => name === "lm_head.weight"); // what is shared has its first name
  }

  /** Logits (rows, V) at the given rows of the batch. */
  logits(batch: TokenBatch, rows: Int32Array): Tensor {
    return this.lm_head.forward(gatherRows(this.hidden(batch), rows));
  }
}

/** The model as one that predicts the next token. Throws ModelError for an encoder or a classifier; `purpose` says what that is for. */
export function asCausalLM(model: LanguageModel, purpose: string): CausalLM {
  if (model instanceof CausalLM && !model.isClassifier) return model;
  const what = !model.isClassifier ? "an encoder: it has no output projection over a vocabulary" : "a classifier";
  throw new ModelError(`${purpose} needs a model that predicts the next token, and this is ${what}`);
}
