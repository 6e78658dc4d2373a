import type { Id } from "../../engine/kernels.js";
import { ShapeError } from "../../errors.js";
import { record } from "../tape.js";
import { checkFloat, Tensor } from "../tensor.js";

/**
 * Cuts every row into parts of the given widths, such as the q, k and v that one product has computed together. x (T, Σ widths)
 * f32 → (T, width) for each.
 * Throws ShapeError.
 */
export function splitColumns(x: Tensor, widths: readonly number[]): Tensor[] {
  checkFloat("splitColumns", { x });
  const { rows, columns } = x;
  const { kernels } = x.device;
  if (widths.reduce((sum, width) => sum + width, 0) !== columns)
    throw new ShapeError(
      `splitColumns: parts of ${widths.join(" + ")} do not fill the ${columns} columns of [${x.shape.join(", ")}]`,
    );

  let next = 0;
  return widths.map((width) => {
    const start = next;
    next += width;
    const y = Tensor.empty(x.device, [rows, width]);
    const write = (to: Id) => kernels.copyColumns(x.id, columns, start, to, width, 0, rows, width, false);
    write(y.id);
    y.remakeIfCheckpointed([x], write);

    return record(y, [x], [], (dy, grads) => {
      grads.into(x, (dx, accumulate) => {
        if (!accumulate) kernels.fill(dx, 0, x.size);
        kernels.copyColumns(dy.id, width, 0, dx, columns, start, rows, width, accumulate);
      });
    });
  });
}
