import type { Activation } from "../../engine/kernels.js";
import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/**
 * y = f(gate) · up: the gated unit of SwiGLU (f = silu) and GeGLU (f = gelu).
 * Source: Shazeer 2020, arXiv:2002.05202, eq. 6. gate, up (..., I) f32 → y (..., I). y is cheap to compute again, so backward does not
 * hold its memory. Throws ShapeError.
 */
export function gated(gate: Tensor, up: Tensor, kind: Activation): Tensor {
  checkFloat("gated", { gate, up });
  checkShape("gated", "up", up, gate.shape, "the shape of gate");
  const { size } = gate;
  const { kernels } = gate.device;

  const y = Tensor.empty(gate.device, gate.shape);
  kernels.gated(gate.id, up.id, y.id, kind, size);
  y.remakeFrom([gate, up], (again) => kernels.gated(gate.id, up.id, again, kind, size));

  return record(y, [gate, up], [gate, up], (dy, grads) => {
    const dgate = Tensor.empty(gate.device, gate.shape);
    const dup = Tensor.empty(up.device, up.shape);
    kernels.gatedGrad(dy.id, gate.id, up.id, dgate.id, dup.id, kind, size);
    grads.pass(gate, dgate);
    grads.pass(up, dup);
  });
}
