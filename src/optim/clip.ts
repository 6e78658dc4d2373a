import { Tensor } from "../core/tensor.js";
import type { Parameter } from "../nn/module.js";

/** Σ g² over all gradients, as a scalar tensor. */
export function gradientSquares(parameters: Iterable<Parameter>): Tensor {
  let total: Tensor | null = null;
  for (const { value } of parameters) {
    if (value.grad === null) continue;
    const first: boolean = total === null;
    total ??= Tensor.empty(value.device, [1]);
    value.device.kernels.sumSquares(value.grad.id, total.id, value.size, !first);
  }
  if (total === null) throw new Error("gradientSquares: no parameter has a gradient");
  return total;
}

/** The factor that brings a gradient of this norm down to `maxNorm`, as torch.nn.utils.clip_grad_norm_; 0 switches clipping off. */
export function clipFactor(norm: number, maxNorm: number): number {
  return maxNorm > 0 ? Math.min(1, maxNorm / (norm + 1e-6)) : 1;
}
