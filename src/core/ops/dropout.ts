import { dropoutRng, record } from "../tape.js";
import { checkFloat, Tensor } from "../tensor.js";

/**
 * y = x / (1 − p) with chance 1 − p, else 0, for each element by itself (Srivastava et al. 2014, in the inverted form of
 * PyTorch). Outside training, and for p = 0, y is x. The mask is never stored: it is drawn again from its seed. x f32 → y of the
 * same shape.
 */
export function dropout(x: Tensor, p: number): Tensor {
  const rng = dropoutRng();
  if (p === 0 || rng === null) return x;
  checkFloat("dropout", { x });
  const seed = rng.uint64();
  const { size } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, x.shape);
  kernels.dropout(x.id, y.id, p, seed, size, false);
  y.remakeFrom([x], (again) => kernels.dropout(x.id, again, p, seed, size, false));

  return record(y, [x], [], (dy, grads) => {
    grads.into(x, (dx, accumulate) => kernels.dropout(dy.id, dx, p, seed, size, accumulate));
  });
}
