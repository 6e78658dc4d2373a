import type { Id } from "../../engine/kernels.js";
import { ShapeError } from "../../errors.js";
import { record } from "../tape.js";
import { checkFloat, scope, Tensor } from "../tensor.js";

/** y = x[indices]: some rows of x (T, C) f32 → (indices, C). An index outside T is a RangeError of the engine. */
export function gatherRows(x: Tensor, indices: Int32Array): Tensor {
  checkFloat("gatherRows", { x });
  const { rows, columns } = x;
  const { kernels } = x.device;

  const y = Tensor.empty(x.device, [indices.length, columns]);
  kernels.gatherRows(x.id, indices, y.id, rows, columns);

  return record(y, [x], [], (dy, grads) => {
    grads.into(x, (dx, accumulate) => {
      if (!accumulate) kernels.fill(dx, 0, x.size);
      kernels.scatterRows(dy.id, indices, dx, rows, columns, true);
    });
  });
}

/** Some rows of a tensor, or all (null), and where each goes. */
export interface RowsPart {
  readonly from: Tensor;
  readonly rows: Int32Array | null;
  readonly at: Int32Array;
}

/**
 * y[part.at[i]] = part.from[part.rows[i]] for every part: rows of several tensors in one. Every row of y must be written once; a row of `from`
 * may be read often. from (…, C) f32 → y (count, C). Throws ShapeError; an index outside is a RangeError of the engine.
 */
export function mergeRows(count: number, parts: readonly RowsPart[]): Tensor {
  const { device, columns } = parts[0]!.from;
  const { kernels } = device;
  for (const { from, rows, at } of parts) {
    checkFloat("mergeRows", { from });
    if (from.columns !== columns)
      throw new ShapeError(`mergeRows: expected ${columns} columns in every part, got [${from.shape}]`);
    if (at.length !== (rows?.length ?? from.rows))
      throw new ShapeError(`mergeRows: ${rows?.length ?? from.rows} rows cannot go to ${at.length} places`);
  }
  const written = parts.reduce((sum, { at }) => sum + at.length, 0);
  if (written !== count) throw new ShapeError(`mergeRows: ${written} rows do not fill ${count}`);

  const y = Tensor.empty(device, [count, columns]);
  const write = (to: Id) =>
    scope(() => {
      for (const { from, rows, at } of parts) {
        const chosen = rows === null ? from : Tensor.empty(device, [rows.length, columns]);
        if (rows !== null) kernels.gatherRows(from.id, rows, chosen.id, from.rows, columns);
        kernels.scatterRows(chosen.id, at, to, count, columns, false);
      }
    });
  write(y.id);
  const inputs = parts.map(({ from }) => from);
  y.remakeFrom(inputs, write);

  return record(y, inputs, [], (dy, grads) => {
    for (const { from, rows, at } of parts)
      grads.into(from, (dx, accumulate) => {
        const picked = Tensor.empty(device, [at.length, columns]);
        kernels.gatherRows(dy.id, at, picked.id, count, columns);
        if (rows === null && accumulate) kernels.add(dx, picked.id, dx, from.size);
        else if (rows === null) kernels.copy(picked.id, dx, from.size);
        else {
          if (!accumulate) kernels.fill(dx, 0, from.size);
          kernels.scatterRows(picked.id, rows, dx, from.rows, columns, true);
        }
      });
  });
}
