import { z } from "zod";
import { trainWhole } from "../train-whole.js";
import { defineTuner } from "../tuner.js";

export const FullConfig = z.strictObject({});
export type FullConfig = z.output<typeof FullConfig>;

/** Full fine-tuning: every weight trains. Weights stored in another type are expanded to f32 first, one tensor after the other. */
export const full = defineTuner<FullConfig>({
  name: "full",
  summary: "trains every weight: the most memory, the most freedom, the most forgetting",
  config: FullConfig,
  defaults: [{ learning_rate: 1e-4, rowsPerStep: 4, warmup_ratio: 0.1 }],

  bind: () => ({
    changesBase: true,
    apply(model) {
      for (const [, parameter] of model.namedParameters()) trainWhole(parameter);
    },
  }),
});
