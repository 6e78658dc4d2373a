import { z } from "zod";
import { ConfigError } from "../../errors.js";
import type { ReferenceSettings, Task } from "../objective.js";

/**
 * Settings of the reference, for every objective that compares what trains with one. Names: LLaMA-Factory's (hparams/finetuning_args.py) and, of
 * the last, TRL's (DPOConfig). Not set, the reference is what training begins from. There too, but where LLaMA-Factory goes on from an adapter
 * (`adapter_name_or_path`), its reference is the base without it.
 */
export const referenceKeys = {
  ref_model: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe(
      "the reference, where it is another model than what training begins from: a folder, a GGUF file, or a repository name of the hub, of the same tokenizer",
    ),
  ref_model_adapters: z
    .string()
    .min(1)
    .nullable()
    .default(null)
    .describe("adapters that are merged into `ref_model`, one after the other, by commas"),
  ref_model_quantization_bit: z
    .union([z.literal(4), z.literal(8)])
    .nullable()
    .default(null)
    .describe("keep the Linear layers of `ref_model` in 4 bits or in 8, as `quantization_bit` does the base's"),
  precompute_ref_log_probs: z
    .boolean()
    .default(false)
    .describe(
      "ask the reference about every row before training and never again: each later epoch is faster, and what full tuning keeps of the base beside the weights that train is not kept. The answers are kept in `reference_log_probs.safetensors` in output_dir, where a resumed run finds them (TRL's name)",
    ),
};

type ReferenceConfig = z.output<z.ZodObject<typeof referenceKeys>>;

/** What a task with these settings says of its reference. Throws ConfigError for settings of a model that is not named. */
export function referenceOf({
  ref_model: model,
  ref_model_adapters: adapters,
  ref_model_quantization_bit: quantizationBit,
  precompute_ref_log_probs: isAskedOnce,
}: ReferenceConfig): Required<Pick<Task, "usesBase" | "reference">> {
  const alone = Object.entries({ ref_model_adapters: adapters, ref_model_quantization_bit: quantizationBit });
  for (const [key, value] of alone)
    if (model === null && value !== null)
      throw new ConfigError(`${key}: belongs to ref_model, which is not set: set it, or remove ${key}`);
  const reference: ReferenceSettings = { model: model === null ? null : { name: model, adapters, quantizationBit }, isAskedOnce };
  return { usesBase: model === null && !isAskedOnce, reference };
}
