import assert from "node:assert/strict";
import test from "node:test";
import { type DType, dtypes, isWholeBlocks } from "./dtype.js";
import type { ComputeType, NativeEngine } from "./kernels.js";
import { loadEngine } from "./load.js";
import { nearestBfloat, randomWeights } from "./testing/quant-reference.js";
import { Blocks, randomFloats, sameBits, testKernel } from "./testing/testing.js";

/** Not in NativeEngine: "bf16" on AMX's path, over emulated tile instructions. */
const emulateAmx = (engine: NativeEngine, on: boolean): void =>
  (engine as NativeEngine & { emulateAmx(on: boolean): void }).emulateAmx(on);

const scale = 0.75;

interface Setting {
  m: number;
  n: number;
  k: number;
  wType?: DType;
  compute?: ComputeType;
  amx?: boolean;
}

/** The three products of one Linear, each replacing and accumulating, against sums in f64. */
function testProducts({ m, n, k, wType = "f32", compute = "f32", amx = false }: Setting): void {
  const x = randomFloats(m * k, 1);
  const dy = randomFloats(m * n, 2);
  const w = randomWeights(wType, n * k, 3);
  const before = randomFloats(Math.max(m * n, m * k, n * k), 4);
  const operand = (values: ArrayLike<number>): ArrayLike<number> =>
    compute === "bf16" ? Float64Array.from(values, nearestBfloat) : values;

  testKernel(`products of ${m} × ${n} × ${k}, ${wType}, ${compute}${amx ? " on emulated AMX" : ""}`, {
    async run(engine, blocks) {
      emulateAmx(engine, amx);
      const [xId, wId, dyId] = [blocks.of(x), blocks.of(w.bytes), blocks.of(dy)];
      const outputs = [m * n, m * k, n * k].flatMap((count) => [
        { id: blocks.empty(count * 4), count, accumulate: false },
        { id: blocks.of(before.subarray(0, count)), count, accumulate: true },
      ]);
      for (const [i, { id, accumulate }] of outputs.entries()) {
        if (i < 2) engine.matmul(xId, wId, wType, id, m, n, k, scale, accumulate, compute);
        else if (i < 4) engine.matmulInputGrad(dyId, wId, wType, id, m, n, k, scale, accumulate, compute);
        else engine.matmulWeightGrad(dyId, xId, id, m, n, k, scale, accumulate, compute);
      }
      emulateAmx(engine, false);
      return await Promise.all(outputs.map(({ id, count }) => blocks.read(id, count)));
    },
    expected() {
      const [a, b, g] = [operand(x), operand(w.values), operand(dy)];
      return [
        product(
          m,
          n,
          k,
          (i, d) => a[i * k + d]!,
          (d, j) => b[j * k + d]!,
        ),
        product(
          m,
          k,
          n,
          (i, d) => g[i * n + d]!,
          (d, j) => b[d * k + j]!,
        ),
        product(
          n,
          k,
          m,
          (i, d) => g[d * n + i]!,
          (d, j) => a[d * k + j]!,
        ),
      ].flatMap((sum) => [sum, sum.map((value, i) => before[i]! + value)]);
    },
    tolerance: 5e-6,
  });
}

type Factor = (row: number, column: number) => number;

function product(rows: number, columns: number, depth: number, left: Factor, right: Factor): Float64Array {
  const y = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let sum = 0;
      for (let d = 0; d < depth; d++) sum += left(i, d) * right(d, j);
      y[i * columns + j] = scale * sum;
    }
  }
  return y;
}

// Register tiles, their edges, and one more than whole panels.
for (const [m, n, k] of [
  [1, 1, 1],
  [17, 17, 17],
  [24, 64, 32],
  [33, 97, 65],
  [61, 131, 259],
]) {
  testProducts({ m: m!, n: n!, k: k! });
}
// Several blocks of depth, of columns and of rows.
testProducts({ m: 40, n: 50, k: 1301 });
testProducts({ m: 18, n: 2085, k: 19 });
testProducts({ m: 4130, n: 17, k: 18 });
// Few rows (decoding), and few columns, with depths that are no whole vectors.
for (const m of [1, 2, 3, 5, 31]) testProducts({ m, n: 150, k: 77 });
testProducts({ m: 70, n: 1, k: 96 });
// Nothing to do, and sums over nothing.
for (const compute of ["f32", "bf16"] as const)
  for (const [m, n, k] of [
    [0, 5, 7],
    [5, 0, 7],
    [5, 7, 0],
    [0, 0, 5],
    [40, 0, 0],
    [40, 50, 0],
    [0, 64, 300],
    [300, 0, 8],
  ])
    testProducts({ m: m!, n: n!, k: k!, compute });
// LoRA: a narrow inside, a long sum over rows for dA and dB.
testProducts({ m: 300, n: 8, k: 100 });
testProducts({ m: 300, n: 100, k: 8 });
testProducts({ m: 517, n: 45, k: 37 });

for (const wType of Object.keys(dtypes) as DType[]) {
  const wide = isWholeBlocks(wType, 64) ? 64 : 512;
  testProducts({ m: 1, n: 70, k: wide, wType });
  testProducts({ m: 37, n: 70, k: wide * 3, wType });
  testProducts({ m: 20, n: 35, k: wide, wType, compute: "bf16" });
  testProducts({ m: 20, n: 35, k: wide, wType, compute: "bf16", amx: true });
}
for (const amx of [false, true]) {
  testProducts({ m: 3, n: 70, k: 33, compute: "bf16", amx });
  testProducts({ m: 33, n: 65, k: 31, compute: "bf16", amx });
  testProducts({ m: 70, n: 20, k: 667, compute: "bf16", amx });
  testProducts({ m: 19, n: 270, k: 290, compute: "bf16", amx });
  testProducts({ m: 301, n: 9, k: 64, compute: "bf16", amx });
  testProducts({ m: 18, n: 35, k: 65, wType: "bf16", compute: "bf16", amx });
}

test("a row of y does not depend on the rows beside it, among few rows and among many", async () => {
  const engine = loadEngine();
  const [n, k] = [100, 200];
  const blocks = new Blocks(engine);
  const w = blocks.of(randomFloats(n * k, 1));
  const x = randomFloats(64 * k, 2);
  for (const compute of ["f32", "bf16"] as const) {
    const row = async (m: number): Promise<Float32Array> => {
      const y = blocks.empty(m * n * 4);
      engine.matmul(blocks.of(x.subarray(0, m * k)), w, "f32", y, m, n, k, 1, false, compute);
      return (await blocks.read(y, m * n)).subarray(0, n);
    };
    const [one, many] = [await row(1), await row(64)];
    for (const m of [2, 3, 4, 7, 32]) assert.ok(sameBits(await row(m), one), `${m} rows, ${compute}`);
    for (const m of [40, 63]) assert.ok(sameBits(await row(m), many), `${m} rows, ${compute}`);
  }
  blocks.freeAll();
});

test("a sum over nothing is 0, and NaN and infinity come through", async () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const nothing = blocks.empty(0);
  const y = blocks.of(Float32Array.of(1, 2, 3, 4));
  engine.matmul(nothing, nothing, "f32", y, 2, 2, 0, 1, true, "f32");
  assert.deepEqual([...(await blocks.read(y, 4))], [1, 2, 3, 4]);
  engine.matmul(nothing, nothing, "f32", y, 2, 2, 0, 1, false, "f32");
  assert.deepEqual([...(await blocks.read(y, 4))], [0, 0, 0, 0]);

  for (const m of [2, 30]) {
    const x = new Float32Array(m * 4).fill(1);
    x[4] = Number.NaN;
    const wide = blocks.empty(m * 2 * 4);
    const w = blocks.of(Float32Array.of(1, 1, 1, 1, Number.POSITIVE_INFINITY, 1, 1, 1));
    for (const compute of ["f32", "bf16"] as const) {
      engine.matmul(blocks.of(x), w, "f32", wide, m, 2, 4, 1, false, compute);
      assert.deepEqual([...(await blocks.read(wide, 4))], [4, Number.POSITIVE_INFINITY, Number.NaN, Number.NaN]);
    }
  }
  blocks.freeAll();
});

test("products refuse blocks that are too small and rows of broken blocks", () => {
  const engine = loadEngine();
  const blocks = new Blocks(engine);
  const [small, large] = [blocks.empty(5 * 4), blocks.empty(64 * 64 * 4)];
  const error = (name: string) => (e: unknown) => e instanceof RangeError && e.message.includes(name);
  assert.throws(() => engine.matmul(small, large, "f32", large, 2, 3, 4, 1, false, "f32"), error("x"));
  assert.throws(() => engine.matmul(large, small, "f32", large, 2, 3, 4, 1, false, "f32"), error("w"));
  assert.throws(() => engine.matmul(large, large, "f32", small, 2, 3, 4, 1, false, "f32"), error("y"));
  assert.throws(() => engine.matmulInputGrad(large, large, "f32", small, 2, 3, 4, 1, false, "f32"), error("dx"));
  assert.throws(() => engine.matmulWeightGrad(large, large, small, 2, 3, 4, 1, false, "f32"), error("dw"));
  assert.throws(() => engine.matmul(large, large, "q8_0", large, 2, 3, 33, 1, false, "f32"), error("q8_0"));
  assert.throws(() => engine.matmul(large, large, "f32", large, 2, 3, 4, 1, false, "f16" as ComputeType));
  blocks.freeAll();
});

test("the limit of products is measured for each of their types", () => {
  const engine = loadEngine();
  for (const compute of ["f32", "bf16"] as const) assert.ok(engine.peakFlops(compute) > 1e8, compute);
  assert.throws(() => engine.peakFlops("f16" as ComputeType), /peakFlops: compute/);
});
