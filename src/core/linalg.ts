import { type DType, dtypes } from "../engine/dtype.js";
import { ShapeError } from "../errors.js";
import { divideSqrt } from "./ops/divide-sqrt.js";
import { checkFloat, checkShape, scope, sizeOf, Tensor } from "./tensor.js";

/**
 * Linear algebra that no tape sees, for what is computed of weights: starts, merges, norms, decompositions. Products are exact f32 on every
 * device. Results belong to the scope around; tensors are f32 unless a comment says otherwise. Shapes that do not fit are a ShapeError.
 */

/** A copy of x. */
export function copyOf(x: Tensor): Tensor {
  checkFloat("copyOf", { x });
  const y = Tensor.empty(x.device, x.shape);
  x.device.kernels.copy(x.id, y.id, x.size);
  return y;
}

/** A copy of x, of any type, in the number type `dtype`, rounded to the nearest. Blocks become other blocks by way of f32. */
export function converted(x: Tensor, dtype: DType): Tensor {
  const isBlocks = (type: DType) => dtypes[type].block > 1;
  if (isBlocks(x.dtype) && dtype !== "f32") return scope(() => converted(converted(x, "f32"), dtype));
  const y = Tensor.empty(x.device, x.shape, dtype);
  const { kernels } = x.device;
  if (isBlocks(dtype)) kernels.quantize(x.id, x.dtype, y.id, dtype, x.rows, x.columns);
  else kernels.convert(x.id, x.dtype, y.id, dtype, x.size);
  return y;
}

/** xᵀ. x (M, N) → (N, M) */
export function transposed(x: Tensor): Tensor {
  const [m, n] = matrix("transposed", "x", x);
  checkFloat("transposed", { x });
  const y = Tensor.empty(x.device, [n, m]);
  x.device.kernels.transpose(x.id, y.id, m, n);
  return y;
}

/** factor · x */
export function scaled(x: Tensor, factor: number): Tensor {
  checkFloat("scaled", { x });
  const y = Tensor.empty(x.device, x.shape);
  x.device.kernels.scale(x.id, y.id, factor, x.size, false);
  return y;
}

/** So many copies of a scalar, of which only the device knows the value. scalar (1) → (count) */
export function repeated(scalar: Tensor, count: number): Tensor {
  const y = Tensor.empty(scalar.device, [count]);
  const { kernels } = scalar.device;
  kernels.fill(y.id, 1, count);
  kernels.scaleRows(y.id, scalar.id, y.id, 1, count);
  return y;
}

/** √x of each element. */
export function squareRoots(x: Tensor): Tensor {
  checkFloat("squareRoots", { x });
  const y = Tensor.empty(x.device, x.shape);
  x.device.kernels.squareRoot(x.id, y.id, x.size);
  return y;
}

/** a b. a (M, N), b (N, K) of any type → (M, K) */
export function product(a: Tensor, b: Tensor): Tensor {
  const y = Tensor.empty(a.device, [matrix("product", "a", a)[0], matrix("product", "b", b)[1]]);
  writeProduct("product", y, a, b, 1, false);
  return y;
}

/** target += scale · a b. target (M, K), a (M, N), b (N, K) of any type */
export function addProduct(target: Tensor, a: Tensor, b: Tensor, scale = 1): void {
  writeProduct("addProduct", target, a, b, scale, true);
}

function writeProduct(op: string, y: Tensor, a: Tensor, b: Tensor, scale: number, accumulate: boolean): void {
  const [m, n] = matrix(op, "a", a);
  const [inner, k] = matrix(op, "b", b);
  if (n !== inner) throw new ShapeError(`${op}: expected b of ${n} rows (the columns of a), got [${b.shape.join(", ")}]`);
  checkShape(op, "target", y, [m, k], "rows of a, columns of b");
  checkFloat(op, { target: y, a });
  y.device.kernels.matmulInputGrad(a.id, b.id, b.dtype, y.id, m, n, k, scale, accumulate, "f32");
}

/** a bᵀ. a (M, K), b (N, K) of any type → (M, N) */
export function productTransposed(a: Tensor, b: Tensor): Tensor {
  const y = Tensor.empty(a.device, [matrix("productTransposed", "a", a)[0], matrix("productTransposed", "b", b)[0]]);
  writeProductTransposed("productTransposed", y, a, b, 1, false);
  return y;
}

/** target += scale · a bᵀ. target (M, N), a (M, K), b (N, K) of any type */
export function addProductTransposed(target: Tensor, a: Tensor, b: Tensor, scale = 1): void {
  writeProductTransposed("addProductTransposed", target, a, b, scale, true);
}

function writeProductTransposed(op: string, y: Tensor, a: Tensor, b: Tensor, scale: number, accumulate: boolean): void {
  const [m, k] = matrix(op, "a", a);
  const [n, inner] = matrix(op, "b", b);
  if (k !== inner) throw new ShapeError(`${op}: expected b of ${k} columns, as a has, got [${b.shape.join(", ")}]`);
  checkShape(op, "target", y, [m, n], "rows of a, rows of b");
  checkFloat(op, { target: y, a });
  y.device.kernels.matmul(a.id, b.id, b.dtype, y.id, m, n, k, scale, accumulate, "f32");
}

/** target += scale · x, of the same shape */
export function addScaled(target: Tensor, x: Tensor, scale: number): void {
  checkShape("addScaled", "x", x, target.shape, "the shape of the target");
  checkFloat("addScaled", { target, x });
  target.device.kernels.scale(x.id, target.id, scale, x.size, true);
}

/** Multiplies each row of x (M, N) by its own factor (M), in place. */
export function multiplyRows(x: Tensor, factors: Tensor): void {
  const [m, n] = matrix("multiplyRows", "x", x);
  checkShape("multiplyRows", "factors", factors, [m], "the rows of x");
  checkFloat("multiplyRows", { x, factors });
  x.device.kernels.scaleRows(x.id, factors.id, x.id, m, n);
}

/** Multiplies each column of x (M, N) by its own factor (N), in place. */
export function multiplyColumns(x: Tensor, factors: Tensor): void {
  const [m, n] = matrix("multiplyColumns", "x", x);
  checkShape("multiplyColumns", "factors", factors, [n], "the columns of x");
  checkFloat("multiplyColumns", { x, factors });
  x.device.kernels.scaleColumns(x.id, factors.id, x.id, m, n);
}

/** ‖row‖² of each row of x (M, N) of any type → (M) */
export function rowSquares(x: Tensor): Tensor {
  const [m, n] = matrix("rowSquares", "x", x);
  const y = Tensor.empty(x.device, [m]);
  scope(() => {
    const floats = x.dtype === "f32" ? x : converted(x, "f32");
    x.device.kernels.rowDots(floats.id, floats.id, y.id, m, n, false);
  });
  return y;
}

/** target (M) += the dot product of each row of a (M, N) with the same row of b */
export function addRowDots(target: Tensor, a: Tensor, b: Tensor): void {
  const [m, n] = matrix("addRowDots", "a", a);
  checkShape("addRowDots", "b", b, a.shape, "the shape of a");
  checkShape("addRowDots", "target", target, [m], "the rows of a");
  checkFloat("addRowDots", { target, a, b });
  target.device.kernels.rowDots(a.id, b.id, target.id, m, n, true);
}

/** The first rows of x (M, N), or values of x (M), on the same memory. */
export function firstOf(x: Tensor, count: number): Tensor {
  const [rows = 0, ...rest] = x.shape;
  return scope(() =>
    x
      .alias([rows, sizeOf(rest)])
      .rowRange(0, count)
      .alias([count, ...rest]),
  );
}

/** [a; b]: rows of both. a (M, K), b (N, K) → (M + N, K) */
export function above(a: Tensor, b: Tensor): Tensor {
  const [m, k] = matrix("above", "a", a);
  const [n] = matrix("above", "b", b);
  checkShape("above", "b", b, [n, k], "the columns of a");
  const y = Tensor.empty(a.device, [m + n, k]);
  scope(() => {
    copyInto(y.rowRange(0, m), a);
    copyInto(y.rowRange(m, n), b);
  });
  return y;
}

/** [a, b]: columns of both. a (M, N), b (M, K) → (M, N + K) */
export function beside(a: Tensor, b: Tensor): Tensor {
  const [m, n] = matrix("beside", "a", a);
  const [, k] = matrix("beside", "b", b);
  const y = Tensor.empty(a.device, [m, n + k]);
  copyIntoColumns(y, 0, a);
  copyIntoColumns(y, n, b);
  return y;
}

/** Writes x over the contents of target, of the same shape. */
export function copyInto(target: Tensor, x: Tensor): void {
  checkShape("copyInto", "x", x, target.shape, "the shape of the target");
  checkFloat("copyInto", { target, x });
  target.device.kernels.copy(x.id, target.id, x.size);
}

/** Writes x (M, N) over the columns of target (M, K) from `start` on. */
export function copyIntoColumns(target: Tensor, start: number, x: Tensor): void {
  const [m, k] = matrix("copyIntoColumns", "target", target);
  const [, n] = matrix("copyIntoColumns", "x", x);
  checkShape("copyIntoColumns", "x", x, [m, n], "the rows of the target");
  if (start < 0 || start + n > k)
    throw new ShapeError(`copyIntoColumns: columns ${start} to ${start + n} are outside [${target.shape.join(", ")}]`);
  checkFloat("copyIntoColumns", { target, x });
  target.device.kernels.copyColumns(x.id, n, 0, target.id, k, start, m, n, false);
}

/**
 * x = uᵀ diag(s) v by rotating pairs of rows. x (M, N) → u (M, M), s (M) falling, v (M, N), whose rows have length 1 or 0. v takes the memory
 * of x, which must not be used again. Quick for few rows.
 */
export function svd(x: Tensor): { readonly u: Tensor; readonly s: Tensor; readonly v: Tensor } {
  const [m, n] = matrix("svd", "x", x);
  checkFloat("svd", { x });
  const [u, s] = [Tensor.empty(x.device, [m, m]), Tensor.empty(x.device, [m])];
  x.device.kernels.svd(x.id, u.id, s.id, m, n);
  return { u, s, v: x };
}

/**
 * W (N, K) that brings x Wᵀ as near to y as it can, and of those the smallest: ridge regression, whose ridge is a millionth of ‖x‖². x (M, K), y (M, N).
 * Quick for few rows.
 */
export function leastSquares(x: Tensor, y: Tensor): Tensor {
  const [m] = matrix("leastSquares", "x", x);
  const [rows, n] = matrix("leastSquares", "y", y);
  if (rows !== m) throw new ShapeError(`leastSquares: expected y of ${m} rows, as x has, got [${y.shape.join(", ")}]`);
  const [, k] = x.shape as [number, number];
  const weight = Tensor.empty(x.device, [n, k]);
  scope(() => {
    const { u, s, v } = svd(copyOf(x)); // x = uᵀ diag(s) v, so Wᵀ = vᵀ diag(s / (s² + ridge)) u y
    const column = s.alias([m, 1]);
    const ones = Tensor.from(x.device, new Float32Array(m).fill(1), [m, 1]);
    const squares = rowSquares(column).alias([m, 1]);
    const total = product(s.alias([1, m]), column);
    addProduct(squares, ones, total, 1e-6);
    const right = product(u, y);
    multiplyRows(right, divideSqrt(s, rowSquares(squares)));
    writeProduct("leastSquares", weight, transposed(right), v, 1, false);
  });
  return weight;
}

function matrix(op: string, name: string, x: Tensor): readonly [rows: number, columns: number] {
  const [rows, columns] = x.shape;
  if (rows === undefined || columns === undefined || x.shape.length !== 2)
    throw new ShapeError(`${op}: expected ${name} to be a matrix, got shape [${x.shape.join(", ")}]`);
  return [rows, columns];
}
