import type { Id } from "../../engine/kernels.js";
import { ShapeError } from "../../errors.js";
import { record } from "../tape.js";
import { checkFloat, type Tensor } from "../tensor.js";

/**
 * Rotary position embedding: feature i of a head turns together with feature i + D/2 by the angle of its token's position.
 * Source: Su et al. 2021, arXiv:2104.09864, eq. 34, with Hugging Face's pairing (`rotate_half`).
 * x (T, H · D) f32, table (positions, 2, D/2): cosines, then sines → (T, H · D), in place where x is needed by nobody else.
 * Throws ShapeError; a position outside the table is a RangeError of the engine.
 */
export function rope(x: Tensor, table: Tensor, positions: Int32Array, headDim: number): Tensor {
  checkFloat("rope", { x, table });
  if (x.columns % headDim !== 0 || headDim % 2 !== 0)
    throw new ShapeError(
      `rope: expected x of shape [T, heads · ${headDim}] with an even head width, got [${x.shape.join(", ")}]`,
    );
  if (positions.length !== x.rows)
    throw new ShapeError(`rope: expected ${x.rows} positions (rows of x), got ${positions.length}`);
  const [tableRows, , half] = table.shape;
  if (tableRows === undefined || half !== headDim / 2)
    throw new ShapeError(`rope: expected table of shape [positions, 2, ${headDim / 2}], got [${table.shape.join(", ")}]`);
  const heads = x.columns / headDim;
  const { kernels } = x.device;

  const xId = x.id;
  const rotate = (from: Id, to: Id) => kernels.rope(from, to, table.id, positions, tableRows, heads, headDim, false);
  const y = x.reuse({ from: [], write: (id) => rotate(id, id) });
  rotate(xId, y.id);

  return record(y, [x], [], (dy, grads) => {
    grads.replace(x, (dx) => kernels.rope(dy.id, dx, table.id, positions, tableRows, heads, headDim, true));
  });
}
