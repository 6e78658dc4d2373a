import { ShapeError } from "../../errors.js";
import { record } from "../tape.js";
import { Tensor } from "../tensor.js";

/** y = W[ids]. ids (T), W (V, C) of any type → y (T, C) f32. Throws ShapeError; an id outside V is a RangeError of the engine. */
export function embedding(ids: Int32Array, weight: Tensor): Tensor {
  const [vocab, cols] = weight.shape;
  if (vocab === undefined || cols === undefined || weight.shape.length !== 2)
    throw new ShapeError(`embedding: expected weight of shape [V, C], got [${weight.shape.join(", ")}]`);
  const { kernels } = weight.device;

  const y = Tensor.empty(weight.device, [ids.length, cols]);
  kernels.embedding(ids, weight.id, weight.dtype, y.id, cols, vocab);

  return record(y, [weight], [], (dy, grads) => {
    grads.into(weight, (dw, accumulate) => {
      if (!accumulate) kernels.fill(dw, 0, weight.size);
      kernels.embeddingGrad(ids, dy.id, dw, cols, vocab);
    });
  });
}
