import type { Rng } from "../../core/rng.js";
import { scope, Tensor, unscoped } from "../../core/tensor.js";
import { ConfigError } from "../../errors.js";
import { type Factors, identity } from "./factors.js";

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
  const { kernels } = device;
  const [rows, columns] = w.shape as [number, number];
  const smaller = Math.min(rows, columns);
  if (rank > smaller) throw new ConfigError(`lora_rank: a weight of ${rows} × ${columns} has no ${rank} singular vectors`);
  const width = iterations === -1 ? smaller : Math.min(rank + OVERSAMPLING, smaller);

  return scope(() => {
    const empty = (...shape: number[]) => Tensor.empty(device, shape);
    const orthogonal = (x: Tensor) => {
      const result = { u: empty(width, width), s: empty(width), v: x }; // x = uᵀ diag(s) v, v in x's place
      kernels.svd(x.id, result.u.id, result.s.id, width, x.columns);
      return result;
    };
    const timesTransposed = (x: Tensor) => {
      const y = empty(width, rows);
      kernels.matmul(x.id, w.id, w.dtype, y.id, width, rows, columns, 1, false, "f32");
      return y;
    };
    const times = (y: Tensor) => {
      const x = empty(width, columns);
      kernels.matmulInputGrad(y.id, w.id, w.dtype, x.id, width, rows, columns, 1, false, "f32");
      return x;
    };

    const sketch = Float32Array.from({ length: width * columns }, () => rng.normal());
    let left = orthogonal(timesTransposed(Tensor.from(device, sketch, [width, columns]))).v;
    for (let i = 0; i < iterations; i++) {
      const better = scope(() => orthogonal(timesTransposed(orthogonal(times(left)).v)).v);
      left.dispose();
      left = better;
    }
    const { u, s, v } = orthogonal(times(left)); // W ≈ leftᵀ (uᵀ diag(s) v)
    const turned = empty(width, rows);
    kernels.matmulInputGrad(u.id, left.id, "f32", turned.id, width, width, rows, 1, false, "f32");

    const roots = empty(rank); // √(factor · s)
    kernels.scale(s.id, roots.id, factor, rank, false);
    kernels.divideSqrt(roots.id, roots.id, roots.id, rank);
    const factors = unscoped(() => ({ a: empty(rank, columns), b: empty(rows, rank) }));
    kernels.scaleRows(v.id, roots.id, factors.a.id, rank, columns);
    kernels.matmulWeightGrad(turned.id, identity(device, rank).id, factors.b.id, rank, rows, rank, 1, false, "f32"); // its transpose
    kernels.scaleColumns(factors.b.id, roots.id, factors.b.id, rows, rank);
    return factors;
  });
}
