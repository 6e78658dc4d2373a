import type { Rng } from "../core/rng.js";

/**
 * How values of several adapters become one. Source: PEFT 0.21, utils/merge_utils.py; Yadav et al. 2023, arXiv:2306.01708 §3 (ties); Yu et al. 2023,
 * arXiv:2311.03099, eq. 1 (dare).
 */

/** Values of one adapter, and what they are multiplied by. */
export interface Weighted {
  readonly values: Float32Array;
  readonly factor: number;
}

/** Sets to 0 all values but the share `density` that is largest in magnitude. */
export function keepLargest(values: Float32Array, density: number): Float32Array {
  const kept = Math.floor(density * values.length);
  if (kept === values.length) return values;
  const order = Uint32Array.from(values.keys()).sort((i, j) => Math.abs(values[j]!) - Math.abs(values[i]!));
  const sparse = new Float32Array(values.length);
  for (const i of order.subarray(0, kept)) sparse[i] = values[i]!;
  return sparse;
}

/** Sets each value to 0 with chance 1 − density and divides the others by `density`, so that the expectation stays. */
export function drop(values: Float32Array, density: number, rng: Rng): Float32Array {
  return density === 1 ? values : values.map((value) => (rng.float() < density ? value / density : 0));
}

/** Σ factor · values */
export function sum(parts: readonly Weighted[]): Float32Array {
  return parts[0]!.values.map((_, i) => parts.reduce((total, { values, factor }) => total + factor * values[i]!, 0));
}

/**
 * At each place the mean of what has the sign of the majority: that of the sum of the values, or of most values. The majority is asked before
 * factors count, as PEFT does.
 */
export function electedMean(parts: readonly Weighted[], majority: "total" | "frequency"): Float32Array {
  return parts[0]!.values.map((_, i) => {
    const votes = parts.reduce((total, { values }) => total + (majority === "total" ? values[i]! : Math.sign(values[i]!)), 0);
    const elected = votes >= 0 ? 1 : -1;
    const winners = parts.filter(({ values }) => Math.sign(values[i]!) === elected);
    return winners.reduce((total, { values, factor }) => total + factor * values[i]!, 0) / Math.max(1, winners.length);
  });
}
