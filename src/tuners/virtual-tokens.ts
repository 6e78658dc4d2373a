import { z } from "zod";
import { ConfigError } from "../errors.js";
import type { LanguageModel } from "../models/language-model.js";
import type { Start } from "./tuner.js";

/** Settings that all tuners share which put virtual tokens before every sequence. Names are PEFT's. */
export const virtualTokenSettings = {
  num_virtual_tokens: z.int().min(1).default(20).describe("virtual tokens before every sequence, as in PEFT's guides"),
  prompt_tuning_init: z
    .enum(["RANDOM", "SAMPLE_VOCAB", "TEXT"])
    .default("RANDOM")
    .describe("virtual tokens start at random, as tokens of the vocabulary, or as the tokens of a text; not with an encoder"),
  prompt_tuning_init_text: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe("the text that virtual tokens start as: cut, or repeated, to their number"),
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

/** Adds an issue if virtual tokens are to start as a text that is not given, or that an encoder would replace. */
export function checkStart(hasEncoder: boolean, settings: VirtualTokenSettings, context: z.RefinementCtx): void {
  const { prompt_tuning_init: start, prompt_tuning_init_text: text } = settings;
  if (start !== "RANDOM" && hasEncoder)
    context.addIssue(
      `prompt_tuning_init: ${start} is for virtual tokens that train directly; an encoder would make something else of them. ` +
        "Set encoder_reparameterization_type: NONE, or for prefix-tuning prefix_projection: false",
    );
  if ((start === "TEXT") !== (text !== null))
    context.addIssue("prompt_tuning_init: TEXT and prompt_tuning_init_text go together: set both, or neither");
}

/** The tokens that virtual tokens start as; null if they start at random. Throws ConfigError if a text has no tokens. */
export function startTokens(settings: VirtualTokenSettings, model: LanguageModel, { rng, encode }: Start): Int32Array | null {
  const { num_virtual_tokens: length, prompt_tuning_init, prompt_tuning_init_text: text } = settings;
  if (prompt_tuning_init === "RANDOM") return null;
  if (prompt_tuning_init === "SAMPLE_VOCAB") return Int32Array.from({ length }, () => rng.below(model.shape.vocabSize));
  const ids = encode(text!);
  if (ids.length === 0)
    throw new ConfigError(`prompt_tuning_init_text: the model's tokenizer makes no tokens of ${JSON.stringify(text)}`);
  return Int32Array.from({ length }, (_, i) => ids[i % ids.length]!);
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
