/** What PPO makes of the numbers of a roll-out. Answers are arrays over their own tokens, so nothing is masked and nothing leaks from one to another. */

export const klEstimators = ["k1", "k3"] as const;
export type KlEstimator = (typeof klEstimators)[number];

/** The KL divergence from the reference at each token: k1 = log π − log π_ref, or k3 = e^k − k − 1 with k = log π_ref − log π. Source: Schulman 2020. */
export function divergences(old: Float32Array, reference: Float32Array, estimator: KlEstimator): Float64Array {
  return Float64Array.from(old, (logProb, t) => {
    const k = reference[t]! - logProb;
    return estimator === "k1" ? -k : Math.exp(k) - k - 1;
  });
}

/** The reward of each token: −β · divergence, and at the token that ends the answer the score as well. */
export function tokenRewards(score: number, kl: Float64Array, coefficient: number): Float64Array {
  return kl.map((divergence, t) => -coefficient * divergence + (t === kl.length - 1 ? score : 0));
}

export interface Estimates {
  readonly advantages: Float64Array;
  readonly returns: Float64Array;
}

/**
 * Generalized advantage estimation: δ_t = r_t + γ V_{t+1} − V_t, A_t = δ_t + γ λ A_{t+1}, and the return A_t + V_t. After the last token the value is 0,
 * also where an answer was cut, as in TRL. `values` are what is expected before each token is given.
 * Source: Schulman et al. 2016, eq. 16; TRL 0.9.6, ppo_trainer.py `compute_advantages`.
 */
export function generalizedAdvantages(rewards: Float64Array, values: Float32Array, gamma: number, lambda: number): Estimates {
  const advantages = new Float64Array(rewards.length);
  let next = { value: 0, advantage: 0 };
  for (let t = rewards.length - 1; t >= 0; t--) {
    const delta = rewards[t]! + gamma * next.value - values[t]!;
    advantages[t] = delta + gamma * lambda * next.advantage;
    next = { value: values[t]!, advantage: advantages[t]! };
  }
  return { advantages, returns: advantages.map((advantage, t) => advantage + values[t]!) };
}

/** Whether a variance is that of a sample (Bessel: n − 1), as in TRL, or of a population, as in the papers. */
export const varianceKinds = ["sample", "population"] as const;
export type VarianceKind = (typeof varianceKinds)[number];

/**
 * Numbers of all tokens brought to deviation 1, and to mean 0 unless `keepsMean`: (x − mean) / √(variance + 1e-8).
 * Source: TRL 0.9.6, core.py `masked_whiten`.
 */
export function whitened(
  arrays: readonly Float64Array[],
  kind: VarianceKind,
  { keepsMean = false }: { keepsMean?: boolean } = {},
): Float64Array[] {
  const count = arrays.reduce((sum, { length }) => sum + length, 0);
  const sumOf = (of: (x: number) => number) => arrays.reduce((all, array) => array.reduce((sum, x) => sum + of(x), all), 0);
  const mean = sumOf((x) => x) / count;
  const squares = sumOf((x) => (x - mean) ** 2);
  const variance = squares / Math.max(1, kind === "sample" ? count - 1 : count);
  const factor = 1 / Math.sqrt(variance + 1e-8);
  return arrays.map((array) => array.map((x) => (x - mean) * factor + (keepsMean ? mean : 0)));
}
