import assert from "node:assert/strict";
import test from "node:test";
import { loadEngine } from "./load.js";
import { Blocks, randomFloats, testKernel } from "./testing/testing.js";

const shapes = [
  [1, 3],
  [2, 7],
  [33, 63],
  [300, 576],
] as const;

for (const [rows, cols] of shapes) {
  const a = randomFloats(rows * cols, 1);
  const b = randomFloats(rows * cols, 2);
  const ofRows = randomFloats(rows, 3);
  const ofColumns = randomFloats(cols, 4);

  testKernel(`scaleRows and scaleColumns of ${rows} × ${cols}, in place too`, {
    async run(engine, blocks) {
      const [x, byRow, byColumn] = [blocks.of(a), blocks.of(ofRows), blocks.of(ofColumns)];
      const [y, inPlace] = [blocks.empty(rows * cols * 4), blocks.of(a)];
      engine.scaleRows(x, byRow, y, rows, cols);
      engine.scaleColumns(inPlace, byColumn, inPlace, rows, cols);
      return [await blocks.read(y, rows * cols), await blocks.read(inPlace, rows * cols)];
    },
    expected: () => [
      Array.from(a, (value, i) => value * ofRows[Math.floor(i / cols)]!),
      Array.from(a, (value, i) => value * ofColumns[i % cols]!),
    ],
    tolerance: 1e-7,
  });

  testKernel(`rowDots and columnDots of ${rows} × ${cols}, added too`, {
    async run(engine, blocks) {
      const [x, y] = [blocks.of(a), blocks.of(b)];
      const [byRow, byColumn] = [blocks.empty(rows * 4), blocks.empty(cols * 4)];
      const [rowsAdded, columnsAdded] = [blocks.of(ofRows), blocks.of(ofColumns)];
      for (const [target, accumulate] of [
        [byRow, false],
        [rowsAdded, true],
      ] as const)
        engine.rowDots(x, y, target, rows, cols, accumulate);
      for (const [target, accumulate] of [
        [byColumn, false],
        [columnsAdded, true],
      ] as const)
        engine.columnDots(x, y, target, rows, cols, accumulate);
      return [
        await blocks.read(byRow, rows),
        await blocks.read(rowsAdded, rows),
        await blocks.read(byColumn, cols),
        await blocks.read(columnsAdded, cols),
      ];
    },
    expected: () => {
      const byRow = new Float64Array(rows);
      const byColumn = new Float64Array(cols);
      for (let i = 0; i < rows * cols; i++) {
        byRow[Math.floor(i / cols)]! += a[i]! * b[i]!;
        byColumn[i % cols]! += a[i]! * b[i]!;
      }
      return [byRow, byRow.map((dot, i) => dot + ofRows[i]!), byColumn, byColumn.map((dot, i) => dot + ofColumns[i]!)];
    },
    tolerance: 1e-6,
  });
}

for (const [rows, cols] of [...shapes, [63, 33], [1, 1], [0, 5], [17, 1024]] as const) {
  const x = randomFloats(rows * cols, 7);
  testKernel(`transpose of ${rows} × ${cols}`, {
    async run(engine, blocks) {
      const y = blocks.empty(rows * cols * 4);
      engine.transpose(blocks.of(x), y, rows, cols);
      return [await blocks.read(y, rows * cols)];
    },
    expected: () => [Array.from(x, (_, i) => x[(i % rows) * cols + Math.floor(i / rows)]!)],
    tolerance: 0,
  });
}

const roots = Float32Array.of(0, 1, 2, 4, 1e-40, 3e38, ...randomFloats(1000, 8).map(Math.abs));
testKernel("squareRoot, rounded as IEEE 754 says", {
  async run(engine, blocks) {
    const y = blocks.of(roots);
    engine.squareRoot(y, y, roots.length);
    return [await blocks.read(y, roots.length)];
  },
  expected: () => [roots.map(Math.sqrt)],
  tolerance: 0,
});

const numerators = randomFloats(1000, 5);
const squares = randomFloats(1000, 6).map((value, i) => (i % 10 === 0 ? 0 : Math.abs(value) + 0.1));
testKernel("divideSqrt, with 0 where there is nothing to divide by", {
  async run(engine, blocks) {
    const y = blocks.empty(4000);
    engine.divideSqrt(blocks.of(numerators), blocks.of(squares), y, 1000);
    return [await blocks.read(y, 1000)];
  },
  expected: () => [Array.from(numerators, (x, i) => (squares[i] === 0 ? 0 : x / Math.sqrt(squares[i]!)))],
  tolerance: 1e-6,
});

/** A matrix (rows, cols) with known singular values: products of random rotations would need an SVD to make, so these are Householder's. */
function withSingularValues(values: readonly number[], cols: number, seed: number): Float32Array {
  const rows = values.length;
  const reflector = (length: number, of: number) => {
    const v = Array.from(randomFloats(length, of));
    const squared = v.reduce((sum, x) => sum + x * x, 0);
    return (i: number, j: number) => (i === j ? 1 : 0) - (2 * v[i]! * v[j]!) / squared;
  };
  const [left, right] = [reflector(rows, seed), reflector(cols, seed + 1)];
  return Float32Array.from({ length: rows * cols }, (_, at) => {
    const [i, j] = [Math.floor(at / cols), at % cols];
    return values.reduce((sum, s, k) => sum + left(i, k) * s * right(k, j), 0);
  });
}

for (const [cols, values] of [
  [9, [3]],
  [40, [9, 5, 1]],
  [300, [1, 8, 0.001, 8, 3, 0.5, 100]],
  [33, [2, 0, 7, 0, 0, 1]],
] as const)
  test(`svd of ${values.length} × ${cols} finds the singular values ${values}`, async () => {
    const engine = loadEngine();
    const { isa, threads, tiers } = engine.info();
    const rows = values.length;
    const x = withSingularValues(values, cols, 7);
    const results: string[] = [];
    for (const tier of tiers)
      for (const count of [1, 2]) {
        engine.setIsa(tier);
        engine.setThreads(count);
        const blocks = new Blocks(engine);
        const [v, u, s] = [blocks.of(x), blocks.empty(rows * rows * 4), blocks.empty(rows * 4)];
        engine.svd(v, u, s, rows, cols);
        const [vs, us, ss] = [await blocks.read(v, rows * cols), await blocks.read(u, rows * rows), await blocks.read(s, rows)];
        blocks.freeAll();
        const sorted = [...values].sort((p, q) => q - p);
        for (const [i, value] of sorted.entries())
          assert.ok(Math.abs(ss[i]! - value) <= 1e-6 * sorted[0]!, `${tier}: singular value ${i} is ${ss[i]}, not ${value}`);
        for (let i = 0; i < rows; i++)
          for (let j = 0; j < rows; j++) {
            const dot = (a: Float32Array, width: number) =>
              Array.from({ length: width }, (_, k) => a[i * width + k]! * a[j * width + k]!).reduce((p, q) => p + q);
            assert.ok(Math.abs(dot(us, rows) - (i === j ? 1 : 0)) < 1e-5, `${tier}: rows ${i} and ${j} of u`);
            if (ss[i]! > 1e-5 && ss[j]! > 1e-5)
              assert.ok(Math.abs(dot(vs, cols) - (i === j ? 1 : 0)) < 1e-5, `${tier}: rows ${i} and ${j} of v`);
          }
        for (let at = 0; at < rows * cols; at++) {
          const [i, j] = [Math.floor(at / cols), at % cols];
          let product = 0;
          for (let k = 0; k < rows; k++) product += us[k * rows + i]! * ss[k]! * vs[k * cols + j]!;
          assert.ok(Math.abs(product - x[at]!) < 2e-6 * sorted[0]!, `${tier}: uᵀ diag(s) v at ${i}, ${j}`);
        }
        results.push(`${tier} ${Buffer.from(ss.buffer).toString("hex")} ${Buffer.from(vs.buffer).toString("hex")}`);
      }
    engine.setIsa(isa);
    engine.setThreads(threads);
    for (let i = 0; i < results.length; i += 2) assert.equal(results[i], results[i + 1], "one thread and two give the same bits");
  });
