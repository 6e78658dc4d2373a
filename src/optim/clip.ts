import { Tensor } from "../core/tensor.js";
import type { Parameter } from "../nn/module.js";

/** Σ g² over all gradients, as a scalar tensor. */
export function gradientSquares(parameters: Iterable<Parameter>): Tensor {
  const total = squares([...parameters].flatMap(({ value }) => value.grad ?? []));
  if (total === null) throw new Error("gradientSquares: no parameter has a gradient");
  return total;
}

/** Σ x² over all tensors, as a scalar tensor; null if there are none. */
export function squares(tensors: Iterable<Tensor>): Tensor | null {
  let total: Tensor | null = null;
  for (const { device, id, size } of tensors) {
    const first: boolean = total === null;
    total ??= Tensor.empty(device, [1]);
    device.kernels.sumSquares(id, total.id, size, !first);
  }
  return total;
}

/** The factor that brings a gradient of this norm down to `maxNorm`, as torch.nn.utils.clip_grad_norm_; 0 switches clipping off. */
export function clipFactor(norm: number, maxNorm: number): number {
  return maxNorm > 0 ? Math.min(1, maxNorm / (norm + 1e-6)) : 1;
}
