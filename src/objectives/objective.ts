import type { Tensor } from "../core/tensor.js";
import type { Example } from "../data/example.js";
import type { CausalLM } from "../models/causal-lm.js";

/** What every batch tells the loop. */
export interface Batch {
  /** Tokens that go through the model, none of them padding. */
  readonly tokens: number;
  /** What the loss sums over: supervised tokens, or pairs. */
  readonly count: number;
}

/**
 * What is minimised. Only the training loop divides, once a step, by the whole step's count: so accumulated micro-batches equal one batch.
 */
export interface Objective<B extends Batch = Batch> {
  /** Value of `stage` in a recipe. */
  readonly name: string;
  collate(examples: readonly Example[]): B;
  /** The loss summed over the batch, a scalar. Never a mean. */
  loss(model: CausalLM, batch: B): Tensor;
}
