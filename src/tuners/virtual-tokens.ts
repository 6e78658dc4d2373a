import { z } from "zod";
import { addProduct, copyInto, copyOf, leastSquares, product } from "../core/linalg.js";
import { scope, Tensor } from "../core/tensor.js";
import { ConfigError } from "../errors.js";
import type { LanguageModel } from "../models/language-model.js";
import type { Linear } from "../nn/linear.js";
import type { Start } from "./tuner.js";

/** Settings that all tuners share which put virtual tokens before every sequence. Names are PEFT's. */
export const virtualTokenSettings = {
  num_virtual_tokens: z.int().min(1).default(20).describe("virtual tokens before every sequence, as in PEFT's guides"),
  prompt_tuning_init: z
    .enum(["RANDOM", "SAMPLE_VOCAB", "TEXT"])
    .default("TEXT")
    .describe("virtual tokens start as the tokens of a text, as tokens of the vocabulary, or at random; PEFT: RANDOM"),
  prompt_tuning_init_text: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe("the text that virtual tokens start as: cut, or repeated, to their number; not set: a plain instruction"),
  encoder_hidden_size: z
    .int()
    .min(1)
    .max(65_536)
    .nullable()
    .default(null)
    .describe("width of the encoder that makes the virtual tokens; not set: 128 for p-tuning, 512 for prefix-tuning"),
};

const Settings = z.object(virtualTokenSettings);
export type VirtualTokenSettings = z.output<typeof Settings>;

/** Of more tokens than virtual tokens usually are, in the languages of most bases. It asks for nothing that a task could not be. */
const instruction =
  "Read the following carefully. Then answer exactly as the examples have shown you, briefly and to the point, and add nothing else.";

/** Adds an issue for a text that virtual tokens will not start as. */
export function checkStart(
  { prompt_tuning_init: start, prompt_tuning_init_text: text }: VirtualTokenSettings,
  context: z.RefinementCtx,
): void {
  if (text !== null && start !== "TEXT")
    context.addIssue(`prompt_tuning_init_text is for prompt_tuning_init: TEXT, not ${start}: unset one of them`);
}

/** The tokens that virtual tokens start as; null if they start at random. Throws ConfigError if a text has no tokens. */
export function startTokens(settings: VirtualTokenSettings, model: LanguageModel, { rng, encode }: Start): Int32Array | null {
  const { num_virtual_tokens: length, prompt_tuning_init, prompt_tuning_init_text: text } = settings;
  if (prompt_tuning_init === "RANDOM") return null;
  if (prompt_tuning_init === "SAMPLE_VOCAB") return Int32Array.from({ length }, () => rng.below(model.shape.vocabSize));
  const said = text ?? instruction;
  const ids = encode(said);
  if (ids.length === 0)
    throw new ConfigError(`prompt_tuning_init_text: the model's tokenizer makes no tokens of ${JSON.stringify(said)}`);
  return Int32Array.from({ length }, (_, i) => ids[i % ids.length]!);
}

/**
 * Sets the last layer of an encoder so that it makes `targets` (P, N) of what it is given now, `hidden` (P, K): what the rows have in common is the bias, and the
 * weight is the smallest that makes the rest. What comes before stays random, so that all of the encoder gets gradients.
 */
export function fitLastLayer({ weight, bias }: Linear, hidden: Tensor, targets: Tensor): void {
  scope(() => {
    const [count] = targets.shape as [number];
    const mean = Tensor.from(targets.device, new Float32Array(count).fill(1 / count), [1, count]);
    const common = product(mean, targets);
    const rest = copyOf(targets);
    addProduct(rest, Tensor.from(targets.device, new Float32Array(count).fill(1), [count, 1]), common, -1);
    copyInto(bias!.value, common.alias(bias!.shape));
    copyInto(weight.value, leastSquares(hidden, rest));
  });
}

/** What PEFT's prompt-learning configs have in common. Source: PEFT 0.21, config.py, PromptLearningConfig. */
export const peftVirtualTokens = {
  num_virtual_tokens: z.int().min(1),
  /** Of the base model: told better by the tensors, which must fit. */
  token_dim: z.unknown().optional(),
  num_attention_heads: z.unknown().optional(),
  num_layers: z.unknown().optional(),
  /** 2 for encoder-decoders. */
  num_transformer_submodules: z.literal(1).nullish(),
  encoder_hidden_size: z.int().min(1).nullish(),
};
