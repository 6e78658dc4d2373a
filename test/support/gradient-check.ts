import assert from "node:assert/strict";
import { Rng } from "../../src/core/rng.js";
import { differentiate, record } from "../../src/core/tape.js";
import { type Shape, scope, sizeOf, Tensor } from "../../src/core/tensor.js";
import { loadEngine } from "../../src/engine/load.js";

export const engine = loadEngine();
export const device = { kernels: engine, compute: "f32" } as const;

export function randomValues(rng: Rng, shape: Shape, scale = 1): Float32Array {
  return Float32Array.from({ length: sizeOf(shape) }, () => scale * rng.normal());
}

/** Σ weights · y, as a scalar that the tape can differentiate: turns any op into a loss. */
export function weightedSum(y: Tensor, weights: Tensor): Tensor {
  const sum = Tensor.empty(y.device, [1]);
  const { kernels } = y.device;
  kernels.matmul(y.id, weights.id, "f32", sum.id, 1, 1, y.size, 1, false, "f32");
  return record(sum, [y], [], (_dy, grads) =>
    grads.into(y, (dx, accumulate) => kernels.scale(weights.id, dx, 1, y.size, accumulate)),
  );
}

/**
 * Holds the gradients that an op gives for its inputs against central differences of its value, along random directions: one number for
 * each input, so an error anywhere shows.
 */
export async function checkGradients(
  inputs: Readonly<Record<string, { shape: Shape; scale?: number }>>,
  op: (...inputs: Tensor[]) => Tensor,
  { step = 1e-2, tolerance = 1e-2, seed = 1 } = {},
): Promise<void> {
  const rng = new Rng(seed);
  const values = Object.values(inputs).map(({ shape, scale }) => randomValues(rng, shape, scale));
  const shapes = Object.values(inputs).map(({ shape }) => shape);
  const tensorsOf = (arrays: readonly Float32Array[]) => arrays.map((array, i) => Tensor.from(device, array, shapes[i]!));
  const probe = scope(() => ({ y: op(...tensorsOf(values)) }));
  const weights = Tensor.from(device, randomValues(rng, probe.y.shape), probe.y.shape);
  probe.y.dispose();

  const lossAt = async (arrays: readonly Float32Array[]) => {
    const loss = scope(() => weightedSum(op(...tensorsOf(arrays)), weights));
    const value = await loss.item();
    loss.dispose();
    return value;
  };

  const leaves = tensorsOf(values);
  for (const leaf of leaves) leaf.requiresGrad = true;
  differentiate(() => weightedSum(op(...leaves), weights)).dispose();
  for (const [i, name] of Object.keys(inputs).entries()) {
    const gradient = await leaves[i]!.grad!.read();
    const direction = randomValues(rng, shapes[i]!);
    const moved = (sign: number) =>
      values.map((array, j) => (j === i ? array.map((x, k) => x + sign * step * direction[k]!) : array));
    const expected = ((await lossAt(moved(1))) - (await lossAt(moved(-1)))) / (2 * step);
    const actual = gradient.reduce((sum, g, k) => sum + g * direction[k]!, 0);
    const size = Math.hypot(...gradient) + 1e-3;
    assert.ok(
      Math.abs(actual - expected) <= tolerance * size,
      `gradient of ${name}: expected ${expected} along a direction, got ${actual}`,
    );
  }
  for (const leaf of leaves) {
    leaf.grad?.dispose();
    leaf.dispose();
  }
  weights.dispose();
}
