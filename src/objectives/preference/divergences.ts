import { logSigmoid, sigmoid } from "./math.js";

/**
 * f-DPO: f′(π/π_ref) stands in the place of h. Source: Wang et al. 2023, arXiv:2309.16240, table 1; TRL 1.16, whose constants these are (they matter where a loss
 * is no function of a difference).
 */
export const divergences = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] as const;
export interface Divergence {
  readonly name: (typeof divergences)[number];
  /** α of the α-divergence. */
  readonly alpha: number;
}

/** Score of a log-ratio, and its derivative. */
export function scoreOf(h: number, { name, alpha }: Divergence): readonly [score: number, slope: number] {
  switch (name) {
    case "reverse_kl":
      return [h, 1];
    case "forward_kl":
      return [1 - Math.exp(-h), Math.exp(-h)];
    case "js_divergence":
      return [Math.LN2 + logSigmoid(h), sigmoid(-h)];
    case "alpha_divergence": {
      if (Math.abs(alpha - 1) < 1e-6) return [h, 1];
      const t = (alpha - 1) * h;
      const largest = 80; // as TRL: e^t stays a number of f32
      return t > largest ? [Math.expm1(largest) / (alpha - 1), 0] : [Math.expm1(t) / (alpha - 1), Math.exp(t)];
    }
  }
}
