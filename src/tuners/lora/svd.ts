import {
  copyOf,
  firstOf,
  multiplyColumns,
  multiplyRows,
  product,
  productTransposed,
  scaled,
  squareRoots,
  svd,
  transposed,
} from "../../core/linalg.js";
import type { Rng } from "../../core/rng.js";
import { scope, Tensor, unscoped } from "../../core/tensor.js";
import { ConfigError } from "../../errors.js";
import type { Factors } from "./factors.js";

/** Directions beyond the rank that the search carries along: they make the wanted ones exact sooner. */
const OVERSAMPLING = 8;

/**
 * The best approximation of factor · W of rank R, in halves of equal size: a = √(factor · S) Vᵀ (R, in) and b = U √(factor · S) (out, R). W (out, in) may
 * be of any type. The caller disposes both.
 *
 * Source: Halko, Martinsson & Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1 (subspace iteration with orthogonalisation after every
 * product); `iterations` is what torch.svd_lowrank calls niter. −1 carries all directions along, so that the result is exact.
 * Throws ConfigError if W has not so many directions.
 */
export function balancedFactors(w: Tensor, rank: number, iterations: number, factor: number, rng: Rng): Factors {
  const { device } = w;
  const [rows, columns] = w.shape as [number, number];
  const smaller = Math.min(rows, columns);
  if (rank > smaller) throw new ConfigError(`lora_rank: a weight of ${rows} × ${columns} has no ${rank} singular vectors`);
  const width = iterations === -1 ? smaller : Math.min(rank + OVERSAMPLING, smaller);

  return scope(() => {
    const sketch = Tensor.from(
      device,
      Float32Array.from({ length: width * columns }, () => rng.normal()),
      [width, columns],
    );
    let left = svd(productTransposed(sketch, w)).v;
    for (let i = 0; i < iterations; i++) {
      const better = scope(() => svd(productTransposed(svd(product(left, w)).v, w)).v);
      left.dispose();
      left = better;
    }
    const { u, s, v } = svd(product(left, w)); // W ≈ leftᵀ (uᵀ diag(s) v)
    const roots = squareRoots(scaled(firstOf(s, rank), factor));
    const [right, transposedLeft] = [firstOf(v, rank), firstOf(product(u, left), rank)];
    const factors = unscoped(() => ({ a: copyOf(right), b: transposed(transposedLeft) }));
    multiplyRows(factors.a, roots);
    multiplyColumns(factors.b, roots);
    return factors;
  });
}
