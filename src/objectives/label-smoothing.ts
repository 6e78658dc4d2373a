import { z } from "zod";

/**
 * Settings of objectives whose loss is a cross-entropy: the wanted answer gets 1 − ε of the probability that is aimed at, and all answers, it among
 * them, share ε alike (Szegedy et al. 2016, arXiv:1512.00567). The held-out loss is smoothed like that of training.
 *
 * Source: transformers' LabelSmoother and `Trainer.prediction_step`. It takes any factor; one of 1 or more aims away from the answer, and is refused here.
 */
export const smoothingKeys = {
  label_smoothing_factor: z
    .number()
    .min(0)
    .lt(1)
    .default(0)
    .describe("share of the wanted probability that goes to all answers alike, the held-out loss included; 0: none"),
};
