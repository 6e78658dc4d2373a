import { gatherRows } from "../core/ops/rows.js";
import type { Tensor } from "../core/tensor.js";
import { ModelError } from "../errors.js";
import type { BranchBatch } from "./branches.js";
import { CausalLM } from "./causal-lm.js";
import type { LanguageModel } from "./language-model.js";

/**
 * What a reward model says of each answer of a batch: (answers, 1), in their order. It is read at the last token of an answer, the one that ends its turn,
 * wherever answers are scored: in training, evaluation, reinforcement learning and use. Throws ModelError for a model without a head of one output.
 */
export function scoresOf(model: LanguageModel, { input, ends }: Pick<BranchBatch, "input" | "ends">): Tensor {
  const { head } = model;
  if (head?.outFeatures !== 1)
    throw new ModelError(
      `the model is no reward model: it has ${head === null ? "no head" : `a head of ${head.outFeatures} outputs`}`,
    );
  return head.forward(gatherRows(model.hidden(input), ends));
}

/** Throws ModelError for an encoder, whose texts have no last token that has seen the rest. */
export function requireDecoder(model: LanguageModel, purpose: string): void {
  if (!(model instanceof CausalLM))
    throw new ModelError(`${purpose} needs a decoder, whose last token has seen the whole answer, and this is an encoder`);
}
