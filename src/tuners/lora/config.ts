import { z } from "zod";
import { positiveF32 } from "../../core/positive-f32.js";
import { nameOrNames } from "../module-names.js";
import { quantizationKeys } from "../quantized-base.js";

/**
 * LoRA's settings. Names and defaults are LLaMA-Factory's (hparams/finetuning_args.py at ff6d4d12), and PEFT's (0.21, tuners/lora/config.py) for
 * what LLaMA-Factory has no name for: `exclude_modules`, `layers_to_transform`, `layers_pattern`, `bias`, `rank_pattern`, `alpha_pattern`.
 */
export const LoraConfig = z.strictObject({
  lora_rank: z.int().min(1).default(8).describe("rank of the update: adds r · (in + out) weights per layer"),
  lora_alpha: positiveF32.nullable().default(null).describe("the update is multiplied by alpha / r; empty: twice the rank"),
  lora_dropout: z.number().min(0).lt(1).default(0).describe("chance of zeroing an input feature, in training only"),
  lora_target: nameOrNames
    .default("all")
    .describe(
      "layers to adapt: all (every Linear but the output projection), ends of their names (lm_head and embed_tokens, too), or a regular expression",
    ),
  exclude_modules: nameOrNames.nullable().default(null).describe("layers not to adapt, said like `lora_target`"),
  layers_to_transform: z
    .union([z.int().min(0), z.array(z.int().min(0)).min(1)])
    .nullable()
    .default(null)
    .describe("adapt only the layers of these numbers, from 0"),
  layers_pattern: nameOrNames
    .nullable()
    .default(null)
    .describe("the list that `layers_to_transform` counts, by name; empty: the first with numbers"),
  rank_pattern: z
    .record(z.string(), z.int().min(1))
    .default({})
    .describe("other ranks for some layers, by the end of their names (a regular expression)"),
  alpha_pattern: z.record(z.string(), positiveF32).default({}).describe("other alphas for some layers, in the same way"),
  use_rslora: z.boolean().default(false).describe("multiply by alpha / √r instead, so that high ranks learn as fast (rsLoRA)"),
  use_dora: z.boolean().default(false).describe("train the length of each row of a weight apart from its direction (DoRA)"),
  pissa_init: z.boolean().default(false).describe("start from the principal singular vectors of each weight (PiSSA)"),
  pissa_iter: z
    .union([z.int().min(1).max(1000), z.literal(-1)])
    .default(16)
    .describe("rounds of the approximate SVD for `pissa_init`; -1: exact, slow for wide layers"),
  loraplus_lr_ratio: positiveF32
    .nullable()
    .default(null)
    .describe("B learns this many times as fast as A (LoRA+); empty: as fast"),
  bias: z
    .enum(["none", "all", "lora_only"])
    .default("none")
    .describe("which biases train: none, all, or those of the adapted layers"),
  additional_target: z
    .union([z.string().min(1), z.array(z.string().min(1))])
    .nullable()
    .default(null)
    .describe("modules that train whole and are saved with the adapter, by the end of their names: lm_head, embed_tokens"),
  ...quantizationKeys,
  loftq_init: z.boolean().default(false).describe("start from what quantizing the base loses (LoftQ); needs `quantization_bit`"),
  loftq_iter: z.int().min(1).max(100).default(1).describe("rounds of quantizing and approximating for `loftq_init`"),
});
export type LoraConfig = z.output<typeof LoraConfig>;
