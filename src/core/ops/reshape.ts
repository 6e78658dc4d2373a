import { ShapeError } from "../../errors.js";
import { record } from "../tape.js";
import { type Shape, sizeOf, type Tensor } from "../tensor.js";

/** The same values in the same order under another shape, on the same memory. Throws ShapeError if their number differs. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  if (sizeOf(shape) !== x.size) throw new ShapeError(`reshape: [${x.shape.join(", ")}] does not fill [${shape.join(", ")}]`);
  const y = x.alias(shape);
  y.requiresGrad = false;
  return record(y, [x], [], (dy, grads) => grads.pass(x, dy));
}
