import assert from "node:assert/strict";
import test from "node:test";
import { loadEngine } from "../engine/load.js";
import { ShapeError } from "../errors.js";
import * as linalg from "./linalg.js";
import { Rng } from "./rng.js";
import { scope, Tensor } from "./tensor.js";

const engine = loadEngine();
/** Products stay exact where those of ops would round. */
const device = { kernels: engine, compute: "bf16" } as const;
const rng = new Rng(5);

/** Rows of numbers, and the same as a tensor. */
type Matrix = readonly (readonly number[])[];
const drawn = (rows: number, columns: number): Matrix =>
  Array.from({ length: rows }, () => Array.from({ length: columns }, () => Math.fround(rng.normal())));
const tensor = (x: Matrix) => Tensor.from(device, x.flat(), [x.length, x[0]!.length]);
const vector = (x: readonly number[]) => Tensor.from(device, x, [x.length]);

const transposed = (x: Matrix): Matrix => x[0]!.map((_, column) => x.map((row) => row[column]!));
const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
const product = (a: Matrix, b: Matrix): Matrix => a.map((row) => transposed(b).map((column) => dot(row, column)));
const plus = (a: Matrix, b: Matrix, factor: number): Matrix =>
  a.map((row, i) => row.map((value, j) => value + factor * b[i]![j]!));

async function assertClose(actual: Tensor, expected: Matrix | readonly number[], tolerance = 1e-5): Promise<void> {
  const isMatrix = Array.isArray(expected[0]);
  assert.deepEqual(actual.shape, isMatrix ? [expected.length, (expected as Matrix)[0]!.length] : [expected.length]);
  const wanted = expected.flat();
  for (const [i, value] of (await actual.read()).entries())
    assert.ok(Math.abs(value - wanted[i]!) <= tolerance, `${i}: expected ${wanted[i]}, got ${value}`);
}

const [a, b, c] = [drawn(5, 3), drawn(3, 7), drawn(5, 7)];

test("products and what adds them", async () => {
  await assertClose(linalg.product(tensor(a), tensor(b)), product(a, b));
  await assertClose(linalg.productTransposed(tensor(a), tensor(transposed(b))), product(a, b));
  const [one, other] = [tensor(c), tensor(c)];
  linalg.addProduct(one, tensor(a), tensor(b), -0.5);
  linalg.addProductTransposed(other, tensor(a), tensor(transposed(b)), -0.5);
  for (const sum of [one, other]) await assertClose(sum, plus(c, product(a, b), -0.5));
  const half = linalg.converted(tensor([[1, 2, -3, 0.5]]), "bf16");
  await assertClose(linalg.productTransposed(tensor([[1, 1, 1, 1]]), half), [[0.5]]);
  await assertClose(linalg.product(tensor([[2]]), half), [[2, 4, -6, 1]]);
});

test("copies, transposes, factors, roots and norms", async () => {
  const x = tensor(a);
  const copy = linalg.copyOf(x);
  assert.notEqual(copy.id, x.id);
  await assertClose(copy, a, 0);
  await assertClose(linalg.transposed(x), transposed(a), 0);
  await assertClose(linalg.scaled(x, -2), plus(a, a, -3), 1e-6);
  await assertClose(linalg.squareRoots(vector([0, 4, 2.25])), [0, 2, 1.5], 0);
  await assertClose(
    linalg.rowSquares(x),
    a.map((row) => dot(row, row)),
  );
  await assertClose(linalg.rowSquares(linalg.converted(tensor([[3, 4]]), "f16")), [25], 0);
  const dots = vector([1, 2, 3, 4, 5]);
  linalg.addRowDots(dots, x, x);
  await assertClose(
    dots,
    a.map((row, i) => i + 1 + dot(row, row)),
  );
  linalg.addScaled(copy, x, 3);
  await assertClose(copy, plus(a, a, 3));
  const [byRow, byColumn] = [linalg.copyOf(x), linalg.copyOf(x)];
  linalg.multiplyRows(byRow, vector([1, 2, 3, 4, 5]));
  linalg.multiplyColumns(byColumn, vector([1, 2, 3]));
  await assertClose(
    byRow,
    a.map((row, i) => row.map((value) => value * (i + 1))),
  );
  await assertClose(
    byColumn,
    a.map((row) => row.map((value, j) => value * (j + 1))),
  );
});

test("parts of matrices: first rows, rows above rows, columns beside columns", async () => {
  const x = tensor(a);
  const first = linalg.firstOf(x, 2);
  await assertClose(first, a.slice(0, 2), 0);
  await assertClose(linalg.firstOf(vector([1, 2, 3]), 2), [1, 2], 0);
  linalg.copyInto(first, tensor(a.slice(3)));
  await assertClose(x, [a[3]!, a[4]!, ...a.slice(2)], 0);
  await assertClose(linalg.above(tensor(b), tensor(c)), [...b, ...c], 0);
  await assertClose(
    linalg.beside(tensor(a), tensor(c)),
    a.map((row, i) => [...row, ...c[i]!]),
    0,
  );
  const target = tensor(c);
  linalg.copyIntoColumns(target, 4, tensor(a));
  await assertClose(
    target,
    c.map((row, i) => [...row.slice(0, 4), ...a[i]!]),
    0,
  );
});

test("svd gives the parts of a matrix in the memory of the matrix", async () => {
  const x = tensor(b);
  const { u, s, v } = linalg.svd(x);
  assert.equal(v, x);
  const scaled = linalg.copyOf(v);
  linalg.multiplyRows(scaled, s);
  await assertClose(linalg.product(linalg.transposed(u), scaled), b);
  await assertClose(linalg.productTransposed(v, v), [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
  ]);
  const [first, second, third] = await s.read();
  assert.ok(first! >= second! && second! >= third! && third! > 0);
});

test("conversion to blocks goes from any type, and from blocks by way of f32", async () => {
  const values = [Array.from({ length: 256 }, (_, i) => Math.sin(i))];
  const x = tensor(values);
  const blocks = linalg.converted(x, "q8_0");
  assert.equal(blocks.dtype, "q8_0");
  await assertClose(linalg.converted(blocks, "f32"), values, 1 / 127);
  await assertClose(linalg.converted(linalg.converted(blocks, "q6_k"), "f32"), values, 0.06);
  await assertClose(linalg.converted(linalg.converted(linalg.converted(x, "bf16"), "q8_0"), "f32"), values, 0.02);
});

test("nothing but results stays in memory, also outside of every scope", () => {
  const [x, y] = [tensor(a), tensor(b)];
  const before = engine.stats().liveBytes;
  const first = linalg.firstOf(x, 2);
  first.dispose();
  const blocks = linalg.converted(tensor([new Array(256).fill(1)]), "q8_0");
  const other = linalg.converted(blocks, "q6_k");
  const results = [linalg.above(y, y), linalg.beside(y, y), linalg.rowSquares(x), linalg.product(x, y)];
  scope(() => void linalg.svd(linalg.transposed(x)));
  const kept = [256 * 4, 272, 256, 4 * 42, 4 * 42, 4 * 5, 4 * 35].map((bytes) => 64 * Math.ceil(bytes / 64));
  assert.equal(
    engine.stats().liveBytes - before,
    kept.reduce((sum, bytes) => sum + bytes),
  );
  for (const result of [blocks, other, ...results]) result.dispose();
});

test("least squares: what can be met is met by the smallest weight, the rest as nearly as it can be", async () => {
  const rng = new Rng(5);
  const draw = (rows: number, columns: number) =>
    Array.from({ length: rows }, () => Array.from({ length: columns }, () => rng.normal()));
  const dot = (u: readonly number[], v: readonly number[]) => u.reduce((sum, value, i) => sum + value * v[i]!, 0);
  const solve = async (x: number[][], y: number[][]) => {
    const weight = linalg.leastSquares(tensor(x), tensor(y));
    const flat = [...(await weight.read())];
    return y[0]!.map((_, n) => flat.slice(n * x[0]!.length, (n + 1) * x[0]!.length));
  };

  const [wide, targets] = [draw(4, 9), draw(4, 3)];
  const smallest = await solve(wide, targets);
  for (const [i, row] of wide.entries())
    for (const [n, w] of smallest.entries()) assert.ok(Math.abs(dot(row, w) - targets[i]![n]!) < 1e-3, "met");
  const away = draw(1, 9)[0]!; // whatever no row of x sees is of no use in a weight
  const basis: number[][] = [];
  for (const row of wide) {
    const rest = basis.reduce((left, unit) => left.map((value, i) => value - dot(left, unit) * unit[i]!), row);
    basis.push(rest.map((value) => value / Math.hypot(...rest)));
  }
  const unseen = basis.reduce((left, unit) => left.map((value, i) => value - dot(left, unit) * unit[i]!), away);
  for (const w of smallest) assert.ok(Math.abs(dot(w, unseen)) < 1e-4, "smallest");

  const [tall, wanted] = [draw(6, 2), draw(6, 1)];
  const [w] = await solve(tall, wanted);
  const residual = tall.map((row, i) => dot(row, w!) - wanted[i]![0]!);
  for (const column of [0, 1])
    assert.ok(
      Math.abs(
        dot(
          residual,
          tall.map((row) => row[column]!),
        ),
      ) < 1e-3,
      "normal equations",
    );

  const [same] = await solve(
    [
      [1, 2],
      [1, 2],
    ],
    [[5], [5]],
  );
  assert.ok(Math.abs(same![0]! - 1) < 1e-3 && Math.abs(same![1]! - 2) < 1e-3, `rows that are alike: ${same}`);
});

test("shapes and types that do not fit are refused, with both named", () => {
  const [x, y, s] = [tensor(a), tensor(c), vector([1, 2])];
  const half = linalg.converted(x, "bf16");
  for (const wrong of [
    () => linalg.product(x, y),
    () => linalg.productTransposed(x, y),
    () => linalg.addProduct(x, x, tensor(b)),
    () => linalg.addProductTransposed(x, x, x),
    () => linalg.product(half, tensor(b)),
    () => linalg.transposed(s),
    () => linalg.transposed(half),
    () => linalg.copyOf(half),
    () => linalg.scaled(half, 1),
    () => linalg.squareRoots(half),
    () => linalg.addScaled(x, y, 1),
    () => linalg.multiplyRows(x, s),
    () => linalg.multiplyColumns(x, s),
    () => linalg.addRowDots(s, x, x),
    () => linalg.firstOf(x, 6),
    () => linalg.above(x, y),
    () => linalg.beside(x, tensor(b)),
    () => linalg.copyInto(x, y),
    () => linalg.copyIntoColumns(y, 5, x),
    () => linalg.svd(half),
    () => linalg.leastSquares(x, tensor(b)),
    () => linalg.leastSquares(half, x),
  ])
    assert.throws(wrong, ShapeError, String(wrong));
  assert.throws(() => linalg.product(x, y), /product: expected b of 3 rows \(the columns of a\), got \[5, 7\]/);
});
