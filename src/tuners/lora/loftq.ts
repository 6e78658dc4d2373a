import { addProduct, addScaled, converted } from "../../core/linalg.js";
import { Rng } from "../../core/rng.js";
import { scope, type Tensor } from "../../core/tensor.js";
import type { DType } from "../../engine/dtype.js";
import { rounded } from "../quantized-base.js";
import type { Factors } from "./factors.js";
import { balancedFactors } from "./svd.js";

/** Rounds of the approximate SVD: what quantizing loses has no few directions that stand out, so more would change little. */
const SVD_ITERATIONS = 4;

export interface LoftqSettings {
  readonly rank: number;
  readonly scaling: number;
  readonly rounds: number;
}

/**
 * LoftQ: a quantized weight Q and a first update s · B A that together are nearest to W, by turns: Q = quantize(W − s · B A), then
 * s · B A = the best approximation of W − Q. The caller disposes all.
 *
 * Source: Li et al. 2023, arXiv:2310.08659, algorithm 1; PEFT 0.21, utils/loftq_utils.py `loftq_init`. PEFT leaves s out, so that its start is right for
 * alpha = r only; here it is right for every alpha. The same W gives the same bits again.
 */
export function loftq(w: Tensor, type: DType, settings: LoftqSettings): { quantized: Tensor; start: Factors } {
  let found = takeTurn(w, type, settings, null);
  for (let round = 1; round < settings.rounds; round++) {
    const { quantized, start } = found;
    found = takeTurn(w, type, settings, start);
    for (const tensor of [quantized, start.a, start.b]) tensor.dispose();
  }
  return found;
}

function takeTurn(w: Tensor, type: DType, { rank, scaling }: LoftqSettings, before: Factors | null) {
  const quantized = scope(() => {
    const rest = converted(w, "f32");
    if (before !== null) addProduct(rest, before.b, before.a, -scaling);
    return rounded(rest, type);
  });
  return scope(() => {
    const lost = converted(w, "f32");
    scope(() => addScaled(lost, converted(quantized, "f32"), -1)); // W − Q
    return { quantized, start: balancedFactors(lost, rank, SVD_ITERATIONS, 1 / scaling, new Rng(0)) };
  });
}
