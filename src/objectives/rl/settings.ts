import { z } from "zod";

/**
 * How a policy answers while it learns, in every stage that learns from its own answers. Nothing but the temperature changes what is drawn: the
 * log-probabilities that the loss is a function of are those of the distribution that was drawn from. The model's own generation_config is not read.
 * Defaults: TRL's temperature of 1 (its PPO: 0.7; LLaMA-Factory: 0.95).
 */
export const Sampling = z.object({
  temperature: z.number().gt(0).max(1e3).default(1),
  max_new_tokens: z.int().min(1).max(1e6).default(256),
  top_p: z.literal(1).default(1),
  top_k: z.literal(0).default(0),
  repetition_penalty: z.literal(1).default(1),
  do_sample: z.literal(true).default(true),
});

export type SamplingSettings = Readonly<Pick<z.output<typeof Sampling>, "temperature" | "max_new_tokens">>;

/** What TRL calls the longest answer. */
export const samplingNames = { max_completion_length: "max_new_tokens" };

export const samplingNotes =
  "Answers are drawn by temperature alone, and scored at the same: a cut of the distribution (`top_p`, `top_k`) or a penalty would make the policy learn " +
  "from others' answers. The model's own generation_config is not read, and nothing is dropped out while such a stage trains. An answer has at most " +
  "`max_new_tokens` tokens, with the one that ends it. `per_device_train_batch_size` counts prompts.";

/** RL needs smaller steps than imitation does. */
export const policyRateFactor = 0.1;
