import { z } from "zod";

/**
 * How a policy answers while it learns, in every stage that learns from its own answers. Nothing but the temperature changes what is drawn: the
 * log-probabilities that the loss is a function of are those of the distribution that was drawn from. The model's own generation_config is not read.
 */
export const samplingKeys = {
  temperature: z
    .number()
    .gt(0)
    .max(1e3)
    .default(1)
    .describe("logits are divided by it when answers are drawn, and when they are scored; TRL: 1 (PPO 0.7), LLaMA-Factory: 0.95"),
  max_new_tokens: z
    .int()
    .min(1)
    .max(1e6)
    .default(256)
    .describe("tokens that an answer has at most, the one that ends it included; TRL's max_completion_length"),
  top_p: z
    .literal(1)
    .default(1)
    .describe("answers are drawn by temperature alone: scored otherwise than drawn, they teach something else"),
  top_k: z.literal(0).default(0).describe("as top_p"),
  repetition_penalty: z.literal(1).default(1).describe("as top_p"),
  do_sample: z.literal(true).default(true).describe("answers are always drawn by chance"),
};

export interface SamplingSettings {
  readonly temperature: number;
  readonly max_new_tokens: number;
}
