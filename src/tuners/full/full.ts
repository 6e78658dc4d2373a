import { z } from "zod";
import { Tensor, unscoped } from "../../core/tensor.js";
import { defineTuner } from "../tuner.js";

export const FullConfig = z.strictObject({});
export type FullConfig = z.output<typeof FullConfig>;

/**
 * Full fine-tuning: every weight trains. Weights stored in another type are expanded to f32 first, one tensor after the other: the
 * optimizer's small steps would be lost in 8 bits of mantissa.
 */
export const full = defineTuner<FullConfig>({
  name: "full",
  summary: "trains every weight: the most memory, the most freedom, the most forgetting",
  config: FullConfig,

  apply(model) {
    for (const [, parameter] of model.namedParameters()) {
      const stored = parameter.value;
      if (stored.dtype !== "f32") {
        const expanded = unscoped(() => Tensor.empty(stored.device, stored.shape));
        stored.device.kernels.convert(stored.id, stored.dtype, expanded.id, "f32", stored.size);
        parameter.value = expanded;
      }
      parameter.requiresGrad = true;
    }
  },
});
