/** σ(x) = 1 / (1 + e^−x), without overflow. */
export function sigmoid(x: number): number {
  if (x >= 0) return 1 / (1 + Math.exp(-x));
  const e = Math.exp(x);
  return e / (1 + e);
}

/** log σ(x), without overflow. */
export function logSigmoid(x: number): number {
  return Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));
}

/** The largest log-probability whose odds are told apart from certainty in f32. */
const mostCertain = -(2 ** -24);

/**
 * log(p / (1 − p)) of p = e^x, x ≤ 0, and its derivative by x, 1 / (1 − p). A log-probability of 0, which f32 rounds to, is taken for −2⁻²⁴: the odds stay
 * finite. (LLaMA-Factory's `log1p(-exp(x))` gives infinity, and NaN as gradient.)
 */
export function logOdds(x: number): { value: number; slope: number } {
  const at = Math.min(x, mostCertain);
  const rest = -Math.expm1(at); // 1 − p
  return { value: at - Math.log(rest), slope: 1 / rest };
}
