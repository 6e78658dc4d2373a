import type { Activation } from "../../engine/kernels.js";
import { record } from "../tape.js";
import { checkFloat, Tensor } from "../tensor.js";

/** What a model's config may call an activation (transformers, `activations.py`), and which it is. */
export const activations: Readonly<Record<string, Activation>> = {
  relu: "relu",
  gelu: "gelu",
  gelu_new: "gelu_tanh",
  gelu_fast: "gelu_tanh",
  gelu_pytorch_tanh: "gelu_tanh",
  silu: "silu",
  swish: "silu",
  tanh: "tanh",
  sigmoid: "sigmoid",
};

/**
 * y = f(x), element by element. gelu is x · Φ(x), gelu_tanh its approximation (Hendrycks & Gimpel 2016, arXiv:1606.08415, §2), silu is
 * x / (1 + e⁻ˣ). x (...) f32 → y (...). y is cheap to compute again, so backward does not hold its memory.
 */
export function activation(x: Tensor, kind: Activation): Tensor {
  checkFloat("activation", { x });
  const { size } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  kernels.activation(x.id, y.id, kind, size);
  y.remakeFrom([x], (again) => kernels.activation(x.id, again, kind, size));

  return record(y, [x], [x], (dy, grads) => {
    grads.into(x, (dx, accumulate) => kernels.activationGrad(dy.id, x.id, dx, kind, size, accumulate));
  });
}
