import { record } from "../tape.js";
import { checkFloat, checkShape, Tensor } from "../tensor.js";

/**
 * y = silu(gate) · up with silu(x) = x / (1 + e⁻ˣ): the gated unit of SwiGLU.
 * Source: Shazeer 2020, arXiv:2002.05202, eq. 6. gate, up (..., I) f32 → y (..., I). y is cheap to compute again, so backward does not
 * hold its memory. Throws ShapeError.
 */
export function siluMul(gate: Tensor, up: Tensor): Tensor {
  checkFloat("siluMul", { gate, up });
  checkShape("siluMul", "up", up, gate.shape, "the shape of gate");
  const { size } = gate;
  const { kernels } = gate.device;

  const y = Tensor.empty(gate.device, gate.shape);
  kernels.siluMul(gate.id, up.id, y.id, size);
  y.remakeFrom([gate, up], (again) => kernels.siluMul(gate.id, up.id, again, size));

  return record(y, [gate, up], [gate, up], (dy, grads) => {
    const dgate = Tensor.empty(gate.device, gate.shape);
    const dup = Tensor.empty(up.device, up.shape);
    kernels.siluMulGrad(dy.id, gate.id, up.id, dgate.id, dup.id, size);
    grads.pass(gate, dgate);
    grads.pass(up, dup);
  });
}
