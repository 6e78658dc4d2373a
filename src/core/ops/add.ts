import { record } from "../tape.js";
import { checkFloat, checkShape, type Tensor } from "../tensor.js";

/** y = a + b, same shapes, f32; in b's memory where nobody else needs it. Throws ShapeError. */
export function add(a: Tensor, b: Tensor): Tensor {
  checkFloat("add", { a, b });
  checkShape("add", "b", b, a.shape, "the shape of a");
  const { size } = a;
  const { kernels } = a.device;
  const [aId, bId] = [a.id, b.id]; // a may be b
  const y = b.reuse(
    a === b
      ? { from: [], write: (id) => kernels.add(id, id, id, size) }
      : { from: [a], write: (id) => kernels.add(a.id, id, id, size) },
  );
  kernels.add(aId, bId, y.id, size);

  return record(y, [a, b], [], (dy, grads) => {
    grads.pass(a, dy);
    grads.pass(b, dy);
  });
}
