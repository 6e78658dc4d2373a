import type { z } from "zod";
import { LoraConfig } from "../lora/config.js";
import { lora } from "../lora/lora.js";
import { quantizationKeys } from "../quantized-base.js";
import { defineTuner } from "../tuner.js";

export const QloraConfig = LoraConfig.extend({ quantization_bit: quantizationKeys.quantization_bit.default(4) });
export type QloraConfig = z.output<typeof QloraConfig>;

/**
 * QLoRA: LoRA on a base in 4 bits, which is quantized while it is read. A base that is quantized already (GGUF, bitsandbytes) is trained on as it
 * is. `lora` with `quantization_bit: 4` is the same under LLaMA-Factory's name.
 *
 * Source: Dettmers et al. 2023, arXiv:2305.14314: NF4, blocks of 64, double quantization; every Linear but the head.
 */
export const qlora = defineTuner<QloraConfig>({
  ...lora,
  name: "qlora",
  summary: "LoRA on a base in 4 bits: a quarter of the memory for weights, a little slower",
  config: QloraConfig,
});
